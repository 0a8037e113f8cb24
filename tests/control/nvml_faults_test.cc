// SPDX-License-Identifier: Apache-2.0
// Random sequences of everything that may go wrong with a GPU: whatever happens, what a snapshot says is possible.
#include <gtest/gtest.h>

#include <algorithm>

#include "base/random.h"
#include "control/nvml_fixture.h"

namespace thermoe {
namespace {

constexpr int kSequences = 10'000;
constexpr int kReadings = 120;

class NvmlFaultsTest : public NvmlFixture {
 protected:
  int RandomCode(Random* random) {
    const uint64_t kind = random->Below(8);
    if (kind < 5) return static_cast<int>(random->Below(31));
    return kind == 5 ? 999 : kind == 6 ? 15 : static_cast<int>(random->Next());
  }
  unsigned RandomNumber(Random* random) {
    const unsigned edges[] = {0, 1, 100, 150, 151, 1u << 31, ~0u};
    return random->Below(2) == 0 ? edges[random->Below(7)] : static_cast<unsigned>(random->Next() >> random->Below(64));
  }

  // What has failed, or rested while work runs, for 300 ms of the source's own time is unknown now.
  void CheckWithin300Ms(const Snapshot& snapshot) {
    const struct {
      FakeCall call;
      std::optional<double> Snapshot::*field;
    } calls[] = {{kFakeEnergy, &Snapshot::energy_j},      {kFakeTemperature, &Snapshot::temp_c},
                 {kFakeMargin, &Snapshot::temp_margin_c}, {kFakeUtilization, &Snapshot::utilisation_frac},
                 {kFakeClock, &Snapshot::clock_mhz},      {kFakeFieldValues, &Snapshot::power_instant_w}};
    for (const auto& [call, field] : calls) {
      double& since_s = failing_since_s_[call];
      if (fake_->ret[call] == 0) since_s = snapshot.time_s;
      if (snapshot.time_s - since_s <= kLimit_s) continue;
      EXPECT_FALSE((snapshot.*field).has_value()) << "call " << call;
      ++failed_;
    }
    // A counter that rests; long gaps between readings are no proof of that, nor is what is not read.
    const double passed_s = std::min(snapshot.time_s - watched_s_, 0.2);
    watched_s_ = snapshot.time_s;
    const bool read = fake_->ret[kFakeEnergy] == 0 && snapshot.state != SourceState::kLost;
    if (read) resting_s_ = fake_->energy_mj == seen_mj_ && working_ ? resting_s_ + passed_s : 0;
    if (read) seen_mj_ = fake_->energy_mj;
    if (resting_s_ <= kLimit_s) return;
    EXPECT_FALSE(snapshot.energy_j.has_value()) << "the counter rests";
    ++rested_;
  }
  void RestartWatch() {
    for (double& since_s : failing_since_s_) since_s = 0;
    resting_s_ = watched_s_ = 0;
    seen_mj_ = 0;
    working_ = false;
  }

  static constexpr double kLimit_s = 0.3 + 2 * kPoll_s;  // a change and its absence are each seen a poll late
  double failing_since_s_[kFakeCalls] = {}, resting_s_ = 0, watched_s_ = 0;
  int failed_ = 0, rested_ = 0;  // how often something had to be unknown
  unsigned long long seen_mj_ = 0;
  bool working_ = false;  // as SetWorking said last

  void RandomFault(Random* random) {
    switch (random->Below(14)) {
      case 0: fake_->ret[random->Below(kFakeCalls)] = RandomCode(random); break;
      case 1: fake_->field_ret[random->Below(2)] = RandomCode(random); break;
      case 2: counting_ = !counting_; break;
      case 3: fake_->energy_mj = random->Next() >> random->Below(64); break;
      case 4: fake_->energy_mj = random->Below(2) == 0 ? 0 : (1ull << 32) - random->Below(1000); break;
      case 5: clock_.now_s += random->Normal() * (random->Below(2) == 0 ? 0.1 : 1000); break;
      case 6:
        for (int& ret : fake_->ret) ret = random->Below(2) == 0 ? 15 : 1;
        break;
      case 7:
      case 8:  // all well again
        for (int& ret : fake_->ret) ret = 0;
        for (int& ret : fake_->field_ret) ret = 0;
        counting_ = true;
        break;
      case 9: {
        unsigned* const values[] = {&fake_->power_mw,       &fake_->limit_mw,       &fake_->instant_mw,
                                    &fake_->temperature_c,  &fake_->memory_temp_c,  &fake_->threshold_c[0],
                                    &fake_->sm_mhz,         &fake_->threshold_c[1], &fake_->gpu_percent,
                                    &fake_->memory_percent, &fake_->memory_mhz,     &fake_->max_sm_mhz};
        *values[random->Below(12)] = RandomNumber(random);
        break;
      }
      case 10: fake_->field_type = static_cast<int>(random->Below(9)) - 1; break;
      case 11: fake_->reasons = random->Next() >> random->Below(64); break;
      case 12:
        working_ = random->Below(2) == 0;
        source_->SetWorking(working_);
        break;
      case 13: fake_->margin_c = static_cast<int>(RandomNumber(random)); break;
    }
  }
};

TEST_F(NvmlFaultsTest, TenThousandRandomSequences) {
  const std::vector<const char*> optional_symbols = {"nvmlShutdown",
                                                     "nvmlErrorString",
                                                     "nvmlDeviceGetUUID",
                                                     "nvmlDeviceGetTotalEnergyConsumption",
                                                     "nvmlDeviceGetPowerUsage",
                                                     "nvmlDeviceGetFieldValues",
                                                     "nvmlDeviceGetTemperature",
                                                     "nvmlDeviceGetUtilizationRates"};
  int ok = 0, stale = 0, lost = 0;
  for (uint64_t seed = 0; seed < kSequences && !HasFailure(); ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    Random random(seed);
    *fake_ = FakeNvml();
    counting_ = true;
    clock_.now_s = 1000;
    power_w_ = 50 + 600 * random.Uniform();
    last_energy_j_ = last_time_s_ = 0;
    std::set<std::string> hidden;
    if (random.Below(4) == 0) hidden.insert(optional_symbols[random.Below(optional_symbols.size())]);
    OpenSource(hidden);
    RestartWatch();
    const double fault_rate = 0.3 * random.Uniform();
    for (int i = 0; i < kReadings; ++i) {
      if (random.Uniform() < fault_rate) RandomFault(&random);
      const Snapshot snapshot = Poll(random.Below(10) == 0 ? random.Uniform() * 2 : kPoll_s);  // checks what must hold
      CheckWithin300Ms(snapshot);
      ok += snapshot.state == SourceState::kOk;
      stale += snapshot.state == SourceState::kStale;
      lost += snapshot.state == SourceState::kLost;
      if (random.Below(20) == 0) {
        for (const SensorReport& report : source_->Report()) EXPECT_NE(report.found, report.value.empty());
      }
    }
  }
  // The sequences did vary.
  EXPECT_GT(ok, kSequences);
  EXPECT_GT(stale, kSequences / 100);
  EXPECT_GT(lost, kSequences);
  EXPECT_GT(failed_, kSequences);
  EXPECT_GT(rested_, kSequences / 100);
}

// With honest limits and a counter that may be reset, frozen, wrapped or lost, power stays near what the device drew.
TEST_F(NvmlFaultsTest, PowerStaysPossible) {
  for (uint64_t seed = 0; seed < 500 && !HasFailure(); ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    Random random(seed);
    *fake_ = FakeNvml();
    counting_ = true;
    last_energy_j_ = last_time_s_ = 0;
    power_w_ = 500;
    OpenSource();
    for (int i = 0; i < 200; ++i) {
      const uint64_t fault = random.Below(60);
      if (fault == 0) fake_->energy_mj = random.Below(2) == 0 ? 1 : random.Next() >> random.Below(64);
      if (fault == 1) counting_ = !counting_;
      if (fault == 2) fake_->ret[kFakeEnergy] = fake_->ret[kFakeEnergy] == 0 ? 3 : 0;
      if (fault == 3) clock_.now_s -= 10 * random.Uniform();
      EXPECT_TRUE(Sane(Poll(), 3 * 700));
    }
  }
}

}  // namespace
}  // namespace thermoe
