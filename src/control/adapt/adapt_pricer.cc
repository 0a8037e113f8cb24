// SPDX-License-Identifier: Apache-2.0
#include "control/adapt/adapt_pricer.h"

#include <algorithm>
#include <cmath>

namespace thermoe {
namespace {

constexpr int32_t kLastLayers = 2;  // of the tier "last"
constexpr double kMemory = 50;      // updates that the running means reach back

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

std::array<AdaptCost, kAdaptTiers> AdaptPricer::Price(const KernelCostModel& costs, const AdaptDevice& device, int64_t rows,
                                                      int64_t position) const {
  std::array<AdaptCost, kAdaptTiers> all;
  LearningShape learning = learning_;
  learning.rows = learning.loss_rows = rows;
  learning.position = position;
  for (size_t index = 1; index < kAdaptTiers; ++index) {
    learning.lowest_layer = LowestLayerOf(static_cast<AdaptTier>(index), model_->config.layers);
    // Tiers that end at the same layer differ in what they update, which costs next to nothing.
    all[index] = index > static_cast<size_t>(AdaptTier::kGains) ? all[index - 1] : Sum(costs, device, OperationsOfLearning(*model_, learning));
  }
  return all;
}

AdaptCost AdaptPricer::PriceRead(const KernelCostModel& costs, const AdaptDevice& device, int64_t rows, int64_t position,
                                 int64_t logit_rows) const {
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
  AdaptErrors& errors = errors_[static_cast<size_t>(tier)];
  ++errors.updates;
  const double weight = 1 / std::min(static_cast<double>(errors.updates), kMemory);
  errors.error_frac += weight * (std::abs(Corrected(tier, predicted_s) / measured_s - 1) - errors.error_frac);
  errors.plain_error_frac += weight * (std::abs(predicted_s / measured_s - 1) - errors.plain_error_frac);
  corrections_[static_cast<size_t>(tier)].Learn(predicted_s * 1e6, measured_s * 1e6);
}

}  // namespace thermoe
