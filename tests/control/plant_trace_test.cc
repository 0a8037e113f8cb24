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
#include "support/plant_util.h"

namespace thermoe {
namespace {

// data/README.md: 8 layers of 56 distinct experts of OLMoE's shape in bf16, 4 tokens each; and 4 products of 8192 x
// 8192 matrices.
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
  double within(double bar) const {
    return static_cast<double>(std::count_if(values_.begin(), values_.end(), [bar](double v) { return v <= bar; })) /
           static_cast<double>(values_.size());
  }
  double quantile(double share) const {
    std::vector<double> sorted = values_;
    std::sort(sorted.begin(), sorted.end());
    return sorted[static_cast<size_t>(share * static_cast<double>(sorted.size() - 1))];
  }

 private:
  std::vector<double> values_;
};

// What a plant did, noted at the ends of steps and pauses: energy at any time, and the die's mean since the last
// question.
class Meter {
 public:
  explicit Meter(const Plant* plant) : plant_(plant) { Note(); }
  void Note() {
    const double die_c = plant_->temps_c()[kDie], now_s = plant_->now_s();
    if (!points_.empty()) die_cs_ += (now_s - points_.back().first) * (die_c + last_die_c_) / 2;
    last_die_c_ = die_c;
    points_.emplace_back(now_s, plant_->energy_j());
  }
  double EnergyAt(double time_s) const {
    const auto after = std::lower_bound(points_.begin(), points_.end(), std::pair(time_s, 0.0));
    if (after == points_.begin()) return points_.front().second;
    if (after == points_.end()) return points_.back().second;
    const auto before = after - 1;
    return before->second +
           (after->second - before->second) * (time_s - before->first) / (after->first - before->first);
  }
  double TakeMeanDie() {
    const double mean_c = points_.back().first > taken_s_ ? die_cs_ / (points_.back().first - taken_s_) : last_die_c_;
    taken_s_ = points_.back().first;
    die_cs_ = 0;
    return mean_c;
  }

 private:
  const Plant* plant_;
  std::vector<std::pair<double, double>> points_;  // time, energy
  double last_die_c_ = 0, die_cs_ = 0, taken_s_ = 0;
};

// How a replay differed from its trace.
struct Replay {
  Residuals die_c, memory_c;
  Residuals power_frac, unmixed_power_frac;  // of 1 s averages; the second without those that touch a mixed load
  double latest_s = 0;                       // how far the plant fell behind the trace's steps
  double tflops = 0;                         // in the step of full power

  void Print(const char* name) const {
    std::printf("%s: plant late by at most %.0f ms; 1 s averages within 3 %%: %.1f %%\n", name, latest_s * 1e3,
                100 * power_frac.within(0.03));
    PrintOne("die", die_c, 1, "C");
    PrintOne("memory", memory_c, 1, "C");
    PrintOne("1 s average power", power_frac, 100, "%");
  }

 private:
  static void PrintOne(const char* what, const Residuals& r, double scale, const char* unit) {
    std::printf("  %s: RMS %.2f, 95 %% below %.2f, max %.2f %s (%zu values)\n", what, scale * r.rms(),
                scale * r.quantile(0.95), scale * r.max(), unit, r.count());
  }
};

enum class Pauses { kBetween, kBefore, kAfter };

// Runs the steps between two rows so that the row ends at end_s. In a row within a load each is followed by a pause in
// proportion to its own length, as the recorded program paced them; where a load begins or ends there is one pause. The
// plant decides how long a step takes and what it draws.
void ReplayRow(Plant* plant, Meter* meter, const std::vector<Work>& steps, double end_s, Pauses pauses) {
  double busy_s = 0;
  for (const Work& work : steps) busy_s += plant->Predict(work).duration_s;
  if (pauses == Pauses::kBefore) plant->Idle(std::max(0.0, end_s - plant->now_s() - busy_s));
  meter->Note();
  for (const Work& work : steps) {
    const double predicted_s = plant->Predict(work).duration_s;
    const double slot_s = pauses == Pauses::kBetween ? (end_s - plant->now_s()) * predicted_s / busy_s : 0;
    const WorkOutcome step = plant->Run(work);
    meter->Note();
    plant->Idle(std::max(0.0, slot_s - step.duration_s));
    meter->Note();
    busy_s -= predicted_s;
  }
  plant->Idle(std::max(0.0, end_s - plant->now_s()));
  meter->Note();
}

// 1 s averages of power: the plant against the counter. Rows are 100 ms apart in the counter's own time, which lies
// just before the times at which rows were read; its value is some 20 ms old by then: so begin and end of load show in
// it.
void ComparePower(const std::vector<Row>& rows, const Meter& meter, Replay* replay) {
  constexpr double kCounterLag_s = 0.02;
  double offset_s = 1;
  for (size_t i = 0; i < rows.size(); ++i) {
    offset_s = std::min(offset_s, rows[i].time_s - rows[0].time_s - kCounter_s * static_cast<double>(i));
  }
  for (size_t i = 11; i < rows.size(); ++i) {
    const double to_s = kCounter_s * static_cast<double>(i) + offset_s - kCounterLag_s;
    const double measured_w = rows[i].energy_j - rows[i - 10].energy_j;
    const double residual = (meter.EnergyAt(to_s) - meter.EnergyAt(to_s - 1)) / measured_w - 1;
    replay->power_frac.Add(residual);
    const bool mixed =
        std::any_of(rows.begin() + static_cast<ptrdiff_t>(i) - 11, rows.begin() + static_cast<ptrdiff_t>(i) + 1,
                    [](const Row& row) { return row.phase == "mixed"; });
    if (!mixed) replay->unmixed_power_frac.Add(residual);
  }
}

Replay ReplayCaps(const DeviceProfile& profile, uint64_t seed) {
  const std::vector<Row> rows = ReadTrace("h100_cap_trace.csv");
  EXPECT_EQ(rows.size(), 1210u);
  Plant plant(profile, ConstantScenario(profile.ambient_c), seed);
  plant.StartFrom(rows[0].die_c);
  Meter meter(&plant);
  Replay replay;
  int cycle = 0;
  for (size_t i = 1; i < rows.size(); ++i) {
    const bool begins = rows[i - 1].phase == "idle", ends = rows[i].phase == "idle";
    if (rows[i].phase != rows[i - 1].phase || rows[i].cap_w != rows[i - 1].cap_w) cycle = 0;
    const bool mixed = rows[ends ? i - 1 : i].phase == "mixed";
    std::vector<Work> steps;
    for (int n = rows[i - 1].steps; n < rows[i].steps; ++n) {
      steps.push_back(mixed && cycle++ % kMixedCycle == 0 ? kBurst : kDecode);
    }
    const double end_s = rows[i].time_s - rows[0].time_s;
    ReplayRow(&plant, &meter, steps, end_s, begins ? Pauses::kBefore : ends ? Pauses::kAfter : Pauses::kBetween);
    replay.latest_s = std::max(replay.latest_s, plant.now_s() - end_s);
    // A reading meets any phase of the load's cycle: the row's mean stands for it.
    replay.die_c.Add(meter.TakeMeanDie() - rows[i].die_c);
    replay.memory_c.Add(plant.temps_c()[kMemory] - rows[i].memory_c);
  }
  ComparePower(rows, meter, &replay);
  return replay;
}

Replay ReplayStep(const DeviceProfile& profile, uint64_t seed) {
  const std::vector<Row> rows = ReadTrace("h100_power_step.csv");
  EXPECT_EQ(rows.size(), 45u);
  Plant plant(profile, ConstantScenario(profile.ambient_c), seed);
  plant.StartFrom(rows[0].die_c);
  Meter meter(&plant);
  // Begin and end of the load, from the counter: 703 W from 2.0 to 2.5 s, and 82 J above idle after 14.01 s.
  constexpr double kBegin_s = 2.0, kEnd_s = 14.14;
  Replay replay;
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
    replay.die_c.Add(plant.temps_c()[kDie] - rows[i].die_c);
    replay.memory_c.Add(plant.temps_c()[kMemory] - rows[i].memory_c);
    if (i < 4) continue;  // the first two rows fall from a power that came before the trace
    // The counter's changes between two rows, a whole number of them.
    const double passed_s = kCounter_s * std::round((rows[i].time_s - rows[i - 2].time_s) / kCounter_s);
    const double measured_w = (rows[i].energy_j - rows[i - 2].energy_j) / passed_s;
    const double plant_w = (meter.EnergyAt(rows[i].time_s) - meter.EnergyAt(rows[i].time_s - passed_s)) / passed_s;
    replay.power_frac.Add(plant_w / measured_w - 1);
  }
  replay.tflops = bursts * kBurst.flops / (kEnd_s - kBegin_s - 1) / 1e12;
  return replay;
}

constexpr int kSeeds = 8;

// The bars are for the constants, so for a plant without noise of its own; with noise the means must stay inside.
TEST(PlantTrace, CappedLoadsReplayWithinTheBars) {
  const DeviceProfile profile = ShippedProfile("h100");
  const Replay replay = ReplayCaps(Noiseless(profile), 1);
  replay.Print("h100_cap_trace.csv");
  std::printf("  1 s average power away from mixed loads: max %.2f %%\n", 100 * replay.unmixed_power_frac.max());
  EXPECT_LT(replay.latest_s, 0.1);
  EXPECT_LT(replay.die_c.rms(), 1.5);
  EXPECT_LT(replay.die_c.max(), 3);
  EXPECT_LT(replay.power_frac.rms(), 0.03);
  EXPECT_LT(replay.unmixed_power_frac.max(), 0.03);
  // What is left outside lies in the mixed phases. The trace does not say which steps were bursts: one more or less in
  // a second is 4.6 J of 400 to 650 J. And at a cap of 600 W the device's limit cut into bursts, which the plant's
  // average does not see.
  EXPECT_GT(replay.power_frac.within(0.03), 0.97);
  EXPECT_LT(replay.power_frac.max(), 0.05);
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    const Replay noisy = ReplayCaps(profile, seed);
    EXPECT_LT(noisy.die_c.rms(), 1.5) << seed;
    EXPECT_LT(noisy.power_frac.rms(), 0.03) << seed;
    EXPECT_GT(noisy.power_frac.within(0.03), 0.96) << seed;
  }
}

TEST(PlantTrace, TheStepOfFullPowerReplaysWithinTheBars) {
  const DeviceProfile profile = ShippedProfile("h100");
  const Replay replay = ReplayStep(Noiseless(profile), 1);
  replay.Print("h100_power_step.csv");
  std::printf("  %.0f TFLOP/s at the limit (measured 676)\n", replay.tflops);
  EXPECT_LT(replay.die_c.rms(), 1.5);
  EXPECT_LT(replay.die_c.max(), 4);  // in the first 2 s, while the device's own limit swung between 1170 and 1455 MHz
  EXPECT_LT(replay.power_frac.max(), 0.03);
  EXPECT_NEAR(replay.tflops / 676, 1, 0.03);
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    const Replay noisy = ReplayStep(profile, seed);
    EXPECT_LT(noisy.die_c.rms(), 1.5) << seed;
    EXPECT_LT(noisy.power_frac.rms(), 0.03) << seed;
    EXPECT_NEAR(noisy.tflops / 676, 1, 0.03) << seed;
  }
}

struct CapCase {
  bool mixed;
  double cap_w, steps_per_s;  // cap 0: none. Measured
};
constexpr CapCase kCapCases[] = {{false, 0, 511},   {false, 500, 499}, {false, 450, 432}, {false, 400, 363},
                                 {false, 350, 295}, {false, 300, 224}, {false, 250, 161}, {true, 0, 342},
                                 {true, 500, 211},  {true, 400, 157},  {true, 350, 125}};

struct Paced {
  double steps_per_s, mean_w;
};

// 8 s at a cap, counted after 2 s. Sleeps between steps so that the mean meets the cap: while idle draws less than the
// cap and a step of energy E and time t more, the pause is (E - cap t) / (cap - idle).
Paced PaceAt(const CapCase& c, Plant* plant) {
  constexpr double kWarm_s = 2, kPhase_s = 8;
  const double begin_s = plant->now_s();
  double from_s = 0, from_j = 0, debt_j = 0;
  int steps = 0;
  for (int i = 0; plant->now_s() < begin_s + kPhase_s || i % kMixedCycle != 0; ++i) {
    if (from_s == 0 && plant->now_s() >= begin_s + kWarm_s && i % kMixedCycle == 0) {
      from_s = plant->now_s();
      from_j = plant->energy_j();
      steps = 0;
    }
    const WorkOutcome step = plant->Run(c.mixed && i % kMixedCycle == 0 ? kBurst : kDecode);
    ++steps;
    if (c.cap_w == 0) continue;
    debt_j += step.energy_j - c.cap_w * step.duration_s;
    plant->Idle(std::max(0.0, debt_j) / (c.cap_w - plant->idle_power_w()));
    debt_j = std::min(0.0, debt_j);  // a step below the cap leaves room for the next
  }
  const double seconds = plant->now_s() - from_s;
  return {steps / seconds, (plant->energy_j() - from_j) / seconds};
}

TEST(PlantTrace, PacedStepsPerSecondAtEachCap) {
  const DeviceProfile profile = ShippedProfile("h100");
  for (uint64_t seed = 0; seed <= kSeeds; ++seed) {
    Plant plant(seed == 0 ? Noiseless(profile) : profile, ConstantScenario(profile.ambient_c), seed);
    plant.StartFrom(41);
    for (const CapCase& c : kCapCases) {
      const Paced paced = PaceAt(c, &plant);
      const char* load = c.mixed ? "mixed " : "decode";
      if (seed == 0) {
        std::printf("  %s cap %3.0f W: %.1f steps/s, measured %.0f (%+.1f %%), mean %.1f W, die %.1f C\n", load,
                    c.cap_w, paced.steps_per_s, c.steps_per_s, 100 * (paced.steps_per_s / c.steps_per_s - 1),
                    paced.mean_w, plant.temps_c()[kDie]);
      }
      // A mean over 6 s of steps whose energy has a deviation of 6 % moves by up to 1 %.
      EXPECT_NEAR(paced.steps_per_s / c.steps_per_s, 1, seed == 0 ? 0.03 : 0.04) << load << c.cap_w << " seed " << seed;
      if (c.cap_w > 0) {
        EXPECT_NEAR(paced.mean_w / c.cap_w, 1, 0.002) << load << c.cap_w << " seed " << seed;
      }
    }
  }
}

}  // namespace
}  // namespace thermoe
