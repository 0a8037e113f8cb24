// SPDX-License-Identifier: Apache-2.0
// Biases on single experts on top of an operating point: what the hardware adapter learns (docs/ttha.md), and what the
// load balancer adds where experts belong to several placement groups. Reproducible to the bit from its inputs.
//
// Steps are observed all the time, rows of gate logits only while a limit presses and the adapter is on; once a tick
// both learn. With headroom nothing is collected and nothing is added: the point's own Steering stays in force.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "control/router/control_config.h"
#include "control/router/expert_load_balancer.h"
#include "control/router/ttha_adapter.h"

namespace thermoe {

// What a tick learns from beside what the control core says: collected since the tick before, logged and replayed.
struct ExpertInput {
  StepRecord counts;  // decode steps summed: decode_tokens, expert_bytes, and of each layer expert_slots and
                      // distinct_experts
  StepRecord rows;    // the newest: decode_tokens, and of each layer gate_logits
  TthaDevice device;
};

class ExpertSteering {
 public:
  // Rows of gate logits of a step: a pair a tick turns the reservoir over in 0.2 s.
  static constexpr int32_t kSampleRows = 2;

  ExpertSteering(const ControlConfig& config, const SteeringShape& shape);

  // The adapter is on, or there are groups to balance.
  bool on() const { return adapter_ != nullptr || groups_ > 1; }
  const SteeringShape& shape() const { return shape_; }
  // After every step. Allocates nothing.
  void Observe(const StepRecord& record);
  // Once a tick: `core` has machine, limits, multipliers and device as the control core knows them; `calm`: nothing is
  // to be added (no sensors). Returns whether the Steering must be made anew.
  bool Tick(const TthaObserved& core, const OperatingPoint& point, bool calm);
  // Whether the last tick learnt; only then its input is of interest.
  bool learnt() const { return learnt_; }
  const ExpertInput& input() const { return used_; }  // of the last tick
  ExpertInput* mutable_input() { return &next_; }     // of the coming one, for replay

  // Whether anything is added to a point's own Steering.
  bool adds() const { return samples_ || balances_; }
  // `point`'s Steering with what is added, in memory that is used again once nobody holds it.
  std::shared_ptr<const Steering> Add(const Steering& point);

  // Null when the adapter is off.
  const TthaReport* report() const { return adapter_ != nullptr ? &adapter_->report() : nullptr; }
  double bias_sum() const;  // of all biases of the adapter

  // The adapter's weights as JSON; "" when it is off.
  std::string state() const { return adapter_ != nullptr ? adapter_->ToJson() : ""; }
  // kCorrupt names `source`; then nothing has changed.
  Status Restore(const std::string& state, const std::string& source);

 private:
  void SetBytes(const OperatingPoint& point);

  SteeringShape shape_;
  int32_t groups_ = 1;
  std::unique_ptr<TthaAdapter> adapter_;
  ExpertLoadBalancer balancer_;
  ExpertInput next_, used_;
  std::vector<float> expert_bytes_;  // [L, E]
  bool samples_ = false;             // the adapter learns and wants rows
  bool balances_ = false;            // the balancer has moved
  bool learnt_ = false;
  std::vector<std::shared_ptr<Steering>> pool_;
  uint64_t version_;
};

}  // namespace thermoe
