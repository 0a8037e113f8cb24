// SPDX-License-Identifier: Apache-2.0
#include "control/adapt/benefit_model.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace thermoe {
namespace {

constexpr std::array<std::string_view, kAdaptTiers> kNames = {"skip",  "output",   "last",
                                                              "gains", "low-rank", "combined"};

// Tokens learnt from after which a part has 63 % of its ceiling.
constexpr PerPart kTau = {1200, 700, 1200};
// What was learnt loses a part in e over so many tokens read: texts move on. Too slow to be seen in 2,304 tokens.
constexpr double kAge = 20000;

// How much of a token's lesson each tier brings to each part. Gains and low-rank alone reach some 70 % of the combined
// tier's gain (docs/test-time-training.md).
constexpr std::array<PerPart, kAdaptTiers> kLearns = {
    {{0, 0, 0}, {1, 0, 0}, {1, 1, 0}, {0.7, 0.7, 0.7}, {0.7, 0.7, 0.7}, {1, 1, 1}}};

// Segments of one text gain differently by so much: what a pair says of the text is no better than that.
constexpr double kSegment_nats = 0.05;

constexpr PerPart kCeiling_nats = {0.19, 0.075, 0.075};
// Between texts ceilings rise and fall together, by as much as they are high.
constexpr double kSpread_frac = 0.6, kTogether = 0.9;

}  // namespace

std::string_view AdaptTierName(AdaptTier tier) { return kNames[static_cast<size_t>(tier)]; }

std::optional<AdaptTier> AdaptTierNamed(std::string_view name) {
  const auto found = std::find(kNames.begin(), kNames.end(), name);
  if (found == kNames.end()) return std::nullopt;
  return static_cast<AdaptTier>(found - kNames.begin());
}

BenefitState BenefitFrom(const PerPart& ceiling_nats, int64_t sessions) {
  BenefitState state;
  for (size_t i = 0; i < kAdaptParts; ++i) {
    const double ceiling = std::isfinite(ceiling_nats[i]) ? ceiling_nats[i] : 0;
    state.ceiling_nats[i] = std::clamp(ceiling, kCeiling_nats[i] / 3, kCeiling_nats[i] * 3);
  }
  for (size_t i = 0; i < kAdaptParts; ++i) {
    for (size_t j = 0; j < kAdaptParts; ++j) {
      const double spread = kSpread_frac * kSpread_frac * state.ceiling_nats[i] * state.ceiling_nats[j];
      state.covariance[i * kAdaptParts + j] = i == j ? spread : kTogether * spread;
    }
  }
  state.surprise_factor = {0.8, 1, 1.25};
  state.sessions = sessions;
  return state;
}

BenefitState MeasuredBenefit() { return BenefitFrom(kCeiling_nats, 0); }

Benefit BenefitModel::Along(const PerPart& share) const {
  Benefit benefit;
  double variance = 0;
  for (size_t i = 0; i < kAdaptParts; ++i) {
    benefit.nats += share[i] * state_.ceiling_nats[i];
    for (size_t j = 0; j < kAdaptParts; ++j) variance += share[i] * state_.covariance[i * kAdaptParts + j] * share[j];
  }
  benefit.deviation_nats = std::sqrt(std::max(variance, 0.0));
  return benefit;
}

Benefit BenefitModel::Now() const {
  PerPart share;
  for (size_t i = 0; i < kAdaptParts; ++i) share[i] = 1 - std::exp(-learnt_[i] / kTau[i]);
  return Along(share);
}

Benefit BenefitModel::Of(AdaptTier tier, double tokens, Surprise surprise) const {
  const double factor = state_.surprise_factor[static_cast<size_t>(surprise)];
  PerPart share;
  for (size_t i = 0; i < kAdaptParts; ++i) {
    const double more = tokens * kLearns[static_cast<size_t>(tier)][i];
    share[i] = factor * std::exp(-learnt_[i] / kTau[i]) * (1 - std::exp(-more / kTau[i]));
  }
  return Along(share);
}

void BenefitModel::Learnt(AdaptTier tier, double tokens) {
  for (size_t i = 0; i < kAdaptParts; ++i) learnt_[i] += tokens * kLearns[static_cast<size_t>(tier)][i];
}

void BenefitModel::Read(double tokens) {
  for (double& learnt : learnt_) learnt *= std::exp(-tokens / kAge);
}

void BenefitModel::ObservePair(double gain_nats, double variance) {
  if (!std::isfinite(gain_nats) || !(variance > 0)) return;
  PerPart h, ph = {};
  for (size_t i = 0; i < kAdaptParts; ++i) h[i] = 1 - std::exp(-learnt_[i] / kTau[i]);
  double predicted = 0, total = variance + kSegment_nats * kSegment_nats;
  for (size_t i = 0; i < kAdaptParts; ++i) {
    predicted += h[i] * state_.ceiling_nats[i];
    for (size_t j = 0; j < kAdaptParts; ++j) ph[i] += state_.covariance[i * kAdaptParts + j] * h[j];
  }
  for (size_t i = 0; i < kAdaptParts; ++i) total += h[i] * ph[i];
  for (size_t i = 0; i < kAdaptParts; ++i) {
    state_.ceiling_nats[i] += ph[i] / total * (gain_nats - predicted);
    for (size_t j = 0; j < kAdaptParts; ++j) state_.covariance[i * kAdaptParts + j] -= ph[i] * ph[j] / total;
  }
}

BenefitState AfterSession(const BenefitState& start, const BenefitState& end) {
  PerPart next = start.ceiling_nats;
  const double weight = 1 / (static_cast<double>(start.sessions) + 8);
  for (size_t i = 0; i < kAdaptParts; ++i) next[i] += weight * (end.ceiling_nats[i] - start.ceiling_nats[i]);
  return BenefitFrom(next, start.sessions + 1);
}

}  // namespace thermoe
