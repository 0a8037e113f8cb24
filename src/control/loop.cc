// SPDX-License-Identifier: Apache-2.0
#include "control/loop.h"

#include <optional>
#include <utility>

#include "base/errors.h"
#include "control/router/control_core.h"
#include "control/router/decision_log.h"
#include "control/router/expert_steering.h"
#include "control/router/router_state.h"

namespace thermoe {
namespace {

class Loop final : public ControlLoop {
 public:
  Loop(ControlConfig config, std::vector<OperatingPoint> points, int32_t fixed, const SteeringShape& shape)
      : config_(std::move(config)), core_(config_, std::move(points), fixed), experts_(config_, shape) {
    // Made here once, so that a tick only hands them out.
    uint64_t version = 0;
    for (const OperatingPoint& point : core_.router().points()) {
      steerings_.push_back(std::make_shared<const Steering>(ToSteering(point, shape.layers, ++version)));
    }
  }

  StepDecision AfterStep(const StepObservation& observation) override {
    const StepInput input = InputFrom(observation);
    experts_.Observe(observation.record);
    const StepOutput output = core_.AfterStep(input);
    const bool biased = core_.ticked() && experts_.on() && TickExperts(observation, output.point);
    log_.Add(input, output, core_, experts_);
    StepDecision decision;
    if (output.point != in_force_ || biased) {
      const auto& own = steerings_[static_cast<size_t>(output.point)];
      decision.steering = experts_.adds() ? experts_.Add(*own) : own;
    }
    in_force_ = output.point;
    decision.pause_s = output.pause_s;
    decision.prefill_chunk = output.prefill_chunk;
    decision.max_sequences = output.max_sequences;
    return decision;
  }

  Status SetLimits(const ControlLimits& limits) override {
    THERMOE_RETURN_IF_ERROR(CheckLimits(limits, config_.device_power_w, config_.device_temp_c));
    core_.SetLimits(limits);
    log_.AddLimits(limits);
    return Status::Ok();
  }

  // What an earlier run learnt, if there is a file.
  Status LoadState() {
    if (config_.state_path.empty()) return Status::Ok();
    const Result<ControlState> state = ReadControlState(config_.state_path);
    if (!state.ok()) return state.status().code() == StatusCode::kNotFound ? Status::Ok() : state.status();
    restored_ = *state;
    THERMOE_RETURN_IF_ERROR(experts_.Restore(state->ttha, config_.state_path + ": ttha"));
    if (core_.Restore(*state)) return Status::Ok();
    return Corrupt("{}: holds values that no control loop comes to; delete it to learn anew", config_.state_path);
  }
  Status SaveState() const override {
    if (config_.state_path.empty()) return Status::Ok();
    ControlState state = core_.state();
    state.ttha = experts_.state();
    if (state.ttha.empty() && restored_) state.ttha = restored_->ttha;  // off in this run: kept for the next
    return WriteControlState(config_.state_path, state);
  }
  Status OpenLog(const OperatingPoints& front, int32_t fixed) {
    if (config_.log_path.empty()) return Status::Ok();
    return log_.Open(config_.log_path, config_, experts_.shape(), front, core_.router().points(), fixed, restored_);
  }
  void Log(const std::string& line) override { log_.AddLine(line); }
  Status FlushLog() override { return log_.Flush(); }

  const ControlStatus& status() const override { return core_.status(); }
  const std::vector<OperatingPoint>& points() const override { return core_.router().points(); }

 private:
  bool TickExperts(const StepObservation& observation, int32_t point) {
    const Snapshot& now = observation.snapshot;
    TthaDevice& device = experts_.mutable_input()->device;
    const ControlLimits& limits = core_.status().limits;
    device = TthaDeviceFrom(now, last_.time_s < now.time_s ? &last_ : nullptr, limits.power_w, limits.temp_c);
    core_.AddTo(&device, observation.queued);
    last_ = now;
    const bool moved = experts_.Tick(core_.Observed(), points()[static_cast<size_t>(point)], core_.status().safest);
    core_.ShowAdapter(experts_.report());
    return moved;
  }

  ControlConfig config_;
  ControlCore core_;
  ExpertSteering experts_;
  Snapshot last_;                                           // at the last tick
  std::vector<std::shared_ptr<const Steering>> steerings_;  // [points]
  DecisionLog log_;
  std::optional<ControlState> restored_;
  int32_t in_force_ = 0;  // the engine starts plain
};

}  // namespace

SteeringShape SteeringShapeOf(const ModelShape& model) {
  return {model.config.layers, model.config.experts, model.config.slots, model.nested};
}

Result<std::unique_ptr<ControlLoop>> MakeControlLoop(ControlConfig config, OperatingPoints front,
                                                     const SteeringShape& shape) {
  THERMOE_RETURN_IF_ERROR(CheckConfig(config));
  std::vector<OperatingPoint> points(1);
  int32_t fixed = config.router == RouterMode::kPlain ? 0 : -1;
  if (config.router == RouterMode::kAdaptive) points = UsablePoints(front, shape);
  if (const size_t all = static_cast<size_t>(shape.layers) * static_cast<size_t>(shape.experts);
      !config.placement.empty() && config.placement.size() != all) {
    return InvalidArgument(
        "placement: groups of {} experts, but the model has {}; give one for each expert of each layer",
        config.placement.size(), all);
  }
  if (config.router == RouterMode::kStatic) {
    THERMOE_RETURN_IF_ERROR(CheckSteering(ToSteering(config.static_point, shape.layers, 1), shape));
    fixed = 0;
    if (!config.static_point.SameSettings(points[0])) points.push_back(config.static_point), fixed = 1;
  }
  auto loop = std::make_unique<Loop>(std::move(config), std::move(points), fixed, shape);
  THERMOE_RETURN_IF_ERROR(loop->LoadState());
  THERMOE_RETURN_IF_ERROR(loop->OpenLog(front, fixed));
  return std::unique_ptr<ControlLoop>(std::move(loop));
}

}  // namespace thermoe
