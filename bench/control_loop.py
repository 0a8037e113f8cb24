#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What docs/control-loop.md says of the closed loop, made again: every scenario with every baseline in the same run, simulated.

    bench/control_loop.py build/release/thermoe > bench/results/control-loop.json
"""
import json
import os
import subprocess
import sys

ALL = "plain; q4; static:full 0; static:best; adaptive; adaptive-adapter"
SCENARIOS = [
    ("cap-350", ALL),
    ("cap-350-mixed", ALL),
    ("cap-steps", "plain; adaptive"),
    ("cap-steps-mixed", "plain; adaptive"),
    ("hot-room", "plain; adaptive"),
    ("background-latency", "plain; static:best; adaptive"),
    ("changing-load", ALL),
    ("one-or-many", ALL),
]
STATIC_KEYS = ("point", "tokens_per_s", "joules_per_token", "loss_nats")


def main():
    program = sys.argv[1]
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    commit = subprocess.run(["git", "-C", root, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    out = {"schema_version": 1, "simulated": True, "commit": commit.stdout.strip(), "scenarios": []}
    for name, routers in SCENARIOS:
        path = f"scenarios/{name}.toml"
        print(name, file=sys.stderr)
        ran = subprocess.run([program, "simulate", os.path.join(root, path), "--routers", routers, "--json"],
                             capture_output=True, text=True, check=True)
        result = json.loads(ran.stdout)
        result["command"] = f"thermoe simulate {path} --routers '{routers}' --json"
        result["statics"] = [{key: run[key] for key in STATIC_KEYS} for run in result["statics"]]
        out["scenarios"].append(result)
    json.dump(out, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
