// SPDX-License-Identifier: Apache-2.0
#include "control/telemetry/nvml_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "base/random.h"
#include "control/nvml_fixture.h"

namespace thermoe {
namespace {

using ::testing::HasSubstr;
using Fields = std::vector<std::optional<double> Snapshot::*>;

class NvmlSourceTest : public NvmlFixture {};

std::vector<int> EveryCode() {
  std::vector<int> codes;
  for (int code = 1; code <= 31; ++code) codes.push_back(code);
  for (const int code : {500, 998, 999, -1}) codes.push_back(code);
  return codes;
}

// The calls that Read() makes: what only they fill in, how long until a failure is seen.
struct CallFields {
  FakeCall call;
  Fields fields;
  double seen_within_s;
};
std::vector<CallFields> EveryCall() {
  return {
      {kFakeEnergy, {&Snapshot::energy_j}, 0.3},
      {kFakePower, {}, 0.3},
      {kFakePowerLimit, {&Snapshot::power_limit_w}, 1.1},
      {kFakeFieldValues, {&Snapshot::power_instant_w, &Snapshot::memory_temp_c}, 0.3},
      {kFakeTemperature, {&Snapshot::temp_c}, 0.3},
      {kFakeThreshold, {&Snapshot::temp_slowdown_c, &Snapshot::temp_shutdown_c, &Snapshot::memory_temp_limit_c, &Snapshot::temp_max_c}, 10.1},
      {kFakeMargin, {&Snapshot::temp_margin_c}, 0.3},
      {kFakeUtilization, {&Snapshot::utilisation_frac, &Snapshot::memory_utilisation_frac}, 0.3},
      {kFakeClock, {&Snapshot::clock_mhz, &Snapshot::memory_clock_mhz}, 0.3},
      {kFakeMaxClock, {&Snapshot::clock_limit_mhz}, 10.1},
      {kFakeReasons, {}, 0.3},
  };
}

TEST_F(NvmlSourceTest, ReadsEveryField) {
  OpenSource();
  fake_->gpu_percent = 40;
  fake_->memory_percent = 10;
  fake_->reasons = 0x4;
  const Snapshot snapshot = Run(1);
  EXPECT_EQ(source_->name(), "nvml:0 Fake GPU");
  EXPECT_EQ(snapshot.state, SourceState::kOk);
  EXPECT_NEAR(snapshot.time_s, 1, 1e-6);
  EXPECT_EQ(snapshot.temp_c, 34);
  EXPECT_EQ(snapshot.memory_temp_c, 36);
  EXPECT_EQ(snapshot.temp_margin_c, 55);
  EXPECT_NEAR(snapshot.power_w.value(), 120, 1e-3);
  EXPECT_NEAR(snapshot.power_instant_w.value(), 71.2, 1e-9);
  EXPECT_NEAR(snapshot.energy_j.value(), 120, 13);
  EXPECT_EQ(snapshot.utilisation_frac, 0.4);
  EXPECT_EQ(snapshot.memory_utilisation_frac, 0.1);
  EXPECT_EQ(snapshot.clock_mhz, 1980);
  EXPECT_EQ(snapshot.memory_clock_mhz, 2619);
  EXPECT_EQ(snapshot.throttle, static_cast<uint32_t>(Throttle::kPowerLimit));
  EXPECT_EQ(snapshot.power_limit_w, 700);
  EXPECT_EQ(snapshot.temp_slowdown_c, 89);
  EXPECT_EQ(snapshot.temp_shutdown_c, 95);
  EXPECT_EQ(snapshot.memory_temp_limit_c, 95);
  EXPECT_EQ(snapshot.temp_max_c, 87);
  EXPECT_EQ(snapshot.clock_limit_mhz, 1980);
  for (const SensorReport& report : source_->Report()) {
    EXPECT_TRUE(report.found) << report.name;
    EXPECT_NE(report.value, "") << report.name;
    EXPECT_EQ(report.reason, "") << report.name;
  }
}

TEST_F(NvmlSourceTest, FewCallsAReading) {
  OpenSource();
  Run(1);
  uint64_t before = 0, after = 0;
  for (const CallFields& call : EveryCall()) before += fake_->calls[call.call];
  uint64_t most = 0;
  for (int i = 0; i < 400; ++i) {
    uint64_t at_start = 0, at_end = 0;
    for (const CallFields& call : EveryCall()) at_start += fake_->calls[call.call];
    Poll();
    for (const CallFields& call : EveryCall()) at_end += fake_->calls[call.call];
    most = std::max(most, at_end - at_start);
  }
  for (const CallFields& call : EveryCall()) after += fake_->calls[call.call];
  EXPECT_LE(static_cast<double>(after - before) / 400, 3);  // 9 ms of every 25 where a call takes 3 ms
  EXPECT_LE(most, 7u);
}

TEST_F(NvmlSourceTest, PowerFollowsTheCounterThroughUnevenPolls) {
  OpenSource();
  Run(0.5);
  power_w_ = 500;
  Run(0.5);
  Random random(3);
  for (int i = 0; i < 400; ++i) {
    const Snapshot snapshot = Poll(0.02 + 0.01 * random.Uniform());
    // Each end of a window of at least 90 ms is seen up to a poll late.
    EXPECT_NEAR(snapshot.power_w.value(), 500, 500 * 0.35);
  }
  EXPECT_NEAR(last_energy_j_, 0.5 * 120 + (last_time_s_ - 0.5) * 500, 60);
}

TEST_F(NvmlSourceTest, EveryReturnCodeOfEveryCall) {
  for (const CallFields& call : EveryCall()) {
    OpenSource();
    for (const int code : EveryCode()) {
      SCOPED_TRACE(::testing::Message() << "call " << call.call << " code " << code);
      Snapshot snapshot = Run(call.seen_within_s);
      for (const auto field : call.fields) ASSERT_TRUE((snapshot.*field).has_value());
      ASSERT_EQ(snapshot.state, SourceState::kOk);

      fake_->ret[call.call] = code;
      bool lost = false;
      for (double t = 0; t < call.seen_within_s; t += kPoll_s) {
        snapshot = Poll();
        lost = lost || snapshot.state == SourceState::kLost;
      }
      for (const auto field : call.fields) EXPECT_FALSE((snapshot.*field).has_value());
      if (call.call == kFakeReasons) {
        EXPECT_FALSE(snapshot.throttle.has_value());
      }
      EXPECT_EQ(lost, MeaningOf(static_cast<NvmlReturn>(code)) >= NvmlMeaning::kLost);
      if (!lost && call.call != kFakeTemperature) {
        EXPECT_EQ(snapshot.temp_c, 34);  // the others are right
      }

      fake_->ret[call.call] = 0;
      snapshot = Run(call.seen_within_s + 1.1);
      EXPECT_EQ(snapshot.state, SourceState::kOk);
      for (const auto field : call.fields) EXPECT_TRUE((snapshot.*field).has_value());
    }
    last_energy_j_ = last_time_s_ = 0;  // a new source comes
  }
}

TEST_F(NvmlSourceTest, EveryReturnCodeWhileOpening) {
  for (const FakeCall call : {kFakeInit, kFakeHandle}) {
    for (const int code : EveryCode()) {
      SCOPED_TRACE(::testing::Message() << "call " << call << " code " << code);
      *fake_ = FakeNvml();
      fake_->ret[call] = code;
      auto refused = NvmlSource::Open(Library(), 0, clock_.clock());
      EXPECT_FALSE(refused.ok());
      EXPECT_EQ(refused.status().code(), StatusCode::kNotFound);
      EXPECT_THAT(refused.status().message(), HasSubstr("nvidia-smi"));
      EXPECT_EQ(fake_->inits, 0);

      // The same when a lost device is opened anew.
      fake_->ret[call] = 0;
      OpenSource();
      last_energy_j_ = last_time_s_ = 0;
      fake_->ret[kFakeTemperature] = 15;
      fake_->ret[call] = code;
      EXPECT_EQ(Run(3).state, SourceState::kLost);
      *fake_ = FakeNvml();
      fake_->inits = 0;
      EXPECT_EQ(Run(1.3).state, SourceState::kOk);
    }
  }
}

TEST_F(NvmlSourceTest, NameAndUuidMayFail) {
  for (const int code : EveryCode()) {
    fake_->ret[kFakeName] = fake_->ret[kFakeUuid] = code;
    OpenSource();
    last_energy_j_ = last_time_s_ = 0;
    EXPECT_EQ(source_->name(), "nvml:0");
    EXPECT_EQ(Run(0.3).state, SourceState::kOk);
  }
}

TEST_F(NvmlSourceTest, EveryReturnCodeOfAFieldValue) {
  OpenSource();
  for (int which = 0; which < 2; ++which) {
    for (const int code : EveryCode()) {
      SCOPED_TRACE(::testing::Message() << "field " << which << " code " << code);
      fake_->field_ret[which] = code;
      const Snapshot snapshot = Run(0.3);
      EXPECT_FALSE((which == 0 ? snapshot.power_instant_w : snapshot.memory_temp_c).has_value());
      if (snapshot.state == SourceState::kOk) {
        EXPECT_TRUE((which == 0 ? snapshot.memory_temp_c : snapshot.power_instant_w).has_value());
      }
      fake_->field_ret[which] = 0;
      EXPECT_TRUE(Run(1.3).power_instant_w.has_value());
    }
  }
  for (const int type : {-1, 0, 1, 2, 3, 4, 5, 6, 7, 99}) {
    fake_->field_type = type;
    const Snapshot snapshot = Run(0.3);
    if (type >= 0 && type <= 6) {
      EXPECT_EQ(snapshot.memory_temp_c, 36) << type;
    } else {
      EXPECT_FALSE(snapshot.memory_temp_c.has_value()) << type;
    }
  }
}

TEST_F(NvmlSourceTest, MissingSymbolsOneByOne) {
  struct Row {
    const char* symbol;
    FakeCall call;
  };
  const std::vector<Row> rows = {{"nvmlDeviceGetTotalEnergyConsumption", kFakeEnergy},
                                 {"nvmlDeviceGetPowerUsage", kFakePower},
                                 {"nvmlDeviceGetEnforcedPowerLimit", kFakePowerLimit},
                                 {"nvmlDeviceGetFieldValues", kFakeFieldValues},
                                 {"nvmlDeviceGetTemperature", kFakeTemperature},
                                 {"nvmlDeviceGetTemperatureThreshold", kFakeThreshold},
                                 {"nvmlDeviceGetMarginTemperature", kFakeMargin},
                                 {"nvmlDeviceGetUtilizationRates", kFakeUtilization},
                                 {"nvmlDeviceGetClockInfo", kFakeClock},
                                 {"nvmlDeviceGetMaxClockInfo", kFakeMaxClock},
                                 {"nvmlDeviceGetCurrentClocksEventReasons", kFakeReasons}};
  const std::vector<CallFields> calls = EveryCall();
  for (const Row& row : rows) {
    SCOPED_TRACE(row.symbol);
    OpenSource({row.symbol});
    last_energy_j_ = last_time_s_ = 0;
    const Snapshot snapshot = Run(1);
    EXPECT_EQ(snapshot.state, SourceState::kOk);
    int unknown = 0;
    for (const CallFields& call : calls) {
      for (const auto field : call.fields) {
        EXPECT_EQ((snapshot.*field).has_value(), call.call != row.call);
      }
    }
    EXPECT_EQ(snapshot.throttle.has_value(), row.call != kFakeReasons);
    for (const SensorReport& report : source_->Report()) {
      if (report.found) continue;
      ++unknown;
      EXPECT_THAT(report.reason, HasSubstr(row.symbol));
      EXPECT_THAT(report.reason, HasSubstr("update the NVIDIA driver"));
    }
    EXPECT_GE(unknown, 1);
  }
  for (const char* symbol : {"nvmlShutdown", "nvmlErrorString", "nvmlDeviceGetName", "nvmlDeviceGetUUID",
                             "nvmlDeviceGetCount_v2", "nvmlSystemGetDriverVersion"}) {
    SCOPED_TRACE(symbol);
    OpenSource({symbol});
    last_energy_j_ = last_time_s_ = 0;
    EXPECT_EQ(Run(1).state, SourceState::kOk);
    fake_->ret[kFakeTemperature] = 15;
    EXPECT_EQ(Run(0.3).state, SourceState::kLost);
    fake_->ret[kFakeTemperature] = 0;
    EXPECT_EQ(Run(1.3).state, SourceState::kOk);
    EXPECT_NE(NvmlErrorText(Library({symbol}).api, NvmlReturn::kGpuIsLost), "");
  }
}

TEST_F(NvmlSourceTest, WithoutACounterTheDevicesAverageIsThePower) {
  fake_->ret[kFakeEnergy] = 3;
  fake_->gpu_percent = 90;
  OpenSource();
  const Snapshot snapshot = Run(2);
  EXPECT_EQ(snapshot.state, SourceState::kOk);
  EXPECT_FALSE(snapshot.energy_j.has_value());
  EXPECT_EQ(snapshot.power_w, 71);
}

TEST_F(NvmlSourceTest, ARestingCounterIsStaleWithin300MsOfWork) {
  for (const bool by_caller : {false, true}) {
    SCOPED_TRACE(by_caller);
    *fake_ = FakeNvml();
    counting_ = true;
    OpenSource();
    last_energy_j_ = last_time_s_ = 0;
    Run(1);
    counting_ = false;
    EXPECT_EQ(Run(5).state, SourceState::kOk);  // idle: it may rest
    counting_ = true;
    Run(0.5);
    if (by_caller) {
      source_->SetWorking(true);
    } else {
      fake_->gpu_percent = 1;
    }
    Snapshot snapshot = Run(0.5);
    ASSERT_EQ(snapshot.state, SourceState::kOk);
    counting_ = false;
    const double frozen_s = clock_.now_s;
    while (snapshot.state == SourceState::kOk && clock_.now_s < frozen_s + 1) snapshot = Poll();
    EXPECT_EQ(snapshot.state, SourceState::kStale);
    EXPECT_LE(clock_.now_s - frozen_s, 0.3 + 1e-6);
    EXPECT_FALSE(snapshot.power_w.has_value());
    EXPECT_FALSE(snapshot.energy_j.has_value());
    EXPECT_FALSE(snapshot.power_instant_w.has_value());  // rests as well
    EXPECT_EQ(snapshot.temp_c, 34);
    counting_ = true;
    snapshot = Run(0.5);
    EXPECT_EQ(snapshot.state, SourceState::kOk);
    EXPECT_TRUE(snapshot.power_w.has_value());
    source_->SetWorking(false);
  }
}

TEST_F(NvmlSourceTest, ResetsAndWrapsGiveNoFalsePower) {
  const auto check = [this](unsigned long long counter, const char* what) {
    SCOPED_TRACE(what);
    fake_->energy_mj = counter;
    for (int i = 0; i < 40; ++i) {
      const Snapshot snapshot = Poll();
      EXPECT_TRUE(Sane(snapshot, 300));
      if (i > 16) {
        EXPECT_NEAR(snapshot.power_w.value(), 120, 1);
      }
    }
  };
  OpenSource();
  Run(1);
  check(1, "reset to the start");
  check(1'000'000'000'000ull, "a leap");
  check(500, "reset again");
  check((1ull << 32) - 20'000, "near 2^32");
  const double before_j = last_energy_j_;
  fake_->energy_mj = 40'000 - 20'000;  // 40 J later, round the end: too much for one poll, so it is a reset
  Run(1);
  EXPECT_NEAR(last_energy_j_ - before_j, 120, 15);
}

TEST_F(NvmlSourceTest, AWrapIsCounted) {
  for (const bool wide : {false, true}) {
    OpenSource();
    last_energy_j_ = last_time_s_ = 0;
    const unsigned long long end = wide ? 0ull : 1ull << 32;  // modulo 2^64
    counter_end_ = end;
    fake_->energy_mj = end - 61'234;  // 61 J before
    Run(0.3);
    for (int i = 0; i < 60; ++i) {
      EXPECT_NEAR(Poll().power_w.value(), 120, 1);
    }
    EXPECT_LT(fake_->energy_mj, 1'000'000u);
    EXPECT_NEAR(last_energy_j_, last_time_s_ * 120, 15);
  }
}

TEST_F(NvmlSourceTest, ALostDeviceReturnsAfterAMinute) {
  OpenSource();
  Run(1);
  const double energy_j = last_energy_j_;
  for (int call = kFakeInit; call < kFakeCalls; ++call) {
    if (call != kFakeInit && call != kFakeShutdown) fake_->ret[call] = 15;
  }
  EXPECT_EQ(Poll().state, SourceState::kLost);
  for (const SensorReport& report : source_->Report()) {
    EXPECT_FALSE(report.found);
    EXPECT_THAT(report.reason, HasSubstr("GPU is lost"));
  }
  const uint64_t inits = fake_->calls[kFakeInit];
  for (int i = 0; i < 60 * 40; ++i) EXPECT_EQ(Poll().state, SourceState::kLost);
  EXPECT_LE(fake_->calls[kFakeInit] - inits, 61u);
  EXPECT_GE(fake_->calls[kFakeInit] - inits, 55u);
  EXPECT_EQ(fake_->inits, 0);
  for (int& ret : fake_->ret) ret = 0;
  fake_->energy_mj = 5;  // the driver was loaded anew
  const Snapshot snapshot = Run(1.5);
  EXPECT_EQ(snapshot.state, SourceState::kOk);
  EXPECT_NEAR(snapshot.power_w.value(), 120, 1);
  EXPECT_GE(snapshot.energy_j.value(), energy_j);
  EXPECT_EQ(fake_->inits, 1);
  source_.reset();
  EXPECT_EQ(fake_->inits, 0);
}

TEST_F(NvmlSourceTest, AnotherDeviceInItsPlaceIsNotTakenForIt) {
  OpenSource();
  Run(0.5);
  fake_->ret[kFakeTemperature] = 15;
  Run(0.1);
  fake_->ret[kFakeTemperature] = 0;
  fake_->uuid = "GPU-1";
  EXPECT_EQ(Run(5).state, SourceState::kLost);
  fake_->uuid = "GPU-0";
  EXPECT_EQ(Run(1.1).state, SourceState::kOk);
}

TEST_F(NvmlSourceTest, UnknownErrorForEverCostsOneField) {
  fake_->ret[kFakeUtilization] = 999;
  OpenSource();
  EXPECT_EQ(Poll().state, SourceState::kLost);
  const Snapshot snapshot = Run(3);
  EXPECT_EQ(snapshot.state, SourceState::kOk);
  EXPECT_FALSE(snapshot.utilisation_frac.has_value());
  EXPECT_EQ(snapshot.temp_c, 34);
  EXPECT_NEAR(snapshot.power_w.value(), 120, 1);
}

TEST_F(NvmlSourceTest, TheClockMayJump) {
  OpenSource();
  Run(1);
  for (const double jump_s : {-0.05, -3600.0, 3600.0, -1e9, 1e9, std::nan(""), double{INFINITY}}) {
    SCOPED_TRACE(jump_s);
    const double before_s = clock_.now_s;
    clock_.now_s += jump_s;
    const Snapshot jumped = source_->Read();
    EXPECT_TRUE(Sane(jumped, 1000));
    EXPECT_NE(jumped.state, SourceState::kLost);
    EXPECT_GE(jumped.time_s, last_time_s_);
    if (!std::isfinite(clock_.now_s)) clock_.now_s = before_s;
    for (int i = 0; i < 40; ++i) {
      const Snapshot snapshot = Poll();
      EXPECT_EQ(snapshot.state, SourceState::kOk);
      EXPECT_TRUE(Sane(snapshot, 300));
    }
    EXPECT_NEAR(Poll().power_w.value(), 120, 1);
  }
}

TEST_F(NvmlSourceTest, ImplausibleValuesAreUnknown) {
  OpenSource();
  fake_->temperature_c = 0;
  fake_->memory_temp_c = 4'000'000'000u;
  fake_->instant_mw = 0;
  fake_->power_mw = 0;
  fake_->limit_mw = 0;
  fake_->sm_mhz = 0;
  fake_->memory_mhz = 4'294'967'295u;
  fake_->gpu_percent = 101;
  fake_->memory_percent = 4'294'967'295u;
  fake_->margin_c = 1000;
  fake_->energy_mj = 0;
  counting_ = false;
  for (unsigned& threshold : fake_->threshold_c) threshold = 151;
  fake_->max_sm_mhz = 0;
  fake_->reasons = ~0ull;
  const Snapshot snapshot = Run(11);
  EXPECT_EQ(snapshot.throttle, 15u);
  Snapshot without = snapshot;
  without.throttle.reset();
  without.state = SourceState::kLost;
  EXPECT_TRUE(Sane(without));  // a lost snapshot knows nothing
  for (const SensorReport& report : source_->Report()) {
    if (report.name == "NVML clock event reasons") continue;
    EXPECT_FALSE(report.found) << report.name << " " << report.value;
    EXPECT_NE(report.reason, "");
  }
}

TEST_F(NvmlSourceTest, AMarginOfZeroIsBelievedOnlyNearTheSlowdown) {
  OpenSource();
  fake_->margin_c = 0;
  EXPECT_FALSE(Run(0.5).temp_margin_c.has_value());
  fake_->temperature_c = 88;
  EXPECT_EQ(Run(0.5).temp_margin_c, 0);
  fake_->ret[kFakeTemperature] = 3;
  EXPECT_FALSE(Run(0.5).temp_margin_c.has_value());
}

TEST_F(NvmlSourceTest, ClockEventReasons) {
  const auto bits = [](std::initializer_list<Throttle> throttles) {
    uint32_t all = 0;
    for (const Throttle throttle : throttles) all |= static_cast<uint32_t>(throttle);
    return all;
  };
  EXPECT_EQ(ThrottleFromNvml(0), 0u);
  EXPECT_EQ(ThrottleFromNvml(0x1), 0u);  // idle
  EXPECT_EQ(ThrottleFromNvml(0x4), bits({Throttle::kPowerLimit}));
  EXPECT_EQ(ThrottleFromNvml(0x20), bits({Throttle::kThermal}));
  EXPECT_EQ(ThrottleFromNvml(0x48), bits({Throttle::kThermal}));
  EXPECT_EQ(ThrottleFromNvml(0x88), bits({Throttle::kPowerBrake}));
  EXPECT_EQ(ThrottleFromNvml(0x8), bits({Throttle::kPowerLimit, Throttle::kThermal}));
  for (const uint64_t other : {0x2ull, 0x10ull, 0x100ull, 0x200ull, 1ull << 63}) EXPECT_EQ(ThrottleFromNvml(other), 8u);
}

TEST_F(NvmlSourceTest, RefusesADeviceThatIsNotThere) {
  fake_->devices = 2;
  const auto status = NvmlSource::Open(Library(), 2, clock_.clock()).status();
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_THAT(status.message(), HasSubstr("2 NVIDIA devices"));
  EXPECT_THAT(NvmlSource::Open(Library(), -1, clock_.clock()).status().message(), HasSubstr("count from 0"));
  fake_->devices = 0;
  EXPECT_THAT(NvmlSource::Open(Library(), 0, clock_.clock()).status().message(), HasSubstr("0 NVIDIA devices"));
  EXPECT_EQ(fake_->inits, 0);
}

TEST(NvmlLibrary, AnOldDriverHasWhatItHas) {
  auto library = OpenNvml(THERMOE_FAKE_NVML_BARE);
  ASSERT_TRUE(library.ok()) << library.status().message();
  void* handle = dlopen(THERMOE_FAKE_NVML_BARE, RTLD_NOW);
  FakeNvml* fake = ScriptOf(handle);
  *fake = FakeNvml();
  VirtualClock clock;
  auto source = NvmlSource::Open(std::move(library).value(), 0, clock.clock());
  ASSERT_TRUE(source.ok()) << source.status().message();
  clock.now_s += 0.025;
  Snapshot snapshot = (*source)->Read();
  EXPECT_TRUE(Sane(snapshot));
  EXPECT_EQ(snapshot.state, SourceState::kOk);
  EXPECT_EQ(snapshot.temp_c, 34);
  snapshot.temp_c.reset();
  snapshot.state = SourceState::kLost;
  EXPECT_TRUE(Sane(snapshot));  // and nothing else
  fake->ret[kFakeTemperature] = 3;
  clock.now_s += 1;
  EXPECT_EQ((*source)->Read().state, SourceState::kLost);  // nothing known at all
  fake->ret[kFakeHandle] = 999;
  EXPECT_THAT(NvmlSource::Open(std::move(OpenNvml(THERMOE_FAKE_NVML_BARE)).value(), 0).status().message(),
              HasSubstr("NVML error 999"));
}

TEST(NvmlLibrary, IsFoundByTheEnvironment) {
  ASSERT_EQ(setenv("THERMOE_NVML", THERMOE_FAKE_NVML, 1), 0);
  auto library = OpenNvml();
  ASSERT_TRUE(library.ok());
  EXPECT_EQ(library->path, THERMOE_FAKE_NVML);
  ASSERT_EQ(setenv("THERMOE_NVML", "/nowhere/libnvidia-ml.so.1", 1), 0);
  library = OpenNvml();
  EXPECT_EQ(library.status().code(), StatusCode::kNotFound);
  EXPECT_THAT(library.status().message(), HasSubstr("/nowhere/libnvidia-ml.so.1"));
  EXPECT_THAT(library.status().message(), HasSubstr("THERMOE_NVML"));
  unsetenv("THERMOE_NVML");
}

TEST(NvmlLibrary, RefusesOtherLibraries) {
  const Status status = OpenNvml("libm.so.6").status();
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_THAT(status.message(), HasSubstr("nvmlInit_v2"));
  TempFolder folder;
  EXPECT_EQ(OpenNvml(folder.Write("libtext.so", "no library")).status().code(), StatusCode::kNotFound);
}

TEST(NvmlLibrary, TakesOlderNames) {
  std::set<std::string> asked;
  static const auto found = +[]() { return NvmlReturn::kSuccess; };
  const NvmlApi api = BindNvml([&](const char* symbol) -> void* {
    asked.insert(symbol);
    const std::string name = symbol;
    return name == "nvmlInit" || name == "nvmlDeviceGetCurrentClocksThrottleReasons" ? reinterpret_cast<void*>(found) : nullptr;
  });
  EXPECT_NE(api.init, nullptr);
  EXPECT_NE(api.clock_reasons, nullptr);
  EXPECT_EQ(api.device_by_index, nullptr);
  EXPECT_EQ(asked.count("nvmlInit_v2"), 1u);
}

}  // namespace
}  // namespace thermoe
