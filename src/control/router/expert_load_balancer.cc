// SPDX-License-Identifier: Apache-2.0
#include "control/router/expert_load_balancer.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace thermoe {

ExpertLoadBalancer::ExpertLoadBalancer(const LoadBalancerOptions& options, std::span<const uint16_t> group_of_expert)
    : options_(options), group_(group_of_expert.begin(), group_of_expert.end()) {
  THERMOE_CHECK(options.layers > 0 && options.experts > 0 && options.groups > 0);
  THERMOE_CHECK(group_.size() == static_cast<size_t>(options.layers) * static_cast<size_t>(options.experts));
  const auto groups = static_cast<size_t>(options.groups), all = static_cast<size_t>(options.layers) * groups;
  bias_.assign(all, 0);
  free_.assign(all, 0);
  share_.assign(all, 1.0 / options.groups);
  home_.assign(all, 0);
  target_.assign(groups, 1.0 / options.groups);
  slots_.assign(groups, 0);
  seen_.assign(static_cast<size_t>(options.layers), 0);
  for (size_t i = 0; i < group_.size(); ++i) {
    THERMOE_CHECK(group_[i] < options.groups);
    home_[i / static_cast<size_t>(options.experts) * groups + group_[i]] += 1.0 / options.experts;
  }
}

void ExpertLoadBalancer::SetTargets(std::span<const double> margin_c) {
  THERMOE_CHECK(margin_c.empty() || margin_c.size() == target_.size());
  double known = 0, count = 0;
  for (const double margin : margin_c) {
    if (std::isnan(margin)) continue;
    known += std::max(margin, options_.least_margin_c);
    ++count;
  }
  const double mean = count > 0 ? known / count : 1;
  double sum = 0;
  for (size_t g = 0; g < target_.size(); ++g) {
    const bool unknown = margin_c.empty() || std::isnan(margin_c[g]);
    target_[g] = unknown ? mean : std::max(margin_c[g], options_.least_margin_c);
    sum += target_[g];
  }
  if (!std::isfinite(sum)) {  // an infinite margin says nothing about the others
    std::fill(target_.begin(), target_.end(), 1.0);
    sum = static_cast<double>(target_.size());
  }
  for (double& target : target_) target /= sum;
}

void ExpertLoadBalancer::Update(const StepRecord& record, std::span<const double> margin_c) {
  if (options_.groups < 2 || record.layers.size() != static_cast<size_t>(options_.layers)) return;
  SetTargets(margin_c);
  const auto groups = static_cast<size_t>(options_.groups), experts = static_cast<size_t>(options_.experts);
  for (size_t layer = 0; layer < record.layers.size(); ++layer) {
    const std::vector<int32_t>& counts = record.layers[layer].expert_slots;
    if (counts.size() != experts) continue;
    std::fill(slots_.begin(), slots_.end(), 0.0);
    double all = 0;
    for (size_t e = 0; e < experts; ++e) {
      slots_[group_[layer * experts + e]] += counts[e];
      all += counts[e];
    }
    if (!(all > 0)) continue;
    const double rate = seen_[layer] != 0 ? static_cast<double>(options_.memory) : 1.0;
    seen_[layer] = 1;
    float highest = -options_.most;
    double wanted = 0;  // a layer that has no expert in a group cannot load it: targets are over the groups that it has
    for (size_t g = 0; g < groups; ++g) wanted += home_[layer * groups + g] > 0 ? target_[g] : 0;
    for (size_t g = 0; g < groups; ++g) {
      const size_t at = layer * groups + g;
      share_[at] += rate * (slots_[g] / all - share_[at]);
      if (!(home_[at] > 0)) continue;
      const double target = target_[g] / wanted, off = target - share_[at];
      if (std::fabs(off) > static_cast<double>(options_.tolerance_frac) * target) {
        free_[at] = std::clamp(free_[at] + (off > 0 ? options_.step : -options_.step), -options_.most, options_.most);
      }
      highest = std::max(highest, free_[at]);
    }
    for (size_t g = 0; g < groups; ++g) {
      const size_t at = layer * groups + g;
      bias_[at] = home_[at] > 0 ? free_[at] - highest : 0.0f;
    }
  }
}

void ExpertLoadBalancer::AddTo(Steering* steering) const {
  if (options_.groups < 2) return;
  THERMOE_CHECK(steering->layers.size() == static_cast<size_t>(options_.layers));
  const auto groups = static_cast<size_t>(options_.groups), experts = static_cast<size_t>(options_.experts);
  for (size_t layer = 0; layer < steering->layers.size(); ++layer) {
    const float* bias = &bias_[layer * groups];
    if (std::all_of(bias, bias + groups, [](float b) { return b == 0; })) continue;
    std::vector<float>& to = steering->layers[layer].selection_bias;
    if (to.empty()) to.assign(experts, 0.0f);
    for (size_t e = 0; e < experts; ++e) to[e] += bias[group_[layer * experts + e]];
  }
}

}  // namespace thermoe
