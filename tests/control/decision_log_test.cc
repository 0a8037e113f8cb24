// SPDX-License-Identifier: Apache-2.0
// Logs replay to the bit; whatever their bytes are, one sentence says what is wrong. The same for the loop's state.
#include "control/router/decision_log.h"

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <sstream>

#include "base/random.h"
#include "closed_loop.h"
#include "control/router/router_state.h"
#include "telemetry_testing.h"

namespace thermoe {
namespace {

std::string ReadAll(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  return {(std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>()};
}

// A run with everything in it: caps, bursts, warming, sensors that fail.
std::string LoggedRun(const std::string& path, const std::string& state_path = "") {
  ControlConfig config = H100Config();
  config.limits = {400, 60, 3};
  config.prefill_chunk = 512;
  config.max_sequences = 32;
  config.log_path = path;
  config.state_path = state_path;
  ClosedLoop run(config, ConstantScenario(38));
  Load load;
  run.Run(2, load);
  load.prefill_every = 5;
  EXPECT_TRUE(run.loop->SetLimits({350, 55, 3}).ok());
  run.Run(2, load);
  run.corrupt = [](Snapshot* s) { *s = Snapshot{}; };
  run.Run(1, load);
  run.corrupt = nullptr;
  EXPECT_TRUE(run.loop->SetLimits({}).ok());
  run.Run(2, load);
  EXPECT_TRUE(run.loop->FlushLog().ok());
  EXPECT_TRUE(run.loop->SaveState().ok());
  return ReadAll(path);
}

TEST(DecisionLog, ReplaysToTheBit) {
  TempFolder folder;
  const std::string path = folder.path() + "/log.jsonl";
  const std::string text = LoggedRun(path);
  const Result<ReplayReport> report = Replay(path);
  ASSERT_TRUE(report.ok()) << report.status().message();
  EXPECT_EQ(report->difference, "");
  EXPECT_GT(report->ticks, 60);
  EXPECT_GT(report->steps, 500);
  EXPECT_FALSE(report->cut);
  EXPECT_NE(text.find("\"reason\":\"safest\""), std::string::npos);
  EXPECT_NE(text.find("\"limits\":[350,55,3]"), std::string::npos);
}

TEST(DecisionLog, ReplaysARunThatBeganFromAState) {
  TempFolder folder;
  const std::string state = folder.path() + "/state.json", path = folder.path() + "/log.jsonl";
  LoggedRun(folder.path() + "/first.jsonl", state);
  const std::string text = LoggedRun(path, state);
  EXPECT_EQ(text.find("\"state\":null"), std::string::npos);
  const Result<ReplayReport> report = Replay(path);
  ASSERT_TRUE(report.ok()) << report.status().message();
  EXPECT_EQ(report->difference, "");
}

TEST(DecisionLog, FindsTheFirstDifference) {
  TempFolder folder;
  std::string text = LoggedRun(folder.path() + "/log.jsonl");
  // One digit of one step's bytes, in the middle.
  const size_t at = text.find("6500000000", text.size() / 8);
  const size_t other = at == std::string::npos ? text.find(",500000000,", text.size() / 8) + 1 : at;
  ASSERT_LT(other, text.size());
  text[other] = '7';
  const Result<ReplayReport> report = ReplayText(text, "log");
  ASSERT_TRUE(report.ok()) << report.status().message();
  EXPECT_NE(report->difference.find("line "), std::string::npos) << report->difference;
}

TEST(DecisionLog, HostileBytesGetOneSentence) {
  TempFolder folder;
  const std::string whole = LoggedRun(folder.path() + "/log.jsonl");
  const std::string text = whole.substr(0, whole.find('\n', whole.size() / 20) + 1);
  EXPECT_FALSE(ReplayText("", "log").ok());
  EXPECT_FALSE(ReplayText("{}\n", "log").ok());
  EXPECT_FALSE(ReplayText("[1]\n", "log").ok());
  EXPECT_FALSE(ReplayText("{\"decision_log\": 2}\n", "log").ok());
  const Result<ReplayReport> cut = ReplayText(text.substr(0, text.size() - 5), "log");
  ASSERT_TRUE(cut.ok());
  EXPECT_TRUE(cut->cut);
  Random random(7);
  int refused = 0;
  for (int i = 0; i < 150; ++i) {
    std::string bad = text;
    for (uint64_t n = 1 + random.Below(4); n > 0; --n)
      bad[random.Below(bad.size())] = static_cast<char>(32 + random.Below(95));
    const Result<ReplayReport> report = ReplayText(bad, "log");
    if (report.ok()) continue;
    ++refused;
    EXPECT_EQ(report.status().message().find("log: line"), 0u) << report.status().message();
  }
  EXPECT_GT(refused, 10);
}

TEST(ControlState, GoesThroughAFileExactly) {
  TempFolder folder;
  const std::string path = folder.path() + "/state.json";
  ControlConfig config = H100Config();
  config.limits.power_w = 350;
  config.state_path = path;
  ClosedLoop run(config, ConstantScenario(28));
  run.Run(5, Load{});
  ASSERT_TRUE(run.loop->SaveState().ok());
  const Result<ControlState> state = ReadControlState(path);
  ASSERT_TRUE(state.ok()) << state.status().message();
  EXPECT_EQ(ControlStateJson(*state), ReadAll(path));
  // The next run knows the machine from its first tick on.
  ClosedLoop next(config, ConstantScenario(28), 2);
  next.Run(0.15, Load{});
  EXPECT_NEAR(next.loop->status().idle_w, run.loop->status().idle_w, 1);
  EXPECT_GT(next.loop->status().lambda_power, 0.9);
}

TEST(ControlState, HostileFilesGetOneSentence) {
  const std::string good = ControlStateJson(ControlCore(H100Config(), std::vector<OperatingPoint>(1), -1).state());
  EXPECT_TRUE(ParseControlState(good, "s").ok());
  for (const char* bad : {"", "{", "[]", "{\"schema_version\": 9}", "{\"schema_version\": 1}", "null",
                          "{\"schema_version\": 1, \"lambda_power\": 3}"}) {
    const Result<ControlState> state = ParseControlState(bad, "s");
    ASSERT_FALSE(state.ok()) << bad;
    EXPECT_EQ(state.status().code(), StatusCode::kCorrupt);
    EXPECT_EQ(state.status().message().find("s: "), 0u);
  }
  Random random(3);
  for (int i = 0; i < 500; ++i) {
    std::string text = good;
    for (uint64_t n = 1 + random.Below(5); n > 0; --n)
      text[random.Below(text.size())] = static_cast<char>(random.Below(256));
    const Result<ControlState> state = ParseControlState(text, "s");
    if (!state.ok()) continue;
    ControlCore core(H100Config(), std::vector<OperatingPoint>(1), -1);
    if (core.Restore(*state)) {
      EXPECT_TRUE(std::isfinite(core.state().energy.value[0]));
    }
  }
  // A loop refuses what cannot be.
  TempFolder folder;
  ControlConfig config = H100Config();
  config.state_path = folder.path() + "/state.json";
  std::string wild = good;
  wild.replace(wild.find("\"integral\": 0.0"), 15, "\"integral\": 9e9");
  std::ofstream(config.state_path) << wild;
  EXPECT_FALSE(MakeControlLoop(config, EmberFront(), kOlmoeShape).ok());
}

}  // namespace
}  // namespace thermoe
