// SPDX-License-Identifier: Apache-2.0
// Whether, how hard and when a session adapts to its text: one decision a segment, from what each tier would cost, what
// it would bring and what the machine has to spare (docs/adaptation-control.md).
//
// A pure function of its configuration, the state it was made with and what it is told: no clock, no thread. The same
// inputs give the same decisions to the bit, live, simulated and replayed.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <span>
#include <string_view>
#include <vector>

#include "control/adapt/benefit_model.h"
#include "control/adapt/guard_test.h"

namespace thermoe {

struct AdaptCost {
  double seconds = 0, joules = 0, bytes = 0;
  double plain_seconds = 0;  // by the cost model, before what updates took was learnt
};

// The control loop and its limits; 0: none, unknown.
struct AdaptLoop {
  double lambda = 0;  // sum of the multipliers of power, temperature and latency
  double cap_w = 0;   // that pacing holds: of power limit and heat
  double idle_w = 0;
  double temp_limit_c = 0, forecast_temp_c = 0;  // at the horizon
  double latency_target_s = 0;
  bool safest = false;  // sensors that a limit needs fail
};

struct AdaptInput {
  int32_t tokens = 0;                       // of the segment
  double tokens_ahead = 0;                  // that the session will read or write after it, as far as is known
  std::array<AdaptCost, kAdaptTiers> cost;  // of each tier on top of reading, as predicted
  AdaptCost read;                           // of reading the segment
  AdaptCost guard;                          // of a plain pass over it
  AdaptCost step;                           // of the whole step without adapting, the segment's reading included
  int32_t decode_rows = 0;                  // that wait for the step to end
  AdaptLoop loop;
  double joules_left = std::numeric_limits<double>::infinity();  // of the budget
  bool deferred =
      false;  // the segment was read before: learning from it costs another forward pass, which `cost` includes
};

enum class AdaptReason : uint8_t {
  kBenefit,      // the tier that brings most beyond its price
  kNotWorth,     // no tier brings its price
  kBudget,       // the best one's joules are more than what is left
  kStrain,       // a limit presses: joules are dearer than what it brings, for now
  kPower,        // the cap, and pauses that would pay for the rest, leave no room
  kTemperature,  // too hot at the horizon
  kLatency,      // others' tokens would be late
  kSensors,      // a sensor that a limit needs fails
  kRejected,     // the guard found harm a while ago
};
inline constexpr size_t kAdaptReasons = 9;
std::string_view AdaptReasonName(AdaptReason reason);

struct AdaptDecision {
  AdaptTier tier = AdaptTier::kSkip;
  AdaptReason reason = AdaptReason::kNotWorth;
  bool defer = false;     // a tier was worth it and the machine had no room: keep the segment for later
  bool guard = false;     // score the segment by the plain model, too
  bool strained = false;  // a limit presses: tokens that surprise little stay at the output
  Benefit benefit;        // of the tier, nats a later token
  double value_nats = 0;  // benefit over the tokens ahead, less the price: what was maximised
};

// What became of a decision.
struct AdaptOutcome {
  int32_t read_tokens = 0;  // 0: of a segment that was read before
  double mean_nats = -1;    // their NLL before the update; negative: they were not scored
  AdaptTier tier = AdaptTier::kSkip;
  int32_t learnt_tokens = 0;
  std::vector<float> worse_nats = {};     // adapted less plain NLL, by token, where the guard looked
  double joules = 0;                      // that learning was predicted to take
  double seconds = 0, guard_seconds = 0;  // of the engine's clock, for people; 0: unknown
};

struct AdaptConfig {
  // Joules of reading one token are worth so many nats saved on later tokens. Above: adapts less.
  double price_nats = 0.04;
  // How much dearer joules are while a limit presses: price * (1 + kStrain * lambda).
  double strain = 8;
  double temp_margin_c = 1;
  // What guard passes take of the joules of learning: one is due where those since the last reach its own over this
  // share; and at once where the NLL leaps or earlier looks suspect harm.
  double guard_share = 0.06;
  // Segments without adaptation after the guard found harm; doubled each time.
  int32_t rest_segments = 8;
};

class AdaptationController {
 public:
  AdaptationController(const AdaptConfig& config, const BenefitState& start) : config_(config), benefit_(start) {}

  AdaptDecision Decide(const AdaptInput& input) const;

  // True: the deltas do harm and must be reset.
  bool Observe(const AdaptOutcome& outcome);

  const AdaptConfig& config() const { return config_; }

  const BenefitModel& benefit() const { return benefit_; }
  const GuardTest& guard() const { return guard_; }
  int64_t updates() const { return updates_; }
  int64_t resets() const { return resets_; }
  Surprise surprise() const { return surprise_; }

 private:
  // Nats over `ahead` tokens, less the price of the tier's joules.
  double ValueOf(const BenefitModel& model, const AdaptInput& input, AdaptTier tier, double tokens, double ahead,
                 double price, Benefit* benefit) const;
  // Of a joule, in nats for those that a token's reading takes; dearer where a budget must last. `strain`: by what
  // presses.
  double PriceOf(const AdaptInput& input, double strain) const;
  double Projected(const AdaptInput& input, double price) const;
  AdaptReason WhyNot(const AdaptInput& input, AdaptTier tier) const;
  bool GuardIsDue(const AdaptInput& input) const;
  void TellSurprise(double mean_nats);
  bool Guard(std::span<const float> worse_nats);

  AdaptConfig config_;
  BenefitModel benefit_;
  GuardTest guard_;
  Surprise surprise_ = Surprise::kMiddle;
  double mean_nats_ = 0, square_nats_ = 0, scored_ = 0;  // of segments, running
  int64_t updates_ = 0, since_guard_ = 0, resets_ = 0;
  double since_guard_j_ = 0;
  bool alarm_ = false;  // the NLL leapt: the guard should look
  int32_t rest_ = 0;    // segments that pass without adaptation
};

}  // namespace thermoe
