// SPDX-License-Identifier: Apache-2.0
#include "control/adapt/adapt_pricer.h"

#include <algorithm>
#include <cmath>

namespace thermoe {
namespace {

constexpr int32_t kLastLayers = 2;  // of the tier "last"
constexpr size_t kPast = 256;       // updates that medians of errors are of

AdaptCost Sum(const KernelCostModel& costs, const AdaptDevice& device, std::span<const OperationShape> plan) {
  AdaptCost sum;
  double flops = 0;
  for (const OperationShape& shape : plan) {
    const kernels::OpCost cost = CostOf(shape);
    sum.seconds += costs.Predict(shape).latency_us * 1e-6;
    sum.bytes += cost.weight_bytes + cost.kv_bytes;
    flops += cost.flops;
  }
  if (device.bytes_per_s > 0) sum.seconds = std::max(sum.bytes / device.bytes_per_s, flops / device.flops_per_s);
  sum.plain_seconds = sum.seconds;
  sum.joules = sum.bytes * device.prices.j_per_byte + flops * device.prices.j_per_flop;
  return sum;
}

}  // namespace

int32_t LowestLayerOf(AdaptTier tier, int32_t layers) {
  if (tier == AdaptTier::kOutput) return layers;
  return tier == AdaptTier::kLast ? std::max(layers - kLastLayers, 0) : 0;
}

void AdaptPricer::Begin(const ModelShape& model, const LearningShape& learning) {
  model_ = &model;
  learning_ = learning;
}

std::array<AdaptCost, kAdaptTiers> AdaptPricer::Price(const KernelCostModel& costs, const AdaptDevice& device,
                                                      int64_t rows, int64_t position) const {
  std::array<AdaptCost, kAdaptTiers> all;
  LearningShape learning = learning_;
  learning.rows = learning.loss_rows = rows;
  learning.position = position;
  for (size_t index = 1; index < kAdaptTiers; ++index) {
    learning.lowest_layer = LowestLayerOf(static_cast<AdaptTier>(index), model_->config.layers);
    // Tiers that end at the same layer differ in what they update, which costs next to nothing.
    all[index] = index > static_cast<size_t>(AdaptTier::kGains)
                     ? all[index - 1]
                     : Sum(costs, device, OperationsOfLearning(*model_, learning));
  }
  return all;
}

AdaptCost AdaptPricer::PriceRead(const KernelCostModel& costs, const AdaptDevice& device, int64_t rows,
                                 int64_t position, int64_t logit_rows) const {
  const ModelConfig& config = model_->config;
  StepShape step;
  step.prefill_tokens = rows;
  step.prefill_positions = rows * position + rows * (rows + 1) / 2;
  step.prefill_distinct_positions = position + rows;
  step.logit_rows = logit_rows;
  const double missed = std::pow(1 - static_cast<double>(config.slots) / config.experts, static_cast<double>(rows));
  const int64_t experts = std::max<int64_t>(config.slots, std::lround(config.experts * (1 - missed)));
  step.layers.assign(model_->layers.size(), {experts, experts, 0, rows * config.slots, 0});
  std::vector<OperationShape> plan;
  for (const PlannedOperation& operation : OperationsOfStep(*model_, step)) plan.push_back(operation.shape);
  return Sum(costs, device, plan);
}

void AdaptPricer::Observe(AdaptTier tier, double predicted_s, double measured_s) {
  if (!(measured_s > 0) || !(predicted_s > 0)) return;
  Past& past = past_[static_cast<size_t>(tier)];
  past.errors.resize(kPast);
  past.plain_errors.resize(kPast);
  const auto at = static_cast<size_t>(past.updates++) % kPast;
  past.errors[at] = static_cast<float>(std::abs(Corrected(tier, predicted_s) / measured_s - 1));
  past.plain_errors[at] = static_cast<float>(std::abs(predicted_s / measured_s - 1));
  corrections_[static_cast<size_t>(tier)].Learn(predicted_s * 1e6, measured_s * 1e6);
}

AdaptErrors AdaptPricer::errors(AdaptTier tier) const {
  const Past& past = past_[static_cast<size_t>(tier)];
  const size_t count = std::min(static_cast<size_t>(past.updates), kPast);
  const auto median = [count](std::vector<float> values) {
    if (count == 0) return 0.0;
    values.resize(count);
    std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(count / 2), values.end());
    return static_cast<double>(values[count / 2]);
  };
  return {past.updates, median(past.errors), median(past.plain_errors)};
}

}  // namespace thermoe
