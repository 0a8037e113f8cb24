// SPDX-License-Identifier: Apache-2.0
#include "control/cost/step_pricer.h"

#include <algorithm>
#include <cmath>

namespace thermoe {
namespace {

constexpr double kPeriod_s = 0.1;  // a look takes some 0.3 us for each operation of the step
constexpr double kMemory = 50;     // looks that the running means reach back
constexpr int64_t kContext = 256;  // of the decoded token that stands for all

}  // namespace

void StepPricer::Observe(double now_s, const StepRecord& record) {
  if (now_s < looked_s_ + kPeriod_s) return;
  looked_s_ = now_s;
  const std::optional<LearntStep> step = model_.Learn(shape_, record);
  if (!step) return;
  ++steps_;
  const double weight = 1 / std::min(static_cast<double>(steps_), kMemory);
  error_frac_ += weight * (std::abs(step->corrected_us / step->measured_us - 1) - error_frac_);
  plain_error_frac_ += weight * (std::abs(step->plain_us / step->measured_us - 1) - plain_error_frac_);
}

StepPricer::Rates StepPricer::RatesOf(const StepShape& step) const {
  kernels::OpCost cost;
  for (const PlannedOperation& operation : OperationsOfStep(shape_, step)) cost += CostOf(operation.shape);
  const double seconds = model_.PredictStep(shape_, step).total.latency_us * 1e-6;
  if (seconds <= 0) return {};
  return {(cost.weight_bytes + cost.kv_bytes) / seconds, cost.flops / seconds};
}

double StepPricer::DecodeBytesPerSecond() const {
  StepShape step;
  step.decode_tokens = step.logit_rows = 1;
  step.decode_positions = std::min<int64_t>(kContext, shape_.config.context);
  const int64_t slots = shape_.config.slots;
  step.layers.assign(shape_.layers.size(), {slots, slots, 0, slots, 0});
  return RatesOf(step).bytes_per_s;
}

double StepPricer::PrefillFlopsPerSecond(int64_t chunk) const {
  StepShape step;
  step.prefill_tokens = std::clamp<int64_t>(chunk, 1, std::max(shape_.config.context, 1));
  step.prefill_distinct_positions = step.prefill_tokens;
  step.prefill_positions = step.prefill_tokens * (step.prefill_tokens + 1) / 2;
  step.logit_rows = 1;
  const int64_t slots = step.prefill_tokens * shape_.config.slots,
                experts = std::min<int64_t>(shape_.config.experts, slots);
  step.layers.assign(shape_.layers.size(), {experts, experts, 0, slots, 0});
  return RatesOf(step).flops_per_s;
}

}  // namespace thermoe
