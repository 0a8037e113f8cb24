// SPDX-License-Identifier: Apache-2.0
#include "control/router/ttha_adapter.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace thermoe {

TthaAdapter::TthaAdapter(const TthaOptions& options)
    : options_(options),
      all_(static_cast<size_t>(options.shape.layers) * static_cast<size_t>(options.shape.experts)),
      relaxation_(options.shape),
      network_(options.shape.layers * options.shape.experts) {
  const float share = static_cast<float>(options.shape.slots) / static_cast<float>(options.shape.experts);
  popularity_.assign(all_, share);
  load_.assign(all_, share);
  kth_score_.assign(static_cast<size_t>(options.shape.layers), 0);
  seen_.assign(kth_score_.size(), 0);
  features_.assign(all_ * TthaNetwork::kFeatures, 0);
  for (std::vector<float>* buffer : {&slots_, &scale_, &raw_, &published_, &bytes_, &by_bias_, &by_output_, &by_chosen_,
                                     &by_active_, &by_variance_}) {
    buffer->assign(all_, 0);
  }
  counted_.assign(static_cast<size_t>(options.shape.experts), 0);
  group_.assign(all_, 0);
  group_load_.assign(1, 1);
}

void TthaAdapter::SetPlacement(std::span<const uint16_t> group_of_expert, int32_t groups) {
  THERMOE_CHECK(group_of_expert.size() == all_ && groups > 0);
  for (const uint16_t group : group_of_expert) THERMOE_CHECK(group < groups);
  std::copy(group_of_expert.begin(), group_of_expert.end(), group_.begin());
  groups_ = groups;
  group_load_.assign(static_cast<size_t>(groups), 0);
}

void TthaAdapter::Observe(const StepRecord& record) {
  // Prefill rows choose plainly and touch nearly every expert: their loads say nothing about biases.
  if (record.prefill_tokens > 0 || record.decode_tokens <= 0) return;
  if (record.layers.size() != static_cast<size_t>(options_.shape.layers)) return;
  const auto experts = static_cast<size_t>(options_.shape.experts);
  for (size_t layer = 0; layer < record.layers.size(); ++layer) {
    const std::vector<int32_t>& from = record.layers[layer].expert_slots;
    if (from.size() != experts) return;
    for (size_t e = 0; e < experts; ++e) slots_[layer * experts + e] += static_cast<float>(from[e]);
  }
  slot_tokens_ += record.decode_tokens;
}

void TthaAdapter::AddRows(const StepRecord& record) {
  const auto experts = static_cast<size_t>(options_.shape.experts);
  if (record.layers.size() != static_cast<size_t>(options_.shape.layers)) return;
  if (record.decode_tokens > 0) tokens_ = record.decode_tokens;
  for (size_t layer = 0; layer < record.layers.size(); ++layer) {
    const std::vector<float>& logits = record.layers[layer].gate_logits;
    const size_t rows = std::min(logits.size() / experts, static_cast<size_t>(options_.shape.rows));
    std::fill(counted_.begin(), counted_.end(), 0.0f);
    float kth = 0;
    int32_t taken = 0;
    for (size_t r = 0; r < rows; ++r) {
      if (!relaxation_.AddRow(static_cast<int32_t>(layer), &logits[r * experts])) continue;
      const std::span<const uint8_t> chosen = relaxation_.newest_choice();
      for (size_t e = 0; e < experts; ++e) counted_[e] += static_cast<float>(chosen[e]);
      kth += relaxation_.newest_kth_score();
      ++taken;
    }
    if (taken == 0) continue;
    // Plain means at first, so that the start is not remembered for long.
    const float rate = std::max(options_.memory, 1 / static_cast<float>(1 + ++seen_[layer]));
    const float rate_score = std::max(options_.memory, 1 / static_cast<float>(seen_[layer]));
    for (size_t e = 0; e < experts; ++e) {
      float& popular = popularity_[layer * experts + e];
      popular += rate * (counted_[e] / static_cast<float>(taken) - popular);
    }
    kth_score_[layer] += rate_score * (kth / static_cast<float>(taken) - kth_score_[layer]);
  }
}

// Loads that came out otherwise than predicted make their kind of expert uncertain: Gaussian likelihood of the error,
// in units of what chance alone would give.
void TthaAdapter::LearnUncertainty() {
  report_.uncertainty_nll = 0;
  const bool known = predicted_ && slot_tokens_ > 0;
  predicted_ = false;
  if (slot_tokens_ > 0) {
    const auto tokens = static_cast<float>(slot_tokens_);
    // Tokens of neighbouring steps are alike: more than a batch of them is hardly more evidence.
    // The prediction itself is a mean over few rows, and one of 0 or 1 is no certainty: 4 rows of the mean share are
    // added to it.
    const auto rows = static_cast<float>(options_.shape.rows);
    const float evidence = 1 / std::min(tokens, 16.0f) + 1 / rows;
    const float prior = 4 * static_cast<float>(options_.shape.slots) / static_cast<float>(options_.shape.experts);
    const float rate = std::max(options_.memory, 0.05f);
    const std::vector<float>& log_variance = network_.log_variance();
    const std::vector<float>& expected = relaxation_.chosen();
    for (size_t i = 0; i < all_; ++i) {
      const float share = slots_[i] / tokens;
      load_[i] += rate * (share - load_[i]);
      if (!known) continue;
      const float likely = (rows * expected[i] + prior) / (rows + 4), noise = likely * (1 - likely) * evidence;
      const float ratio = (share - expected[i]) * (share - expected[i]) / noise * std::exp(-log_variance[i]);
      report_.uncertainty_nll += 0.5 * static_cast<double>(ratio + log_variance[i]) / static_cast<double>(all_);
      by_variance_[i] = 0.5f * (1 - ratio) / static_cast<float>(all_);
    }
    if (known) network_.AddVarianceGradient(by_variance_.data());
  }
  std::fill(slots_.begin(), slots_.end(), 0.0f);
  slot_tokens_ = 0;
}

const TthaReport& TthaAdapter::Assess(const TthaObserved& observed) {
  const double strained = std::max(0.0, observed.multipliers.Sum());
  report_.gain = std::min(1.0, std::isfinite(strained) ? strained : 0.0);
  report_.weight = TthaWeights(observed.multipliers, options_.prices, options_.prefer_quality);
  if (observed.expert_bytes.empty()) {
    std::fill(bytes_.begin(), bytes_.end(), 1.0f);
  } else {
    THERMOE_CHECK(observed.expert_bytes.size() == all_);
    std::copy(observed.expert_bytes.begin(), observed.expert_bytes.end(), bytes_.begin());
  }
  THERMOE_CHECK(observed.layer_costs.empty() || observed.layer_costs.size() == kth_score_.size());
  THERMOE_CHECK(observed.residency_frac.empty() || observed.residency_frac.size() == all_);
  SetFeatures(observed);
  SetDeviceFeatures(observed.device, report_.gain);
  network_.Forward(features_.data(), device_.data());

  const auto experts = static_cast<size_t>(options_.shape.experts);
  const auto gain = static_cast<float>(report_.gain);
  double shrunk = 0;
  for (size_t layer = 0; layer < kth_score_.size(); ++layer) {
    const float bound = options_.bound * kth_score_[layer];
    float most = -1e30f;
    for (size_t i = layer * experts; i < (layer + 1) * experts; ++i) {
      const float shrink = 1 / (1 + std::exp(network_.log_variance()[i]));
      shrunk += static_cast<double>(shrink);
      scale_[i] = bound * shrink;
      raw_[i] = scale_[i] * network_.bias()[i];
      most = std::max(most, raw_[i]);
    }
    for (size_t i = layer * experts; i < (layer + 1) * experts; ++i) published_[i] = gain * (raw_[i] - most);
  }
  report_.mean_shrink = shrunk / static_cast<double>(all_);
  // 0 times a negative number is -0: a neutral bias is +0 bit for bit.
  if (report_.gain <= 0) std::fill(published_.begin(), published_.end(), 0.0f);
  Evaluate(observed, published_.data());
  return report_;
}

void TthaAdapter::Evaluate(const TthaObserved& observed, const float* biases) {
  relaxation_.Evaluate(biases, tokens_, popularity_.data());
  double bytes = 0, active = 0;
  for (size_t i = 0; i < all_; ++i) {
    bytes += static_cast<double>(relaxation_.active()[i]) * static_cast<double>(bytes_[i]);
    active += static_cast<double>(relaxation_.active()[i]);
  }
  byte_terms_ = EvaluateByteTerms(observed.machine, observed.limits, tokens_, bytes);
  report_.forecast = byte_terms_.forecast;
  report_.forecast.distinct_experts = active / options_.shape.layers;
  report_.value = byte_terms_.value;
  At(report_.value, TthaTerm::kFidelity) = relaxation_.mass_lost_frac();
  EvaluateBalance();
}

// Mean squared distance of the groups' loads from their mean, relative to it. Loads are what the relaxation expects;
// they always sum to K a layer.
void TthaAdapter::EvaluateBalance() {
  At(report_.value, TthaTerm::kBalance) = 0;
  if (groups_ < 2) return;
  std::fill(group_load_.begin(), group_load_.end(), 0.0);
  const double each = static_cast<double>(options_.shape.layers) * options_.shape.slots / groups_;
  for (size_t i = 0; i < all_; ++i) group_load_[group_[i]] += static_cast<double>(relaxation_.chosen()[i]) / each;
  for (const double load : group_load_) At(report_.value, TthaTerm::kBalance) += (load - 1) * (load - 1) / groups_;
}

const std::vector<float>& TthaAdapter::GradientByBias(const TthaValues& weights) {
  double by_bytes = 0;
  for (size_t term = 0; term < kTthaTerms; ++term) by_bytes += weights[term] * byte_terms_.per_byte[term];
  const double each = static_cast<double>(options_.shape.layers) * options_.shape.slots / groups_;
  const double balance = groups_ < 2 ? 0 : 2 * At(weights, TthaTerm::kBalance) / groups_ / each;
  for (size_t i = 0; i < all_; ++i) {
    by_active_[i] = static_cast<float>(by_bytes * static_cast<double>(bytes_[i]));
    by_chosen_[i] = static_cast<float>(balance * (group_load_[group_[i]] - 1));
  }
  std::fill(by_bias_.begin(), by_bias_.end(), 0.0f);
  relaxation_.AddGradient(by_chosen_.data(), by_active_.data(), At(weights, TthaTerm::kFidelity), by_bias_.data());
  return by_bias_;
}

// Through g * (raw - max raw). The relaxation does not feel a shift of a whole layer: the gradient by biases sums to 0
// over each layer, so the maximum passes nothing on.
std::span<const float> TthaAdapter::GradientByWeights() {
  const auto gain = static_cast<float>(report_.gain);
  for (size_t i = 0; i < all_; ++i) by_output_[i] = by_bias_[i] * gain * scale_[i];
  network_.AddBiasGradient(by_output_.data());
  return network_.gradient();
}

const TthaReport& TthaAdapter::UpdateTtha(const TthaObserved& observed) {
  report_.stepped = false;
  const bool was_neutral = neutral();
  network_.ClearGradient();
  if (observed.record != nullptr) {
    LearnUncertainty();
    AddRows(*observed.record);
  }
  if (!relaxation_.full_layers()) {
    report_.gain = 0;  // nothing seen yet
    std::fill(published_.begin(), published_.end(), 0.0f);
    return report_;
  }
  Assess(observed);
  if (report_.gain > 0) {
    GradientByBias(report_.weight);
    GradientByWeights();
  }
  report_.stepped = network_.Step(options_.learning_rate);
  predicted_ = true;
  if (!neutral() || !was_neutral) ++version_;
  return report_;
}

void TthaAdapter::Rest() {
  if (!neutral()) ++version_;
  report_.gain = 0;
  report_.stepped = predicted_ = false;
  std::fill(published_.begin(), published_.end(), 0.0f);
  std::fill(slots_.begin(), slots_.end(), 0.0f);
  slot_tokens_ = 0;
}

std::span<const float> TthaAdapter::Biases(int32_t layer) const {
  const auto experts = static_cast<size_t>(options_.shape.experts);
  return neutral() ? std::span<const float>()
                   : std::span(published_).subspan(static_cast<size_t>(layer) * experts, experts);
}

void TthaAdapter::Publish(Steering* steering) const {
  THERMOE_CHECK(steering->layers.size() == static_cast<size_t>(options_.shape.layers));
  for (size_t layer = 0; layer < steering->layers.size(); ++layer) {
    const std::span<const float> bias = Biases(static_cast<int32_t>(layer));
    steering->layers[layer].selection_bias.assign(bias.begin(), bias.end());
  }
}

}  // namespace thermoe
