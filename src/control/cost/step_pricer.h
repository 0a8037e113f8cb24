// SPDX-License-Identifier: Apache-2.0
// The cost model in a running engine: ten times a second it is shown what a step took, learns from it, and keeps count
// of how far off it was.
#pragma once

#include <cstdint>
#include <vector>

#include "control/cost/cost_model.h"

namespace thermoe {

class StepPricer {
 public:
  // `points`: of a profile of this model on this machine; none: a roofline, which the steps correct.
  StepPricer(ModelShape shape, std::vector<CostPoint> points) : shape_(std::move(shape)), profiled_(points), model_(std::move(points)) {}

  // A step that ended at `now_s`. Looks at it if the last look is long enough ago. Allocates in the first look only.
  void Observe(double now_s, const StepRecord& record);

  const ModelShape& shape() const { return shape_; }
  const KernelCostModel& model() const { return model_; }
  // The same without what steps have taught.
  const KernelCostModel& profiled() const { return profiled_; }
  int64_t steps() const { return steps_; }  // looked at
  // Running mean of |predicted / measured - 1| of a step's time, before it was learnt: corrected, and as profiled.
  double error_frac() const { return error_frac_; }
  double plain_error_frac() const { return plain_error_frac_; }

  // Weights, keys and values per second of a plain step of one decoded token; FLOPs per second of a prompt's chunk:
  // what is known before the first step.
  double DecodeBytesPerSecond() const;
  double PrefillFlopsPerSecond(int64_t chunk) const;

 private:
  struct Rates {
    double bytes_per_s = 0, flops_per_s = 0;
  };
  Rates RatesOf(const StepShape& step) const;

  ModelShape shape_;
  KernelCostModel profiled_, model_;
  int64_t steps_ = 0;
  double looked_s_ = -1e9;
  double error_frac_ = 0, plain_error_frac_ = 0;
};

}  // namespace thermoe
