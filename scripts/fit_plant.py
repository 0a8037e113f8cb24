#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Fits data/profiles/h100.toml to the two traces of data/ (see data/README.md). Needs numpy.

    python3 scripts/fit_plant.py                 # prints residuals, rewrites data/profiles/h100.toml
    python3 scripts/fit_plant.py --check         # prints residuals only

The model is src/control/plant: electrical constants come from the energy counter and the step counts in closed form, thermal
ones by Levenberg-Marquardt on both temperature sensors. tests/control/plant_trace_test.cc replays the traces through the plant.
"""
import argparse
import csv
import pathlib

import numpy as np

DATA = pathlib.Path(__file__).resolve().parent.parent / "data"
ROW_S = 0.1  # the energy counter changes every 100 ms; one row a change

# The load of the traces (data/README.md).
EXPERT_BYTES = 3 * 2048 * 1024 * 2                         # up, gate and down of one expert, bf16
DECODE_BYTES = 8 * 56 * EXPERT_BYTES                       # 8 layers of 56 distinct experts
DECODE_FLOPS = 8 * 56 * 4 * 2 * 3 * 2048 * 1024            # 4 tokens an expert
GEMM_FLOPS = 4 * 2 * 8192**3                               # 4 products of 8192 x 8192
GEMM_BYTES = 4 * 3 * 8192**2 * 2                           # each operand once: the least possible
GEMM_THROTTLED_TFLOPS = 676                                # measured while h100_power_step.csv was recorded
STEP_LOAD_S = (2.0, 14.14)                                 # begin and end of load there, from the energy counter

# What the traces do not show. Limits are the device's own answers to NVML queries.
FIXED = {
    "leakage_reference_c": 40, "limit_w": 700,
    "limit_window_s": 0.008,     # the first half second of full load drew 703 W on average: the limit acts within tens of ms
    "nominal_mhz": 1980, "lowest_mhz": 345, "quantum_mhz": 15,
    "bandwidth_knee_mhz": 1200,   # not measured; down to 1515 MHz the traces show no loss of bandwidth
    "slowdown_c": 89, "slowdown_band_c": 2, "shutdown_c": 95, "memory_max_c": 95,
    "update_s": 0.1, "temp_quantum_c": 1, "temp_noise_c": 0.2, "power_noise_frac": 0.01,
    "step_time_frac": 0.01,
}


def read(name):
    with open(DATA / name) as f:
        rows = list(csv.DictReader(f))
    return {k: np.array([r[k] if k == "phase" else float(r[k]) for r in rows]) for k in rows[0]}


def phases(cap):
    """Consecutive rows with the same phase and cap: (phase, cap, rows)."""
    out, start = [], 0
    for i in range(1, len(cap["phase"]) + 1):
        if i == len(cap["phase"]) or (cap["phase"][i], cap["cap_w"][i]) != (cap["phase"][start], cap["cap_w"][start]):
            out.append((cap["phase"][start], cap["cap_w"][start], np.arange(start, i)))
            start = i
    return out


def fit_idle(cap, step):
    """Idle power = idle_w + leakage * (die - reference), from rows that follow 0.5 s of idling."""
    temp, power = [], []
    for phase, _, rows in phases(cap):
        if phase == "idle":
            temp += list(cap["gpu_temp_c"][rows[6:]])
            power += list((cap["energy_mj"][rows[6:]] - cap["energy_mj"][rows[5:-1]]) / 1e3 / ROW_S)
    t = step["time_s"]
    for i in range(1, len(t)):
        if t[i] <= STEP_LOAD_S[0] + 0.01 and t[i] > 1.2 or t[i - 1] > STEP_LOAD_S[1] + 0.5:
            temp += [step["gpu_temp_c"][i]] * 5
            power += [(step["energy_mj"][i] - step["energy_mj"][i - 1]) / 1e3 / (round((t[i] - t[i - 1]) / ROW_S) * ROW_S)] * 5
    a = np.stack([np.ones(len(temp)), np.array(temp) - FIXED["leakage_reference_c"]], 1)
    (idle_w, leakage), *_ = np.linalg.lstsq(a, np.array(power), rcond=None)
    return idle_w, leakage


def fit_electrical(cap, step):
    p = dict(FIXED)
    p["idle_w"], p["leakage_w_per_c"] = fit_idle(cap, step)
    idle = lambda c: p["idle_w"] + p["leakage_w_per_c"] * (c - p["leakage_reference_c"])

    # Per phase after its first second: mean power, steps per second, duty, energy above idle per step, busy time per step.
    stats = {}
    for phase, cap_w, rows in phases(cap):
        rows = rows[10:]
        seconds = ROW_S * (len(rows) - 1)
        steps = (cap["steps"][rows[-1]] - cap["steps"][rows[0]]) / (cap["time_s"][rows[-1]] - cap["time_s"][rows[0]])
        power = (cap["energy_mj"][rows[-1]] - cap["energy_mj"][rows[0]]) / 1e3 / seconds
        stats.setdefault((phase, cap_w), []).append(
            dict(power=power, steps=steps, duty=cap["duty_frac"][rows].mean(), clock=cap["sm_clock_mhz"][rows].mean(),
                 above_j=(power - idle(cap["gpu_temp_c"][rows].mean())) / max(steps, 1e-9)))

    # Bandwidth: uncapped decode is all traffic.
    decode_s = 1 / np.mean([s["steps"] for s in stats[("decode", 0.0)]])
    p["bandwidth_gbps"] = DECODE_BYTES / decode_s / 1e9
    # The middle of the extremes keeps the largest relative error smallest.
    middle = lambda values: (min(values) + max(values)) / 2
    decode_j = middle([s["above_j"] for (phase, _), many in stats.items() if phase == "decode" for s in many])
    # A burst at the nominal clock: mixed loads with a cap that leaves the clock alone.
    calm = [s for (phase, cap_w), many in stats.items() if phase == "mixed" and 0 < cap_w < 600 for s in many]
    gemm_s = np.mean([4 * s["duty"] / s["steps"] - 3 * decode_s for s in calm])
    gemm_j = np.mean([4 * s["above_j"] - 3 * decode_j for s in calm])
    p["compute_tflops"] = GEMM_FLOPS / gemm_s / 1e12
    # decode_j and gemm_j are two equations for the two energies.
    byte_j, flop_j = np.linalg.solve([[DECODE_BYTES, DECODE_FLOPS], [GEMM_BYTES, GEMM_FLOPS]], [decode_j, gemm_j])
    p["energy_per_byte_pj"], p["energy_per_flop_pj"] = byte_j * 1e12, flop_j * 1e12

    # Exponents from the two throttled loads: dense products alone, and mixed without a cap.
    steady = (step["time_s"] > STEP_LOAD_S[0] + 4) & (step["time_s"] < STEP_LOAD_S[1])
    e, t = step["energy_mj"][steady], step["time_s"][steady]
    dense = dict(clock=step["sm_clock_mhz"][steady].mean(), gemm_s=GEMM_FLOPS / GEMM_THROTTLED_TFLOPS / 1e12)
    dense_w = (e[-1] - e[0]) / 1e3 / (ROW_S * round((t[-1] - t[0]) / ROW_S))
    dense["gemm_j"] = (dense_w - idle(step["gpu_temp_c"][steady].mean())) * dense["gemm_s"]
    mixed = stats[("mixed", 0.0)][0]
    loads = [dense, dict(clock=mixed["clock"], gemm_s=4 / mixed["steps"] - 3 * decode_s, gemm_j=4 * mixed["above_j"] - 3 * decode_j)]
    x = np.array([np.log(v["clock"] / p["nominal_mhz"]) for v in loads])
    time = np.array([-np.log(v["gemm_s"] / gemm_s) for v in loads])
    energy = np.array([np.log((v["gemm_j"] - GEMM_BYTES * byte_j) / (GEMM_FLOPS * flop_j)) for v in loads])
    p["compute_exponent"], p["energy_exponent"] = x @ time / (x @ x), x @ energy / (x @ x)

    # White noise of a step's energy from the scatter of the counter's increments where nothing else moves.
    rows = phases(cap)[1][2][20:]
    increments = np.diff(cap["energy_mj"][rows])
    scatter = 1.4826 * np.median(abs(np.diff(increments))) / np.sqrt(2)  # a standard deviation without the few outliers
    above_share = decode_j / (increments.mean() / 1e3 / ROW_S * decode_s)  # idle power has no such noise
    p["step_energy_frac"] = scatter / increments.mean() / above_share * np.sqrt(ROW_S / decode_s)

    print(f"idle {p['idle_w']:.2f} W at {p['leakage_reference_c']} C, {p['leakage_w_per_c']:.3f} W/C")
    print(f"decode {decode_s * 1e3:.3f} ms {decode_j:.4f} J above idle; burst {gemm_s * 1e3:.3f} ms {gemm_j:.3f} J; "
          f"throttled {[(round(v['clock']), round(v['gemm_s'] * 1e3, 3), round(v['gemm_j'], 3)) for v in loads]}")
    for (phase, cap_w), many in stats.items():
        for s in many:
            print(f"  {phase} cap {cap_w:.0f}: {s['power']:.1f} W, {s['steps']:.1f} steps/s, duty {s['duty']:.3f}, {s['above_j']:.4f} J above idle")
    return p


# ---- thermal network: die -> spreader -> sink -> ambient, memory -> spreader ----
THERMAL = ["die_capacity_j_per_c", "die_resistance_c_per_w", "spreader_capacity_j_per_c", "spreader_resistance_c_per_w",
           "sink_capacity_j_per_c", "sink_resistance_c_per_w", "memory_capacity_j_per_c", "memory_resistance_c_per_w"]
START = dict(zip(THERMAL, [4, 0.02, 150, 0.01, 1500, 0.05, 15, 0.03]), memory_idle_frac=0.2, memory_traffic_frac=0.5, ambient_c=25.0)
# Logarithms of resistances and capacities; shares through a logistic; ambient_c as it is, drawn to 25 with a deviation of 5.
# Rows of 100 ms do not resolve the die's time constant, but its ripple under 5.6 ms bursts shows in the readings: they scatter by
# 0.9 C in the capped mixed phases (0.2 C in decode), which a constant of 35 ms gives.
DIE_SECONDS = 0.035
NAMES = THERMAL + ["memory_idle_frac", "memory_traffic_frac", "ambient_c"]


def pack(p):
    return np.array([np.log(p[n]) if n in THERMAL else (p[n] / 10 if n == "ambient_c" else np.log(p[n] / (1 - p[n]))) for n in NAMES])


def unpack(v):
    return {n: float(np.exp(x)) if n in THERMAL else (10 * x if n == "ambient_c" else 1 / (1 + np.exp(-x))) for n, x in zip(NAMES, v)}


def network(q, dt):
    """(transition, input) for dt: T' = transition T + input u, u = heats of the four stages and the ambient."""
    c = np.array([q[n] for n in THERMAL[0::2]])
    gd, gs, gk, gm = (1 / q[n] for n in THERMAL[1::2])
    g = np.array([[gd, -gd, 0, 0], [-gd, gd + gs + gm, -gs, -gm], [0, -gs, gs + gk, 0], [0, -gm, 0, gm]])
    root = np.sqrt(c)
    rates, axes = np.linalg.eigh(g / np.outer(root, root))
    decay = np.exp(-rates * dt)
    to_modes, back = axes.T * root, axes / root[:, None]
    b = np.zeros((4, 5))
    b[:4, :4] = np.eye(4)
    b[2, 4] = gk
    transition = back @ (decay[:, None] * to_modes)
    driven = back @ (((1 - decay) / rates)[:, None] * (axes.T @ (b / root[:, None])))
    return transition, driven, np.linalg.inv(g), b


def heats(q, p, power_w, bytes_per_s, ambient):
    memory = q["memory_idle_frac"] * p["idle_w"] + q["memory_traffic_frac"] * p["energy_per_byte_pj"] * 1e-12 * bytes_per_s
    u = np.zeros((len(power_w), 5))
    u[:, 0], u[:, 3], u[:, 4] = power_w - memory, memory, ambient
    return u


def simulate(q, p, load, dt):
    """Die and memory temperature after each dt, from Plant::StartFrom(first die temperature)."""
    u = heats(q, p, load["power_w"], load["bytes_per_s"], q["ambient_c"])
    transition, driven, resistance, b = network(q, dt)
    idle = heats(q, p, np.array([p["idle_w"]]), np.zeros(1), q["ambient_c"])[0]
    temps = resistance @ (b @ idle)
    temps = temps + (load["start_c"] - temps[0])
    out = np.empty((len(u), 2))
    inputs = u @ driven.T
    for i in range(len(u)):
        temps = transition @ temps + inputs[i]
        out[i] = temps[0], temps[3]
    return out


def loads_of_traces(cap, step):
    power = np.diff(cap["energy_mj"]) / 1e3 / ROW_S
    steps = np.diff(cap["steps"])
    step_bytes = np.where(cap["phase"][1:] == "mixed", (3 * DECODE_BYTES + GEMM_BYTES) / 4, DECODE_BYTES)
    # Steps are counted when the row was read, energy when the counter changed: rates by each one's own time.
    a = dict(power_w=power, bytes_per_s=steps * step_bytes / np.maximum(np.diff(cap["time_s"]), 0.05), start_c=cap["gpu_temp_c"][0],
             die=cap["gpu_temp_c"][1:], memory=cap["hbm_temp_c"][1:])
    dt = 0.02
    grid = np.arange(dt, step["time_s"][-1] + dt / 2, dt)
    on = (grid > STEP_LOAD_S[0]) & (grid <= STEP_LOAD_S[1])
    e, t = step["energy_mj"] / 1e3, step["time_s"]
    on_w = (e[27] - e[6]) / (ROW_S * round((t[27] - t[6]) / ROW_S))
    off_w = np.where(grid < STEP_LOAD_S[0], 119.0, 124.3)
    tflops = GEMM_THROTTLED_TFLOPS * 1e12
    b = dict(power_w=np.where(on, on_w, off_w), bytes_per_s=np.where(on, tflops / GEMM_FLOPS * GEMM_BYTES, 0.0), start_c=step["gpu_temp_c"][0],
             die=step["gpu_temp_c"][1:], memory=step["hbm_temp_c"][1:], at=np.round(step["time_s"][1:] / dt).astype(int) - 1)
    return a, b, dt


def residuals(v, p, a, b, dt):
    q = unpack(v)
    ra = simulate(q, p, a, ROW_S) - np.stack([a["die"], a["memory"]], 1)
    rb = (simulate(q, p, b, dt)[np.clip(b["at"], 0, None)] - np.stack([b["die"], b["memory"]], 1))
    # Half a second of the step trace weighs as much as five rows of the other, times two: it is alone in its load. Memory counts half.
    weight = np.array([1, 0.5])
    die_s = q["die_capacity_j_per_c"] * q["die_resistance_c_per_w"]
    prior = np.array([(q["ambient_c"] - 25) / 5 * 3, np.log(die_s / DIE_SECONDS) * 30])
    return np.concatenate([(ra * weight).ravel(), (rb * weight * np.sqrt(10)).ravel(), prior]), ra, rb


def fit_thermal(p, cap, step, rounds=80):
    a, b, dt = loads_of_traces(cap, step)
    v, damping = pack(START), 1e-2
    r = residuals(v, p, a, b, dt)[0]
    for _ in range(rounds):
        jacobian = np.stack([(residuals(v + h, p, a, b, dt)[0] - r) / 1e-4 for h in 1e-4 * np.eye(len(v))], 1)
        h, gradient = jacobian.T @ jacobian, jacobian.T @ r
        improved = False
        for _ in range(8):
            move = np.linalg.solve(h + damping * (np.diag(np.diag(h)) + 1e-6 * np.eye(len(v))), -gradient)
            trial = v + np.clip(move, -0.5, 0.5)
            trial_r = residuals(trial, p, a, b, dt)[0]
            if trial_r @ trial_r < r @ r:
                improved = r @ r - trial_r @ trial_r > 1e-7 * (r @ r)
                v, r, damping = trial, trial_r, max(damping / 4, 1e-9)
                break
            damping *= 4
        if not improved:
            break
    _, ra, rb = residuals(v, p, a, b, dt)
    rms = lambda x: np.sqrt(np.mean(x**2))
    print(f"die residual with measured power: cap trace RMS {rms(ra[:, 0]):.2f} max {abs(ra[:, 0]).max():.2f} C, "
          f"step trace RMS {rms(rb[:, 0]):.2f} max {abs(rb[:, 0]).max():.2f} C")
    print(f"memory: RMS {rms(ra[:, 1]):.2f} max {abs(ra[:, 1]).max():.2f} C, step trace RMS {rms(rb[:, 1]):.2f} max {abs(rb[:, 1]).max():.2f} C")
    return unpack(v)


SECTIONS = {
    "power": ["idle_w", "leakage_w_per_c", "leakage_reference_c", "energy_per_byte_pj", "energy_per_flop_pj", "limit_w", "limit_window_s"],
    "throughput": ["bandwidth_gbps", "compute_tflops"],
    "clock": ["nominal_mhz", "lowest_mhz", "quantum_mhz", "compute_exponent", "energy_exponent", "bandwidth_knee_mhz"],
    "limits": ["slowdown_c", "slowdown_band_c", "shutdown_c", "memory_max_c"],
    "thermal": ["ambient_c"] + THERMAL + ["memory_idle_frac", "memory_traffic_frac"],
    "sensors": ["update_s", "temp_quantum_c", "temp_noise_c", "power_noise_frac"],
    "noise": ["step_time_frac", "step_energy_frac"],
}


def write(p, path):
    lines = ["# SPDX-License-Identifier: Apache-2.0", "# One H100 80GB HBM3. Written by scripts/fit_plant.py from the traces beside this folder; do not edit.",
             "# Keys are explained in src/control/plant/device_profile.h; those marked * are not fitted: the script says why.",
             "schema = 1", 'name = "h100"']
    for section, keys in SECTIONS.items():
        lines += ["", f"[{section}]"]
        lines += [f"{k} = {float(f'{p[k]:.5g}'):.10g}{'  # *' if k in FIXED else ''}" for k in keys]
    path.write_text("\n".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="print residuals, write nothing")
    args = parser.parse_args()
    cap, step = read("h100_cap_trace.csv"), read("h100_power_step.csv")
    p = fit_electrical(cap, step)
    p.update(fit_thermal(p, cap, step))
    for key in [k for keys in SECTIONS.values() for k in keys]:
        print(f"{key:28s} {p[key]:.5g}")
    if not args.check:
        write(p, DATA / "profiles" / "h100.toml")


if __name__ == "__main__":
    main()
