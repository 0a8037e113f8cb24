#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What docs/control-loop.md says of the closed loop, made again: every scenario with every baseline in the same run, simulated.

    bench/control_loop.py build/release/thermoe                 # all of bench/results/control-loop.json
    bench/control_loop.py build/release/thermoe office-hours    # of that file only these

Where a scenario has several seeds, `over_seeds` has median, least and most of each router's figures.
"""
import json
import os
import statistics
import subprocess
import sys

ALL = "plain; q4; static:full 0; static:best; adaptive; adaptive-adapter"
JOULES = "plain; static:best; adaptive-no-gather; adaptive; adaptive-adapter"
SEEDS = (1, 2, 3)
SCENARIOS = [
    ("cap-350", ALL, (1,)),
    ("cap-350-mixed", ALL, (1,)),
    ("cap-steps", "plain; adaptive", (1,)),
    ("cap-steps-mixed", "plain; adaptive", (1,)),
    ("hot-room", "plain; adaptive", (1,)),
    ("background-latency", "plain; static:best; adaptive", (1,)),
    ("changing-load", ALL, (1,)),
    ("one-or-many", ALL, (1,)),
    ("changing-load-energy", JOULES, SEEDS),
    ("office-hours", JOULES, SEEDS),
    ("tariff", JOULES, SEEDS),
    ("one-or-many-budget", JOULES, (1,)),
]
STATIC_KEYS = ("point", "tokens_per_s", "joules_per_token", "loss_nats")
SPREAD_KEYS = ("tokens_per_joule_over_best_static", "tokens_per_joule_over_statics", "joules_per_token", "loss_nats", "latency_p99_ms")


def run_one(program, root, name, routers, seed):
    path = f"scenarios/{name}.toml"
    print(f"{name}, seed {seed}", file=sys.stderr)
    command = ["simulate", path, "--routers", routers, "--seed", str(seed), "--json"]
    ran = subprocess.run([program, *command], cwd=root, capture_output=True, text=True, check=True)
    result = json.loads(ran.stdout)
    result["command"] = f"thermoe simulate {path} --routers '{routers}' --seed {seed} --json"
    result["statics"] = [{key: run[key] for key in STATIC_KEYS} for run in result["statics"]]
    return result


def spread(results):
    routers = {}
    for i, run in enumerate(results[0]["runs"]):
        routers[run["router"]] = {}
        for key in SPREAD_KEYS:
            values = [result["runs"][i][key] for result in results]
            routers[run["router"]][key] = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return routers


def main():
    program, wanted = os.path.abspath(sys.argv[1]), sys.argv[2:]
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = os.path.join(root, "bench/results/control-loop.json")
    git = subprocess.run(["git", "-C", root, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    kept = []
    if wanted:
        with open(path, encoding="utf-8") as file:
            before = json.load(file)
        kept = [each for each in before["scenarios"] if each["scenario"] not in wanted]
        for each in kept:
            each.setdefault("commit", before.get("commit"))
    made = []
    for name, routers, seeds in SCENARIOS:
        if wanted and name not in wanted:
            continue
        results = [run_one(program, root, name, routers, seed) for seed in seeds]
        for result in results:
            result["commit"] = git.stdout.strip()
        if len(seeds) > 1:
            results[0]["over_seeds"] = spread(results)
        made += results
    order = [name for name, _, _ in SCENARIOS]
    scenarios = sorted(kept + made, key=lambda each: (order.index(each["scenario"]), each["seed"]))
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"schema_version": 1, "simulated": True, "scenarios": scenarios}, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
