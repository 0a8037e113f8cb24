// SPDX-License-Identifier: Apache-2.0
// ExpertLoadBalancer: balances where the heat is. Experts belong to placement groups: CPU thread teams now; devices,
// NUMA nodes and expert-parallel ranks later.
//
// The rule is the auxiliary-loss-free one (Wang et al., 2024, arXiv 2408.15664), on groups: every update a group's bias
// moves by a fixed step towards fewer or more tokens, b += u * sign(target - load), on a moving average of loads. A
// group's target is the mean weighted by its temperature margin, so that a hot group gets less than a cool one.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "forward/steering.h"

namespace thermoe {

struct LoadBalancerOptions {
  int32_t layers = 0, experts = 0;  // L, E
  int32_t groups = 1;
  float step = 0.0005f;          // u, in the gate's scores (probabilities)
  float most = 0.02f;            // a bias stays in [-most, most]
  float memory = 0.1f;           // weight of a new load in the moving average
  float tolerance_frac = 0.05f;  // a load this near its target is left alone
  double least_margin_c = 1;     // a group nearer to its limit counts as this near
};

class ExpertLoadBalancer {
 public:
  // `group_of_expert` [L, E], 0 to groups - 1.
  ExpertLoadBalancer(const LoadBalancerOptions& options, std::span<const uint16_t> group_of_expert);

  // One step from the kept slots of `record`. `margin_c` [groups]: degrees to each group's limit; NaN or an empty span:
  // unknown, and unknown groups count as the mean of the known ones. A record without slots changes nothing.
  void Update(const StepRecord& record, std::span<const double> margin_c);

  // Adds each expert's group bias into `layers` [L] of the steering. Nothing is touched with one group, nor while all
  // biases are 0.
  void AddTo(Steering* steering) const;

  const std::vector<float>& group_biases() const { return bias_; }  // [L, groups]; highest of a layer is 0
  const std::vector<double>& group_shares() const {
    return share_;
  }  // [L, groups] moving average of shares of a layer's slots
  const std::vector<double>& targets() const { return target_; }  // [groups], sum 1

 private:
  void SetTargets(std::span<const double> margin_c);

  LoadBalancerOptions options_;
  std::vector<uint16_t> group_;         // [L, E]
  std::vector<float> bias_, free_;      // [L, groups]: published, and before its maximum is taken off
  std::vector<double> share_;           // [L, groups]
  std::vector<double> target_, slots_;  // [groups]
  std::vector<double> home_;            // [L, groups] the layer's experts in the group, of all
  std::vector<uint8_t> seen_;           // [L]
};

}  // namespace thermoe
