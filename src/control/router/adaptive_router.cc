// SPDX-License-Identifier: Apache-2.0
#include "control/router/adaptive_router.h"

#include <algorithm>
#include <cmath>

namespace thermoe {
namespace {

// At lambda 1 a point that halves a token's joules may lose 7.5 times the floor: the floor alone then bounds the
// choice. Fronts are convex, so lambda in between reaches the points in between.
constexpr double kPriceInFloors = 15;
constexpr double kLatencyMargin = 0.96;  // steps vary: a mean this far below the target keeps 99 % of them under it
constexpr double kOverTargetNats = 5;    // per relative excess: more than any loss within a floor
constexpr double kStayNats = 2e-4;       // what another point must be better by: noise of the identified model

}  // namespace

bool AdaptiveRouter::Allowed(int32_t point, double batch) const {
  return point == 0 || LossAt(points_[static_cast<size_t>(point)], batch) <= floor_nats_;
}

PointOutlook AdaptiveRouter::Outlook(int32_t point, const RouterInput& input) const {
  const OperatingPoint& p = points_[static_cast<size_t>(point)];
  PointOutlook out;
  const double batch = std::max(1.0, input.mix->batch());
  out.loss_nats = LossAt(p, batch);
  out.bytes_frac = BytesFracAt(p, batch);
  out.cost = input.mix->CostAt(p, *input.model);
  double period_s = out.cost.period_s, stretch = 1;
  if (input.cap_w > 0 && out.cost.demand_w > input.cap_w) {
    const double room_w = std::max(input.cap_w - input.model->idle_w(), 0.02 * input.cap_w);
    const double paced_s = std::max(period_s, out.cost.work_j / room_w);
    stretch = period_s > 0 ? paced_s / period_s : 1;
    period_s = paced_s;
  }
  out.latency_s = out.cost.decode_s * stretch;
  const double tokens = input.mix->decode_tokens_per_step();
  if (tokens > 0) out.j_per_token = (out.cost.work_j + input.model->idle_w() * period_s) / tokens;
  const double price_nats = kPriceInFloors * std::max(floor_nats_, 0.0);
  out.score = out.loss_nats;
  if (input.reference_j > 0) out.score += price_nats * input.lambda_energy * out.j_per_token / input.reference_j;
  if (input.latency_target_s > 0) {
    const double ratio = out.latency_s / input.latency_target_s;
    out.score += price_nats * input.lambda_latency * ratio + kOverTargetNats * std::max(0.0, ratio - kLatencyMargin);
  }
  return out;
}

int32_t AdaptiveRouter::Safest(double batch) const {
  if (fixed_ >= 0) return fixed_;
  int32_t best = 0;
  for (int32_t i = 1; i < static_cast<int32_t>(points_.size()); ++i) {
    if (!Allowed(i, batch)) continue;
    if (BytesFracAt(points_[static_cast<size_t>(i)], batch) < BytesFracAt(points_[static_cast<size_t>(best)], batch))
      best = i;
  }
  return best;
}

RouterChoice AdaptiveRouter::Choose(const RouterInput& input) const {
  if (fixed_ >= 0) return {fixed_, DecisionReason::kFixed};
  if (!input.mix->has_decode())
    return {input.current, DecisionReason::kPrice};  // prompts alone: nothing to learn or gain
  RouterInput priced = input;
  if (prefer_ == Preference::kQuality) {
    // Pacing first: only the latency target has a price.
    priced.lambda_energy = 0;
    const bool held =
        input.latency_target_s <= 0 || Outlook(0, priced).latency_s <= kLatencyMargin * input.latency_target_s;
    if (held) return {0, input.lambda_energy > 0 ? DecisionReason::kPreferQuality : DecisionReason::kHeadroom};
  }
  if (prefer_ == Preference::kEnergy) {
    // Joules have their full price at all times, against the plain model's at the present load: the frugal end of the
    // front at whatever batch runs. One mean for all loads would spend loss where a joule is dear and not where tokens
    // are many, and earns less (docs/control-loop.md).
    priced.lambda_energy = 1;
    priced.reference_j = Outlook(0, priced).j_per_token;
  }
  const bool latency_passed =
      input.latency_target_s > 0 && Outlook(0, priced).latency_s > kLatencyMargin * input.latency_target_s;
  if (priced.lambda_energy <= 0 && priced.lambda_latency <= 0 && !latency_passed) return {0, DecisionReason::kHeadroom};
  const double batch = std::max(1.0, input.mix->batch());
  int32_t best = 0;
  double best_score = 0;
  for (int32_t i = 0; i < static_cast<int32_t>(points_.size()); ++i) {
    if (!Allowed(i, batch)) continue;
    const double score = Outlook(i, priced).score - (i == input.current ? kStayNats : 0);
    if (i == 0 || score < best_score) best = i, best_score = score;
  }
  return {best, DecisionReason::kPrice};
}

std::vector<OperatingPoint> UsablePoints(const OperatingPoints& front, const SteeringShape& shape) {
  OperatingPoints fits = front;
  std::erase_if(fits.points, [&](const OperatingPoint& point) {
    if (!shape.nested && (point.full_slots != kAllSlots || !point.plane_cap.empty())) return true;
    if (!point.plane_cap.empty() && (front.layers != shape.layers || front.experts != shape.experts)) return true;
    return point.full_slots > shape.slots || point.k0 > shape.slots || point.k_max > shape.slots;
  });
  const std::vector<size_t> front1 = ParetoFront(fits.points, &OperatingPoint::batch1);
  const std::vector<size_t> front16 = ParetoFront(fits.points, &OperatingPoint::batch16);
  std::vector<OperatingPoint> usable(1);  // plain
  for (size_t i = 0; i < fits.points.size(); ++i) {
    const auto in = [i](const std::vector<size_t>& indices) {
      return std::find(indices.begin(), indices.end(), i) != indices.end();
    };
    if ((in(front1) || in(front16)) && !fits.points[i].SameSettings(usable[0])) usable.push_back(fits.points[i]);
  }
  std::stable_sort(usable.begin() + 1, usable.end(), [](const OperatingPoint& a, const OperatingPoint& b) {
    return a.batch16.expert_bytes_frac > b.batch16.expert_bytes_frac;
  });
  return usable;
}

}  // namespace thermoe
