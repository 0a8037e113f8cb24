// SPDX-License-Identifier: Apache-2.0
#include "control/telemetry/trace_csv.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/random.h"
#include "control/telemetry/replay_source.h"
#include "control/telemetry/snapshot_fields.h"
#include "control/telemetry_testing.h"

namespace thermoe {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr char kRecorded[] =
    "time_s,energy_mj,power_from_energy_w,power_instant_w,gpu_temp_c,hbm_temp_c,sm_clock_mhz,cap_w,phase\n"
    "0.119,2649167,115.5,121.4,41,43,1980,0,idle\n"
    "0.22,2661336,120.2,121.4,41,43,1980,0,\"a, b\"\r\n"
    "\n"
    "# a remark\n"
    "0.319,2673499,,121.7,,42,1980,0,idle";

Trace Parsed(const std::string& text) {
  auto trace = ParseTrace(text, "t.csv");
  EXPECT_TRUE(trace.ok()) << trace.status().message();
  return trace.ok() ? std::move(trace).value() : Trace();
}
std::string Refusal(const std::string& text) {
  const auto trace = ParseTrace(text, "t.csv");
  EXPECT_FALSE(trace.ok());
  EXPECT_EQ(trace.status().code(), StatusCode::kCorrupt);
  return trace.status().message();
}

TEST(TraceCsv, ReadsARecording) {
  const Trace trace = Parsed(kRecorded);
  ASSERT_EQ(trace.rows.size(), 3u);
  EXPECT_EQ(trace.rows[0].time_s, 0.119);
  EXPECT_EQ(trace.rows[0].state, SourceState::kOk);
  EXPECT_EQ(trace.rows[0].energy_j, 0);
  EXPECT_NEAR(trace.rows[1].energy_j.value(), 12.169, 1e-9);
  EXPECT_EQ(trace.rows[1].power_w, 120.2);
  EXPECT_EQ(trace.rows[1].power_instant_w, 121.4);
  EXPECT_EQ(trace.rows[1].temp_c, 41);
  EXPECT_EQ(trace.rows[1].memory_temp_c, 43);
  EXPECT_EQ(trace.rows[1].clock_mhz, 1980);
  EXPECT_FALSE(trace.rows[2].power_w.has_value());  // empty is unknown, though the counter would tell
  EXPECT_FALSE(trace.rows[2].temp_c.has_value());
  EXPECT_FALSE(trace.rows[2].utilisation_frac.has_value());
  EXPECT_EQ(trace.hold_s, 0.3);
}

TEST(TraceCsv, ColumnsComeInAnyOrder) {
  const Trace trace = Parsed("\xef\xbb\xbfgpu_temp_c,throttle, time_s ,state\n50,3,1,stale\n,,2,\n51,0,3,lost\n");
  ASSERT_EQ(trace.rows.size(), 3u);
  EXPECT_EQ(trace.rows[0].throttle, 3u);
  EXPECT_EQ(trace.rows[0].state, SourceState::kStale);
  EXPECT_EQ(trace.rows[1].state, SourceState::kOk);
  EXPECT_FALSE(trace.rows[1].temp_c.has_value());
  EXPECT_FALSE(trace.rows[2].temp_c.has_value());  // lost
  EXPECT_EQ(trace.hold_s, 1.5);
}

TEST(TraceCsv, PowerWithoutItsColumnIsTheCountersDifference) {
  const Trace trace = Parsed("time_s,energy_mj,power_avg_w\n0,1000,87\n0.5,86814,134\n1,5,143\n1.5,50005,\n5,90000,99\n");
  EXPECT_EQ(trace.rows[0].power_w, 87);
  EXPECT_NEAR(trace.rows[1].power_w.value(), 171.628, 1e-9);
  EXPECT_EQ(trace.rows[2].power_w, 143);  // the counter was reset
  EXPECT_NEAR(trace.rows[3].power_w.value(), 100, 1e-9);
  EXPECT_EQ(trace.rows[4].power_w, 99);   // a mean over 3.5 s is not power
  EXPECT_NEAR(trace.rows[4].energy_j.value(), 85.814 + 50 + 39.995, 1e-9);
}

TEST(TraceCsv, ErrorsNameFileLineColumnAndRemedy) {
  const auto names = [](const char* line, const char* column, const char* remedy) {
    return AllOf(HasSubstr("t.csv"), HasSubstr(std::string("line ") + line), HasSubstr(std::string("column ") + column),
                 HasSubstr(remedy));
  };
  EXPECT_THAT(Refusal(""), names("0", "time_s", "thermoe record"));
  EXPECT_THAT(Refusal("time_s,gpu_temp_c\n"), names("1", "time_s", "thermoe record"));
  EXPECT_THAT(Refusal("# x\ngpu_temp_c\n1\n"), names("2", "time_s", "names the columns"));
  EXPECT_THAT(Refusal("time_s,phase\n1,idle\n"), names("1", "time_s", "add columns"));
  EXPECT_THAT(Refusal("time_s,gpu_temp_c,gpu_temp_c\n1,1,1\n"), names("1", "gpu_temp_c", "rename"));
  EXPECT_THAT(Refusal("time_s,gpu_temp_c\n1,50\n2,hot\n"), names("3", "gpu_temp_c", "write one like"));
  for (const char* cell : {"nan", "inf", "-inf", "1e999", "5x", "0x10", "--5", "\"50\"", "1 2"}) {
    EXPECT_THAT(Refusal(std::string("time_s,gpu_temp_c\n1,") + cell + "\n"), names("2", "gpu_temp_c", "")) << cell;
  }
  EXPECT_THAT(Refusal("time_s,gpu_temp_c\n1,151\n"), names("2", "gpu_temp_c", "leave the cell empty"));
  EXPECT_THAT(Refusal("time_s,power_instant_w\n1,-3\n"), names("2", "power_instant_w", "leave the cell empty"));
  EXPECT_THAT(Refusal("time_s,gpu_temp_c\n1,50\n1,50\n"), names("3", "time_s", "sort"));
  EXPECT_THAT(Refusal("time_s,gpu_temp_c\n,50\n"), names("2", "time_s", "needs its time"));
  EXPECT_THAT(Refusal("time_s,gpu_temp_c\n1\n"), names("2", "2", "commas"));
  EXPECT_THAT(Refusal("time_s,gpu_temp_c\n1,2,3\n"), names("2", "3", "commas"));
  EXPECT_THAT(Refusal("time_s,state\n1,fine\n"), names("2", "state", "ok, stale, lost"));
  EXPECT_THAT(Refusal("time_s,throttle\n1,16\n"), names("2", "throttle", "leave the cell empty"));
  EXPECT_THAT(Refusal("time_s,gpu_temp_c\n1,\x01\xff\x1b[31m\n"), HasSubstr("\"???[31m\""));  // no control bytes
}

TEST(TraceCsv, WhatIsWrittenReadsBack) {
  Random random(7);
  std::vector<Snapshot> snapshots;
  std::string text = TraceHeader("nvml:0 \"Fake\n#GPU\"");
  double energy_j = 0;
  for (int i = 0; i < 200; ++i) {
    Snapshot snapshot;
    snapshot.time_s = 0.025 * i;
    snapshot.state = static_cast<SourceState>(random.Below(3));
    if (snapshot.state != SourceState::kLost) {
      for (const SnapshotField& field : SnapshotFields()) {
        if (random.Below(3) > 0) snapshot.*field.value = std::round(field.min + (std::min(field.max, 1e4) - field.min) * random.Uniform());
        if (snapshot.*field.value && *(snapshot.*field.value) < field.min) snapshot.*field.value = field.max;
      }
      snapshot.energy_j.reset();
      if (i == 0 || random.Below(2) == 0) snapshot.energy_j = energy_j += std::round(random.Uniform() * 100);
      if (random.Below(2) == 0) snapshot.throttle = static_cast<uint32_t>(random.Below(16));
    }
    snapshots.push_back(snapshot);
    text += TraceLine(snapshot);
  }
  const Trace trace = Parsed(text);
  ASSERT_EQ(trace.rows.size(), snapshots.size());
  std::optional<double> first_j;
  for (size_t i = 0; i < snapshots.size(); ++i) {
    const Snapshot &row = trace.rows[i], &written = snapshots[i];
    EXPECT_NEAR(row.time_s, written.time_s, 1e-9);
    EXPECT_EQ(row.state, written.state);
    EXPECT_EQ(row.throttle, written.throttle);
    if (!first_j && written.energy_j) first_j = written.energy_j;
    for (const SnapshotField& field : SnapshotFields()) {
      const double start = field.value == &Snapshot::energy_j ? first_j.value_or(0) : 0;
      ASSERT_EQ((row.*field.value).has_value(), (written.*field.value).has_value()) << field.column;
      if (row.*field.value) {
        EXPECT_NEAR(*(row.*field.value) + start, *(written.*field.value), 1e-6) << field.column;
      }
    }
  }
}

TEST(TraceCsv, HostileBytes) {
  Random random(9);
  const std::string good = kRecorded;
  int parsed = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::string text = good;
    for (uint64_t edits = 1 + random.Below(4); edits > 0; --edits) {
      const size_t at = random.Below(text.size());
      switch (random.Below(4)) {
        case 0: text[at] = static_cast<char>(random.Next()); break;
        case 1: text.erase(at, random.Below(20)); break;
        case 2: text.insert(at, 1, ",\n\"#e-.9\0"[random.Below(9)]); break;
        case 3: text.resize(at + 1); break;
      }
    }
    const auto trace = ParseTrace(text, "t.csv");
    if (!trace.ok()) {
      for (const char c : trace.status().message()) EXPECT_TRUE(c >= ' ' && c <= '~');
      continue;
    }
    ++parsed;
    double energy_j = 0;
    for (const Snapshot& row : trace->rows) {
      EXPECT_TRUE(Sane(row));
      EXPECT_GE(row.energy_j.value_or(energy_j), energy_j);
      energy_j = row.energy_j.value_or(energy_j);
    }
  }
  EXPECT_GT(parsed, 1000);
  for (int i = 0; i < 2000; ++i) {
    std::string text;
    for (uint64_t bytes = random.Below(200); bytes > 0; --bytes) text += static_cast<char>(random.Next());
    EXPECT_FALSE(ParseTrace(text, "t.csv").ok());
  }
}

TEST(TraceCsv, Files) {
  TempFolder folder;
  const auto trace = ReadTrace(folder.Write("t.csv", kRecorded));
  ASSERT_TRUE(trace.ok());
  EXPECT_EQ(trace->rows.size(), 3u);
  EXPECT_EQ(ReadTrace(folder.path() + "/none.csv").status().code(), StatusCode::kNotFound);
  EXPECT_EQ(ReadTrace(folder.path()).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadTrace(folder.Write("empty.csv", "")).status().code(), StatusCode::kCorrupt);
}

class ReplayTest : public ::testing::Test {
 protected:
  ReplaySource Source(const std::string& text) { return ReplaySource(Parsed(text), "t.csv", clock_.clock()); }
  VirtualClock clock_;
};

TEST_F(ReplayTest, PlaysAtTheSpeedOfItsClock) {
  ReplaySource source = Source("time_s,gpu_temp_c\n10,40\n10.1,41\n10.2,42\n");
  EXPECT_EQ(source.name(), "replay:t.csv");
  clock_.now_s += 500;  // the first reading starts it
  Snapshot snapshot = source.Read();
  EXPECT_EQ(snapshot.temp_c, 40);
  EXPECT_EQ(snapshot.time_s, 10);
  clock_.now_s += 0.09;
  EXPECT_EQ(source.Read().temp_c, 40);
  clock_.now_s += 0.02;
  snapshot = source.Read();
  EXPECT_EQ(snapshot.temp_c, 41);
  EXPECT_NEAR(snapshot.time_s, 10.11, 1e-6);
  clock_.now_s -= 100;  // a jump back is no time
  EXPECT_EQ(source.Read().temp_c, 41);
  clock_.now_s += 0.1;
  EXPECT_EQ(source.Read().temp_c, 42);
}

TEST_F(ReplayTest, IsLostAfterTheEndAndInGaps) {
  ReplaySource source = Source("time_s,gpu_temp_c\n0,40\n0.1,41\n60,42\n60.1,43\n");
  EXPECT_EQ(source.Read().state, SourceState::kOk);
  clock_.now_s += 0.35;
  EXPECT_EQ(source.Read().state, SourceState::kOk);
  clock_.now_s += 0.1;
  Snapshot snapshot = source.Read();
  EXPECT_EQ(snapshot.state, SourceState::kLost);
  EXPECT_TRUE(Sane(snapshot));
  clock_.now_s += 60 - 0.45 + 1e-6;
  EXPECT_EQ(source.Read().temp_c, 42);
  clock_.now_s += 0.39;
  EXPECT_EQ(source.Read().temp_c, 43);
  clock_.now_s += 0.1;
  snapshot = source.Read();
  EXPECT_EQ(snapshot.state, SourceState::kLost);
  EXPECT_TRUE(Sane(snapshot));
  clock_.now_s += 1e6;
  EXPECT_EQ(source.Read().state, SourceState::kLost);
}

TEST_F(ReplayTest, ReportsWhatTheFileHas) {
  ReplaySource source = Source("time_s,gpu_temp_c,hbm_temp_c\n0,40,\n1,,\n");
  int found = 0;
  for (const SensorReport& report : source.Report()) {
    if (report.name == "trace gpu_temp_c") {
      EXPECT_EQ(report.value, "1 of 2 rows");
    }
    found += report.found;
    EXPECT_NE(report.found, !report.reason.empty());
  }
  EXPECT_EQ(found, 1);
}

}  // namespace
}  // namespace thermoe
