// SPDX-License-Identifier: Apache-2.0
// The mean loss stays at the budget, no step passes the floor, and nats go where they save most joules.
#include "control/router/quality_budget.h"

#include <gtest/gtest.h>

#include <cmath>

#include "closed_loop.h"
#include "control/router/adaptive_router.h"
#include "control/router/decision_log.h"
#include "telemetry_testing.h"

namespace thermoe {
namespace {

constexpr double kJPerByte = 130e-12;
using Regime = QualityBudget::Regime;

// Expert bytes of a plain step of the OLMoE shape.
double StepBytes(int rows) { return 6.9e9 * (1 - std::pow(1 - 8.0 / 64, rows)); }

class Stream {
 public:
  explicit Stream(double budget_nats, double floor_nats)
      : points(UsablePoints(EmberFront(), kOlmoeShape)),
        budget(points, floor_nats, budget_nats),
        floor_nats_(floor_nats) {}

  // So many tenths of a second, 40 steps each.
  void Run(int ticks, int rows, Regime regime, double j_per_byte) {
    for (int tick = 0; tick < ticks; ++tick) {
      for (int step = 0; step < 40; ++step) {
        const int32_t point = budget.PointFor(rows);
        const OperatingPoint& p = points[static_cast<size_t>(point)];
        const double loss = LossAt(p, rows);
        EXPECT_LE(loss, floor_nats_);
        nats += loss * rows, tokens += rows;
        joules += StepBytes(rows) * BytesFracAt(p, rows) * j_per_byte;
        budget.Add(rows, point, StepBytes(rows));
      }
      budget.Solve(regime, j_per_byte, 0.1);
    }
  }
  double LossFor(int rows) const { return LossAt(points[static_cast<size_t>(budget.PointFor(rows))], rows); }

  std::vector<OperatingPoint> points;
  QualityBudget budget;
  double nats = 0, tokens = 0, joules = 0;

 private:
  double floor_nats_;
};

TEST(QualityBudget, TheMeanLossIsTheBudgetAtAnyConstantLoad) {
  for (const int rows : {1, 4, 16, 40}) {
    for (const double budget_nats : {0.004, 0.012, 0.02, 0.03}) {
      Stream stream(budget_nats, 2 * budget_nats);
      stream.Run(600, rows, Regime::kBusy, kJPerByte);
      EXPECT_NEAR(stream.nats / stream.tokens, budget_nats, 0.01 * budget_nats) << rows << " rows";
      EXPECT_NEAR(stream.budget.mean_loss_nats(), stream.nats / stream.tokens, 0.02 * budget_nats);
    }
  }
}

TEST(QualityBudget, AFloorBelowTheDearestPointBoundsTheMean) {
  Stream stream(0.012, 0.012);
  stream.Run(300, 1, Regime::kBusy, kJPerByte);
  EXPECT_LE(stream.nats / stream.tokens, 0.012);
}

// A cycle of one row and of sixteen under a cap: the same mean loss, and fewer joules than any one mix of two points.
TEST(QualityBudget, NatsGoWhereTheySaveMostJoules) {
  Stream stream(0.02, 0.04);
  const auto cycle = [&] {
    stream.Run(200, 1, Regime::kBusy, 1.33 * kJPerByte);
    stream.Run(20, 16, Regime::kCapped, 1.56 * kJPerByte);
  };
  for (int i = 0; i < 10; ++i) cycle();
  stream.nats = stream.tokens = stream.joules = 0;
  for (int i = 0; i < 10; ++i) cycle();
  const double mean = stream.nats / stream.tokens;
  EXPECT_NEAR(mean, 0.02, 0.0006);

  const double ones = 10 * 200 * 40, sixteens = 10 * 20 * 40;  // steps
  double best = 1e30;
  std::vector<std::pair<double, double>> statics;
  for (const OperatingPoint& p : stream.points) {
    const double nats = (ones * LossAt(p, 1) + 16 * sixteens * LossAt(p, 16)) / (ones + 16 * sixteens);
    const double joules = kJPerByte * (1.33 * ones * StepBytes(1) * BytesFracAt(p, 1) +
                                       1.56 * sixteens * StepBytes(16) * BytesFracAt(p, 16));
    statics.emplace_back(nats, joules);
  }
  for (const auto& [la, ja] : statics) {
    if (la <= mean) best = std::min(best, ja);
    for (const auto& [lb, jb] : statics) {
      if (la < mean && lb > mean) best = std::min(best, ja + (mean - la) / (lb - la) * (jb - ja));
    }
  }
  printf("%.4f nats; %.2f %% fewer joules than the best mix\n", mean, 100 * (1 - stream.joules / best));
  EXPECT_LT(stream.joules, 0.995 * best);
}

TEST(QualityBudget, WhatWasLeftOverIsSpentLater) {
  Stream stream(0.012, 0.024);
  for (int i = 0; i < 2000; ++i)
    stream.budget.Add(16, 0, StepBytes(16));  // plain, as a failed sensor's return leaves it
  stream.Run(50, 16, Regime::kBusy, kJPerByte);
  EXPECT_GT(stream.LossFor(16), 0.014);
  stream.Run(3000, 16, Regime::kBusy, kJPerByte);
  EXPECT_NEAR(stream.budget.mean_loss_nats(), 0.012, 0.0005);
}

// A point that suits sixteen rows costs far more alone: a step whose batch has just fallen is charged what it loses.
TEST(QualityBudget, AStepIsChargedForItsOwnBatch) {
  const std::vector<OperatingPoint> points = UsablePoints(EmberFront(), kOlmoeShape);
  QualityBudget budget(points, 0.04, 0.02);
  size_t k0 = 0;
  while (k0 < points.size() && Describe(points[k0]) != "full 0, k0 5") ++k0;
  ASSERT_LT(k0, points.size());
  budget.Add(1, static_cast<int32_t>(k0), StepBytes(1));
  EXPECT_DOUBLE_EQ(budget.mean_loss_nats(), LossAt(points[k0], 1));
  EXPECT_GT(budget.mean_loss_nats(), 0.1);
}

TEST(QualityBudget, PlainBeforeAnythingIsKnownAndWithoutABudget) {
  Stream off(0, 0.02);
  EXPECT_FALSE(off.budget.on());
  Stream stream(0.02, 0.04);
  stream.budget.Solve(Regime::kBusy, kJPerByte, 0.1);
  EXPECT_EQ(stream.budget.PointFor(16), 0);
  stream.budget.Add(0, 0, 0);  // prompts alone
  stream.budget.Solve(Regime::kBusy, kJPerByte, 0.1);
  EXPECT_EQ(stream.budget.PointFor(16), 0);
}

// In the loop: the mean is kept, each batch has its own point, and a run replays.
TEST(QualityBudget, TheLoopKeepsTheMeanAndReplays) {
  TempFolder folder;
  ControlConfig config = H100Config();
  config.prefer = Preference::kEnergy;
  config.quality_budget_nats = 0.02;
  config.quality_floor_nats = 0.04;
  config.log_path = folder.path() + "/log.jsonl";
  ClosedLoop run(config, ConstantScenario(28));
  Load load;
  for (int i = 0; i < 6; ++i) {
    load.batch = i % 2 == 0 ? 1 : 16;
    ASSERT_TRUE(run.loop->SetLimits({load.batch > 1 ? 350.0 : 0.0, 0, 0}).ok());
    run.Run(5, load);
  }
  EXPECT_NEAR(run.mean_loss(), 0.02, 0.001);
  EXPECT_LE(run.loop->status().point_loss_nats, 0.04);
  EXPECT_EQ(run.loop->status().reason, DecisionReason::kBudget);
  EXPECT_LT(run.WorstSecond(26, 30), 350 * 1.02);
  ASSERT_TRUE(run.loop->FlushLog().ok());
  const Result<ReplayReport> report = Replay(config.log_path);
  ASSERT_TRUE(report.ok()) << report.status().message();
  EXPECT_EQ(report->difference, "");
}

// A budget never keeps a step from its latency target.
TEST(QualityBudget, TheLatencyTargetComesFirst) {
  ControlConfig config = H100Config();
  config.prefer = Preference::kEnergy;
  config.quality_budget_nats = 0.001;
  config.quality_floor_nats = 0.02;
  config.limits.latency_ms = 1.9;  // plain takes 2.3
  ClosedLoop run(config, ConstantScenario(28));
  run.Run(3, Load{});
  EXPECT_LE(run.loop->status().latency_ms, 1.9);
}

TEST(QualityBudget, ContradictionsAreRefused) {
  ControlConfig config = H100Config();
  config.quality_budget_nats = 0.01;
  EXPECT_FALSE(CheckConfig(config).ok());  // prefers throughput
  config.prefer = Preference::kEnergy;
  EXPECT_TRUE(CheckConfig(config).ok());
  config.quality_floor_nats = 0.005;
  EXPECT_FALSE(CheckConfig(config).ok());
}

}  // namespace
}  // namespace thermoe
