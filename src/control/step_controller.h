// SPDX-License-Identifier: Apache-2.0
// Where the control loop meets whatever runs steps: the engine's supervisor, the simulator, a test.
#pragma once

#include <memory>

#include "control/telemetry/snapshot.h"
#include "forward/steering.h"

namespace thermoe {

// What a controller sees after a step. References live during the call.
struct StepObservation {
  double start_s, end_s;     // of the clock that the steps run by: the machine's or a plant's
  const StepRecord& record;
  const Snapshot& snapshot;  // the newest; lost where there is no source
  int32_t queued = 0;        // requests that wait for room
};

struct StepDecision {
  std::shared_ptr<const Steering> steering;  // for the next steps; null: as it is
  double pause_s = 0;                        // idle before the next step
  // Bounds on the next steps; 0: as the engine was made.
  int32_t prefill_chunk = 0;   // rows of prompts in a step
  int32_t max_sequences = 0;   // requests that run at a time
};

// Called after every step, on the thread that runs them. Must neither block nor, unless it decides something new, allocate.
class StepController {
 public:
  virtual ~StepController() = default;
  virtual StepDecision AfterStep(const StepObservation& observation) = 0;
};

}  // namespace thermoe
