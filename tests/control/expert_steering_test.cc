// SPDX-License-Identifier: Apache-2.0
// Biases on experts inside the loop: none with headroom, learnt under a cap, gone without sensors, replayed to the bit,
// kept from run to run.
#include "control/router/expert_steering.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <iterator>

#include "closed_loop.h"
#include "control/router/decision_log.h"
#include "control/router/router_state.h"
#include "support/count_allocations.h"
#include "telemetry_testing.h"

namespace thermoe {
namespace {

ControlConfig WithAdapter(double power_w) {
  ControlConfig config = H100Config();
  config.ttha = true;
  config.limits.power_w = power_w;
  return config;
}

// Half of the experts of every layer in group 0, which the gates like more.
std::vector<uint16_t> Halves() {
  std::vector<uint16_t> placement(static_cast<size_t>(kOlmoeShape.layers * kOlmoeShape.experts));
  for (size_t i = 0; i < placement.size(); ++i) placement[i] = i % 64 < 32 ? 0 : 1;
  return placement;
}

TEST(ExpertSteering, WithLimitsFarAwayNothingIsAskedForOrSet) {
  ControlConfig config = WithAdapter(690);
  config.limits = {690, 86, 50};
  ClosedLoop run(config, ConstantScenario(25));
  run.DrawGates(16);
  run.Run(10, Load{});
  EXPECT_EQ(run.steerings_given, 0) << "the engine stays plain: the same pointer, no biases, no rows asked for";
  EXPECT_TRUE(run.loop->status().ttha);
  EXPECT_EQ(run.loop->status().ttha_gain, 0);
}

TEST(ExpertSteering, LearnsUnderACapAndLetsGoAfterIt) {
  ClosedLoop run(WithAdapter(350), ConstantScenario(28));
  run.DrawGates(16);
  run.Run(6, Load{});
  const ControlStatus& status = run.loop->status();
  EXPECT_EQ(run.steering->sample_gate_rows, ExpertSteering::kSampleRows);
  EXPECT_GT(run.StrongestBias(), 0);
  EXPECT_GT(status.ttha_gain, 0);
  EXPECT_EQ(At(status.ttha_weight, TthaTerm::kPowerLoss), status.lambda_power);
  EXPECT_NE(At(status.ttha_value, TthaTerm::kThroughputBonus), 0);
  for (const LayerSteering& layer : run.steering->layers) {
    ASSERT_EQ(layer.selection_bias.size(), 64u);
    EXPECT_EQ(*std::max_element(layer.selection_bias.begin(), layer.selection_bias.end()), 0);
  }
  EXPECT_NEAR(run.MeanPower(2, 6), 350, 3.5);
  EXPECT_GT(run.in_force, 0) << "a point as well";

  ASSERT_TRUE(run.loop->SetLimits({}).ok());
  run.Run(1, Load{});
  EXPECT_EQ(run.StrongestBias(), 0);
  EXPECT_EQ(run.steering->sample_gate_rows, 0);
  EXPECT_EQ(run.in_force, 0);
  const int given = run.steerings_given;
  run.Run(2, Load{});
  EXPECT_EQ(run.steerings_given, given);
}

TEST(ExpertSteering, NoBiasesWithoutSensors) {
  ClosedLoop run(WithAdapter(350), ConstantScenario(28));
  run.DrawGates(16);
  run.Run(5, Load{});
  ASSERT_GT(run.StrongestBias(), 0);
  run.corrupt = [](Snapshot* s) { *s = Snapshot{}; };
  run.Run(0.2, Load{});
  EXPECT_TRUE(run.loop->status().safest);
  EXPECT_EQ(run.StrongestBias(), 0);
  run.corrupt = nullptr;
  run.Run(2, Load{});
  EXPECT_GT(run.StrongestBias(), 0);
}

TEST(ExpertSteering, ReplaysToTheBitAndKeepsWhatItLearnt) {
  TempFolder folder;
  ControlConfig config = WithAdapter(350);
  config.state_path = folder.path() + "/state.json";
  config.placement = Halves();
  std::string weights;
  for (int turn = 0; turn < 2; ++turn) {
    config.log_path = folder.path() + "/log.jsonl";
    ClosedLoop run(config, ConstantScenario(28), static_cast<uint64_t>(turn + 1));
    run.DrawGates(16);
    Load load;
    run.Run(2, load);
    load.prefill_every = 5;
    run.Run(1, load);
    run.corrupt = [](Snapshot* s) { *s = Snapshot{}; };
    run.Run(0.5, load);
    run.corrupt = nullptr;
    run.Run(1, load);
    ASSERT_TRUE(run.loop->SetLimits({}).ok());
    run.Run(1, load);
    ASSERT_TRUE(run.loop->FlushLog().ok());
    ASSERT_TRUE(run.loop->SaveState().ok());
    const Result<ReplayReport> report = Replay(config.log_path);
    ASSERT_TRUE(report.ok()) << report.status().message();
    EXPECT_EQ(report->difference, "");
    EXPECT_GT(report->ticks, 40);
    const Result<ControlState> state = ReadControlState(config.state_path);
    ASSERT_TRUE(state.ok());
    EXPECT_NE(state->ttha, weights);
    weights = state->ttha;
    EXPECT_NE(weights.find("\"weights\""), std::string::npos);
  }
  std::ifstream stream(config.log_path, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  for (const char* name : {"ttha_power_loss", "ttha_temp_loss", "ttha_latency_penalty", "ttha_memory_penalty",
                           "ttha_throughput_bonus", "ttha_fidelity", "ttha_balance"}) {
    EXPECT_NE(text.find(name), std::string::npos) << name;
  }
  // One changed count of slots shows.
  std::string other = text;
  const size_t at = other.find("\"slots\":[\"", other.size() / 4) + 10;
  ASSERT_LT(at, other.size());
  other[at] = other[at] == 'B' ? 'C' : 'B';
  const Result<ReplayReport> report = ReplayText(other, "log");
  ASSERT_TRUE(report.ok()) << report.status().message();
  EXPECT_NE(report->difference.find("ttha."), std::string::npos) << report->difference;

  // Off in a run in between: what was learnt stays in the file.
  config.ttha = false;
  config.log_path.clear();
  ClosedLoop off(config, ConstantScenario(28), 3);
  off.Run(0.5, Load{});
  ASSERT_TRUE(off.loop->SaveState().ok());
  EXPECT_EQ(ReadControlState(config.state_path)->ttha, weights);
}

TEST(ExpertSteering, RefusesAStateThatIsNone) {
  TempFolder folder;
  ControlConfig config = WithAdapter(350);
  config.state_path = folder.path() + "/state.json";
  ClosedLoop run(config, ConstantScenario(28));
  ASSERT_TRUE(run.loop->SaveState().ok());
  Result<ControlState> state = ReadControlState(config.state_path);
  ASSERT_TRUE(state.ok());
  state->ttha = "{\"weights\": []}";
  ASSERT_TRUE(WriteControlState(config.state_path, *state).ok());
  const auto made = MakeControlLoop(config, EmberFront(), kOlmoeShape);
  ASSERT_FALSE(made.ok());
  EXPECT_NE(made.status().message().find("ttha: "), std::string::npos) << made.status().message();
}

TEST(ExpertSteering, BalancesGroupsWhateverTheLimits) {
  ControlConfig config = H100Config();
  config.placement = Halves();
  ClosedLoop run(config, ConstantScenario(28));
  run.DrawGates(16);
  run.Run(4, Load{});
  ASSERT_NE(run.steering, nullptr);
  EXPECT_GT(run.StrongestBias(), 0);
  int moved = 0;
  for (const LayerSteering& layer : run.steering->layers) {
    if (layer.selection_bias.empty()) continue;
    ++moved;
    EXPECT_TRUE(std::all_of(layer.selection_bias.begin(), layer.selection_bias.begin() + 32,
                            [&](float b) { return b == layer.selection_bias[0]; }));
  }
  EXPECT_GT(moved, 0);

  config.placement.pop_back();
  EXPECT_FALSE(MakeControlLoop(config, EmberFront(), kOlmoeShape).ok());
}

TEST(ExpertSteering, ATickOfALearningLoopAllocatesNothing) {
  auto made = MakeControlLoop(WithAdapter(350), EmberFront(), kOlmoeShape);
  ASSERT_TRUE(made.ok());
  const Result<ModelShape> shape = SimModelShape(SimModel{});
  ASSERT_TRUE(shape.ok());
  SimRouting gates(shape->config, true, 16, 1);
  std::vector<int32_t> rows;
  for (int32_t row = 0; row < 16; ++row) rows.push_back(row);
  StepRecord record;
  record.decode_tokens = record.tokens = 16;
  record.expert_bytes = 6e9, record.weight_bytes = 6.5e9, record.flops = 4e10;
  Snapshot snapshot;
  snapshot.state = SourceState::kOk;
  std::shared_ptr<const Steering> steering;
  double now_s = 0, energy_j = 0;
  int64_t allocations = 0, published = 0;
  std::vector<double> tick_us;
  tick_us.reserve(1000);
  for (int i = 0; i < 4000; ++i) {
    gates.Step(rows, 0, steering, &record);
    const double start_s = now_s;
    now_s += 0.0023, energy_j += 0.0023 * 500;
    snapshot.time_s = now_s, snapshot.temp_c = 50, snapshot.energy_j = energy_j, snapshot.power_w = 500;
    const int64_t before = testing::Allocations();
    const auto begin = std::chrono::steady_clock::now();
    StepDecision decision = (*made)->AfterStep({start_s, now_s, record, snapshot, 0});
    const double us = std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count();
    if (decision.steering != nullptr) tick_us.push_back(us);
    if (i > 1500) allocations += testing::Allocations() - before;
    if (decision.steering != nullptr) steering = std::move(decision.steering), ++published;
    now_s += decision.pause_s, energy_j += decision.pause_s * 120;
  }
  std::sort(tick_us.begin(), tick_us.end());
  ASSERT_GT(tick_us.size(), 100u);
  printf("tick that learns: median %.0f us, 99 %% %.0f us\n", tick_us[tick_us.size() / 2],
         tick_us[tick_us.size() * 99 / 100]);
  EXPECT_LT(tick_us[tick_us.size() / 2], 20000);
  EXPECT_GT(published, 100);
  EXPECT_EQ(allocations, 0);
}

}  // namespace
}  // namespace thermoe
