// SPDX-License-Identifier: Apache-2.0
#include "control/adapt/adapt_pricer.h"

#include <algorithm>
#include <cmath>

namespace thermoe {
namespace {

constexpr int32_t kLastLayers = 2;  // of the tier "last"
// Updates whose median ratio corrects the next: a step that something else held up moves it little.
constexpr size_t kRatios = 31;
constexpr size_t kPast = 256;  // updates that medians of errors are of

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

// Of the first `count` values, or all where there are fewer; 0 of none.
double MedianOf(std::vector<float> values, size_t count) {
  values.resize(std::min(count, values.size()));
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
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
  for (std::vector<float>* ring : {&past.errors, &past.plain_errors}) ring->resize(kPast);
  past.ratios.resize(kRatios);
  const auto at = static_cast<size_t>(past.updates);
  past.errors[at % kPast] = static_cast<float>(std::abs(Corrected(tier, predicted_s) / measured_s - 1));
  past.plain_errors[at % kPast] = static_cast<float>(std::abs(predicted_s / measured_s - 1));
  past.ratios[at % kRatios] = static_cast<float>(measured_s / predicted_s);
  past.factor = MedianOf(past.ratios, static_cast<size_t>(++past.updates));
}

AdaptErrors AdaptPricer::errors(AdaptTier tier) const {
  const Past& past = past_[static_cast<size_t>(tier)];
  const auto count = static_cast<size_t>(past.updates);
  return {past.updates, MedianOf(past.errors, count), MedianOf(past.plain_errors, count)};
}

}  // namespace thermoe
