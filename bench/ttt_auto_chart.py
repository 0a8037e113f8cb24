#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws gain against joules of fixed tiers, schedules and `--ttt auto` from bench/results/ttt-auto.json.

    bench/ttt_auto_chart.py bench/results/ttt-auto.json docs/ttt-auto.svg
"""
import json, sys

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 440, 70, 30, 40, 60
KINDS = {"auto": ("#1a6fb0", "--ttt auto, by price"), "fixed": ("#b0521a", "fixed tier, each segment"), "each": ("#777777", "fixed tier, each n-th segment")}


def kind_of(tier): return "auto" if tier.startswith("auto") else "each" if "_each" in tier else "fixed"


def main():
    rows = {row["tier"]: row for row in json.load(open(sys.argv[1]))["rows"] if row["tier"] != "adversarial"}
    best = rows["combined"]["texts"]
    share = lambda row, key: sum(text[key] / of[key] for text, of in zip(row["texts"], best)) / len(best)
    points = sorted((100 * share(row, "adapt_joules"), 100 * share(row, "change"), tier) for tier, row in rows.items())
    x = lambda value: LEFT + value / 105 * (WIDTH - LEFT - RIGHT)
    y = lambda value: HEIGHT - BOTTOM - value / 105 * (HEIGHT - TOP - BOTTOM)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
           f'<text x="{LEFT}" y="22" font-size="15">Gain of test-time training for its joules, ember-22m, mean of three texts</text>']
    for tick in range(0, 101, 20):
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick)}" y2="{y(tick)}" stroke="#dddddd"/>'
                   f'<text x="{LEFT - 8}" y="{y(tick) + 4}" text-anchor="end">{tick} %</text>'
                   f'<text x="{x(tick)}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick} %</text>')
    out.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 18}" text-anchor="middle">estimated joules, of combined on each segment</text>'
               f'<text transform="translate(16,{(HEIGHT - BOTTOM + TOP) / 2}) rotate(-90)" text-anchor="middle">change of NLL, of combined</text>')
    line = " ".join(f"{x(joules):.1f},{y(gain):.1f}" for joules, gain, tier in points if kind_of(tier) == "auto")
    out.append(f'<polyline points="{line}" fill="none" stroke="{KINDS["auto"][0]}" stroke-width="2"/>')
    for joules, gain, tier in points:
        color = KINDS[kind_of(tier)][0]
        label = "" if kind_of(tier) == "auto" and tier != "auto" else tier.replace("_each", " each ")
        out.append(f'<circle cx="{x(joules):.1f}" cy="{y(gain):.1f}" r="4" fill="{color}"/>'
                   f'<text x="{x(joules) + 7:.1f}" y="{y(gain) + 14:.1f}" fill="{color}">{label}</text>')
    for index, (color, text) in enumerate(KINDS.values()):
        out.append(f'<circle cx="{WIDTH - 250}" cy="{y(22 - 7 * index)}" r="4" fill="{color}"/>'
                   f'<text x="{WIDTH - 240}" y="{y(22 - 7 * index) + 4}">{text}</text>')
    open(sys.argv[2], "w").write("\n".join(out + ["</svg>"]) + "\n")


main()
