// SPDX-License-Identifier: Apache-2.0
#include "control/plant/plant.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <vector>

#include "base/random.h"
#include "control/telemetry/snapshot.h"
#include "support/plant_util.h"

namespace thermoe {
namespace {

constexpr Work kDecode{6.4e6, 13e6};   // the bundled model's decode step
constexpr Work kPrefill{6.4e6, 10e9};  // 0.1 s of compute on the small device

constexpr uint32_t Bit(Throttle reason) { return static_cast<uint32_t>(reason); }

Plant MakePlant(const DeviceProfile& profile, double ambient_c, uint64_t seed = 1) {
  return Plant(profile, ConstantScenario(ambient_c), seed);
}
Plant MakePlant(const DeviceProfile& profile) { return MakePlant(profile, profile.ambient_c); }

Schedule Steps(std::vector<std::pair<double, double>> points) {
  return Schedule::Create(Schedule::Shape::kSteps, std::move(points)).value();
}

TEST(Plant, AStepTakesTheRooflinesTimeAndItsEnergy) {
  DeviceProfile p = Noiseless(ShippedProfile("small"));
  p.leakage_w_per_c = 0;
  Plant plant = MakePlant(p);
  const WorkOutcome predicted = plant.Predict(kDecode);
  const WorkOutcome decode = plant.Run(kDecode);
  EXPECT_NEAR(decode.duration_s, 1e-3, 1e-12);  // 6.4e6 bytes at 6.4e9 bytes/s
  EXPECT_NEAR(decode.energy_j, 1e-3 * 1.1 + 6.4e6 * 150e-12 + 13e6 * 60e-12, 1e-12);
  EXPECT_NEAR(predicted.duration_s, decode.duration_s, 1e-12);
  EXPECT_NEAR(predicted.energy_j, decode.energy_j, 1e-12);
  EXPECT_TRUE(decode.completed);
  const WorkOutcome nothing = plant.Run(Work{});
  EXPECT_EQ(nothing.duration_s, 0);
  EXPECT_EQ(nothing.energy_j, 0);
  const double before_s = plant.now_s();
  plant.Advance(0.01, kDecode);
  EXPECT_NEAR(plant.now_s() - before_s, 0.01, 1e-12);
  EXPECT_NEAR(plant.Advance(1e-6, kDecode).duration_s, 1e-3, 1e-12);  // work goes on to its end
}

// The integral of instant power over time equals the energy counter, through bursts, throttling, pauses and schedules.
TEST(Plant, EnergyIsTheIntegralOfPower) {
  DeviceProfile p = Noiseless(ShippedProfile("small"));
  p.update_s = 0.001;  // the sensor of instant power follows closely
  Scenario scenario = ConstantScenario(25);
  scenario.background_frac = Steps({{0, 0}, {3, 0.4}, {6, 0.1}});
  Plant plant(p, scenario, 3);
  Random random(5);
  double integral_j = 0, outcomes_j = 0;
  while (plant.now_s() < 10) {
    const double from_s = plant.now_s(), from_j = plant.energy_j();
    if (random.Uniform() < 0.7) {
      outcomes_j += plant.Run(random.Uniform() < 0.5 ? kDecode : kPrefill).energy_j;
    } else {
      plant.Idle(0.02 * random.Uniform());
      outcomes_j += plant.energy_j() - from_j;
    }
    EXPECT_GE(plant.energy_j(), from_j);
    EXPECT_GE(plant.now_s(), from_s);
  }
  EXPECT_NEAR(outcomes_j, plant.energy_j(), 1e-9 * plant.energy_j());

  // Rectangles of instant power, in updates of 1 ms under one long work, while the limit moves the clock.
  Plant burst(p, ConstantScenario(25), 3);
  const Work slice{6.4e3, 10e6};  // 0.1 ms at the nominal clock
  const double start_j = burst.energy_j();
  while (burst.now_s() < 1) {
    const double t = burst.now_s();
    const double power_w = burst.Predict(slice).energy_j / burst.Predict(slice).duration_s;
    burst.Run(slice);
    integral_j += power_w * (burst.now_s() - t);
  }
  EXPECT_NEAR(integral_j / (burst.energy_j() - start_j), 1, 1e-3);
}

TEST(Plant, CounterAndMeanPowerOfTheSensorsAgree) {
  Plant plant = MakePlant(ShippedProfile("small"));
  double counted_j = plant.sensors().energy_j, last_j = counted_j;
  const Work burst{6.4e6, 2.5e9};  // 25 ms or more: shorter than an update, so that none is missed
  int updates = 0;
  for (int i = 0; i < 500; ++i) {
    plant.Advance(0.02, i % 7 == 0 ? burst : kDecode);
    const PlantSensors& sensors = plant.sensors();
    if (sensors.energy_j == last_j) continue;
    EXPECT_GE(sensors.utilisation_frac, 0);
    EXPECT_LE(sensors.utilisation_frac, 1);
    counted_j += sensors.power_w * 0.1;
    last_j = sensors.energy_j;
    EXPECT_NEAR(counted_j, last_j, 1e-9);
    ++updates;
  }
  EXPECT_GT(updates, 90);
}

TEST(Plant, ThePowerLimitHoldsTheAverageByTheClock) {
  for (const char* name : {"h100", "small"}) {
    const DeviceProfile p = Noiseless(ShippedProfile(name));
    Plant plant = MakePlant(p);
    const Work dense{0, 0.01 * p.compute_tflops * 1e12};  // 10 ms at the nominal clock
    ASSERT_GT(plant.Predict(dense).energy_j / plant.Predict(dense).duration_s, 1.1 * p.limit_w) << name;
    while (plant.now_s() < 1) plant.Run(dense);
    const double from_s = plant.now_s(), from_j = plant.energy_j();
    while (plant.now_s() < 3) plant.Run(dense);
    EXPECT_NEAR((plant.energy_j() - from_j) / (plant.now_s() - from_s), p.limit_w, 0.005 * p.limit_w) << name;
    EXPECT_LT(plant.clock_mhz(), 0.95 * p.nominal_mhz);
    EXPECT_GT(plant.clock_mhz(), p.lowest_mhz);
    EXPECT_EQ(plant.throttle(), Bit(Throttle::kPowerLimit)) << name;
    plant.Idle(2);
    EXPECT_EQ(plant.clock_mhz(), p.nominal_mhz);
    EXPECT_EQ(plant.throttle(), 0u);
  }
}

TEST(Plant, TheSlowdownHoldsTheDieBelowItsTemperature) {
  for (const char* name : {"h100", "small"}) {
    const DeviceProfile p = Noiseless(ShippedProfile(name));
    Plant plant = MakePlant(p, p.slowdown_c - 30);  // a hot room
    const Work dense{0, 0.01 * p.compute_tflops * 1e12};
    double hottest_c = 0, settled_low = 1e9, settled_high = 0;
    while (plant.now_s() < 1200) {
      plant.Run(dense);
      hottest_c = std::max(hottest_c, plant.temps_c()[kDie]);
      if (plant.now_s() > 1190) {
        settled_low = std::min(settled_low, plant.clock_mhz());
        settled_high = std::max(settled_high, plant.clock_mhz());
      }
    }
    EXPECT_LE(hottest_c, p.slowdown_c + 0.5) << name;
    EXPECT_GT(plant.temps_c()[kDie], p.slowdown_c - p.slowdown_band_c) << name;
    EXPECT_TRUE(plant.throttle() & Bit(Throttle::kThermal)) << name;
    EXPECT_LT(settled_high - settled_low, 0.02 * p.nominal_mhz) << name << ": the ramp must not oscillate";
    EXPECT_FALSE(plant.shut_down());
  }
}

// What small.toml promises: loads of the bundled model reach each of its limits.
TEST(Plant, TheSmallDeviceIsLoadedByTheBundledModel) {
  const DeviceProfile p = ShippedProfile("small");
  const auto after = [&p](double ambient_c, const Work& work, double seconds) {
    Plant plant = MakePlant(p, ambient_c);
    while (plant.now_s() < seconds) plant.Run(work);
    return plant;
  };
  const Plant decode = after(25, kDecode, 60);
  EXPECT_NEAR(decode.sensors().power_w, 2.85, 0.1);
  EXPECT_EQ(decode.throttle(), 0u);
  const Plant prefill = after(25, kPrefill, 2);
  EXPECT_NEAR(prefill.sensors().power_w, p.limit_w, 0.05 * p.limit_w);
  EXPECT_EQ(prefill.throttle(), Bit(Throttle::kPowerLimit));
  EXPECT_TRUE(after(25, kPrefill, 400).throttle() & Bit(Throttle::kThermal));
  EXPECT_EQ(after(50, kDecode, 900).throttle(), Bit(Throttle::kThermal));
}

TEST(Plant, HotMemoryThrottlesToo) {
  const DeviceProfile p = Noiseless(ShippedProfile("h100"));
  Plant plant = MakePlant(p, 62);
  const Work traffic{0.01 * p.bandwidth_gbps * 1e9, 0};
  while (plant.now_s() < 300) plant.Run(traffic);
  EXPECT_GT(plant.temps_c()[kMemory], p.memory_max_c - p.slowdown_band_c);
  EXPECT_LE(plant.temps_c()[kMemory], p.memory_max_c + 0.5);
  EXPECT_TRUE(plant.throttle() & Bit(Throttle::kThermal));
}

TEST(Plant, TheShutdownEndsAllWork) {
  const DeviceProfile p = Noiseless(ShippedProfile("small"));
  Scenario scenario = ConstantScenario(25);
  scenario.ambient_c = Steps({{0, 25}, {10, 100}});
  Plant plant(p, scenario, 1);
  WorkOutcome last;
  while (plant.now_s() < 5000 && last.completed) last = plant.Advance(0.1, kDecode);
  ASSERT_TRUE(plant.shut_down());
  EXPECT_EQ(plant.clock_mhz(), 0);
  EXPECT_EQ(plant.idle_power_w(), 0);
  const double then_j = plant.energy_j();
  EXPECT_FALSE(plant.Run(kDecode).completed);
  plant.Idle(1e6);
  EXPECT_EQ(plant.energy_j(), then_j);
  for (const double temp : plant.temps_c()) EXPECT_NEAR(temp, 100, 1e-6);  // cold, at the ambient
}

// Every observable of a run with noise, as bits.
std::vector<uint64_t> History(uint64_t seed) {
  Scenario scenario = ConstantScenario(25);
  scenario.ambient_c = Schedule::Create(Schedule::Shape::kLinear, {{0, 25}, {5, 60}, {9, 30}}).value();
  scenario.background_frac = Steps({{0, 0}, {2, 0.5}, {4, 0}});
  Plant plant(ShippedProfile("small"), scenario, seed);
  std::vector<uint64_t> bits;
  for (int i = 0; i < 2000; ++i) {
    const WorkOutcome outcome = plant.Advance(0.004, i % 40 == 0 ? kPrefill : kDecode);
    const PlantSensors& sensors = plant.sensors();
    for (const double value :
         {plant.now_s(), plant.energy_j(), plant.clock_mhz(), plant.temps_c()[kDie], plant.temps_c()[kMemory],
          outcome.duration_s, outcome.energy_j, sensors.temp_c, sensors.power_w, sensors.power_instant_w}) {
      bits.push_back(std::bit_cast<uint64_t>(value));
    }
  }
  return bits;
}

TEST(Plant, IsReproducibleToTheBitFromItsSeed) {
  const std::vector<uint64_t> first = History(7);
  EXPECT_EQ(first, History(7));
  EXPECT_NE(first, History(8));
}

TEST(Plant, NoiseHasTheProfilesSize) {
  DeviceProfile p = ShippedProfile("small");
  Plant plant = MakePlant(p);
  double sum = 0, squares = 0;
  const int count = 20'000;
  for (int i = 0; i < count; ++i) {
    const double ratio = plant.Run(kDecode).duration_s / 1e-3;
    sum += ratio;
    squares += ratio * ratio;
  }
  const double mean = sum / count, deviation = std::sqrt(squares / count - mean * mean);
  EXPECT_NEAR(mean, 1, 5 * p.step_time_frac / std::sqrt(count));
  EXPECT_NEAR(deviation, p.step_time_frac, 0.03 * p.step_time_frac);
}

// Time passes exactly: however it is cut, idling ends in the same state.
TEST(Plant, IdlingDoesNotDependOnHowTimeIsCut) {
  const DeviceProfile p = ShippedProfile("small");
  std::vector<Plant> plants(3, MakePlant(p));
  for (Plant& plant : plants) {
    for (int i = 0; i < 100; ++i) plant.Run(kPrefill);
  }
  const double end_s = plants[0].now_s() + 20;
  plants[0].Idle(20);
  for (int i = 0; i < 200; ++i) plants[1].Idle(0.1);
  for (int i = 0; i < 2'000'000; ++i) plants[2].Idle(1e-5);
  for (const Plant& plant : plants) {
    EXPECT_NEAR(plant.now_s(), end_s, 1e-6);
    EXPECT_NEAR(plant.energy_j(), plants[0].energy_j(), 1e-6 * plants[0].energy_j());
    for (int i = 0; i < kThermalStages; ++i) EXPECT_NEAR(plant.temps_c()[i], plants[0].temps_c()[i], 1e-6);
  }
}

TEST(Plant, IsStableAtHugeAndTinyTimes) {
  for (const char* name : {"h100", "small"}) {
    const DeviceProfile p = Noiseless(ShippedProfile(name));
    Plant idle = MakePlant(p, 30);
    const StageArray start = idle.temps_c();
    const double power_w = idle.idle_power_w();
    idle.Idle(1e9);
    for (int i = 0; i < kThermalStages; ++i) EXPECT_NEAR(idle.temps_c()[i], start[i], 1e-9);
    EXPECT_NEAR(idle.energy_j() / (power_w * 1e9), 1, 1e-9);
    EXPECT_NEAR(idle.sensors().power_w, power_w, 1e-4 * power_w);  // a difference of energies near 1e11 J

    Plant tiny = MakePlant(p, 30);
    for (int i = 0; i < 1000; ++i) {
      tiny.Idle(1e-15);
      tiny.Run(Work{1e-3, 1e-3});
      tiny.Run(Work{0, 0});
      tiny.Idle(0);
    }
    for (int i = 0; i < kThermalStages; ++i) EXPECT_NEAR(tiny.temps_c()[i], start[i], 1e-3);

    // One work of 3 years, far over the limit at the nominal clock: ends, at the limit.
    Plant busy = MakePlant(p, 30);
    const double years_s = 1e8;
    const WorkOutcome outcome = busy.Run({0, years_s * p.compute_tflops * 1e12});
    EXPECT_TRUE(outcome.completed);
    EXPECT_GT(outcome.duration_s, years_s);
    EXPECT_LE(outcome.energy_j / outcome.duration_s, 1.001 * p.limit_w) << name;
    EXPECT_LE(busy.temps_c()[kDie], p.slowdown_c + 0.5);
    EXPECT_NEAR(busy.sensors().utilisation_frac, 1, 1e-6);
  }
}

// Under constant work the whole plant ends where the network's analytic steady state is.
TEST(Plant, SteadyStateUnderLoadIsTheNetworks) {
  DeviceProfile p = Noiseless(ShippedProfile("h100"));
  Plant plant = MakePlant(p, 25);
  const Work traffic{p.bandwidth_gbps * 1e9, 0};  // 1 s
  for (int i = 0; i < 3000; ++i) plant.Run(traffic);
  const double traffic_w = p.energy_per_byte_pj * p.bandwidth_gbps * 1e-3;
  const double memory_w = p.idle_w * p.memory_idle_frac + traffic_w * p.memory_traffic_frac;
  const double r = p.die_resistance_c_per_w + p.spreader_resistance_c_per_w + p.sink_resistance_c_per_w;
  const double common = p.spreader_resistance_c_per_w + p.sink_resistance_c_per_w;
  const double die_w = p.idle_w + traffic_w - memory_w;
  const double k = p.leakage_w_per_c;
  const double expected = (25 + r * (die_w - k * p.leakage_reference_c) + common * memory_w) / (1 - k * r);
  EXPECT_NEAR(plant.temps_c()[kDie], expected, 1e-6);
}

TEST(Plant, FollowsAmbientSchedules) {
  const DeviceProfile p = Noiseless(ShippedProfile("small"));
  Scenario scenario = ConstantScenario(25);
  scenario.ambient_c = Steps({{0, 20}, {5000, 45}});
  Plant stepped(p, scenario, 1);
  stepped.Idle(4999);
  EXPECT_NEAR(stepped.temps_c()[kDie], MakePlant(p, 20).temps_c()[kDie], 1e-6);
  stepped.Idle(5000);
  EXPECT_NEAR(stepped.temps_c()[kDie], MakePlant(p, 45).temps_c()[kDie], 1e-6);

  // Behind a slow ramp every stage lags by a constant; one call equals many.
  scenario.ambient_c = Schedule::Create(Schedule::Shape::kLinear, {{0, 20}, {4000, 60}}).value();
  Plant one(p, scenario, 1), many(p, scenario, 1);
  one.Idle(3000);
  for (int i = 0; i < 30'000; ++i) many.Idle(0.1);
  EXPECT_NEAR(one.temps_c()[kDie], many.temps_c()[kDie], 1e-6);
  const double lag_c = MakePlant(p, 50).temps_c()[kDie] - one.temps_c()[kDie];
  EXPECT_GT(lag_c, 0.5);  // 0.01 C/s times about two minutes
  EXPECT_LT(lag_c, 3);
}

TEST(Plant, BackgroundLoadSlowsAndHeats) {
  const DeviceProfile p = Noiseless(ShippedProfile("small"));
  Scenario scenario = ConstantScenario(25);
  scenario.background_frac = Steps({{0, 0}, {100, 0.5}});
  Plant plant(p, scenario, 1);
  EXPECT_NEAR(plant.Run(kDecode).duration_s, 1e-3, 1e-12);
  const double quiet_w = plant.idle_power_w(), quiet_c = plant.temps_c()[kDie];
  plant.Idle(500);
  EXPECT_NEAR(plant.Predict(kDecode).duration_s, 2e-3, 1e-12);
  EXPECT_NEAR(plant.Run(kDecode).duration_s, 2e-3, 1e-12);
  EXPECT_NEAR(plant.idle_power_w() - quiet_w, 0.5 * 6.4e9 * 150e-12, 0.1);  // half its bandwidth, and some leakage
  EXPECT_GT(plant.temps_c()[kDie], quiet_c + 3);
  EXPECT_NEAR(plant.sensors().utilisation_frac, 0.5, 1e-6);
  // A step that meets the change gets each part at its own speed.
  Plant edge(p, scenario, 1);
  edge.Idle(100 - 0.5e-3);
  EXPECT_NEAR(edge.Run(kDecode).duration_s, 0.5e-3 + 1e-3, 1e-9);
}

TEST(Plant, StartsFromAWarmDie) {
  Plant plant = MakePlant(Noiseless(ShippedProfile("h100")));
  plant.StartFrom(55);
  EXPECT_NEAR(plant.temps_c()[kDie], 55, 1e-9);
  EXPECT_NEAR(plant.sensors().temp_c, 55, 1e-9);
  plant.Idle(3600);
  EXPECT_NEAR(plant.temps_c()[kDie], MakePlant(Noiseless(ShippedProfile("h100"))).temps_c()[kDie], 0.01);
}

}  // namespace
}  // namespace thermoe
