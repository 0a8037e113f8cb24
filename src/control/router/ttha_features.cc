// SPDX-License-Identifier: Apache-2.0
// What the hardware adapter's network sees: numbers of about -1 to 1, 0 where nothing is remarkable or known.
#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "control/router/ttha_adapter.h"

namespace thermoe {
namespace {

// The six costs of each layer's experts in natural-log units from their mean over layers, so that units do not matter.
constexpr int kCosts = 6;
using Costs = std::array<double, kCosts>;

Costs CostsOf(const TthaExpertCost& cost) {
  return {cost.latency_us,
          cost.energy_j,
          cost.temp_rise_c,
          cost.memory_bytes,
          cost.compute_utilisation_frac,
          cost.memory_utilisation_frac};
}

float Relative(double cost, double mean) {
  if (!(cost > 0) || !(mean > 0)) return 0;
  return static_cast<float>(std::clamp(std::log(cost / mean), -2.0, 2.0));
}

float Bounded(std::optional<double> value, double centre, double scale) {
  if (!value.has_value() || !std::isfinite(*value)) return 0;
  return static_cast<float>(std::clamp((*value - centre) / scale, -2.0, 2.0));
}

}  // namespace

TthaDevice TthaDeviceFrom(const Snapshot& now, const Snapshot* before, double power_limit_w, double temp_limit_c) {
  TthaDevice device;
  const auto limit = [](double asked, std::optional<double> own) {
    return asked > 0 ? std::optional<double>(asked) : own;
  };
  const std::optional<double> most_c = limit(temp_limit_c, now.temp_max_c ? now.temp_max_c : now.temp_slowdown_c);
  if (now.temp_c && most_c) device.temp_margin_c = *most_c - *now.temp_c;
  if (!device.temp_margin_c) device.temp_margin_c = now.temp_margin_c;
  if (before != nullptr && before->temp_c && now.temp_c && now.time_s > before->time_s) {
    device.temp_slope_c_per_s = (*now.temp_c - *before->temp_c) / (now.time_s - before->time_s);
  }
  const std::optional<double> most_w = limit(power_limit_w, now.power_limit_w);
  if (now.power_w && most_w && *most_w > 0) device.power_frac = *now.power_w / *most_w;
  device.utilisation_frac = now.utilisation_frac;
  device.memory_utilisation_frac = now.memory_utilisation_frac;
  if (now.clock_mhz && now.clock_limit_mhz && *now.clock_limit_mhz > 0)
    device.clock_frac = *now.clock_mhz / *now.clock_limit_mhz;
  device.throttle = now.throttle.value_or(0);
  return device;
}

void TthaAdapter::SetDeviceFeatures(const TthaDevice& device, double gain) {
  const auto flag = [&](Throttle reason) {
    return (device.throttle & static_cast<uint32_t>(reason)) != 0 ? 1.0f : 0.0f;
  };
  device_ = {Bounded(device.temp_margin_c, 20, 20),
             Bounded(device.temp_slope_c_per_s, 0, 1),
             Bounded(device.power_frac, 1, 0.25),
             Bounded(device.utilisation_frac, 0.5, 0.5),
             Bounded(device.memory_utilisation_frac, 0.5, 0.5),
             Bounded(device.clock_frac, 1, 0.25),
             flag(Throttle::kPowerLimit),
             flag(Throttle::kThermal),
             std::max(flag(Throttle::kPowerBrake), flag(Throttle::kOther)),
             Bounded(device.latency_slack_frac, 0, 0.5),
             Bounded(std::log1p(std::max(0.0, device.queued)), 0, 3),
             static_cast<float>(gain)};
}

void TthaAdapter::SetFeatures(const TthaObserved& observed) {
  const RelaxationShape& shape = options_.shape;
  const bool costs_known = !observed.layer_costs.empty();
  Costs mean = {};
  if (costs_known) {
    for (const TthaExpertCost& cost : observed.layer_costs) {
      const Costs costs = CostsOf(cost);
      for (int i = 0; i < kCosts; ++i) mean[static_cast<size_t>(i)] += costs[static_cast<size_t>(i)] / shape.layers;
    }
  }
  const auto experts = static_cast<float>(shape.experts), slots = static_cast<float>(shape.slots);
  for (int32_t layer = 0; layer < shape.layers; ++layer) {
    const auto first = static_cast<size_t>(layer * shape.experts);
    Costs costs = {};
    if (costs_known) costs = CostsOf(observed.layer_costs[static_cast<size_t>(layer)]);
    float of_layer[kCosts] = {};
    for (size_t i = 0; i < kCosts; ++i) of_layer[i] = Relative(costs[i], mean[i]);
    float bytes = 0;
    for (size_t e = 0; e < static_cast<size_t>(shape.experts); ++e) bytes += bytes_[first + e] / experts;
    const float depth = shape.layers > 1 ? 2 * static_cast<float>(layer) / static_cast<float>(shape.layers - 1) - 1 : 0;
    for (size_t e = 0; e < static_cast<size_t>(shape.experts); ++e) {
      float* x = &features_[(first + e) * TthaNetwork::kFeatures];
      // An expert whose planes are capped costs less than its layer's mean in all six.
      const float own = bytes > 0 ? bytes_[first + e] / bytes - 1 : 0;
      for (int i = 0; i < kCosts; ++i) x[i] = std::clamp(of_layer[i] + own, -2.0f, 2.0f);
      const float popular = std::clamp(popularity_[first + e], 0.0f, 1.0f);
      float alone = 1;  // chance that no other token of the batch holds it
      float base = 1 - popular;
      for (int32_t n = tokens_ - 1; n > 0; n >>= 1, base *= base) alone *= (n & 1) != 0 ? base : 1;
      x[6] = std::clamp(popular * experts / slots - 1, -1.0f, 3.0f);
      x[7] = std::clamp(load_[first + e] * experts / slots - 1, -1.0f, 3.0f);
      x[8] = 1 - 2 * alone;
      x[9] = observed.residency_frac.empty() ? 0 : observed.residency_frac[first + e] - 1;
      x[10] = depth;
    }
  }
  static_assert(TthaNetwork::kFeatures == kCosts + 5);
}

}  // namespace thermoe
