// SPDX-License-Identifier: Apache-2.0
// The control loop in closed loop with the plant: caps, temperature, latency, headroom.
#include "control/loop.h"

#include <gtest/gtest.h>

#include "closed_loop.h"

namespace thermoe {
namespace {

constexpr double kCaps_w[] = {350, 500, 400, 300};

Load Mixed() {
  Load load;
  load.prefill_every = 3;
  return load;
}

void HoldsCaps(const Load& load, RouterMode router) {
  ClosedLoop run(H100Config(router), ConstantScenario(28));
  run.Run(5, load);
  for (const double cap_w : kCaps_w) {
    const double from_s = run.plant.now_s();
    ASSERT_TRUE(run.loop->SetLimits({cap_w, 0, 0}).ok());
    run.Run(8, load);
    const double to_s = run.plant.now_s();
    const double mean_w = run.MeanPower(from_s + 2, to_s), worst_w = run.WorstSecond(from_s + 1, to_s);
    const ControlStatus& s = run.loop->status();
    printf("cap %g: mean %.2f W, worst %.2f %%, demand %.1f, point %s, lambda %.2f\n", cap_w, mean_w, 100 * (worst_w / cap_w - 1),
           s.demand_w, s.point_text.c_str(), s.lambda_power);
    if (s.demand_w > cap_w) {
      EXPECT_NEAR(mean_w / cap_w, 1, 0.01) << cap_w;
    }
    EXPECT_LT(mean_w, cap_w * 1.01);
    EXPECT_LT(worst_w, cap_w * (load.prefill_every > 0 ? 1.03 : 1.02)) << cap_w;
  }
}

TEST(Loop, HoldsCapsInDecode) { HoldsCaps(Load{}, RouterMode::kAdaptive); }
TEST(Loop, HoldsCapsInMixed) { HoldsCaps(Mixed(), RouterMode::kAdaptive); }
TEST(Loop, HoldsCapsByPacingAlone) { HoldsCaps(Mixed(), RouterMode::kPlain); }

double TokensPerSecond(RouterMode router, const Load& load, double* loss) {
  ControlConfig config = H100Config(router);
  config.limits.power_w = 350;
  ClosedLoop run(config, ConstantScenario(28));
  run.Run(15, load);
  *loss = run.mean_loss();
  return run.tokens / run.plant.now_s();
}

TEST(Loop, CheaperExpertsBuySpeedUnderACap) {
  for (const bool mixed : {false, true}) {
    const Load load = mixed ? Mixed() : Load{};
    double loss = 0, plain_loss = 0;
    const double adaptive = TokensPerSecond(RouterMode::kAdaptive, load, &loss);
    const double plain = TokensPerSecond(RouterMode::kPlain, load, &plain_loss);
    printf("%s: %.0f against %.0f tokens/s, %.3f times, %.4f nats\n", mixed ? "mixed" : "decode", adaptive, plain, adaptive / plain, loss);
    EXPECT_GE(adaptive / plain, mixed ? 1.15 : 1.6);
    EXPECT_LE(loss, 0.02);
    EXPECT_EQ(plain_loss, 0);
  }
}

TEST(Loop, KeepsTheTemperatureWhileTheRoomWarms) {
  for (const double limit_c : {60.0, 68.0}) {
    ControlConfig config = H100Config();
    config.limits.temp_c = limit_c;
    Scenario room = ConstantScenario(25);
    room.ambient_c = *Schedule::Create(Schedule::Shape::kLinear, {{0, 25}, {30, 25}, {150, 45}, {200, 45}});
    ClosedLoop run(config, room);
    run.Run(240, Load{});
    const double mean_c = run.plant.temps_c()[kDie];
    printf("limit %g C: hottest %.2f, at the end %.2f C, %.0f W, point %s, lambda %.2f changes %ld\n", limit_c, run.hottest_c, mean_c,
           run.MeanPower(200, 240), run.loop->status().point_text.c_str(), run.loop->status().lambda_temp, run.loop->status().point_changes);
    EXPECT_LT(run.hottest_c, limit_c + 1);
    EXPECT_GT(mean_c, limit_c - 3);  // nor is much given away
  }
}

TEST(Loop, KeepsTheLatencyTargetUnderABackgroundLoad) {
  ControlConfig config = H100Config();
  config.limits.latency_ms = 2.6;
  Scenario room = ConstantScenario(28);
  room.background_frac = *Schedule::Create(Schedule::Shape::kSteps, {{0, 0}, {5, 0.3}, {15, 0}, {20, 0.15}, {30, 0}});
  ClosedLoop run(config, room);
  run.Run(40, Load{});
  const auto late = std::count_if(run.latencies_ms.begin(), run.latencies_ms.end(), [](double ms) { return ms > 2.6; });
  printf("late %.3f %%, point %s, changes %ld\n", 100.0 * late / run.latencies_ms.size(), run.loop->status().point_text.c_str(),
         run.loop->status().point_changes);
  EXPECT_LE(late, 0.01 * run.latencies_ms.size());
  EXPECT_EQ(run.loop->status().point_index, 0);
}

TEST(Loop, WithLimitsFarAwayNothingChanges) {
  ControlConfig config = H100Config();
  config.limits = {690, 86, 50};
  ClosedLoop run(config, ConstantScenario(25));
  run.Run(20, Load{});
  EXPECT_EQ(run.steerings_given, 0);
  EXPECT_EQ(run.paused_s_sum, 0);
  EXPECT_EQ(run.loop->status().lambda_power, 0);
  EXPECT_EQ(run.loop->status().lambda_temp, 0);
  EXPECT_EQ(run.loop->status().lambda_latency, 0);
}

}  // namespace
}  // namespace thermoe
