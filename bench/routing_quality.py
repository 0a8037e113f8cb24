#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What each steering setting costs in quality, on texts of your own: a table and a JSON file.

  bench/routing_quality.py THERMOE MODEL OUT.json TEXT... [-- EVAL_FLAGS...]

Each row runs `thermoe eval` over the same windows (32 per text, 1,024 ids, inside documents) and gives its change of mean NLL
against the plain model, text by text. EVAL_FLAGS go to every row (--in-float: no 8-bit activations)."""
import json
import subprocess
import sys

args, _, common = " ".join(sys.argv[1:]).partition(" -- ")
thermoe, model, out, *texts = args.split()
common = common.split()
PROTOCOL = ["--documents", "split", "--window", "1024", "--sample", "32", "--json"]
ROWS = [("plain", [], None)]
ROWS += [(f"top {k} of 8", ["--k-max", str(k)], None) for k in (7, 6, 5, 4)]
ROWS += [(f"threshold {t}", ["--drop-below", t], None) for t in ("0.1", "0.2")]
ROWS += [(f"batch 16, k0 {k}", ["--k0", str(k)], 16) for k in (8, 6, 5, 4, 3)]
ROWS += [("nested, both planes", ["--experts", "nested"], None)]
for full, drop in ((4, 0), (3, 0), (2, 0), (1, 0), (0, 0), (0, 0.05), (0, 0.1)):
    extra = ["--drop-below", str(drop)] if drop else []
    ROWS.append((f"full slots {full}" + (f", threshold {drop}" if drop else ""), ["--experts", "nested", "--full-slots", str(full)] + extra, None))
for k0, full in ((8, 8), (8, 2), (8, 1), (8, 0), (6, 1), (6, 0), (5, 0)):
    ROWS.append((f"batch 16, k0 {k0}, full slots {full}", ["--experts", "nested", "--k0", str(k0), "--full-slots", str(full)], 16))

rows, plain = [], None
print("| setting | change of mean NLL, nats | experts read | distinct |\n|---|---|---|---|")
for name, flags, batch in ROWS:
    command = [thermoe, "eval", model, *texts, *PROTOCOL, *common, *flags] + (["--batch", str(batch)] if batch else [])
    files = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["files"]
    plain = plain or [f["mean_nll"] for f in files]
    row = {"setting": name, "flags": flags, "batch": batch, "mean_nll": [f["mean_nll"] for f in files],
           "change_nats": [f["mean_nll"] - p for f, p in zip(files, plain)],
           "experts_read": sum(f["experts_read"] for f in files) / len(files),
           "distinct_experts": sum(f["distinct_experts"] for f in files) / len(files) if batch else None,
           "slots_per_token": sum(f["slots_per_token"] for f in files) / len(files)}
    rows.append(row)
    distinct = f"{row['distinct_experts']:.1f}" if batch else ""
    print(f"| {name} | {' / '.join(f'{c:+.4f}' for c in row['change_nats'])} | {row['experts_read']:.2f} | {distinct} |", flush=True)
json.dump({"schema_version": 1, "protocol": PROTOCOL + common, "texts": [t.split("/")[-1] for t in texts], "rows": rows}, open(out, "w"), indent=1)
