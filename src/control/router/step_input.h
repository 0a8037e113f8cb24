// SPDX-License-Identifier: Apache-2.0
// All that a decision depends on besides configuration and state, and all that one says: plain data, logged and replayed.
#pragma once

#include <cstdint>
#include <optional>

#include "control/step_controller.h"
#include "control/telemetry/snapshot.h"

namespace thermoe {

// What sensors say, as far as control reads it. Impossible values are unknown.
struct SensorInput {
  SourceState state = SourceState::kLost;
  std::optional<double> temp_c, power_w, energy_j;

  bool operator==(const SensorInput&) const = default;
};

struct StepInput {
  double start_s = 0, end_s = 0;
  int32_t prefill_tokens = 0, decode_tokens = 0, queued = 0;
  double expert_bytes = 0, other_bytes = 0, flops = 0;  // other: the rest of weights, keys and values
  SensorInput sensors;

  double bytes() const { return expert_bytes + other_bytes; }
};

StepInput InputFrom(const StepObservation& observation);

// What AfterStep answers, the point by its index.
struct StepOutput {
  int32_t point = 0;
  double pause_s = 0;
  int32_t prefill_chunk = 0, max_sequences = 0;

  bool operator==(const StepOutput&) const = default;
};

}  // namespace thermoe
