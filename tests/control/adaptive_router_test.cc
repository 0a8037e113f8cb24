// SPDX-License-Identifier: Apache-2.0
// The choice of a point, which points take part, and what the loop costs: time of a tick, allocations.
#include "control/router/adaptive_router.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>

#include "closed_loop.h"
#include "support/count_allocations.h"

namespace thermoe {
namespace {

struct Scene {
  LoadMix mix;
  EnergyModel model;
  RouterInput input;

  explicit Scene(int batch = 16) : model({120, 130e-12, 1e-12, 20}, 2.88e12, 7e14, 700) {
    for (int i = 0; i < 100; ++i) {
      StepInput step;
      step.start_s = i * 0.0025, step.end_s = step.start_s + 0.0025;
      step.decode_tokens = batch;
      step.expert_bytes = batch == 1 ? 9.7e8 : 6e9, step.other_bytes = 5e8, step.flops = 4e10;
      mix.Add(step, OperatingPoint{}, 0);
    }
    input.mix = &mix;
    input.model = &model;
    input.reference_j = 0.06;
  }
};

AdaptiveRouter Router(Preference prefer = Preference::kThroughput, double floor_nats = 0.02) {
  return AdaptiveRouter(UsablePoints(EmberFront(), kOlmoeShape), -1, floor_nats, prefer);
}

TEST(AdaptiveRouter, TakesOnlyPointsThatTheModelCanRun) {
  const std::vector<OperatingPoint> nested = UsablePoints(EmberFront(), kOlmoeShape);
  EXPECT_GT(nested.size(), 5u);
  EXPECT_EQ(Describe(nested[0]), "plain");
  for (const OperatingPoint& point : nested) EXPECT_TRUE(point.plane_cap.empty());  // of another number of layers
  SteeringShape native = kOlmoeShape;
  native.nested = false;
  for (const OperatingPoint& point : UsablePoints(EmberFront(), native)) EXPECT_EQ(point.full_slots, kAllSlots);
  EXPECT_EQ(UsablePoints({}, kOlmoeShape).size(), 1u);
}

TEST(AdaptiveRouter, PlainWithoutPrices) {
  const Scene scene;
  EXPECT_EQ(Router().Choose(scene.input).point, 0);
  EXPECT_EQ(Router().Choose(scene.input).reason, DecisionReason::kHeadroom);
}

TEST(AdaptiveRouter, ADearerJouleBuysFewerBytesWithinTheFloor) {
  Scene scene;
  scene.input.cap_w = 350;
  for (const double floor_nats : {0.005, 0.012, 0.02}) {
    const AdaptiveRouter router = Router(Preference::kThroughput, floor_nats);
    double bytes_frac = 1;
    for (const double lambda : {0.02, 0.05, 0.1, 0.3, 1.0}) {
      scene.input.lambda_energy = lambda;
      const int32_t chosen = router.Choose(scene.input).point;
      const PointOutlook outlook = router.Outlook(chosen, scene.input);
      EXPECT_LE(outlook.bytes_frac, bytes_frac);
      EXPECT_LE(outlook.loss_nats, floor_nats);
      bytes_frac = outlook.bytes_frac;
    }
    EXPECT_LT(bytes_frac, 1);
  }
}

TEST(AdaptiveRouter, ALatencyTargetIsMetWithTheLeastLoss) {
  Scene scene;
  scene.input.latency_target_s = 0.002;  // plain takes 2.26 ms
  const AdaptiveRouter router = Router();
  const RouterChoice choice = router.Choose(scene.input);
  const PointOutlook chosen = router.Outlook(choice.point, scene.input);
  EXPECT_LE(chosen.latency_s, 0.002);
  for (int32_t i = 0; i < static_cast<int32_t>(router.points().size()); ++i) {
    const PointOutlook other = router.Outlook(i, scene.input);
    if (other.latency_s <= 0.96 * 0.002) {
      EXPECT_GE(other.loss_nats, chosen.loss_nats - 1e-12);
    }
  }
}

// Without a cap too: within the floor, as far as a nat buys joules, and other points at other batches.
TEST(AdaptiveRouter, EnergyIsSavedWithHeadroomWithinTheFloor) {
  const Scene one(1), sixteen(16);
  for (const double floor_nats : {0.007, 0.02, 0.045}) {
    const AdaptiveRouter router = Router(Preference::kEnergy, floor_nats);
    for (const Scene* scene : {&one, &sixteen}) {
      const int32_t chosen = router.Choose(scene->input).point;
      const PointOutlook outlook = router.Outlook(chosen, scene->input);
      EXPECT_LE(outlook.loss_nats, floor_nats);
      EXPECT_LT(outlook.j_per_token, 0.97 * router.Outlook(0, scene->input).j_per_token) << floor_nats;
    }
  }
  const AdaptiveRouter router = Router(Preference::kEnergy, 0.045);
  EXPECT_EQ(Describe(router.points()[static_cast<size_t>(router.Choose(one.input).point)]), "full 0, k-max 7");
  EXPECT_EQ(Describe(router.points()[static_cast<size_t>(router.Choose(sixteen.input).point)]), "full 0, k0 5");
}

TEST(AdaptiveRouter, QualityIsPacedDownToTheTargetBeforePoints) {
  Scene scene;
  scene.input.cap_w = 350;
  scene.input.lambda_energy = 1;
  const AdaptiveRouter router = Router(Preference::kQuality);
  EXPECT_EQ(router.Choose(scene.input).point, 0);
  EXPECT_EQ(router.Choose(scene.input).reason, DecisionReason::kPreferQuality);
  scene.input.latency_target_s = 0.0045;  // paced plain takes 3.7 ms
  EXPECT_EQ(router.Choose(scene.input).point, 0);
  scene.input.latency_target_s = 0.003;
  EXPECT_NE(router.Choose(scene.input).point, 0);
}

// Joules of a token are dearest at batch 1: there a price buys more.
TEST(AdaptiveRouter, LossGoesWhereItBuysMostJoules) {
  Scene one(1), sixteen(16);
  const AdaptiveRouter router = Router();
  for (Scene* scene : {&one, &sixteen}) {
    scene->input.lambda_energy = 0.1;
    scene->input.reference_j = 0.12;
  }
  EXPECT_LT(router.Outlook(router.Choose(one.input).point, one.input).bytes_frac,
            router.Outlook(router.Choose(sixteen.input).point, sixteen.input).bytes_frac);
}

// 20,000 steps, of `batches` rows in turn.
void CostsLittle(const ControlConfig& config, int batches) {
  auto made = MakeControlLoop(config, EmberFront(), kOlmoeShape);
  ASSERT_TRUE(made.ok());
  StepRecord record;
  record.expert_bytes = 6e9, record.weight_bytes = 6.5e9, record.flops = 4e10;
  Snapshot snapshot;
  snapshot.state = SourceState::kOk;
  double now_s = 0, energy_j = 0;
  std::vector<double> tick_us, step_us;
  tick_us.reserve(4000);
  step_us.reserve(20000);
  int64_t allocations = 0;
  for (int i = 0; i < 20000; ++i) {
    const double start_s = now_s;
    record.decode_tokens = record.tokens = 16 - i / 7 % batches;
    now_s += 0.0023;
    energy_j += 0.0023 * 500;
    snapshot.time_s = now_s, snapshot.temp_c = 50, snapshot.energy_j = energy_j, snapshot.power_w = 500;
    const int64_t ticks = (*made)->status().ticks, before = testing::Allocations();
    const auto begin = std::chrono::steady_clock::now();
    const StepDecision decision = (*made)->AfterStep({start_s, now_s, record, snapshot, 0});
    const double us = std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count();
    if (i > 1000) allocations += testing::Allocations() - before;
    ((*made)->status().ticks > ticks ? tick_us : step_us).push_back(us);
    now_s += decision.pause_s, energy_j += decision.pause_s * 120;
  }
  std::sort(tick_us.begin(), tick_us.end());
  ASSERT_GT(tick_us.size(), 500u);
  std::sort(step_us.begin(), step_us.end());
  printf("tick: median %.2f us, 99 %% %.2f us; step: median %.2f us, 99 %% %.2f us; %ld allocations\n",
         tick_us[tick_us.size() / 2], tick_us[tick_us.size() * 99 / 100], step_us[step_us.size() / 2],
         step_us[step_us.size() * 99 / 100], allocations);
  EXPECT_LT(tick_us[tick_us.size() / 2], 300);
  EXPECT_EQ(allocations, 0);
}

TEST(ControlLoopCost, StepsDoNotAllocateAndTicksAreQuick) {
  ControlConfig config = H100Config();
  config.limits = {350, 80, 5};
  CostsLittle(config, 1);
}

TEST(ControlLoopCost, NorDoTheyWithABudget) {
  ControlConfig config = H100Config();
  config.limits = {350, 80, 50};
  config.prefer = Preference::kEnergy;
  config.quality_budget_nats = 0.01;
  config.max_sequences = 16;
  CostsLittle(config, 16);
}

}  // namespace
}  // namespace thermoe
