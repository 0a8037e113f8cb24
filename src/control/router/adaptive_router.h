// SPDX-License-Identifier: Apache-2.0
// AdaptiveRouter: which operating point to run at, from the prices of energy and latency. A pure function of its inputs.
//
// A point's score is loss + price of energy * joules per token + price of time * latency + what is predicted to pass the latency
// target. Joules of a token are priced against a running mean over a minute, not against those of the present batch: so loss is
// spent where a nat buys most joules (few sequences, decode), and not where it buys few.
#pragma once

#include <cstdint>
#include <vector>

#include "control/router/control_config.h"
#include "control/router/load_mix.h"

namespace thermoe {

struct RouterInput {
  const LoadMix* mix = nullptr;
  const EnergyModel* model = nullptr;
  double cap_w = 0;             // that pacing holds; 0: none
  double latency_target_s = 0;  // 0: none
  double lambda_energy = 0, lambda_latency = 0;  // 0 to 1
  double reference_j = 0;       // joules of a token, running mean
  int32_t current = 0;
};

// Predicted, per decode step where the load has any.
struct PointOutlook {
  double loss_nats = 0, bytes_frac = 1;
  LoadCost cost;
  double latency_s = 0;   // pause included
  double j_per_token = 0;
  double score = 0;
};

struct RouterChoice {
  int32_t point = 0;
  DecisionReason reason = DecisionReason::kHeadroom;
};

class AdaptiveRouter {
 public:
  // `points`: plain first. `fixed`: the only one to use, or -1.
  AdaptiveRouter(std::vector<OperatingPoint> points, int32_t fixed, double quality_floor_nats, Preference prefer)
      : points_(std::move(points)), fixed_(fixed), floor_nats_(quality_floor_nats), prefer_(prefer) {}

  const std::vector<OperatingPoint>& points() const { return points_; }
  PointOutlook Outlook(int32_t point, const RouterInput& input) const;
  RouterChoice Choose(const RouterInput& input) const;
  // The fewest bytes within the floor.
  int32_t Safest(double batch) const;
  bool Allowed(int32_t point, double batch) const;

 private:
  std::vector<OperatingPoint> points_;
  int32_t fixed_;
  double floor_nats_;
  Preference prefer_;
};

// Points of `front` that a model of `shape` can run, plain first, each measured on the most windows, that no other beats at both
// batch sizes.
std::vector<OperatingPoint> UsablePoints(const OperatingPoints& front, const SteeringShape& shape);

}  // namespace thermoe
