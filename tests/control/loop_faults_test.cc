// SPDX-License-Identifier: Apache-2.0
// Sensors that fail while the loop is closed: the safest point at once, limits kept by feed-forward, no overshoot on
// the way back.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <optional>

#include "base/random.h"
#include "closed_loop.h"

namespace thermoe {
namespace {

enum Fault { kNone, kLost, kStalePower, kNoTemp, kFrozen, kReset, kLeap, kAbsurd, kFaults };

// One fault after another, each for a random time.
struct Injector {
  Random random;
  Fault fault = kNone;
  double until_s = 0;
  std::optional<Snapshot> held;
  double shift_j = 0;

  void operator()(Snapshot* s) {
    const double now_s = s->time_s;
    if (now_s >= until_s) {
      fault = random.Below(2) == 0 ? kNone : static_cast<Fault>(random.Below(kFaults));
      until_s = now_s + 0.05 + 0.8 * random.Uniform();
      held = *s;
      if (fault == kReset && s->energy_j) shift_j = -*s->energy_j;
      if (fault == kLeap) shift_j += 1e5 * random.Uniform();
    }
    if (s->energy_j) s->energy_j = std::max(0.0, *s->energy_j + shift_j);
    switch (fault) {
      case kLost: *s = Snapshot{}, s->time_s = now_s; break;
      case kStalePower: s->state = SourceState::kStale, s->power_w.reset(), s->energy_j.reset(); break;
      case kNoTemp: s->temp_c.reset(); break;
      case kFrozen: *s = *held, s->time_s = now_s; break;
      case kAbsurd:
        s->temp_c = random.Below(2) == 0 ? std::numeric_limits<double>::quiet_NaN() : 1e9;
        s->power_w = -1e300;
        break;
      default: break;
    }
  }
};

// Steps of 18 ms: fewer of them for the same virtual time.
Load Heavy(Random* random) {
  Load load;
  load.expert_bytes *= 8;
  load.other_bytes *= 8;
  load.decode_flops *= 8;
  load.prefill_every = random->Below(3) == 0 ? 4 : 0;
  return load;
}

TEST(LoopFaults, TenThousandRandomSequences) {
  const OperatingPoints front = EmberFront();
  double worst_frac = 0, worst_over_c = 0, longest_s = 0;
  int safest = 0, passed = 0;
  for (uint64_t seed = 1; seed <= 10000; ++seed) {
    Random random(seed);
    ControlConfig config = H100Config();
    config.limits = {random.Below(4) == 0 ? 0.0 : 250 + 300 * random.Uniform(),
                     random.Below(2) == 0 ? 0.0 : 55 + 20 * random.Uniform(), 0};
    ClosedLoop run(config, ConstantScenario(25 + 10 * random.Uniform()), seed, front);
    run.corrupt = Injector{Random(seed * 77), kNone, 0, {}, 0};
    const Load load = Heavy(&random);
    const double end_s = seed % 10 == 0 ? 8 : 2.5;  // some long enough that a limit could be passed for seconds
    while (run.plant.now_s() < end_s) {
      run.Step(load);
      ASSERT_TRUE(std::isfinite(run.decision.pause_s) && run.decision.pause_s >= 0) << seed;
      ASSERT_GE(run.in_force, 0);
      safest += run.loop->status().safest;
    }
    if (config.limits.power_w > 0) {
      const double over_frac = run.WorstSecond(1, end_s) / config.limits.power_w - 1;
      if (over_frac > 0.04) longest_s = std::max(longest_s, run.LongestOver(1.04 * config.limits.power_w, 1, end_s));
      worst_frac = std::max(worst_frac, over_frac);
      passed += over_frac > 0.04;
    }
    if (config.limits.temp_c > 0) worst_over_c = std::max(worst_over_c, run.hottest_c - config.limits.temp_c);
  }
  printf(
      "worst second %.2f %% over, %d sequences with a second more than 4 %% over, for %.2f s at most, hottest %.2f C "
      "over, "
      "%d safest steps\n",
      100 * worst_frac, passed, longest_s, worst_over_c, safest);
  // Faults one upon another in the first second, before anything is known of the device but prices that are 20 % off.
  EXPECT_LE(passed, 10);
  EXPECT_LT(worst_frac, 0.08);
  EXPECT_LT(longest_s, 1);
  EXPECT_LT(worst_over_c, 1);
  EXPECT_GT(safest, 10000);
}

TEST(LoopFaults, SafestPointAtOnceAndBackWithoutOvershoot) {
  for (int kind = 0; kind < 3; ++kind) {
    ControlConfig config = H100Config();
    config.limits = {450, 80, 0};
    ClosedLoop run(config, ConstantScenario(25));
    run.Run(5, Load{});
    ASSERT_FALSE(run.loop->status().safest);
    const double lost_s = run.plant.now_s();
    const Snapshot held = run.source.Read();
    run.corrupt = [&](Snapshot* s) {
      if (kind == 0) *s = Snapshot{};
      if (kind == 1) s->temp_c.reset();
      if (kind == 2) *s = held;  // frozen: known after 0.3 s
    };
    run.Run(kind == 2 ? 0.32 : 0.001, Load{});
    EXPECT_TRUE(run.loop->status().safest) << kind;
    EXPECT_EQ(run.loop->status().reason, DecisionReason::kSafest);
    for (const OperatingPoint& point : run.loop->points()) {
      if (LossAt(point, 16) <= 0.02) {
        EXPECT_LE(run.loop->status().point_bytes_frac, BytesFracAt(point, 16));
      }
    }
    run.Run(4, Load{});
    const double back_s = run.plant.now_s();
    EXPECT_LT(run.WorstSecond(lost_s, back_s), 450 * 1.02) << kind;
    run.corrupt = nullptr;
    run.Run(4, Load{});
    EXPECT_FALSE(run.loop->status().safest) << kind;
    EXPECT_LT(run.WorstSecond(back_s - 1, run.plant.now_s()), 450 * 1.02) << kind;
    EXPECT_NEAR(run.MeanPower(back_s + 2, run.plant.now_s()), 450, 4.5) << kind;
  }
}

}  // namespace
}  // namespace thermoe
