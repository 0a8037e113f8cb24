// SPDX-License-Identifier: Apache-2.0
// What `thermoe simulate` is asked: a model, a device, a load and limits, as a TOML file (docs/simulate.md).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "control/cost/cost_model.h"
#include "control/cost/operation.h"
#include "control/plant/schedule.h"
#include "thermoe/status.h"

namespace thermoe {

struct SimModel {
  std::string arch = "olmoe";  // as `thermoe synth --arch`
  int32_t layers = 0;          // 0: the real model's
  DType type = DType::kQ8_0;   // of the matrices
  bool nested = true;          // routed experts are kept nested (type q8_0)
  std::string points;          // file of operating points; "": the bundled model's
};

// Either `batch` sequences at all times, each replaced by another as it ends, or so many over time, or requests that arrive.
struct SimLoad {
  int32_t batch = 0;                       // 0: requests arrive
  std::optional<Schedule> sequences;       // over time; `batch` is then the most. One that ends later than that ends first
  std::optional<Schedule> arrivals_per_s;  // mean rate; arrivals are Poisson
  int32_t max_batch = 16;                  // sequences that run at a time
  int32_t prompt_tokens = 64, generated_tokens = 128;  // means; lengths are drawn from half to one and a half of them
  int32_t prefill_chunk = 1024;            // rows of prompts in a step
  int32_t burst_tokens = 0;                // a prompt of others that is prefilled ...
  int32_t burst_after_steps = 0;           // ... after so many decode steps; 0: none
};

struct SimLimits {
  double power_w = 0, temp_c = 0, latency_ms = 0;  // 0: none

  bool operator==(const SimLimits&) const = default;
};

// How others' prompts are learnt from, by routers whose names end in +ttt or +ttt-always.
struct SimTttLoad {
  int32_t segment = 128;     // tokens between two updates
  int64_t text_tokens = 0;   // of a stream that several prompts belong to; 0: each prompt is one of its own
  double price_nats = 0.04;  // TttOptions::price_nats
};

struct SimScenario {
  std::string path, name;  // name: the file's, without folder and ending
  SimModel model;
  std::string profile = "h100";  // of the device: a shipped one's name, or a path
  std::string costs;             // a file of measured costs, from where the scenario lies; "": the profile's bandwidth and throughput
  std::shared_ptr<const KernelCostModel> cost_model;  // of `costs`, by who opens it
  std::optional<Schedule> ambient_c, background_frac;  // none: the profile's ambient, no background
  SimLoad load;
  SimTttLoad ttt;
  Schedule power_w{0.0};  // the cap over time; 0: none
  double temp_c = 0, latency_ms = 0;
  double quality_floor_nats = 0.02;   // twice the budget where only that is given
  double quality_budget_nats = 0;     // of the mean; 0: none
  bool gather = true;
  std::string prefer = "throughput";  // or "quality", "energy"
  bool ttha = false;  // the hardware adapter, for the router "adaptive"
  std::vector<std::string> routers;
  double duration_s = 0;
  uint64_t seed = 1;

  SimLimits LimitsAt(double time_s) const { return {power_w.At(time_s), temp_c, latency_ms}; }
};

// Errors: kNotFound, kInvalidArgument; each names file, line, key and remedy.
Result<SimScenario> LoadSimScenario(const std::string& path);

// "plain; static:best" at its semicolons. kInvalidArgument names a router that there is none of.
Result<std::vector<std::string>> ParseRouters(const std::string& text);

// The shape of a model as `arch` has it, without weights. kInvalidArgument: arch, layers or type.
Result<ModelShape> SimModelShape(const SimModel& model);

}  // namespace thermoe
