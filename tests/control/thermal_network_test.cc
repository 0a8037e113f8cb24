// SPDX-License-Identifier: Apache-2.0
#include "control/plant/thermal_network.h"

#include <gtest/gtest.h>

#include "support/plant_util.h"

namespace thermoe {
namespace {

TEST(ThermalNetwork, SteadyStateIsTheAnalyticOne) {
  for (const char* name : {"h100", "small"}) {
    DeviceProfile p = ShippedProfile(name);
    p.leakage_w_per_c = 0;
    ThermalNetwork network(p);
    const StageArray heat = {p.limit_w / 2, 0, 0, p.limit_w / 4};  // die, spreader, sink, memory
    const double ambient_c = 21;
    const double total_w = heat[kDie] + heat[kMemory];
    const double sink_c = ambient_c + total_w * p.sink_resistance_c_per_w;
    const double spreader_c = sink_c + total_w * p.spreader_resistance_c_per_w;
    const StageArray expected = {spreader_c + heat[kDie] * p.die_resistance_c_per_w, spreader_c, sink_c,
                                 spreader_c + heat[kMemory] * p.memory_resistance_c_per_w};
    network.Advance(1e7, heat, ambient_c);
    for (int i = 0; i < kThermalStages; ++i) {
      EXPECT_NEAR(network.Steady(heat, ambient_c)[i], expected[i], 1e-9 * expected[i]) << name << " stage " << i;
      EXPECT_NEAR(network.temps_c()[i], expected[i], 1e-9 * expected[i]) << name << " stage " << i;
    }
  }
}

// With leakage k and resistance R from die to ambient: T = (ambient + R (q - k reference)) / (1 - k R).
TEST(ThermalNetwork, SteadyStateWithLeakageIsTheAnalyticOne) {
  DeviceProfile p = ShippedProfile("h100");
  const double r = p.die_resistance_c_per_w + p.spreader_resistance_c_per_w + p.sink_resistance_c_per_w;
  const double k = p.leakage_w_per_c;
  ASSERT_GT(k, 0);
  const double expected = (25 + r * (300 - k * p.leakage_reference_c)) / (1 - k * r);
  EXPECT_NEAR(ThermalNetwork(p).Steady({300, 0, 0, 0}, 25)[kDie], expected, 1e-9 * expected);
}

TEST(ThermalNetwork, OneStepEqualsManyAndAgreesWithEulersMethod) {
  const DeviceProfile p = ShippedProfile("small");
  const StageArray heat = {3, 0, 0, 1};
  ThermalNetwork one(p), many(p);
  one.set_temps_c({40, 38, 36, 50});
  many.set_temps_c(one.temps_c());
  StageArray euler = one.temps_c();
  StageArray mean_of_many{};
  const int steps = 20'000;
  const double total_s = 2, dt = total_s / steps;
  for (int n = 0; n < steps; ++n) {
    const StageArray mean = many.Advance(dt, heat, 25);
    const double die = (euler[kDie] - euler[kSpreader]) / p.die_resistance_c_per_w;
    const double memory = (euler[kMemory] - euler[kSpreader]) / p.memory_resistance_c_per_w;
    const double spreader = (euler[kSpreader] - euler[kSink]) / p.spreader_resistance_c_per_w;
    const double sink = (euler[kSink] - 25) / p.sink_resistance_c_per_w;
    const double leak = p.leakage_w_per_c * (euler[kDie] - p.leakage_reference_c);
    euler[kDie] += dt * (heat[kDie] + leak - die) / p.die_capacity_j_per_c;
    euler[kMemory] += dt * (heat[kMemory] - memory) / p.memory_capacity_j_per_c;
    euler[kSpreader] += dt * (die + memory - spreader) / p.spreader_capacity_j_per_c;
    euler[kSink] += dt * (spreader - sink) / p.sink_capacity_j_per_c;
    for (int i = 0; i < kThermalStages; ++i) mean_of_many[i] += mean[i] / steps;
  }
  const StageArray mean = one.Advance(total_s, heat, 25);
  for (int i = 0; i < kThermalStages; ++i) {
    EXPECT_NEAR(one.temps_c()[i], many.temps_c()[i], 1e-9) << i;
    EXPECT_NEAR(mean[i], mean_of_many[i], 1e-9) << i;
    EXPECT_NEAR(one.temps_c()[i], euler[i], 2e-3)
        << i;  // first order in dt: about 1e-4 s times the first degrees per second
  }
}

// Heat in = heat stored + heat to the ambient, whatever the step.
TEST(ThermalNetwork, KeepsHeat) {
  DeviceProfile p = ShippedProfile("small");
  p.leakage_w_per_c = 0;
  for (const double dt : {1e-9, 1e-3, 1.0, 1e3, 1e6}) {
    ThermalNetwork network(p);
    network.set_temps_c({30, 30, 30, 30});
    const StageArray mean = network.Advance(dt, {2, 0, 0, 1}, 25);
    const StageArray& temps = network.temps_c();
    const double stored =
        (temps[kDie] - 30) * p.die_capacity_j_per_c + (temps[kSpreader] - 30) * p.spreader_capacity_j_per_c +
        (temps[kSink] - 30) * p.sink_capacity_j_per_c + (temps[kMemory] - 30) * p.memory_capacity_j_per_c;
    const double gone = (mean[kSink] - 25) / p.sink_resistance_c_per_w * dt;
    EXPECT_NEAR(stored + gone, 3 * dt, 1e-9 * dt + 1e-12) << dt;
  }
}

}  // namespace
}  // namespace thermoe
