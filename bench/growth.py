#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How time grows with the length of a prompt and with the batch: a JSON file and a chart.

  bench/growth.py THERMOE MODEL OUT.json OUT.svg

Left: prefill time per token without the attention stage, against the prompt's length. Right: time of the expert stage of a decode
step against the bytes of the distinct experts it reads, for batches of 1 to 32; the line goes through the origin."""
import json
import subprocess
import sys

thermoe, model, out_json, out_svg = sys.argv[1:5]
PREFILL, BATCH = [64, 128, 256, 512, 1024], [1, 2, 4, 8, 16, 32]
command = ["bench", model, "--prefill", ",".join(map(str, PREFILL)), "--decode", "32", "--batch", ",".join(map(str, BATCH[1:])), "--repeat", "5", "--json"]
bench = json.loads(subprocess.run([thermoe] + command, check=True, capture_output=True, text=True).stdout)

prefill, decode = [], []
for r in bench["results"]:
    stages = r["stage_us_per_token"]
    if r["name"].startswith("prefill"):
        prefill.append({"tokens": r["tokens"], "us_per_token": sum(stages.values()) - stages["attention"]})
    else:
        decode.append({"batch": r["batch"], "expert_mb": r["expert_bytes_per_token"] * r["batch"] / 1e6, "experts_ms": stages["experts"] * r["batch"] / 1e3})
slope = sum(d["experts_ms"] * d["expert_mb"] for d in decode) / sum(d["expert_mb"] ** 2 for d in decode)
for d in decode:
    d["over_line_frac"] = d["experts_ms"] / (slope * d["expert_mb"]) - 1
long_us = [p["us_per_token"] for p in prefill if p["tokens"] >= 256]
summary = {"prefill_spread_from_256_frac": max(long_us) / min(long_us) - 1, "prefill_64_over_1024": prefill[0]["us_per_token"] / prefill[-1]["us_per_token"],
           "decode_worst_off_line_frac": max(abs(d["over_line_frac"]) for d in decode), "expert_gbps": 1 / slope}
json.dump({"schema_version": 1, "device": bench["device"], "model": model.split("/")[-1], "command": "thermoe " + " ".join(command).replace(model, model.split("/")[-1]),
           "prefill": prefill, "decode": decode, "summary": summary}, open(out_json, "w"), indent=1)
print(json.dumps(summary, indent=1))

W, H, LEFT, TOP, PW, PH = 900, 360, 70, 46, 340, 240


def panel(x0, title, xlabel, ylabel, points, xmax, ymax, xticks, line=None):
    px = lambda v: x0 + v / xmax * PW
    py = lambda v: TOP + PH - v / ymax * PH
    s = [f'<text x="{x0}" y="{TOP - 18}" font-weight="bold">{title}</text>', f'<path d="M{x0} {TOP}V{TOP + PH}H{x0 + PW}" fill="none" stroke="#444"/>']
    for v in xticks:
        s.append(f'<text x="{px(v):.0f}" y="{TOP + PH + 18}" text-anchor="middle">{v}</text>')
    step = ymax / 4
    for i in range(5):
        s.append(f'<text x="{x0 - 8}" y="{py(i * step) + 4:.0f}" text-anchor="end">{i * step:g}</text><path d="M{x0} {py(i * step):.1f}H{x0 + PW}" stroke="#ddd"/>')
    s.append(f'<text x="{x0 + PW / 2}" y="{TOP + PH + 40}" text-anchor="middle">{xlabel}</text>')
    s.append(f'<text transform="translate({x0 - 46} {TOP + PH / 2}) rotate(-90)" text-anchor="middle">{ylabel}</text>')
    if line:
        end = min(xmax, ymax / line)
        s.append(f'<path d="M{px(0)} {py(0)}L{px(end):.1f} {py(end * line):.1f}" stroke="#999" stroke-dasharray="5 4"/>')
    else:
        s.append('<path d="M' + "L".join(f"{px(a):.1f} {py(b):.1f}" for a, b, _ in points) + '" fill="none" stroke="#c33" stroke-width="2"/>')
    for a, b, label in points:
        s.append(f'<circle cx="{px(a):.1f}" cy="{py(b):.1f}" r="4" fill="#c33"/>' + (f'<text x="{px(a) + 8:.1f}" y="{py(b) + 14:.1f}">{label}</text>' if label else ""))
    return "".join(s)


def nice(v):
    power = 10 ** (len(str(int(v))) - 1) if v >= 1 else 10 ** -len(str(int(1 / v)))
    return next(m * power for m in (1, 2, 4, 6, 8, 10, 12, 16, 20) if m * power >= v)


left = panel(LEFT, "Prefill", "prompt, tokens", "us per token, attention apart", [(p["tokens"], p["us_per_token"], "") for p in prefill], 1100,
             nice(max(p["us_per_token"] for p in prefill) * 1.1), [64, 256, 512, 1024])
xmax = nice(max(d["expert_mb"] for d in decode) * 1.05)
right = panel(LEFT + PW + 110, "Decode step, batch 1 to 32", "bytes of the distinct experts, MB", "expert stage, ms", [(d["expert_mb"], d["experts_ms"], f'x{d["batch"]}') for d in decode], xmax,
              nice(max(d["experts_ms"] for d in decode) * 1.1), [0, round(xmax / 2), round(xmax)], slope)
open(out_svg, "w").write(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {W} {H}" font-family="sans-serif" font-size="12"><rect width="{W}" height="{H}" fill="#fff"/>{left}{right}</svg>\n')
