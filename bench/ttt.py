#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What test-time training gains: tiers on texts, even and odd streams apart.

    bench/ttt.py THERMOE MODEL OUT.json TEXT... -- TIER...      TIER: a name, or a TOML file (bench/tiers)

Each text is cut into windows of 2,304 ids inside its documents (NUL separates them), every floor(n/16)-th up to 16; deltas start
anew in each. Adds to OUT.json, so that a run that was stopped goes on.
"""
import json, os, subprocess, sys


def mean(values): return sum(values) / len(values)


def evaluate(thermoe, model, texts, tier):
    command = [thermoe, "eval", model, *texts, "--window", "2304", "--sample", "16", "--ttt", tier, "--threads", "1", "--json"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def text_row(file):
    changes = file["stream_changes_nats"]
    return {"text": os.path.splitext(os.path.basename(file["file"]))[0], "plain_nll": file["plain_nll"], "adapted_nll": file["adapted_nll"],
            "even_change": mean(changes[0::2]), "odd_change": mean(changes[1::2]), "change": mean(changes), "worst": max(changes),
            "passes_per_token": file["passes_per_token"]}


def run_tiers(run_of, row_of, shown):
    """Command line: THERMOE MODEL OUT.json TEXT... -- TIER... A row of OUT.json each, from run_of(thermoe, model, texts, tier, name)."""
    split = sys.argv.index("--")
    thermoe, model, out, *texts = sys.argv[1:split]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    results = json.load(open(out)) if os.path.exists(out) else {"schema_version": 1, "rows": []}
    done = {row["tier"] for row in results["rows"]}
    for tier in sys.argv[split + 1:]:
        name = os.path.splitext(os.path.basename(tier))[0]
        if name in done: continue
        run = run_of(thermoe, model, texts, tier, name)
        row = {"tier": name, "commit": commit, "engine": run["engine"], **row_of(run)}
        results["rows"].append(row)
        json.dump(results, open(out, "w"), indent=1)
        values = lambda key: "/".join(f"{text[key]:+.4f}" for text in row["texts"])
        print(f"{name:16s}", *(f"{label} {values(key)}" for label, key in shown), flush=True)


def row_of(run):
    return {"settings": run["ttt"],
            "texts": [{**text_row(file), "time_ratio": file["adapted_seconds"] / file["plain_seconds"]} for file in run["files"]]}


if __name__ == "__main__":
    run_tiers(lambda thermoe, model, texts, tier, name: evaluate(thermoe, model, texts, tier), row_of,
              (("all", "change"), ("even", "even_change"), ("odd", "odd_change"), ("worst", "worst")))
