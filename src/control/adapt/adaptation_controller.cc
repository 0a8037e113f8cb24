// SPDX-License-Identifier: Apache-2.0
#include "control/adapt/adaptation_controller.h"

#include <algorithm>
#include <cmath>

namespace thermoe {
namespace {

constexpr std::array<std::string_view, kAdaptReasons> kReasons = {
    "benefit", "not worth it", "budget", "strain", "power", "temperature", "latency", "sensors", "rejected"};
// Deltas help about so many later tokens before the text has moved on; and a session whose end is not known goes on a
// little.
constexpr double kMostAhead = 2000, kLeastAhead = 64;
constexpr double kLooks = 32;                     // steps of a look ahead
constexpr double kMemory = 64;                    // segments that the running mean of the NLL reaches back
constexpr double kSurprised = 0.75;               // standard deviations of the segments' NLL
constexpr double kAlarmed = 3, kLeap_nats = 0.5;  // deviations, and nats above the mean, that call for the guard
constexpr double kLatencySlack = 0.8;             // of the target: predictions are a few percent off

}  // namespace

std::string_view AdaptReasonName(AdaptReason reason) { return kReasons[static_cast<size_t>(reason)]; }

double AdaptationController::ValueOf(const BenefitModel& model, const AdaptInput& input, AdaptTier tier, double tokens,
                                     double ahead, double price, Benefit* benefit) const {
  *benefit = model.Of(tier, tokens, surprise_);
  const double helped = kMostAhead * (1 - std::exp(-std::max(ahead, kLeastAhead) / kMostAhead));
  // Joules in tokens that they would read.
  const double read =
      input.read.joules > 0 ? tokens * input.cost[static_cast<size_t>(tier)].joules / input.read.joules : 0;
  return benefit->nats * helped - price * read;
}

// Joules that the rest of the text would take at this price, by a look ahead of kLooks steps.
double AdaptationController::Projected(const AdaptInput& input, double price) const {
  BenefitModel model = benefit_;
  const double all = input.tokens_ahead + input.tokens;
  const double looks = std::clamp(all / std::max(input.tokens, 1), 1.0, kLooks), tokens = all / looks;
  double joules = 0;
  for (double read = tokens; read <= all * (1 + 1e-9); read += tokens) {
    double most = 0;
    AdaptTier best = AdaptTier::kSkip;
    for (size_t index = 1; index < kAdaptTiers; ++index) {
      Benefit benefit;
      const double value = ValueOf(model, input, static_cast<AdaptTier>(index), tokens, all - read, price, &benefit);
      if (value > most) most = value, best = static_cast<AdaptTier>(index);
    }
    joules += input.cost[static_cast<size_t>(best)].joules * tokens / std::max(input.tokens, 1);
    model.Learnt(best, tokens);
  }
  return joules;
}

double AdaptationController::PriceOf(const AdaptInput& input, double strain) const {
  double price = config_.price_nats * strain;
  if (std::isinf(input.joules_left) || Projected(input, price) <= input.joules_left) return price;
  double high = std::max(price, 1e-3);
  for (int round = 0; round < 20 && Projected(input, high) > input.joules_left; ++round) price = high, high *= 2;
  for (int round = 0; round < 8; ++round) {
    const double middle = 0.5 * (price + high);
    (Projected(input, middle) > input.joules_left ? price : high) = middle;
  }
  return high;
}

// kBenefit where the machine has room for the tier.
AdaptReason AdaptationController::WhyNot(const AdaptInput& input, AdaptTier tier) const {
  const AdaptCost& cost = input.cost[static_cast<size_t>(tier)];
  const AdaptLoop& loop = input.loop;
  if (cost.joules > input.joules_left) return AdaptReason::kBudget;
  if (loop.safest) return AdaptReason::kSensors;
  if (loop.temp_limit_c > 0 && loop.forecast_temp_c > loop.temp_limit_c - config_.temp_margin_c)
    return AdaptReason::kTemperature;
  const double seconds = input.step.seconds + cost.seconds,
               joules = input.step.joules + cost.joules + loop.idle_w * seconds;
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
  const double price = PriceOf(input, 1), now = PriceOf(input, 1 + config_.strain * input.loop.lambda);
  for (size_t index = 1; index < kAdaptTiers; ++index) {
    const auto tier = static_cast<AdaptTier>(index);
    Benefit benefit;
    const double value = ValueOf(benefit_, input, tier, input.tokens, input.tokens_ahead, price, &benefit);
    if (value > wanted.value_nats) wanted = {tier, WhyNot(input, tier), false, false, false, benefit, value};
    const double value_now = ValueOf(benefit_, input, tier, input.tokens, input.tokens_ahead, now, &benefit);
    if (value_now > best.value_nats && WhyNot(input, tier) == AdaptReason::kBenefit) {
      best = {tier, AdaptReason::kBenefit, false, false, false, benefit, value_now};
    }
  }
  if (best.tier == AdaptTier::kSkip && wanted.tier != AdaptTier::kSkip) {
    best.reason = wanted.reason == AdaptReason::kBenefit ? AdaptReason::kStrain : wanted.reason;
    best.defer = wanted.reason != AdaptReason::kBudget;
  }
  best.strained = best.tier != AdaptTier::kSkip && input.loop.lambda > 0;
  best.guard = !input.deferred && GuardIsDue(input) && input.guard.joules <= input.joules_left && !best.defer;
  return best;
}

bool AdaptationController::GuardIsDue(const AdaptInput& input) const {
  if (since_guard_ == 0) return false;  // nothing new to look at
  return alarm_ || guard_.Suspects() || config_.guard_share * since_guard_j_ >= input.guard.joules;
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
    since_guard_j_ += outcome.joules;
  }
  return false;
}

void AdaptationController::TellSurprise(double mean_nats) {
  if (scored_ >= 1) {
    const double deviation = std::sqrt(std::max(square_nats_ - mean_nats_ * mean_nats_, 1e-4));
    const double z = (mean_nats - mean_nats_) / deviation;
    alarm_ = updates_ > 0 && (alarm_ || (z > kAlarmed && mean_nats > mean_nats_ + kLeap_nats));
    if (scored_ >= 2)
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
  since_guard_ = 0;
  since_guard_j_ = 0;
  alarm_ = false;
  if (pair.tokens() > 1) benefit_.ObservePair(-pair.mean_nats(), pair.variance());
  if (!guard_.Rejects()) return false;
  guard_ = GuardTest();
  benefit_.Forget();
  rest_ = config_.rest_segments << std::min<int64_t>(resets_, 8);
  ++resets_;
  return true;
}

}  // namespace thermoe
