// SPDX-License-Identifier: Apache-2.0
// What adapting to a text is worth, in nats a later token: three parts of a session's deltas, each with a ceiling that
// is approached as the part learns. gain = sum of G[p] (1 - exp(-u[p] / tau[p])), u the tokens learnt from. Ceilings
// are uncertain and are learnt from pairs of adapted and plain scores by a Kalman filter; tau and the ceilings of the
// start were measured (docs/adaptation-control.md).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

namespace thermoe {

// By rising cost of a backward pass; kSkip learns nothing.
enum class AdaptTier : uint8_t { kSkip, kOutput, kLast, kGains, kLowRank, kCombined };
inline constexpr size_t kAdaptTiers = 6;
std::string_view AdaptTierName(AdaptTier tier);  // "skip", "output", "last", "gains", "low-rank", "combined"
std::optional<AdaptTier> AdaptTierNamed(std::string_view name);

// Parts of the deltas: at the output, in the last layers, in the layers below.
inline constexpr size_t kAdaptParts = 3;
using PerPart = std::array<double, kAdaptParts>;

// Against the session's running mean: a text that surprises has more to teach.
enum class Surprise : uint8_t { kLow, kMiddle, kHigh };
inline constexpr size_t kSurprises = 3;

struct BenefitState {
  PerPart ceiling_nats = {};
  std::array<double, kAdaptParts* kAdaptParts> covariance = {};
  std::array<double, kSurprises> surprise_factor = {};
  int64_t sessions = 0;  // it was learnt from

  bool operator==(const BenefitState&) const = default;
};
// With these ceilings, brought to within a third and three times of the measured ones; their uncertainty is that
// between texts.
BenefitState BenefitFrom(const PerPart& ceiling_nats, int64_t sessions);
// Measured on three texts with the bundled model.
BenefitState MeasuredBenefit();

struct Benefit {
  double nats = 0, deviation_nats = 0;  // a later token
};

class BenefitModel {
 public:
  explicit BenefitModel(const BenefitState& start) : state_(start) {}

  // What a later token gains now, and what it would gain in addition after learning from `tokens` more with `tier`.
  Benefit Now() const;
  Benefit Of(AdaptTier tier, double tokens, Surprise surprise) const;

  void Learnt(AdaptTier tier, double tokens);
  // Tokens that the session read: what was learnt ages.
  void Read(double tokens);
  // The deltas are zero again.
  void Forget() { learnt_ = {}; }
  // Mean of plain less adapted NLL over tokens that both scored, and the variance of that mean;
  // how much segments differ comes on top.
  void ObservePair(double gain_nats, double variance);

  const BenefitState& state() const { return state_; }
  const PerPart& learnt() const { return learnt_; }

 private:
  Benefit Along(const PerPart& share) const;

  BenefitState state_;
  PerPart learnt_ = {};  // u
};

// What the next session starts from after one that ended with `end`: ceilings move by 1 / (sessions + 8).
BenefitState AfterSession(const BenefitState& start, const BenefitState& end);

}  // namespace thermoe
