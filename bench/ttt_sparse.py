#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What passing again sparsely saves, and what it costs in gain: tiers with recompute_share.

    bench/ttt_sparse.py time THERMOE MODEL OUT.json TEXT ROUNDS      experts of the recomputation, in alternating rounds
    bench/ttt_sparse.py gain THERMOE MODEL OUT.json TEXT...          change of mean NLL as bench/ttt.py measures it

The tier is `combined` with recompute_share added (bench/tiers/sparse.toml has it as a file).
"""
import json, os, statistics, subprocess, sys, tempfile

SHARES = (1, 0.4, 0.2, 0)


def evaluate(thermoe, model, texts, share, *flags):
    tier = open(os.path.join(os.path.dirname(__file__), "tiers", "sparse.toml")).read()
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(tier.replace("recompute_share = 0.4", f"recompute_share = {share}"))
        file.flush()
        command = [thermoe, "eval", model, *texts, "--ttt", file.name, "--window", "2304", "--json", *flags]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def time_rounds(thermoe, model, text, rounds):
    runs = {share: [] for share in SHARES[:2]}
    for _ in range(rounds):
        for share in runs:
            file = evaluate(thermoe, model, [text], share, "--sample", "1", "--threads", "2", "--ctx", "1024")["files"][0]
            runs[share].append({key: file[key] for key in ("recompute_expert_seconds", "recompute_expert_flops", "recomputed_tokens")})
    dense, sparse = runs.values()
    pairs = [a["recompute_expert_seconds"] / b["recompute_expert_seconds"] for a, b in zip(dense, sparse)]
    return {"model": os.path.basename(model), "runs": {str(share): run for share, run in runs.items()}, "pairs_times_faster": pairs,
            "median_times_faster": statistics.median(pairs),
            "flops_share": sparse[0]["recompute_expert_flops"] / dense[0]["recompute_expert_flops"]}


def gains(thermoe, model, texts):
    rows = []
    for share in SHARES:
        files = evaluate(thermoe, model, texts, share, "--sample", "16", "--threads", "1")["files"]
        rows.append({"recompute_share": share, "texts": [
            {"text": os.path.splitext(os.path.basename(file["file"]))[0], "change": statistics.mean(file["stream_changes_nats"]),
             "passes_per_token": file["passes_per_token"], "recompute_expert_flops": file["recompute_expert_flops"]} for file in files]})
    return rows


def main():
    mode, thermoe, model, out, *rest = sys.argv[1:]
    results = json.load(open(out)) if os.path.exists(out) else {"schema_version": 1}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    made = time_rounds(thermoe, model, rest[0], int(rest[1])) if mode == "time" else {"rows": gains(thermoe, model, rest)}
    results[mode] = {"commit": commit, **made}
    json.dump(results, open(out, "w"), indent=1)
    print(json.dumps(results[mode], indent=1))


main()
