// SPDX-License-Identifier: Apache-2.0
#include "control/adapt/adaptation_controller.h"

#include <algorithm>
#include <cmath>

namespace thermoe {
namespace {

constexpr std::array<std::string_view, kAdaptReasons> kReasons = {"benefit", "not worth it", "budget",  "power",
                                                                  "temperature", "latency",  "sensors", "rejected"};
// Deltas help about so many later tokens before the text has moved on; and a session whose end is not known goes on a little.
constexpr double kMostAhead = 2000, kLeastAhead = 64;
constexpr double kMemory = 64;        // segments that the running mean of the NLL reaches back
constexpr double kSurprised = 0.75;   // standard deviations of the segments' NLL
constexpr double kLatencySlack = 0.8; // of the target: predictions are a few percent off

}  // namespace

std::string_view AdaptReasonName(AdaptReason reason) { return kReasons[static_cast<size_t>(reason)]; }

// Nats over the tokens ahead, less the price of the joules.
double AdaptationController::ValueOf(const AdaptInput& input, AdaptTier tier, Benefit* benefit) const {
  *benefit = benefit_.Of(tier, input.tokens, surprise_);
  const double ahead = std::max(input.tokens_ahead, kLeastAhead);
  const double helped = kMostAhead * (1 - std::exp(-ahead / kMostAhead));
  const double token_j = input.read.joules / std::max(input.tokens, 1);
  const double tokens_worth = token_j > 0 ? input.cost[static_cast<size_t>(tier)].joules / token_j : 0;
  return benefit->nats * helped - config_.price_nats * (1 + config_.strain * input.loop.lambda) * tokens_worth;
}

// kBenefit where the machine has room for the tier.
AdaptReason AdaptationController::WhyNot(const AdaptInput& input, AdaptTier tier) const {
  const AdaptCost& cost = input.cost[static_cast<size_t>(tier)];
  const AdaptLoop& loop = input.loop;
  if (cost.joules > input.joules_left) return AdaptReason::kBudget;
  if (loop.safest) return AdaptReason::kSensors;
  if (loop.temp_limit_c > 0 && loop.forecast_temp_c > loop.temp_limit_c - config_.temp_margin_c) return AdaptReason::kTemperature;
  const double seconds = input.step.seconds + cost.seconds, joules = input.step.joules + cost.joules + loop.idle_w * seconds;
  // What the step draws above the cap is paid for by a pause right after it.
  double pause_s = 0;
  if (loop.cap_w > 0) {
    if (loop.cap_w <= loop.idle_w) return AdaptReason::kPower;
    pause_s = std::max(0.0, (joules - loop.cap_w * seconds) / (loop.cap_w - loop.idle_w));
  }
  if (input.decode_rows > 0 && loop.latency_target_s > 0 && seconds + pause_s > kLatencySlack * loop.latency_target_s) {
    return pause_s > 0 ? AdaptReason::kPower : AdaptReason::kLatency;
  }
  return AdaptReason::kBenefit;
}

AdaptDecision AdaptationController::Decide(const AdaptInput& input) const {
  AdaptDecision best, wanted;
  if (rest_ > 0) {
    best.reason = AdaptReason::kRejected;
    return best;
  }
  for (size_t index = 1; index < kAdaptTiers; ++index) {
    const auto tier = static_cast<AdaptTier>(index);
    Benefit benefit;
    const double value = ValueOf(input, tier, &benefit);
    if (value <= 0) continue;
    const AdaptReason reason = WhyNot(input, tier);
    AdaptDecision& candidate = reason == AdaptReason::kBenefit ? best : wanted;
    if (value > candidate.value_nats) candidate = {tier, reason, false, false, false, benefit, value};
  }
  if (best.tier == AdaptTier::kSkip) {
    if (wanted.tier != AdaptTier::kSkip) best.reason = wanted.reason;
    best.defer = wanted.tier != AdaptTier::kSkip && wanted.reason != AdaptReason::kBudget;
  }
  best.strained = best.tier != AdaptTier::kSkip && input.loop.lambda > 0;
  best.guard = !input.deferred && GuardIsDue() && input.guard.joules <= input.joules_left && !best.defer;
  return best;
}

bool AdaptationController::GuardIsDue() const {
  if (since_guard_ == 0) return false;  // nothing new to look at
  const int64_t wait = std::min<int64_t>(int64_t{2} << std::min<int64_t>(2 * guards_, 30), config_.guard_every);
  return since_guard_ >= wait;
}

bool AdaptationController::Observe(const AdaptOutcome& outcome) {
  if (outcome.read_tokens > 0) {
    benefit_.Read(outcome.read_tokens);
    rest_ = std::max(rest_ - 1, 0);
    if (outcome.mean_nats >= 0 && std::isfinite(outcome.mean_nats)) TellSurprise(outcome.mean_nats);
  }
  // The guard looked at the deltas as they were before this update.
  if (!outcome.worse_nats.empty() && Guard(outcome.worse_nats)) return true;
  if (outcome.tier != AdaptTier::kSkip) {
    benefit_.Learnt(outcome.tier, outcome.learnt_tokens);
    ++updates_;
    ++since_guard_;
  }
  return false;
}

void AdaptationController::TellSurprise(double mean_nats) {
  if (scored_ >= 2) {
    const double deviation = std::sqrt(std::max(square_nats_ - mean_nats_ * mean_nats_, 1e-4));
    const double z = (mean_nats - mean_nats_) / deviation;
    surprise_ = z > kSurprised ? Surprise::kHigh : z < -kSurprised ? Surprise::kLow : Surprise::kMiddle;
  }
  scored_ = std::min(scored_ + 1, kMemory);
  mean_nats_ += (mean_nats - mean_nats_) / scored_;
  square_nats_ += (mean_nats * mean_nats - square_nats_) / scored_;
}

bool AdaptationController::Guard(std::span<const float> worse_nats) {
  GuardTest pair;
  for (const float worse : worse_nats) {
    guard_.Add(worse);
    pair.Add(worse);
  }
  ++guards_;
  since_guard_ = 0;
  if (pair.tokens() > 1) benefit_.ObservePair(-pair.mean_nats(), pair.variance());
  if (!guard_.Rejects()) return false;
  guard_ = GuardTest();
  benefit_.Forget();
  guards_ = since_guard_ = 0;
  rest_ = config_.rest_segments << std::min<int64_t>(resets_, 8);
  ++resets_;
  return true;
}

}  // namespace thermoe
