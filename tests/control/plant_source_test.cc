// SPDX-License-Identifier: Apache-2.0
#include "control/plant/plant_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "support/plant_util.h"

namespace thermoe {
namespace {

constexpr Work kDecode{6.4e6, 13e6};

TEST(PlantSource, SensorsChangeEvery100Milliseconds) {
  Plant plant(ShippedProfile("small"), ConstantScenario(25), 1);
  PlantSource source(&plant);
  double last_j = *source.Read().energy_j, changed_s = 0;
  int changes = 0;
  for (int i = 0; i < 400; ++i) {
    plant.Advance(0.005, kDecode);
    const Snapshot snapshot = source.Read();
    EXPECT_EQ(snapshot.state, SourceState::kOk);
    EXPECT_EQ(snapshot.time_s, plant.now_s());
    EXPECT_EQ(*snapshot.temp_c, std::round(*snapshot.temp_c));
    EXPECT_EQ(*snapshot.temp_margin_c, 80 - *snapshot.temp_c);
    if (*snapshot.energy_j == last_j) continue;
    EXPECT_NEAR(snapshot.time_s - changed_s, 0.1, 0.0051);
    EXPECT_NEAR(*snapshot.power_w, (*snapshot.energy_j - last_j) / 0.1, 1e-6);
    last_j = *snapshot.energy_j;
    changed_s = snapshot.time_s;
    ++changes;
  }
  EXPECT_NEAR(changes, 20, 1);
  const Snapshot snapshot = source.Read();
  EXPECT_NEAR(*snapshot.utilisation_frac, 0.2, 0.02);
  EXPECT_NEAR(*snapshot.memory_utilisation_frac, 0.2, 0.02);
  EXPECT_EQ(*snapshot.clock_mhz, 1800);
  EXPECT_EQ(*snapshot.throttle, 0u);
  EXPECT_EQ(*snapshot.power_limit_w, 5);
  EXPECT_EQ(*snapshot.temp_slowdown_c, 80);
  EXPECT_EQ(*snapshot.temp_shutdown_c, 95);
  EXPECT_EQ(*snapshot.memory_temp_limit_c, 85);
  EXPECT_EQ(*snapshot.clock_limit_mhz, 1800);
}

TEST(PlantSource, EnergyCountsFromOpening) {
  Plant plant(ShippedProfile("small"), ConstantScenario(25), 1);
  plant.Idle(10);
  PlantSource source(&plant);
  EXPECT_EQ(*source.Read().energy_j, 0);
  plant.Idle(10);
  EXPECT_NEAR(*source.Read().energy_j, 10 * plant.idle_power_w(), 0.2);
}

TEST(PlantSource, AShutDownDeviceIsLostAndEveryFieldUnknown) {
  Plant plant(ShippedProfile("small"), ConstantScenario(100), 1);
  PlantSource source(&plant);
  EXPECT_EQ(source.name(), "plant:small");
  for (const SensorReport& sensor : source.Report())
    EXPECT_TRUE(sensor.found && !sensor.value.empty() && sensor.reason.empty());
  plant.Idle(1);
  ASSERT_TRUE(plant.shut_down());
  const Snapshot snapshot = source.Read();
  EXPECT_EQ(snapshot.state, SourceState::kLost);
  EXPECT_FALSE(snapshot.power_w || snapshot.temp_c || snapshot.energy_j || snapshot.clock_mhz ||
               snapshot.power_limit_w);
  for (const SensorReport& sensor : source.Report()) {
    EXPECT_FALSE(sensor.found);
    EXPECT_THAT(sensor.reason, ::testing::HasSubstr("shut down"));
  }
}

}  // namespace
}  // namespace thermoe
