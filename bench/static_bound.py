#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How much more a router could get out of a joule than any one operating point, at the same mean loss: the best choice for each phase
of a load, found by trying all, against a mix of single points (their lower hull) and against the best single point that loses no more.
Phases last long: no transitions, no noise. "floor": no phase loses more; "mean": all of it together, no phase more than twice that.

    bench/static_bound.py models/ember-22m-points.json

The OLMoE shape at 8 bits on an H100 (data/profiles/h100.toml): expert bytes by the batch, 0.5 GB of other weights a decode step.
"""
import itertools
import json
import math
import sys

IDLE_W, J_PER_BYTE, J_PER_FLOP, BYTES_PER_S = 125.0, 129.5e-12, 1.0e-12, 2877.7e9
EXPERT_BYTES_16, OTHER_BYTES, FLOPS_PER_TOKEN = 6.0e9, 0.5e9, 2.5e9

# (batch, cap in W or 0, decode steps a second or 0 for as many as go, share of the time)
LOADS = {
    "16 and 1 at 350 W, then 16 at 100 steps/s without": [(16, 350, 0, 1), (1, 350, 0, 1), (16, 0, 100, 1)],
    "1 without a cap three quarters of the time, 16 at 350 W": [(1, 0, 0, 3), (16, 350, 0, 1)],
    "1 and 16 by halves, no cap": [(1, 0, 0, 1), (16, 0, 0, 1)],
    "1 at 600 steps/s by day, 16 at 350 W by night": [(1, 0, 600, 2), (16, 350, 0, 1)],
    "1, 2, 4 with gaps, 16 at 350 W": [(1, 0, 900, 2), (2, 0, 700, 2), (4, 0, 500, 2), (16, 350, 0, 1)],
    "1 at 200 steps/s 16 hours, 16 at 250 W 2 hours": [(1, 0, 200, 8), (16, 250, 0, 1)],
}
FLOORS = (0.02, 0.03, 0.045)
MEANS = (0.02, 0.03)
FLOOR_OVER_MEAN = 2


def at_batch(cost, key, batch):
    share = math.log2(min(batch, 16)) / 4
    return cost["batch1"][key] + share * (cost["batch16"][key] - cost["batch1"][key])


def phase(point, batch, cap_w, rate, seconds):
    """Tokens, joules, nats summed over tokens."""
    distinct = (1 - (1 - 1 / 8) ** batch) / (1 - (1 - 1 / 8) ** 16)
    moved = EXPERT_BYTES_16 * distinct * at_batch(point, "expert_bytes_frac", batch) + OTHER_BYTES
    work_j = moved * J_PER_BYTE + FLOPS_PER_TOKEN * batch * J_PER_FLOP
    period_s = max(moved / BYTES_PER_S, 1 / rate if rate else 0, work_j / (cap_w - IDLE_W) if cap_w else 0)
    steps = seconds / period_s
    return steps * batch, (work_j + IDLE_W * period_s) * steps, at_batch(point, "loss_nats", batch) * steps * batch


def mean(parts):
    tokens, joules, nats = (sum(part[i] for part in parts) for i in range(3))
    return nats / tokens, joules / tokens


def hull(statics, loss):
    best = min((j for l, j in statics if l <= loss), default=math.inf)
    for (la, ja), (lb, jb) in itertools.permutations(statics, 2):
        if la <= loss < lb:
            best = min(best, ja + (loss - la) / (lb - la) * (jb - ja))
    return best


def single(statics, loss):
    return min((joules for each, joules in statics if each <= loss), default=math.inf)


def at_mean(parts, statics, budget):
    """Gain over the hull and over the best single point where the mean loss is `budget`: one price for a nat in all phases."""
    allowed = [[each for each in part if each[2] <= FLOOR_OVER_MEAN * budget * each[0]] for part in parts]
    prices = (10 ** (e / 100) for e in range(-700, 300))
    mixes = {mean([min(each, key=lambda p: (p[2] + price * p[1]) / p[0]) for each in allowed]) for price in prices}
    joules = hull(mixes, budget)
    return hull(statics, budget) / joules - 1, single(statics, budget) / joules - 1


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        points = json.load(file)["points"]
    most = max(point["windows"] for point in points)
    points = [point for point in points if point["windows"] == most]
    for name, load in LOADS.items():
        parts = [[phase(point, *each) for point in points] for each in load]
        statics = [mean([part[i] for part in parts]) for i in range(len(points))]
        bounds = []
        for floor in FLOORS:
            allowed = [[part[i] for i in range(len(points)) if part[i][2] <= floor * part[i][0]] for part in parts]
            if math.prod(len(each) for each in allowed) > 200000:  # the price of a nat instead of all combinations
                choices = [[min(each, key=lambda p: (p[2] + price * p[1]) / p[0]) for each in allowed]
                           for price in (10 ** (e / 100) for e in range(-500, 300))]
            else:
                choices = itertools.product(*allowed)
            best = max(((hull(statics, loss) / joules, loss) for loss, joules in map(mean, choices) if loss > 0.002))
            bounds.append(f"floor {floor:g}: {100 * (best[0] - 1):.1f} % at {best[1]:.4f} nats")
        for budget in MEANS:
            over_hull, over_single = at_mean(parts, statics, budget)
            bounds.append(f"mean {budget:g}: {100 * over_hull:.1f} %, {100 * over_single:.1f} % over the best single point")
        print(f"{name}\n  " + "; ".join(bounds))


if __name__ == "__main__":
    main()
