// SPDX-License-Identifier: Apache-2.0
#include "control/telemetry/energy_meter.h"

#include <gtest/gtest.h>

#include "base/random.h"
#include "control/telemetry/snapshot.h"

namespace thermoe {
namespace {

EnergyMeter Millijoules() { return EnergyMeter({.joules_per_count = 1e-3, .wraps_at = {1ull << 32, 0}, .max_power_w = 2000}); }

TEST(EnergyMeter, PowerNeedsTwoChanges) {
  EnergyMeter meter = Millijoules();
  meter.Update(0, 1000);
  meter.Update(0.05, 1000);
  EXPECT_FALSE(meter.power_w().has_value());
  meter.Update(0.1, 11000);  // the counter may have stood at 1000 for any time before
  EXPECT_FALSE(meter.power_w().has_value());
  EXPECT_DOUBLE_EQ(meter.energy_j(), 10);
  meter.Update(0.2, 41000);
  EXPECT_NEAR(meter.power_w().value(), 300, 1e-9);
  EXPECT_DOUBLE_EQ(meter.energy_j(), 40);
}

TEST(EnergyMeter, ShortWindowsAreMerged) {
  EnergyMeter meter = Millijoules();
  uint64_t count = 5;
  for (int i = 0; i <= 100; ++i) meter.Update(i * 0.001, count += 100);  // changes every ms, 100 W
  EXPECT_NEAR(meter.power_w().value(), 100, 1e-6);
}

TEST(EnergyMeter, RestsAndStops) {
  EnergyMeter meter = Millijoules();
  uint64_t count = 5;
  double time_s = 0;
  for (int i = 0; i < 4; ++i) meter.Update(time_s += 0.1, count += 10'000);
  EXPECT_TRUE(meter.power_w().has_value());
  meter.Update(time_s + 0.1, count);
  EXPECT_TRUE(meter.power_w().has_value());
  meter.Update(time_s + 0.3, count);
  EXPECT_GE(meter.rest_s(), kRestLimit_s);
  EXPECT_FALSE(meter.power_w().has_value());
  // One long wait, as after a clock's leap, is no proof.
  meter.Update(time_s + 0.4, count += 10);
  EXPECT_EQ(meter.rest_s(), 0);
  meter.Update(time_s + 3600, count);
  EXPECT_LT(meter.rest_s(), kRestLimit_s);
}

TEST(EnergyMeter, AMeanOverSecondsIsNotPower) {
  EnergyMeter meter = Millijoules();
  for (int i = 0; i < 5; ++i) {
    meter.Update(2.0 * i, 1000 + static_cast<uint64_t>(i) * 200'000);
    EXPECT_FALSE(meter.power_w().has_value());
  }
  EXPECT_DOUBLE_EQ(meter.energy_j(), 800);
}

TEST(EnergyMeter, LeapsOfEitherSignAreResets) {
  for (const uint64_t leap : {uint64_t{0}, uint64_t{3}, uint64_t{1} << 40, ~uint64_t{0}}) {
    EnergyMeter meter = Millijoules();
    meter.Update(0, 1'000'000);
    meter.Update(0.1, 1'010'000);
    meter.Update(0.2, 1'020'000);
    meter.Update(0.3, leap);
    EXPECT_DOUBLE_EQ(meter.energy_j(), 20);
    EXPECT_FALSE(meter.power_w().has_value());
    meter.Update(0.4, leap + 10'000);  // at ~0 this is a wrap of 2^64
    meter.Update(0.5, leap + 20'000);
    EXPECT_NEAR(meter.energy_j(), 40, 1e-9);
    EXPECT_NEAR(meter.power_w().value(), 100, 1e-9);
  }
}

TEST(EnergyMeter, RandomCountsNeverGiveNegativeOrHugePower) {
  Random random(1);
  EnergyMeter meter = Millijoules();
  double time_s = 0, energy_j = 0;
  uint64_t count = 0;
  for (int i = 0; i < 200'000; ++i) {
    time_s += random.Below(20) == 0 ? random.Uniform() * 100 : random.Uniform() * 0.05;
    const uint64_t kind = random.Below(10);
    if (kind < 6) count += random.Below(100'000);
    if (kind == 6) count = random.Next() >> random.Below(64);
    if (kind == 7) count -= random.Below(1000);
    meter.Update(time_s, count);
    ASSERT_GE(meter.energy_j(), energy_j);
    energy_j = meter.energy_j();
    // Energy of up to 0.1 s may show at once, in each of the few changes of a 90 ms window.
    if (meter.power_w()) {
      ASSERT_GE(*meter.power_w(), 0);
    }
  }
  EXPECT_LE(energy_j, 2000 * (time_s + 0.1 * 200'000));
}

}  // namespace
}  // namespace thermoe
