// SPDX-License-Identifier: Apache-2.0
// The control loop: after every step it says how long to wait; ten times a second it chooses how to route
// (docs/control-loop.md).
//
// A pure function of its configuration, the state that it was made with and what AfterStep is told: the same inputs
// give the same decisions to the bit, live, simulated and replayed. A step neither allocates nor locks; a tick
// allocates when it changes the point.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "control/cost/operation.h"
#include "control/router/control_config.h"
#include "control/router/operating_point.h"
#include "control/step_controller.h"
#include "forward/steering.h"
#include "thermoe/status.h"

namespace thermoe {

class ControlLoop : public StepController {
 public:
  // StepController::AfterStep is the loop's heartbeat. Steering of a decision is null until something other than plain
  // was chosen once, and null again in decisions that change nothing.

  // From the next step on. Errors: CheckLimits.
  virtual Status SetLimits(const ControlLimits& limits) = 0;

  virtual const ControlStatus& status() const = 0;
  // Those it chooses among: plain first, then what fits the model by falling bytes; the static point last where it is
  // another.
  virtual const std::vector<OperatingPoint>& points() const = 0;

  // Writes config.state_path; nothing where that is empty.
  virtual Status SaveState() const = 0;
  // Another line of the decision log: a JSON object that replay knows (control/adapt/adapt_log.h). Nothing without a log.
  virtual void Log(const std::string& line) = 0;
  // What was written to the decision log so far is on disk after this. The first error of writing stays.
  virtual Status FlushLog() = 0;
};

// `front`: points of the model; empty: plain alone. Those that do not fit `shape` (plane caps of other layers,
// precisions where experts have no planes) take no part. Errors: CheckConfig's; kCorrupt for a state file that is not
// one; a log that cannot be opened.
Result<std::unique_ptr<ControlLoop>> MakeControlLoop(ControlConfig config, OperatingPoints front,
                                                     const SteeringShape& shape);

SteeringShape SteeringShapeOf(const ModelShape& model);
inline Result<std::unique_ptr<ControlLoop>> MakeControlLoop(ControlConfig config, OperatingPoints front,
                                                            const ModelShape& model) {
  return MakeControlLoop(std::move(config), std::move(front), SteeringShapeOf(model));
}

}  // namespace thermoe
