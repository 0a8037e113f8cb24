// SPDX-License-Identifier: Apache-2.0
// What each tier will cost on a segment, by the cost model; how far off that was, learnt tier by tier.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "control/adapt/adaptation_controller.h"
#include "control/cost/cost_model.h"
#include "control/cost/learning_plan.h"

namespace thermoe {

// What joules and, on a simulated device, seconds are made of.
struct AdaptDevice {
  EnergyPrices prices;
  double bytes_per_s = 0, flops_per_s = 0;  // simulated; 0: seconds are the cost model's
};

// How far predictions were off; each counted before it was learnt from.
struct AdaptErrors {
  int64_t updates = 0;
  double error_frac = 0;        // median of |predicted / measured - 1| of seconds over the last ones, corrected
  double plain_error_frac = 0;  // as the profile or the roofline says
};

// The lowest layer that a tier's backward pass reaches; `layers`: none.
int32_t LowestLayerOf(AdaptTier tier, int32_t layers);

class AdaptPricer {
 public:
  // Of the session's deltas: `learning` gives groups, parameters and inner_kept.
  void Begin(const ModelShape& model, const LearningShape& learning);

  // Seconds, joules (beyond what the device draws idle) and bytes of each tier by the model alone, for `rows` rows from
  // `position` on.
  std::array<AdaptCost, kAdaptTiers> Price(const KernelCostModel& costs, const AdaptDevice& device, int64_t rows,
                                           int64_t position) const;
  // A plain pass over them, with the logits of `logit_rows`.
  AdaptCost PriceRead(const KernelCostModel& costs, const AdaptDevice& device, int64_t rows, int64_t position,
                      int64_t logit_rows) const;

  double Corrected(AdaptTier tier, double seconds) const { return seconds * past_[static_cast<size_t>(tier)].factor; }
  void Observe(AdaptTier tier, double predicted_s, double measured_s);
  AdaptErrors errors(AdaptTier tier) const;

 private:
  const ModelShape* model_ = nullptr;
  LearningShape learning_;
  struct Past {
    int64_t updates = 0;
    double factor = 1;                                // median of the newest ratios
    std::vector<float> ratios, errors, plain_errors;  // measured over predicted, and how far off; rings of the last
  };
  std::array<Past, kAdaptTiers> past_;
};

}  // namespace thermoe
