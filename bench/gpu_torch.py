#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What PyTorch takes for the matrix work that gpu_matrix times, on the same card: a JSON file.

  bench/gpu_torch.py OUT.json [--experts] [--linear]      (neither: both)

--experts: gate and up in one torch.bmm, silu, the product, down in another, in bf16, of so many distinct experts of OLMoE's shape with so many rows each
           ("8 of 1"); us of a call, then watts of the whole card by its energy counter and pJ a byte of weights, of replays that go on for a second.
--linear:  torch.nn.functional.linear in 16 bits (cuBLASLt's) of [T, 2048] by [N, 2048] transposed, us.
All as graphs over as many copies of the weights as the L2 cache has no room for. As gpu_matrix --joules: power settles for 0.3 s, and what is counted lies
between two changes of the counter. Needs the packages torch and nvidia-ml-py."""
import json
import statistics
import sys
import time

import pynvml
import torch
from torch.nn.functional import linear, silu

HIDDEN, WIDTH = 2048, 1024
COPIES_BYTES = 1 << 30  # of weights that a graph goes through


def graph_of(calls):
    """All calls as one graph, after a warm-up that lets libraries choose their kernels."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def replay_us(graph, calls):
    times = []
    for _ in range(25):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / calls)
    return statistics.median(times[5:])


def sustained(graph, calls, card, seconds=1.0, settle=0.3):
    """us of a call and watts between two changes of the energy counter."""
    us = replay_us(graph, calls)
    together = max(1, round(20e3 / (us * calls)))  # more work than a reading takes
    read = lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(card) / 1e3
    start = time.monotonic()
    last, first, first_time, count, waiting = read(), None, 0.0, 0, None
    while time.monotonic() - start < 30:
        for _ in range(together):
            graph.replay()
        queued = torch.cuda.Event()
        queued.record()
        if waiting is not None:
            waiting.synchronize()
        waiting = queued
        count += 1
        joules, now = read(), time.monotonic()
        if joules == last:
            continue
        last = joules
        if first is None:
            if now - start > settle:
                first, first_time, count = joules, now, 0
        elif now - first_time >= seconds:
            torch.cuda.synchronize()
            return (now - first_time) * 1e6 / (count * together * calls), (joules - first) / (now - first_time)
    sys.exit("gpu_torch.py: the card's energy counter does not move")


def experts(card):
    results = []
    for distinct, rows in [(8, 1), (16, 1), (32, 1), (64, 1), (64, 8), (64, 32)]:
        weight_bytes = distinct * 3 * HIDDEN * WIDTH * 2
        weights = [(torch.randn(distinct, HIDDEN, 2 * WIDTH, device="cuda", dtype=torch.bfloat16) / 45,
                    torch.randn(distinct, WIDTH, HIDDEN, device="cuda", dtype=torch.bfloat16) / 32) for _ in range(max(2, COPIES_BYTES // weight_bytes))]
        x = torch.randn(distinct, rows, HIDDEN, device="cuda", dtype=torch.bfloat16)

        def call(w):
            gate, up = torch.bmm(x, w[0]).split(WIDTH, dim=2)
            return torch.bmm(silu(gate) * up, w[1])

        calls = [lambda w=w: call(w) for w in weights]
        graph = graph_of(calls)
        us = replay_us(graph, len(calls))
        sustained_us, watts = sustained(graph, len(calls), card)
        results.append({"name": f"{distinct} of {rows}", "us": round(us, 2), "gbps": round(weight_bytes / us / 1e3), "sustained_us": round(sustained_us, 2),
                        "watts": round(watts), "pj_per_byte": round(watts * sustained_us * 1e6 / weight_bytes, 1)})
        print(results[-1], flush=True)
        del weights, graph, calls
    return results


def linears():
    results = []
    for dtype in (torch.bfloat16, torch.float16):
        for n in (2048, 6144, 50304):
            copies = max(2, (COPIES_BYTES >> 2) // (n * HIDDEN * 2))
            weights = [torch.randn(n, HIDDEN, device="cuda", dtype=dtype) / 45 for _ in range(copies)]
            for t in (1, 8, 32, 64, 128, 256, 512, 1024, 2048, 4096):
                x = torch.randn(t, HIDDEN, device="cuda", dtype=dtype)
                calls = [lambda w=w: linear(x, w) for w in weights]
                results.append({"dtype": str(dtype).removeprefix("torch."), "n": n, "t": t, "us": round(replay_us(graph_of(calls), copies), 2)})
            print(results[-1], flush=True)
    return results


def main():
    wishes = [a for a in sys.argv[2:] if a in ("--experts", "--linear")]
    if len(sys.argv) < 2 or sys.argv[1].startswith("-") or len(wishes) != len(sys.argv) - 2:
        sys.exit(__doc__)
    if not torch.cuda.is_available():
        sys.exit("gpu_torch.py: PyTorch sees no CUDA device")
    pynvml.nvmlInit()
    uuid = str(torch.cuda.get_device_properties(0).uuid)
    card = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else "GPU-" + uuid)
    result = {"device": torch.cuda.get_device_name(0), "driver": pynvml.nvmlSystemGetDriverVersion(), "torch": torch.__version__}
    with torch.no_grad():
        if not wishes or "--experts" in wishes:
            result["experts"] = experts(card)
        if not wishes or "--linear" in wishes:
            result["linear"] = linears()
    with open(sys.argv[1], "w") as out:
        json.dump(result, out, indent=1)
        out.write("\n")


main()
