// SPDX-License-Identifier: Apache-2.0
// One router on one scenario: steps in virtual time on the plant, and what came of them. Reproducible to the bit from the seed.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "control/plant/device_profile.h"
#include "control/simulate/sim_scenario.h"
#include "control/simulate/sim_ttt.h"
#include "control/step_controller.h"
#include "thermoe/status.h"

namespace thermoe {

// Whoever decides, and how it is told of limits and asked what it does.
struct SimController {
  std::unique_ptr<StepController> controller;
  std::function<Status(const SimLimits&)> set_limits;  // at each change; empty: the controller knows none
  std::function<AdaptLoop()> loop;                     // what it knows now; empty: nothing
};

// Loss of a decoded token under a steering, in nats.
class SimLoss {
 public:
  virtual ~SimLoss() = default;
  // Settings of `steering` without its biases (null: plain), at `batch` decode rows.
  virtual double OfSettings(const Steering* steering, double batch) const = 0;
  // Of what biases lose of the gate's mass: an estimate.
  virtual double OfBiases(double mass_lost) const = 0;
  // For people: "full 0, soft 0.15".
  virtual std::string TextOf(const Steering* steering) const = 0;
};

// A tenth of a second, or what was left of it at the end.
struct SimSample {
  double time_s = 0;  // of its end
  double power_w = 0, cap_w = 0, temp_c = 0, memory_temp_c = 0;
  double pause_frac = 0, busy_frac = 0;
  double tokens_per_s = 0, loss_nats = 0;  // decoded tokens; their loss, 0 without any
  double batch = 0;                        // decode rows of a step, mean
  int32_t queued = 0;
  int32_t setting = 0;                     // into SimRun::settings, at its end
};

// Between two changes of a cap.
struct SimDwell {
  double start_s = 0, end_s = 0, cap_w = 0;
  double mean_w = 0;           // from 2 s after its start; the whole of one shorter than 4 s
  double tokens_per_s = 0;     // decoded, over the same time
  double worst_1s_frac = 0;    // worst 1 s average that starts at least 1 s after its start, over the cap, less 1; may be negative
  double settle_s = 0;         // from then on every 1 s average is at most 2 % above the cap; the dwell's length: never
  bool bound = false;          // the cap held something back: the mean lies within 2 % of it
};

struct SimRun {
  std::string router, point;  // point: what most steps ran by
  double seconds = 0;         // of virtual time; less than asked when the device shut down
  int64_t decoded_tokens = 0, prefilled_tokens = 0, steps = 0;
  double energy_j = 0, loss_nats = 0, bias_loss_nats = 0;  // loss: mean over decoded tokens, biases' part included
  double settle_s = 0, overshoot_frac = 0;                 // worst over dwells
  double over_power_s = 0;    // time in 1 s averages more than 4 % over a cap, from 1 s after it was set
  double over_temp_s = 0;     // time with the die more than 1 C over its limit
  double most_temp_c = 0;
  double over_latency_frac = 0, latency_p99_ms = 0;  // of decode steps, pause included
  double pause_frac = 0, distinct_frac = 0;          // distinct_frac: share of a layer's experts that a decode step reads, mean
  int32_t queued_at_end = 0;
  bool shut_down = false;
  SimTttMode ttt_mode = SimTttMode::kOff;
  SimTttResult ttt;
  std::vector<SimDwell> dwells;
  std::vector<SimSample> samples;
  std::vector<std::string> settings;

  double tokens_per_s() const { return seconds > 0 ? static_cast<double>(decoded_tokens) / seconds : 0; }
  double joules_per_token() const { return decoded_tokens > 0 ? energy_j / static_cast<double>(decoded_tokens) : 0; }
};

// `progress`: share done; false: stop (kCancelled). Errors: those of set_limits.
Result<SimRun> RunScenario(const SimScenario& scenario, const DeviceProfile& profile, const ModelShape& shape, const SimLoss& loss,
                           SimController controller, SimTttMode ttt, const std::function<bool(double)>& progress);

// Dwells, settling, overshoot and violations of power from samples: what RunScenario fills in last.
void MeasureDwells(const SimScenario& scenario, SimRun* run);

}  // namespace thermoe
