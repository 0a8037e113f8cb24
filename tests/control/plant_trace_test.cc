// SPDX-License-Identifier: Apache-2.0
// The H100 profile against the two recordings of data/: each trace's own load is replayed through the plant.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "control/plant/plant.h"
#include "plant_util.h"

namespace thermoe {
namespace {

// data/README.md: 8 layers of 56 distinct experts of OLMoE's shape in bf16, 4 tokens each; and 4 products of 8192 x 8192 matrices.
constexpr double kExpertWeights = 3.0 * 2048 * 1024;
constexpr Work kDecode{8 * 56 * kExpertWeights * 2, 8 * 56 * 4 * 2 * kExpertWeights};
constexpr Work kBurst{4 * 3 * 8192.0 * 8192.0 * 2, 4 * 2 * 8192.0 * 8192.0 * 8192.0};
constexpr int kMixedCycle = 4;  // a burst, then three decode steps
constexpr double kCounter_s = 0.1;

struct Row {
  double time_s = 0, energy_j = 0, die_c = 0, memory_c = 0, cap_w = 0;
  std::string phase;
  int steps = 0;
};

std::vector<Row> ReadTrace(const std::string& name) {
  std::ifstream file(DataPath(name));
  std::string line, cell;
  std::getline(file, line);
  std::vector<std::string> header;
  for (std::istringstream cells(line); std::getline(cells, cell, ',');) header.push_back(cell);
  std::vector<Row> rows;
  while (std::getline(file, line)) {
    std::map<std::string, std::string> at;
    std::istringstream cells(line);
    for (size_t i = 0; std::getline(cells, cell, ','); ++i) at[header.at(i)] = cell;
    Row row;
    row.time_s = std::stod(at.at("time_s"));
    row.energy_j = std::stod(at.at("energy_mj")) / 1e3;
    row.die_c = std::stod(at.at("gpu_temp_c"));
    row.memory_c = std::stod(at.at("hbm_temp_c"));
    if (at.contains("phase")) {
      row.phase = at["phase"];
      row.cap_w = std::stod(at["cap_w"]);
      row.steps = std::stoi(at["steps"]);
    }
    rows.push_back(row);
  }
  return rows;
}

// Residuals and how large they are.
class Residuals {
 public:
  void Add(double value) { values_.push_back(std::abs(value)); }
  size_t count() const { return values_.size(); }
  double rms() const {
    double sum = 0;
    for (const double v : values_) sum += v * v;
    return std::sqrt(sum / static_cast<double>(values_.size()));
  }
  double max() const { return *std::max_element(values_.begin(), values_.end()); }
  double quantile(double share) const {
    std::vector<double> sorted = values_;
    std::sort(sorted.begin(), sorted.end());
    return sorted[static_cast<size_t>(share * static_cast<double>(sorted.size() - 1))];
  }

 private:
  std::vector<double> values_;
};

void Print(const char* what, const Residuals& r, double scale, const char* unit) {
  std::printf("  %s: RMS %.2f, 95 %% below %.2f, max %.2f %s (%zu values)\n", what, scale * r.rms(), scale * r.quantile(0.95),
              scale * r.max(), unit, r.count());
}

// Energy at given times, from a plant whose time goes on in steps.
class Meter {
 public:
  explicit Meter(const Plant* plant) : plant_(plant) { Note(); }
  void Note() { points_.emplace_back(plant_->now_s(), plant_->energy_j()); }
  double At(double time_s) const {
    auto after = std::lower_bound(points_.begin(), points_.end(), std::pair(time_s, 0.0));
    if (after == points_.begin()) return points_.front().second;
    if (after == points_.end()) return points_.back().second;
    const auto before = after - 1;
    return before->second + (after->second - before->second) * (time_s - before->first) / (after->first - before->first);
  }

 private:
  const Plant* plant_;
  std::vector<std::pair<double, double>> points_;
};

// Every row's steps in that row, evenly spaced; the plant decides how long each takes and what it draws.
TEST(PlantTrace, CappedLoadsReplayWithinTheBars) {
  const std::vector<Row> rows = ReadTrace("h100_cap_trace.csv");
  ASSERT_EQ(rows.size(), 1210u);
  Plant plant(ShippedProfile("h100"), ConstantScenario(ShippedProfile("h100").ambient_c), 1);
  plant.StartFrom(rows[0].die_c);
  Meter meter(&plant);
  Residuals die, memory;
  const double origin_s = rows[0].time_s;
  double latest_s = 0;
  int cycle = 0;
  for (size_t i = 1; i < rows.size(); ++i) {
    if (rows[i].phase != rows[i - 1].phase || rows[i].cap_w != rows[i - 1].cap_w) cycle = 0;
    // Steps of a row that begins the idle phase still belong to the load before it.
    const bool mixed = (rows[i].phase == "idle" ? rows[i - 1] : rows[i]).phase == "mixed";
    const double end_s = rows[i].time_s - origin_s;
    for (int left = rows[i].steps - rows[i - 1].steps; left > 0; --left) {
      const double slot_s = std::max(0.0, end_s - plant.now_s()) / left;
      plant.Advance(slot_s, mixed && cycle++ % kMixedCycle == 0 ? kBurst : kDecode);
      meter.Note();
    }
    plant.Idle(std::max(0.0, end_s - plant.now_s()));
    meter.Note();
    latest_s = std::max(latest_s, plant.now_s() - end_s);
    die.Add(plant.temps_c()[kDie] - rows[i].die_c);
    memory.Add(plant.temps_c()[kMemory] - rows[i].memory_c);
  }

  // The counter changes every 100 ms and is read up to 25 ms later: its own times are a grid just before the rows'.
  double offset_s = 1;
  for (size_t i = 0; i < rows.size(); ++i) offset_s = std::min(offset_s, rows[i].time_s - origin_s - kCounter_s * static_cast<double>(i));
  Residuals power;
  size_t within = 0;
  for (size_t i = 10; i < rows.size(); ++i) {
    const double to_s = kCounter_s * static_cast<double>(i) + offset_s;
    const double measured_w = rows[i].energy_j - rows[i - 10].energy_j;
    const double plant_w = meter.At(to_s) - meter.At(to_s - 1);
    power.Add(plant_w / measured_w - 1);
    within += std::abs(plant_w / measured_w - 1) <= 0.03;
    if (std::abs(plant_w / measured_w - 1) > 0.03) std::printf("    at %.1f s (%s, cap %.0f): measured %.1f W, plant %.1f W\n", rows[i].time_s, rows[i].phase.c_str(), rows[i].cap_w, measured_w, plant_w);
  }
  std::printf("h100_cap_trace.csv, plant late by at most %.0f ms\n", latest_s * 1e3);
  Print("die", die, 1, "C");
  Print("memory", memory, 1, "C");
  Print("1 s average power", power, 100, "%");
  std::printf("  1 s averages within 3 %%: %zu of %zu\n", within, power.count());
  EXPECT_LT(die.rms(), 1.5);
  EXPECT_LT(power.rms(), 0.03);
}

TEST(PlantTrace, TheStepOfFullPowerReplaysWithinTheBars) {
  const std::vector<Row> rows = ReadTrace("h100_power_step.csv");
  ASSERT_EQ(rows.size(), 45u);
  Plant plant(ShippedProfile("h100"), ConstantScenario(ShippedProfile("h100").ambient_c), 1);
  plant.StartFrom(rows[0].die_c);
  Meter meter(&plant);
  // Begin and end of the load, from the counter: 703 W from 2.0 to 2.5 s, and 82 J above idle after 14.01 s.
  constexpr double kBegin_s = 2.0, kEnd_s = 14.14;
  Residuals die, memory, power;
  int bursts = 0;
  for (size_t i = 1; i < rows.size(); ++i) {
    while (plant.now_s() < rows[i].time_s) {
      if (plant.now_s() >= kBegin_s && plant.now_s() < kEnd_s) {
        plant.Run(kBurst);
        bursts += plant.now_s() > kBegin_s + 1;
      } else {
        plant.Idle(std::min(0.01, rows[i].time_s - plant.now_s()));
      }
      meter.Note();
    }
    die.Add(plant.temps_c()[kDie] - rows[i].die_c);
    memory.Add(plant.temps_c()[kMemory] - rows[i].memory_c);
    if (i < 4) continue;  // the first two rows fall from a power that came before the trace
    // The counter's changes between two rows, a whole number of them.
    const double passed_s = kCounter_s * std::round((rows[i].time_s - rows[i - 2].time_s) / kCounter_s);
    const double measured_w = (rows[i].energy_j - rows[i - 2].energy_j) / passed_s;
    const double plant_w = (meter.At(rows[i].time_s) - meter.At(rows[i].time_s - passed_s)) / passed_s;
    power.Add(plant_w / measured_w - 1);
    if (std::abs(plant_w / measured_w - 1) > 0.03) std::printf("    at %.1f s: measured %.1f W, plant %.1f W\n", rows[i].time_s, measured_w, plant_w);
  }
  const double tflops = bursts * kBurst.flops / (kEnd_s - kBegin_s - 1) / 1e12;
  std::printf("h100_power_step.csv: %.0f TFLOP/s at the limit (measured 676)\n", tflops);
  Print("die", die, 1, "C");
  Print("memory", memory, 1, "C");
  Print("1 s average power", power, 100, "%");
  EXPECT_LT(die.rms(), 1.5);
  EXPECT_LT(power.rms(), 0.03);
  EXPECT_NEAR(tflops / 676, 1, 0.03);
}

// Sleeping between steps so that the mean meets the cap: while idle draws less than the cap and a step of energy E and time t
// more, the pause is (E - cap t) / (cap - idle).
TEST(PlantTrace, PacedStepsPerSecondAtEachCap) {
  struct Case {
    bool mixed;
    double cap_w, steps_per_s;  // 0: without a cap
  };
  constexpr Case kCases[] = {{false, 0, 511},   {false, 500, 499}, {false, 450, 432}, {false, 400, 363}, {false, 350, 295}, {false, 300, 224},
                             {false, 250, 161}, {true, 0, 342},    {true, 500, 211},  {true, 400, 157},  {true, 350, 125}};
  Plant plant(ShippedProfile("h100"), ConstantScenario(ShippedProfile("h100").ambient_c), 1);
  plant.StartFrom(41);
  for (const Case& c : kCases) {
    constexpr double kWarm_s = 2, kPhase_s = 8;
    int steps = 0, cycle = 0;
    double from_s = 0, from_j = 0, debt_j = 0;
    const double begin_s = plant.now_s();
    while (plant.now_s() < begin_s + kPhase_s) {
      if (from_s == 0 && plant.now_s() >= begin_s + kWarm_s) {
        from_s = plant.now_s();
        from_j = plant.energy_j();
        steps = 0;
      }
      const WorkOutcome step = plant.Run(c.mixed && cycle++ % kMixedCycle == 0 ? kBurst : kDecode);
      ++steps;
      if (c.cap_w == 0) continue;
      debt_j += step.energy_j - c.cap_w * step.duration_s;
      const double pause_s = std::max(0.0, debt_j) / (c.cap_w - plant.idle_power_w());
      plant.Idle(pause_s);
      debt_j = std::min(0.0, debt_j);  // a step below the cap leaves room for the next
    }
    const double seconds = plant.now_s() - from_s, rate = steps / seconds, mean_w = (plant.energy_j() - from_j) / seconds;
    std::printf("  %s cap %3.0f W: %.1f steps/s, measured %.0f (%+.1f %%), mean %.1f W, die %.1f C\n", c.mixed ? "mixed " : "decode", c.cap_w, rate,
                c.steps_per_s, 100 * (rate / c.steps_per_s - 1), mean_w, plant.temps_c()[kDie]);
    EXPECT_NEAR(rate / c.steps_per_s, 1, 0.03) << (c.mixed ? "mixed " : "decode ") << c.cap_w;
    if (c.cap_w == 0) continue;
    EXPECT_NEAR(mean_w / c.cap_w, 1, 0.002);
  }
}

}  // namespace
}  // namespace thermoe
