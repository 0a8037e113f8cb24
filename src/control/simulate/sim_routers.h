// SPDX-License-Identifier: Apache-2.0
// The routers that a scenario compares, and what their points cost in quality.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "control/router/operating_point.h"
#include "control/simulate/sim_run.h"

namespace thermoe {

// What holding all weights in q4_0 costs: mean of two texts of ember-22m, round to nearest (docs/simulate.md).
inline constexpr double kQ4Loss_nats = 0.0225;

// Points of one model on another's shape: plane caps go to layers and experts at the same share of the depth and of the list. Their
// losses are the first model's.
OperatingPoints FitPoints(const OperatingPoints& points, const ModelConfig& config);

// A point's measured loss at `batch` rows: batch 1 and 16, interpolated in the logarithm, constant outside.
double LossAtBatch(const OperatingPoint& point, double batch);

// "full 0, soft 0.15" as Describe writes it; kNotFound lists what there is.
Result<OperatingPoint> FindPoint(const OperatingPoints& points, const std::string& text);

class PointLoss final : public SimLoss {
 public:
  // `points` as FitPoints gives them. `extra_nats` is added always: of weights that are kept in few bits.
  PointLoss(OperatingPoints points, const ModelShape& shape, double extra_nats = 0);

  double OfSettings(const Steering* steering, double batch) const override;
  double OfBiases(double mass_lost) const override { return std::max(0.0, nats_per_mass_ * mass_lost); }
  std::string TextOf(const Steering* steering) const override;
  // Nats for the whole of a token's gate mass, from points that exchange experts (k0, soft) against the same ones that do not.
  double nats_per_mass() const { return nats_per_mass_; }
  // The same with other weights: pricing gate mass takes a while and does not depend on them.
  PointLoss WithExtra(double extra_nats) const {
    PointLoss other = *this;
    other.extra_nats_ = extra_nats;
    return other;
  }

 private:
  const OperatingPoint* Find(const Steering& steering) const;
  void PriceMass(const ModelShape& shape);

  OperatingPoints points_;
  std::vector<Steering> steerings_;  // [points]
  int32_t slots_;
  double extra_nats_, nats_per_mass_ = 0;
};

// What a router needs to be made.
struct SimSetup {
  const SimScenario* scenario = nullptr;
  const DeviceProfile* profile = nullptr;
  OperatingPoints points;  // as FitPoints gives them
  ModelShape shape;
};

// kAdaptive: the adapter and gathering as the scenario says.
enum class SimRouterKind { kPlain, kStatic, kAdaptive, kAdaptiveNoAdapter, kAdaptiveAdapter, kAdaptiveNoGather };
// The control loop as the engine would make it for this device.
Result<SimController> MakeSimController(const SimSetup& setup, SimRouterKind kind, const OperatingPoint& point);

struct SimResults {
  std::vector<SimRun> runs;     // in the order of scenario.routers
  std::vector<SimRun> statics;  // every static point that was tried for static:best, by rising loss
  double nats_per_mass = 0;     // the price of biases
};
// All routers, independent runs side by side on `threads`. `progress`: share done, from any thread, one at a time.
Result<SimResults> Simulate(const SimSetup& setup, int threads, const std::function<bool(double)>& progress);

// Tokens per joule that mixing static points reaches at that loss: between neighbours of their upper hull. 0: none are known.
double StaticTokensPerJoule(const std::vector<SimRun>& statics, double loss_nats);
// Of the best one that loses no more than that; null: none does.
const SimRun* BestStatic(const std::vector<SimRun>& statics, double loss_nats);

}  // namespace thermoe
