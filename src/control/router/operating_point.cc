// SPDX-License-Identifier: Apache-2.0
#include "control/router/operating_point.h"

#include <fmt/format.h>

#include <algorithm>

namespace thermoe {

bool OperatingPoint::SameSettings(const OperatingPoint& other) const {
  return full_slots == other.full_slots && k0 == other.k0 && k_max == other.k_max && soft_batch == other.soft_batch &&
         drop_below_frac == other.drop_below_frac && plane_cap == other.plane_cap;
}

OperatingPoint Alone(const OperatingPoint& point, int32_t slots) {
  OperatingPoint alone = point;
  alone.k0 = kAllSlots;
  alone.soft_batch = 0;
  if (point.k0 != kAllSlots && point.k0 < (point.k_max == kAllSlots ? slots : point.k_max)) alone.k_max = point.k0;
  return alone;
}

std::string Describe(const OperatingPoint& point) {
  std::string text;
  const auto add = [&](const std::string& part) { text += (text.empty() ? "" : ", ") + part; };
  if (point.full_slots != kAllSlots) add(fmt::format("full {}", point.full_slots));
  if (point.k0 != kAllSlots) add(fmt::format("k0 {}", point.k0));
  if (point.soft_batch > 0) add(fmt::format("soft {:g}", point.soft_batch));
  if (point.k_max != kAllSlots) add(fmt::format("k-max {}", point.k_max));
  if (point.drop_below_frac > 0) add(fmt::format("drop {:g}", point.drop_below_frac));
  int64_t capped = 0;
  for (const auto& layer : point.plane_cap) capped += std::count(layer.begin(), layer.end(), 1);
  if (capped > 0) add(fmt::format("{} experts hi", capped));
  return text.empty() ? "plain" : text;
}

Steering ToSteering(const OperatingPoint& point, int32_t layers, uint64_t version) {
  Steering steering;
  steering.version = version;
  steering.layers.resize(static_cast<size_t>(layers));
  for (size_t l = 0; l < steering.layers.size(); ++l) {
    LayerSteering& layer = steering.layers[l];
    layer.full_slots = point.full_slots;
    layer.guaranteed_slots = point.k0;
    layer.max_slots = point.k_max;
    layer.soft_batch = point.soft_batch;
    layer.drop_below_frac = point.drop_below_frac;
    if (l < point.plane_cap.size()) layer.plane_cap = point.plane_cap[l];
  }
  return steering;
}

std::vector<size_t> ParetoFront(const std::vector<OperatingPoint>& points, PointCost OperatingPoint::* batch) {
  int windows = 0;
  for (const OperatingPoint& point : points) windows = std::max(windows, point.windows);
  std::vector<size_t> order;
  for (size_t i = 0; i < points.size(); ++i) {
    if (points[i].windows == windows) order.push_back(i);
  }
  const auto cost = [&](size_t i) -> const PointCost& { return points[i].*batch; };
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    if (cost(a).expert_bytes_frac != cost(b).expert_bytes_frac) return cost(a).expert_bytes_frac < cost(b).expert_bytes_frac;
    return cost(a).loss_nats < cost(b).loss_nats;
  });
  std::vector<size_t> front;
  for (const size_t i : order) {
    if (front.empty() || cost(i).loss_nats < cost(front.back()).loss_nats) front.push_back(i);
  }
  std::reverse(front.begin(), front.end());
  return front;
}

}  // namespace thermoe
