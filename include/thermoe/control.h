// SPDX-License-Identifier: Apache-2.0
// What the engine knows of the machine's energy and how it came to know it (docs/energy.md); what it is asked to keep, and what the
// control loop does for that (docs/control-loop.md).
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "thermoe/steering.h"

namespace thermoe {

// Where joules come from. Anything but kCounter and kPower says nothing about what this machine drew.
enum class EnergySource {
  kNone,       // nothing is accounted
  kEstimate,   // predicted from bytes, FLOPs and time: no sensor shows power
  kCounter,    // an energy counter
  kPower,      // power readings, summed over time
  kReplayed,   // a recording: of some other work
  kSimulated,  // a device in virtual time
};
const char* EnergySourceName(EnergySource source);  // "none", "estimate", "counter", "power", "replayed", "simulated"

// Joules of one request. Their sum over requests, and what no request was in flight for, is what the counter counted.
struct RequestEnergy {
  EnergySource source = EnergySource::kNone;
  double prefill_j = 0;  // its share of the steps' energy for rows of its prompt
  double decode_j = 0;   // the same for rows of generated tokens
  double idle_j = 0;     // its share of the time between steps while it was in flight
  // Share of the sum that no reading has confirmed: work since the counter last moved, or while a source was lost.
  double estimated_frac = 0;

  double total_j() const { return prefill_j + decode_j + idle_j; }
};

// Joules since the source was opened.
struct EnergyTotals {
  EnergySource source = EnergySource::kNone;
  double prefill_j = 0, decode_j = 0;
  double idle_j = 0;             // between steps, with requests in flight or without
  double unassigned_idle_j = 0;  // the part of idle_j during which no request was in flight
  double estimated_frac = 0;     // as above
  double counted_j = 0;          // what the source counted; 0 for kEstimate

  double total_j() const { return prefill_j + decode_j + idle_j; }
};

// Where the engine's readings come from.
struct TelemetryInfo {
  std::string name = "none";  // "none", "linux", "nvml:0 NVIDIA H100", "replay:trace.csv", "plant:small"
  bool simulated = false;     // time is virtual: durations and rates are the simulated device's
  bool replayed = false;      // readings have nothing to do with this work
};

// What the control loop keeps, and with what. Limits: 0: none.
struct ControlOptions {
  std::string router;            // "": no control loop; "plain": pacing alone; "static": `static_point`; "adaptive": points as needed
  double power_limit_w = 0;      // mean over a second
  double temp_limit_c = 0;       // of the die
  double latency_target_ms = 0;  // of a decode step, pauses included
  double quality_floor_nats = 0.02;   // no point that loses more is chosen
  // Of the mean loss of the last minutes' tokens, at most the floor, which still bounds every step; for "adaptive" that prefers
  // "energy". 0: none, the floor alone.
  double quality_budget_nats = 0;
  std::string prefer = "throughput";  // or "quality": what gives way last; "energy": joules count without a limit, too
  // Steps take as long as the latency target allows while requests overlap, so that more share each read of the weights; for
  // "adaptive" that prefers "energy".
  bool gather = true;
  bool ttha = false;  // the hardware adapter: learns which experts to avoid while a limit presses; for "adaptive"
  LayerSteering static_point;         // every layer's; without bias and plane caps
  std::string points_path;  // operating points of this model, for "adaptive"; "": plain alone
  std::string state_path;   // what the loop learnt, read when it is made and written by Engine::SaveControl; "": kept nowhere
  std::string log_path;     // decision log, written anew; "": none

  bool on() const { return !router.empty(); }
};

// How well the cost model knows what this engine's steps take. It learns from them ten times a second, not under a simulated device.
struct CostView {
  int profiled_points = 0;     // of `thermoe profile`; 0: none of this model, machine and threads, so a roofline
  std::string profile_error;   // why a profile that is there could not be read
  int64_t steps = 0;           // learnt from
  // Mean of |predicted / measured - 1| of a step's time over the last 50 of them, each before it was learnt: corrected by the
  // steps before it, and as the profile says.
  double error_frac = 0, profile_error_frac = 0;
  // The same for the last updates of automatic test-time training by what was chosen (TttChoiceName), medians of up to 256.
  std::array<int64_t, 6> adapt_updates = {};
  std::array<double, 6> adapt_error_frac = {}, adapt_profile_error_frac = {};
};

// One term of what the hardware adapter descends.
struct AdapterTerm {
  const char* name = "";  // "ttha_power_loss"
  double weight = 0, value = 0;
};

// What `--ttt auto` does in the session that decided last.
struct AdaptView {
  bool on = false;
  std::string choice = "skip", reason;  // for the newest segment
  int64_t learnt = 0, segments = 0, waiting = 0, reverted = 0;  // segments; waiting: put off
  double gain_nats = 0, gain_deviation_nats = 0;  // what a token is thought to gain now
  double joules = 0;                               // predicted, of all adapting
};

// The control loop as it is now, for a view. Without a loop only what sensors say is filled in.
struct ControlView {
  bool on = false;
  std::string router;        // as ControlOptions
  double time_s = 0;         // of the engine's clock
  double power_limit_w = 0, temp_limit_c = 0, latency_target_ms = 0;     // 0: none
  double device_power_w = 0, device_temp_c = 0;                          // the device's own limits; 0: unknown
  double power_w = 0, temp_c = 0;  // measured; 0: unknown
  double latency_ms = 0;           // of decode steps, running mean, pause included
  double lambda_power = 0, lambda_temp = 0, lambda_latency = 0;  // multipliers: how hard each limit presses
  int32_t point = 0, points = 1;   // of how many; 0: plain
  std::string point_text = "plain", reason;
  double point_loss_nats = 0, point_bytes_frac = 1;  // at the running batch
  double pause_frac = 0;           // share of the last second that steps were kept waiting
  double gather_ms = 0;            // what steps are stretched to, so that requests share reads; 0: not stretched
  double quality_budget_nats = 0;  // 0: none
  double mean_loss_nats = 0;       // of the last minutes' tokens, with a budget
  double demand_w = 0;             // what would be drawn without a pause
  bool safest = false;             // sensors that a limit needs fail
  std::string unmet;               // one sentence on a limit that could not be kept for seconds, whatever was done; "": none
  int64_t ticks = 0, point_changes = 0;
  AdaptView adapt;       // also without a loop
  bool ttha = false;     // the hardware adapter is on
  double ttha_gain = 0;  // 0 to 1: how much of its biases is in force
  std::array<AdapterTerm, 7> ttha_terms;
};

}  // namespace thermoe
