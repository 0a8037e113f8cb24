#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What test-time training gains: tiers on texts, even and odd streams apart.

    bench/ttt.py THERMOE MODEL OUT.json TEXT... -- TIER...      TIER: a name, or a TOML file (bench/tiers)

Each text is cut into windows of 2,304 ids inside its documents (NUL separates them), every floor(n/16)-th up to 16; deltas start
anew in each. Adds to OUT.json, so that a run that was stopped goes on.
"""
import json, os, subprocess, sys


def mean(values): return sum(values) / len(values)


def main():
    split = sys.argv.index("--")
    thermoe, model, out, *texts = sys.argv[1:split]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    results = json.load(open(out)) if os.path.exists(out) else {"schema_version": 1, "rows": []}
    done = {row["tier"] for row in results["rows"]}
    for tier in sys.argv[split + 1:]:
        name = os.path.splitext(os.path.basename(tier))[0]
        if name in done: continue
        command = [thermoe, "eval", model, *texts, "--window", "2304", "--sample", "16", "--ttt", tier, "--threads", "1", "--json"]
        run = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        row = {"tier": name, "commit": commit, "engine": run["engine"], "settings": run["ttt"], "texts": []}
        for file in run["files"]:
            changes = file["stream_changes_nats"]
            row["texts"].append({"text": os.path.splitext(os.path.basename(file["file"]))[0], "plain_nll": file["plain_nll"],
                                 "adapted_nll": file["adapted_nll"], "even_change": mean(changes[0::2]), "odd_change": mean(changes[1::2]),
                                 "change": mean(changes), "worst": max(changes), "passes_per_token": file["passes_per_token"],
                                 "time_ratio": file["adapted_seconds"] / file["plain_seconds"]})
        results["rows"].append(row)
        json.dump(results, open(out, "w"), indent=1)
        show = lambda key: "/".join(f"{text[key]:+.4f}" for text in row["texts"])
        print(f"{name:14s} all {show('change')} even {show('even_change')} odd {show('odd_change')} worst {show('worst')}", flush=True)


main()
