#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How much faster reading only hi planes is than reading both: expert stage and decode step, in alternating runs.

  bench/nested_stage.py THERMOE MODEL OUT.json [ROUNDS]"""
import json
import statistics
import subprocess
import sys

thermoe, model, out = sys.argv[1:4]
rounds = int(sys.argv[4]) if len(sys.argv) > 4 else 7
common = ["bench", model, "--prefill", "0", "--decode", "32", "--batch", "8", "--repeat", "2", "--experts", "nested", "--json"]


def run(full_slots):
    done = subprocess.run([thermoe] + common + ["--full-slots", str(full_slots)], check=True, capture_output=True, text=True)
    results = json.loads(done.stdout)["results"]
    return {r["name"]: (r["stage_us_per_token"]["experts"], 1e6 / r["tokens_per_s"]["median"]) for r in results}


pairs = [(run(8), run(0)) for _ in range(rounds)]
summary = {}
for name in pairs[0][0]:
    for at, what in enumerate(("expert stage", "step")):
        ratios = [both[name][at] / hi[name][at] for both, hi in pairs]
        summary[f"{name}, {what}"] = {"times": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
print(json.dumps(summary, indent=1))
json.dump({"schema_version": 1, "command": "thermoe " + " ".join(common).replace(model, model.split("/")[-1]) + " --full-slots 8|0", "rounds": rounds,
           "times_faster_at_full_slots_0": summary}, open(out, "w"), indent=1)
