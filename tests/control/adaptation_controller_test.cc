// SPDX-License-Identifier: Apache-2.0
// Whether and how hard to adapt, as a function of plain data: worth, limits, the guard, and the decision log.
#include "control/adapt/adaptation_controller.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/random.h"
#include "control/adapt/adapt_log.h"

namespace thermoe::testing {
namespace {

using ::testing::HasSubstr;

// A segment of 48 tokens whose reading takes 48 J, and tiers that cost as on ember-22m.
AdaptInput Segment(double ahead = 2000) {
  AdaptInput input;
  input.tokens = 48;
  input.tokens_ahead = ahead;
  const double passes[] = {0, 0.25, 0.45, 0.9, 0.9, 0.91};
  for (size_t tier = 0; tier < kAdaptTiers; ++tier)
    input.cost[tier] = {0.001 * passes[tier], 48 * passes[tier], 0, 0.001 * passes[tier]};
  input.read = input.guard = input.step = {0.001, 48, 0, 0.001};
  return input;
}

AdaptationController Make(double price = 0.05) { return {AdaptConfig{.price_nats = price}, MeasuredBenefit()}; }

AdaptOutcome Learnt(AdaptTier tier) {
  return {.read_tokens = 48, .mean_nats = 3, .tier = tier, .learnt_tokens = tier == AdaptTier::kSkip ? 0 : 48};
}

TEST(AdaptTier, IsFoundByItsNameAlone) {
  for (size_t tier = 0; tier < kAdaptTiers; ++tier) {
    EXPECT_EQ(AdaptTierNamed(AdaptTierName(static_cast<AdaptTier>(tier))), static_cast<AdaptTier>(tier));
  }
  for (const char* name : {"", "Output", "outputs", "auto"}) EXPECT_EQ(AdaptTierNamed(name), std::nullopt) << name;
}

TEST(AdaptationController, LearnsMostAtTheStartAndFromTheCheaperTiersLater) {
  AdaptationController controller = Make();
  int last = static_cast<int>(kAdaptTiers), kinds = 0;
  for (int segment = 0; segment < 48; ++segment) {
    const AdaptDecision decision = controller.Decide(Segment(48.0 * (47 - segment)));
    const int tier = static_cast<int>(decision.tier);
    ASSERT_LE(tier, last) << "segment " << segment;
    kinds += tier < last ? 1 : 0;
    last = tier;
    controller.Observe(Learnt(decision.tier));
  }
  EXPECT_GE(kinds, 4) << "combined, last, output, skip";
  EXPECT_EQ(last, static_cast<int>(AdaptTier::kSkip));
}

TEST(AdaptationController, HigherPricesAndStrainLearnLess) {
  const auto joules = [](double price, double lambda) {
    AdaptationController controller = Make(price);
    double sum = 0;
    for (int segment = 0; segment < 48; ++segment) {
      AdaptInput input = Segment(48.0 * (47 - segment));
      input.loop.lambda = lambda;
      const AdaptDecision decision = controller.Decide(input);
      EXPECT_EQ(decision.strained, decision.tier != AdaptTier::kSkip && lambda > 0);
      sum += input.cost[static_cast<size_t>(decision.tier)].joules;
      controller.Observe(Learnt(decision.tier));
    }
    return sum;
  };
  EXPECT_GT(joules(0.02, 0), joules(0.05, 0));
  EXPECT_GT(joules(0.05, 0), joules(0.2, 0));
  EXPECT_GT(joules(0.05, 0), joules(0.05, 0.3));
  EXPECT_EQ(joules(1e6, 0), 0);
}

TEST(AdaptationController, ABudgetIsSpreadOverWhatIsToCome) {
  for (const double budget : {50.0, 200.0, 600.0}) {
    AdaptationController controller = Make();
    double spent = 0, last_half = 0;
    for (int segment = 0; segment < 48; ++segment) {
      AdaptInput input = Segment(48.0 * (47 - segment));
      input.joules_left = budget - spent;
      const AdaptDecision decision = controller.Decide(input);
      const double joules = input.cost[static_cast<size_t>(decision.tier)].joules;
      spent += joules;
      if (segment >= 8) last_half += joules;
      controller.Observe(Learnt(decision.tier));
    }
    EXPECT_LE(spent, budget);
    EXPECT_GE(spent, 0.75 * budget);
    if (budget > 100) {
      EXPECT_GT(last_half, 0.1 * budget) << "not all of it at once";
    }
  }
}

TEST(AdaptationController, EveryLimitIsKeptAndPutsOffWhatWasWorthIt) {
  const AdaptationController controller = Make();
  const auto expect = [&](const AdaptInput& input, AdaptReason reason, bool defer) {
    const AdaptDecision decision = controller.Decide(input);
    EXPECT_EQ(decision.tier, AdaptTier::kSkip) << AdaptReasonName(reason);
    EXPECT_EQ(decision.reason, reason) << AdaptReasonName(decision.reason);
    EXPECT_EQ(decision.defer, defer);
  };
  EXPECT_EQ(controller.Decide(Segment()).tier, AdaptTier::kCombined);
  AdaptInput input = Segment();
  input.joules_left = 5;
  expect(input, AdaptReason::kBudget, false);
  input = Segment();
  input.loop.safest = true;
  expect(input, AdaptReason::kSensors, true);
  input = Segment();
  input.loop.temp_limit_c = 60, input.loop.forecast_temp_c = 59.5;
  expect(input, AdaptReason::kTemperature, true);
  input = Segment();
  input.decode_rows = 1, input.loop.latency_target_s = 0.0013;
  expect(input, AdaptReason::kLatency, true);
  input.decode_rows = 0;
  EXPECT_EQ(controller.Decide(input).tier, AdaptTier::kCombined) << "nobody waits";
  input.decode_rows = 1, input.loop.latency_target_s = 0.0019;
  EXPECT_EQ(controller.Decide(input).tier, AdaptTier::kLast) << "what fits";
  input.loop.latency_target_s = 0.01, input.loop.cap_w = 40'000, input.loop.idle_w = 100;
  EXPECT_EQ(controller.Decide(input).tier, AdaptTier::kCombined) << "a pause pays for it within the target";
  input.loop.cap_w = 5'000;
  expect(input, AdaptReason::kPower, true);
  input = Segment();
  input.loop.lambda = 1e3;
  expect(input, AdaptReason::kStrain, true);
  expect(Segment(0), AdaptReason::kNotWorth, false);
}

TEST(AdaptationController, LearnsFromPairsWhatAdaptingIsWorth) {
  BenefitModel model(MeasuredBenefit());
  for (int i = 0; i < 20; ++i) model.Learnt(AdaptTier::kCombined, 48);
  const Benefit before = model.Now();
  BenefitModel helped = model, useless = model;
  for (int i = 0; i < 20; ++i) helped.ObservePair(2 * before.nats, 1e-3), useless.ObservePair(0, 1e-3);
  EXPECT_GT(helped.Now().nats, 1.5 * before.nats);
  EXPECT_LT(useless.Now().nats, 0.2 * before.nats);
  EXPECT_LT(useless.Now().deviation_nats, 0.5 * before.deviation_nats);
  EXPECT_GT(helped.Of(AdaptTier::kOutput, 48, Surprise::kMiddle).nats,
            useless.Of(AdaptTier::kOutput, 48, Surprise::kMiddle).nats);
  useless.ObservePair(std::nan(""), 1);
  EXPECT_TRUE(std::isfinite(useless.Now().nats));
  const BenefitState next = AfterSession(MeasuredBenefit(), helped.state());
  EXPECT_GT(next.ceiling_nats[0], MeasuredBenefit().ceiling_nats[0]);
  EXPECT_EQ(next.sessions, 1);
  EXPECT_EQ(BenefitFrom({1e9, -1e9, std::nan("")}, 0).ceiling_nats[0], 3 * MeasuredBenefit().ceiling_nats[0]);
}

std::vector<float> Differences(Random* random, double mean, size_t count = 48) {
  std::vector<float> worse(count);
  for (float& each : worse) each = static_cast<float>(mean + 0.4 * random->Normal());
  return worse;
}

TEST(AdaptationController, TheGuardLetsHarmlessAdaptationBeAndEndsHarm) {
  int harmless_resets = 0, latest = 0;
  for (uint64_t seed = 0; seed < 200; ++seed) {
    Random random(seed);
    AdaptationController harmless = Make(), harmful = Make();
    for (int pass = 0; pass < 100; ++pass) {
      AdaptOutcome outcome = Learnt(AdaptTier::kCombined);
      outcome.worse_nats = Differences(&random, 0);
      harmless_resets += harmless.Observe(outcome) ? 1 : 0;
    }
    int passes = 0;
    for (bool reset = false; !reset && passes < 100; ++passes) {
      AdaptOutcome outcome = Learnt(AdaptTier::kCombined);
      outcome.worse_nats = Differences(&random, 0.3);
      reset = harmful.Observe(outcome);
    }
    latest = std::max(latest, passes);
    EXPECT_EQ(harmful.resets(), 1);
    EXPECT_EQ(harmful.Decide(Segment()).reason, AdaptReason::kRejected) << "rests";
    for (int rest = 0; rest < 8; ++rest) harmful.Observe(Learnt(AdaptTier::kSkip));
    EXPECT_NE(harmful.Decide(Segment()).reason, AdaptReason::kRejected);
  }
  EXPECT_LE(harmless_resets, 10) << "of 200 sequences of 100 looks; 1 in 20 at most";
  EXPECT_LE(latest, 4);
}

TEST(AdaptationController, ALeapOfTheNllCallsTheGuard) {
  AdaptationController controller = Make();
  Random random(1);
  for (int update = 0; update < 8; ++update) {
    AdaptOutcome outcome = Learnt(AdaptTier::kCombined);
    outcome.mean_nats = 3 + 0.1 * random.Normal();
    if (controller.Decide(Segment()).guard) outcome.worse_nats.assign(48, -0.1f);
    controller.Observe(outcome);
    EXPECT_FALSE(update > 2 && controller.Decide(Segment()).guard);
  }
  AdaptOutcome leap = Learnt(AdaptTier::kCombined);
  leap.mean_nats = 5;
  controller.Observe(leap);
  EXPECT_TRUE(controller.Decide(Segment()).guard);
  EXPECT_FALSE(controller.guard().Suspects());
  leap.worse_nats.assign(48, -0.1f);
  leap.mean_nats = 3;
  controller.Observe(leap);
  EXPECT_FALSE(controller.Decide(Segment()).guard) << "it has looked";
  leap.worse_nats.assign(48, 0.15f);
  controller.Observe(leap);
  EXPECT_TRUE(controller.Decide(Segment()).guard) << "and suspects harm";
}

TEST(AdaptationController, GuardPassesTakeAShareOfWhatLearningTakes) {
  const auto looks = [](AdaptTier tier) {
    AdaptationController controller = Make();
    std::vector<int> at;
    for (int update = 0; update < 100; ++update) {
      const AdaptInput input = Segment();
      AdaptOutcome outcome = Learnt(tier);
      outcome.joules = input.cost[static_cast<size_t>(tier)].joules;
      if (controller.Decide(input).guard) outcome.worse_nats.assign(48, -0.1f), at.push_back(update);
      controller.Observe(outcome);
    }
    return at;
  };
  EXPECT_EQ(looks(AdaptTier::kCombined), (std::vector<int>{19, 38, 57, 76, 95}));
  EXPECT_EQ(looks(AdaptTier::kOutput), (std::vector<int>{67})) << "as many joules";
}

std::string LogOf(AdaptationController controller, int segments) {
  std::string log = AdaptSessionLine(7, controller.config(), controller.benefit().state()) + "\n";
  Random random(3);
  for (int segment = 0; segment < segments; ++segment) {
    AdaptInput input = Segment(100.0 * (segments - segment));
    input.loop.lambda = random.Uniform() * 0.1;
    if (segment % 5 == 4) input.joules_left = 17.25;
    const AdaptDecision decision = controller.Decide(input);
    AdaptOutcome outcome = Learnt(decision.tier);
    outcome.mean_nats = 3 + random.Normal();
    if (decision.guard) outcome.worse_nats = Differences(&random, -0.1);
    controller.Observe(outcome);
    log += AdaptLine(7, input, decision, outcome) + "\n";
  }
  return log;
}

// The first line that came out otherwise, or what is wrong with the log.
std::string ReplayOf(const std::string& log, int64_t* decisions = nullptr) {
  AdaptReplay replay;
  std::istringstream lines(log);
  std::string difference;
  for (std::string line; difference.empty() && std::getline(lines, line);) {
    const Status status = replay.Line(nlohmann::ordered_json::parse(line), "log", &difference);
    if (!status.ok()) return status.message();
  }
  if (decisions != nullptr) *decisions = replay.decisions();
  return difference;
}

TEST(AdaptLog, ReplaysToTheBitAndFindsWhatWasChanged) {
  const std::string log = LogOf(Make(), 40);
  int64_t decisions = 0;
  EXPECT_EQ(ReplayOf(log, &decisions), "");
  EXPECT_EQ(decisions, 40);
  std::string changed = log;
  changed.replace(changed.find("\"tokens_ahead\":4000"), 19, "\"tokens_ahead\":1");
  EXPECT_THAT(ReplayOf(changed), HasSubstr("made again"));
  std::string cut = log;
  cut.replace(cut.find("\"read_tokens\""), 13, "\"other\"");
  EXPECT_THAT(ReplayOf(cut), HasSubstr("no decision log"));
  EXPECT_THAT(ReplayOf(log.substr(log.find('\n') + 1)), HasSubstr("session that began"));
}

TEST(AdaptLog, StateReadsBackAndNonsenseIsRefused) {
  const BenefitState state = BenefitFrom({0.123, 0.0456, 0.1}, 12);
  const Result<BenefitState> again = ParseBenefitState(BenefitStateJson(state), "state");
  ASSERT_TRUE(again.ok()) << again.status().message();
  EXPECT_EQ(*again, state);
  for (const char* text : {"", "[]", "{}", R"({"schema_version": 1, "sessions": 1, "ceiling_nats": [1e9, 0.1, 0.1]})",
                           R"({"schema_version": 2, "sessions": 1, "ceiling_nats": [0.1, 0.1, 0.1]})",
                           R"({"schema_version": 1, "sessions": -1, "ceiling_nats": [0.1, 0.1, 0.1]})"}) {
    EXPECT_THAT(ParseBenefitState(text, "state").status().message(), HasSubstr("delete it")) << text;
  }
}

}  // namespace
}  // namespace thermoe::testing
