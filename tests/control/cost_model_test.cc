// SPDX-License-Identifier: Apache-2.0
#include "control/cost/cost_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <tuple>

#include "base/random.h"

namespace thermoe {
namespace {

using ::testing::HasSubstr;

OperationShape Linear(int64_t tokens, int64_t rows = 256, int64_t cols = 512) {
  OperationShape shape;
  shape.family = Family::kLinearQ;
  shape.matrix = {DType::kQ8_0, rows, cols, true};
  shape.tokens = tokens;
  return shape;
}

// A step's experts: `full` jobs with both planes, `hi` jobs with one.
OperationShape Experts(int64_t full, int64_t slots_full, int64_t hi, int64_t slots_hi) {
  OperationShape shape;
  shape.family = slots_hi > 0 ? Family::kExpertNestedHi : Family::kExpertNestedBoth;
  shape.matrix = {DType::kNested8, 128, 256, true};
  shape.down_type = DType::kNested8;
  shape.tokens = (slots_full + slots_hi + 3) / 4;
  shape.experts = std::max(full, hi);
  shape.experts_full = full;
  shape.experts_hi = hi;
  shape.slots_full = slots_full;
  shape.slots_hi = slots_hi;
  return shape;
}

// A synthetic machine: 10 bytes a nanosecond, 100 FLOPs a nanosecond, half a microsecond a call.
double MachineUs(const OperationShape& shape) {
  const kernels::OpCost cost = CostOf(shape);
  return 0.5 + BytesOf(cost) / 1e4 + cost.flops / 1e5;
}

CostPoint PointOf(const OperationShape& shape, double factor = 1) {
  CostPoint point;
  point.shape = shape;
  point.latency_us = MachineUs(shape) * factor;
  return point;
}

std::vector<CostPoint> LinearPoints() {
  std::vector<CostPoint> points;
  for (const int64_t tokens : {1, 2, 4, 8, 16, 32, 64}) points.push_back(PointOf(Linear(tokens)));
  return points;
}

std::vector<CostPoint> ExpertPoints() {
  std::vector<CostPoint> points;
  for (const int64_t d : {1, 2, 4, 8, 16}) {
    for (const int64_t each : {1, 2, 4, 8}) {
      points.push_back(PointOf(Experts(d, d * each, 0, 0)));
      points.push_back(PointOf(Experts(0, 0, d, d * each)));
    }
  }
  return points;
}

void ExpectNeverFalls(const KernelCostModel& model, int64_t from_tokens, int64_t to_tokens) {
  double last = 0;
  for (int64_t tokens = from_tokens; tokens <= to_tokens; ++tokens) {
    const double now = model.Predict(Linear(tokens)).latency_us;
    EXPECT_GE(now, last * (1 - 1e-12)) << tokens;
    last = now;
  }
}

TEST(CostModel, IsExactAtItsPoints) {
  std::vector<CostPoint> points = LinearPoints();
  for (const CostPoint& point : ExpertPoints()) points.push_back(point);
  const KernelCostModel model(points);
  for (const CostPoint& point : points) {
    const CostPrediction prediction = model.Predict(point.shape);
    EXPECT_NEAR(prediction.latency_us, point.latency_us, 1e-9 * point.latency_us) << TextOf(point.shape);
    EXPECT_EQ(prediction.basis, PredictionBasis::kGrid);
  }
}

TEST(CostModel, IsCloseBetweenPoints) {
  std::vector<CostPoint> points = LinearPoints();
  for (const CostPoint& point : ExpertPoints()) points.push_back(point);
  const KernelCostModel model(points);
  for (int64_t tokens = 1; tokens <= 64; ++tokens) {
    EXPECT_NEAR(model.Predict(Linear(tokens)).latency_us / MachineUs(Linear(tokens)), 1, 0.06) << tokens;
  }
  for (const auto& [d, slots] : {std::pair<int64_t, int64_t>{3, 9}, {6, 20}, {12, 30}, {13, 80}}) {
    const OperationShape shape = Experts(d, slots, 0, 0);
    EXPECT_NEAR(model.Predict(shape).latency_us / MachineUs(shape), 1, 0.08) << d;
  }
}

// Whatever noise the points have (a fall that lasts is none): more rows, more experts, more slots or a second plane never cost less.
TEST(CostModel, IsMonotoneInBytes) {
  Random random(1);
  std::vector<CostPoint> points;
  for (const auto& list : {LinearPoints(), ExpertPoints()}) {
    for (CostPoint point : list) {
      point.latency_us *= std::exp(0.3 * random.Normal());
      points.push_back(point);
    }
  }
  const KernelCostModel model(points);
  ExpectNeverFalls(model, 1, 300);
  double last = 0;
  for (int64_t each = 1; each <= 12; ++each) {
    last = 0;
    for (int64_t d = 1; d <= 24; ++d) {
      const double both = model.Predict(Experts(d, d * each, 0, 0)).latency_us;
      EXPECT_GE(both, last * (1 - 1e-12)) << d << " " << each;
      EXPECT_GE(both, model.Predict(Experts(0, 0, d, d * each)).latency_us * (1 - 1e-12)) << d << " " << each;
      last = both;
    }
  }
  // Matrices that were not measured: by bytes as well.
  last = 0;
  for (int64_t rows = 64; rows <= 4096; rows *= 2) {
    const double now = model.Predict(Linear(1, rows, 1024)).latency_us;
    EXPECT_GT(now, last);
    last = now;
  }
}

TEST(CostModel, BelievesAFallThatLastsAndNoOther) {
  std::vector<CostPoint> points;
  for (const int64_t tokens : {1, 2, 4, 8, 16, 32, 64, 128, 256}) {
    points.push_back(PointOf(Linear(tokens)));
    points.back().latency_us = tokens < 16 ? 8 + 0.01 * static_cast<double>(tokens) : 3 + 0.01 * static_cast<double>(tokens);
  }
  const KernelCostModel falls(points);
  for (const CostPoint& point : points) EXPECT_NEAR(falls.Predict(point.shape).latency_us, point.latency_us, 1e-9) << point.shape.tokens;
  points[6].latency_us = 1;  // one alone is noise
  ExpectNeverFalls(KernelCostModel(points), 16, 256);
}

TEST(CostModel, FollowsFullSlotsAndDistinctExperts) {
  const KernelCostModel model(ExpertPoints());
  const double hi = model.Predict(Experts(0, 0, 8, 16)).latency_us;
  const double half = model.Predict(Experts(4, 8, 4, 8)).latency_us;
  const double both = model.Predict(Experts(8, 16, 0, 0)).latency_us;
  EXPECT_LT(hi, half);
  EXPECT_LT(half, both);
  // One call, not two: half a microsecond less.
  EXPECT_NEAR(half, MachineUs(Experts(4, 8, 0, 0)) + MachineUs(Experts(0, 0, 4, 8)) - 0.5, 0.002 * half);
  EXPECT_LT(model.Predict(Experts(4, 16, 0, 0)).latency_us, model.Predict(Experts(16, 16, 0, 0)).latency_us);
}

// A machine that reads an expert once, whoever wants it with how many planes; and one that does each job by itself.
TEST(CostModel, LearnsWhetherAnExpertIsReadOnceForBothKindsOfJobs) {
  const auto once_us = [](int64_t shared, int64_t full, int64_t hi) {  // experts of both kinds and of one; two slots a job
    return MachineUs(Experts(shared + full, 4 * shared + 2 * full, 0, 0)) + MachineUs(Experts(0, 0, hi, 2 * hi)) - 0.5;
  };
  const auto mixed = [](int64_t shared, int64_t full, int64_t hi) {
    OperationShape shape = Experts(shared + full, 2 * (shared + full), shared + hi, 2 * (shared + hi));
    shape.experts = shared + full + hi;
    return shape;
  };
  std::vector<CostPoint> points = ExpertPoints();
  for (const auto& [shared, full, hi] : {std::tuple(4, 2, 2), std::tuple(6, 1, 3), std::tuple(3, 5, 2), std::tuple(8, 0, 4)}) {
    points.push_back(PointOf(mixed(shared, full, hi)));
    points.back().latency_us = once_us(shared, full, hi);
  }
  const KernelCostModel once(points);
  EXPECT_NEAR(once.Predict(mixed(5, 2, 3)).latency_us, once_us(5, 2, 3), 0.1 * once_us(5, 2, 3));
  EXPECT_NEAR(once.Predict(mixed(7, 0, 0)).latency_us, once_us(7, 0, 0), 0.1 * once_us(7, 0, 0));
  const double by_itself = KernelCostModel(ExpertPoints()).Predict(mixed(5, 2, 3)).latency_us;
  EXPECT_GT(by_itself, 1.15 * once_us(5, 2, 3));
  for (CostPoint& point : points) {
    if (point.shape.slots_full > 0 && point.shape.slots_hi > 0) point.latency_us = KernelCostModel(ExpertPoints()).Predict(point.shape).latency_us;
  }
  EXPECT_NEAR(KernelCostModel(points).Predict(mixed(5, 2, 3)).latency_us, by_itself, 0.02 * by_itself);
}

TEST(CostModel, FallsBackToTheRoofline) {
  const KernelCostModel empty;
  const CostPrediction blind = empty.Predict(Linear(4));
  EXPECT_EQ(blind.basis, PredictionBasis::kRoofline);
  EXPECT_GT(blind.latency_us, 0);
  EXPECT_GE(blind.uncertainty_frac, 1);

  const KernelCostModel model(LinearPoints());
  const CostPrediction other = model.Predict(Linear(4, 1024, 512));
  EXPECT_EQ(other.basis, PredictionBasis::kRoofline);
  EXPECT_NEAR(std::log2(other.latency_us / MachineUs(Linear(4, 1024, 512))), 0, 1);  // the family's own speed
  OperationShape norm;
  norm.family = Family::kNorm;
  norm.matrix = {DType::kF32, 1, 512, false};
  norm.tokens = 4;
  EXPECT_GT(model.Predict(norm).uncertainty_frac, other.uncertainty_frac);
}

// What a device brings while other operations run is not the memory's speed, nor what its cache gives.
TEST(CostModel, MemoryIsAsFastAsProductsReadWeights) {
  OperationShape attention;
  attention.family = Family::kAttentionDecode;
  attention.matrix = {DType::kF32, 16, 128, false};
  attention.kv_heads = 16, attention.tokens = 17, attention.positions = attention.distinct_positions = 17 * 32;
  OperationShape norm;
  norm.family = Family::kNorm;
  norm.matrix = {DType::kF32, 1, 512, false};
  norm.tokens = 512;
  const CostPoint early = PointOf(attention, 0.001), cached = PointOf(norm, 0.001);
  std::vector<CostPoint> points = LinearPoints();
  const double before = KernelCostModel(points).peak_gbps();
  points.push_back(early), points.push_back(cached);
  EXPECT_EQ(KernelCostModel(points).peak_gbps(), before);
  EXPECT_GT(KernelCostModel({early}).peak_gbps(), 100 * before);
  EXPECT_GT(KernelCostModel({cached}).peak_gbps(), 100 * before);
}

TEST(CostModel, IsLessCertainAwayFromPoints) {
  const KernelCostModel model(LinearPoints());
  const double at = model.Predict(Linear(16)).uncertainty_frac, between = model.Predict(Linear(23)).uncertainty_frac;
  const double outside = model.Predict(Linear(128)).uncertainty_frac,
               far = model.Predict(Linear(1024)).uncertainty_frac;
  EXPECT_LT(at, between);
  EXPECT_LT(between, outside);
  EXPECT_LT(outside, far);
  EXPECT_EQ(model.Predict(Linear(128)).basis, PredictionBasis::kOutside);
}

TEST(CostModel, NeverPassesAnEstimateForAMeasurement) {
  std::vector<CostPoint> points = LinearPoints();
  EXPECT_FALSE(KernelCostModel(points).Predict(Linear(4)).energy_measured);
  EXPECT_GT(KernelCostModel(points).Predict(Linear(4)).energy_j, 0);
  Snapshot now;
  now.power_w = 50;
  const CostPrediction priced = KernelCostModel(points).Predict(Linear(4), &now);
  EXPECT_FALSE(priced.energy_measured);
  EXPECT_NEAR(priced.energy_j, 50e-6 * priced.latency_us, 1e-12);
  for (CostPoint& point : points) point.energy_j = 80e-6 * point.latency_us;
  const CostPrediction measured = KernelCostModel(points).Predict(Linear(5), &now);
  EXPECT_TRUE(measured.energy_measured);
  EXPECT_NEAR(measured.energy_j, 80e-6 * measured.latency_us, 1e-12);
  EXPECT_GT(measured.temp_rise_c, 0);
  for (const double frac : {measured.compute_utilisation_frac, measured.memory_utilisation_frac}) {
    EXPECT_GT(frac, 0);
    EXPECT_LE(frac, 1);
  }
}

TEST(CostModel, IgnoresPointsThatCannotBe) {
  std::vector<CostPoint> points = LinearPoints();
  const double before = KernelCostModel(points).Predict(Linear(12)).latency_us;
  CostPoint bad = PointOf(Linear(12));
  for (const double latency : {0.0, -1.0, std::nan(""), std::numeric_limits<double>::infinity()}) {
    bad.latency_us = latency;
    points.push_back(bad);
  }
  bad.latency_us = 1e6;
  bad.held_out = true;
  points.push_back(bad);
  EXPECT_EQ(KernelCostModel(points).Predict(Linear(12)).latency_us, before);
}

TEST(CostModel, PrintsItself) {
  const std::string text = KernelCostModel(LinearPoints()).Describe();
  EXPECT_THAT(text, HasSubstr("linear q q8_0 256x512"));
  EXPECT_THAT(text, HasSubstr("norm: not measured; roofline"));
}

// Where only some sizes have joules, what lies between them and beyond is as they are.
TEST(CostModel, CompletesWattsFromTheSizesThatHaveThem) {
  std::vector<CostPoint> points = LinearPoints();
  for (CostPoint& point : points) {
    if (point.shape.tokens == 2) point.energy_j = 100 * point.latency_us * 1e-6;
    if (point.shape.tokens == 32) point.energy_j = 300 * point.latency_us * 1e-6;
  }
  const KernelCostModel model(points);
  const auto watts = [&](int64_t tokens) {
    const CostPrediction prediction = model.Predict(Linear(tokens));
    EXPECT_TRUE(prediction.energy_measured) << tokens;
    return prediction.energy_j / (prediction.latency_us * 1e-6);
  };
  EXPECT_NEAR(watts(1), 100, 1e-6);
  EXPECT_NEAR(watts(2), 100, 1e-6);
  EXPECT_NEAR(watts(8), 200, 1e-6);
  EXPECT_NEAR(watts(32), 300, 1e-6);
  EXPECT_NEAR(watts(64), 300, 1e-6);
  CostPoint held = PointOf(Linear(8));
  held.energy_j = 160 * held.latency_us * 1e-6;
  CostPoint without = PointOf(Linear(4));
  EXPECT_EQ(EnergyErrorsOf(model, {held, without}).points, 1);
  EXPECT_NEAR(EnergyErrorsOf(model, {held, without}).median_frac, 0.25, 1e-6);
}

// On a device a step's stages are not known: what the whole took moves them alike.
TEST(CostModel, LearnsFromStepsWhoseStagesAreNotKnown) {
  ModelShape shape;
  shape.config.layers = 2, shape.config.hidden = 1024, shape.config.heads = shape.config.kv_heads = 16, shape.config.head_dim = 64;
  shape.config.experts = 64, shape.config.slots = 2, shape.config.expert_width = 512, shape.config.vocab = 20000;
  const MatrixShape square{DType::kQ8_0, 1024, 1024, false};
  shape.embedding = shape.output = {DType::kQ8_0, 20000, 1024, false};
  LayerShape of_model;
  of_model.q = of_model.k = of_model.v = of_model.o = square;
  of_model.gate = {DType::kF32, 64, 1024, false};
  of_model.expert_gate = {DType::kQ8_0, 512, 1024, false}, of_model.expert_down = {DType::kQ8_0, 1024, 512, false};
  shape.layers.assign(2, of_model);
  StepRecord record;
  record.tokens = record.decode_tokens = record.logit_rows = 1;
  record.layers.resize(2);
  for (LayerRecord& layer : record.layers) layer.distinct_experts = layer.distinct_full_experts = layer.slots_full = 2;
  KernelCostModel model;
  const double plain_us = model.PredictStep(shape, StepShapeFrom(record, shape)).total.latency_us;
  record.times.total_us = 3 * plain_us;
  std::optional<LearntStep> learnt;
  for (int i = 0; i < 200; ++i) learnt = model.Learn(shape, record);
  ASSERT_TRUE(learnt);
  EXPECT_NEAR(learnt->measured_us, 3 * plain_us, 1e-6 * plain_us);
  EXPECT_NEAR(learnt->plain_us, plain_us, 1e-6 * plain_us);
  EXPECT_NEAR(model.PredictStep(shape, StepShapeFrom(record, shape)).total.latency_us, 3 * plain_us, 0.15 * plain_us);
}

TEST(StageCorrection, ConvergesOnDrift) {
  StageCorrection correction;
  Random random(2);
  const auto drive = [&](double factor, double offset_us, int steps) {
    for (int i = 0; i < steps; ++i) {
      const double predicted = 50 * std::exp2(4 * random.Uniform());
      EXPECT_TRUE(correction.Learn(predicted, (factor * predicted + offset_us) * (1 + 0.02 * random.Normal())));
    }
  };
  drive(1.3, 20, 300);
  EXPECT_NEAR(correction.factor(), 1.3, 0.04);
  EXPECT_NEAR(correction.offset_us(), 20, 6);
  drive(0.8, 5, 400);  // the machine became faster
  for (const double predicted : {60.0, 200.0, 700.0}) {
    EXPECT_NEAR(correction.Apply(predicted) / (0.8 * predicted + 5), 1, 0.04) << predicted;
  }
}

TEST(StageCorrection, StaysBoundedUnderGarbage) {
  StageCorrection correction;
  Random random(3);
  const double odd[] = {0, -5, std::nan(""), std::numeric_limits<double>::infinity(), 1e300, 1e-300, 5e-324};
  for (int i = 0; i < 20000; ++i) {
    const auto any = [&] { return random.Below(3) == 0 ? odd[random.Below(7)] : std::exp(20 * random.Normal()); };
    (void)correction.Learn(any(), any());
    ASSERT_GE(correction.factor(), StageCorrection::kLeastFactor);
    ASSERT_LE(correction.factor(), StageCorrection::kMostFactor);
    ASSERT_LE(std::abs(correction.offset_us()), StageCorrection::kMostOffset_us);
    for (const double predicted : {1.0, 1e3, 1e6}) {
      const double applied = correction.Apply(predicted);
      ASSERT_GE(applied, predicted * StageCorrection::kLeastFactor);
      ASSERT_LE(applied, predicted * StageCorrection::kMostFactor);
    }
  }
  for (int i = 0; i < 1000; ++i) correction.Learn(100 + i % 50, 1.1 * (100 + i % 50));  // and it recovers
  EXPECT_NEAR(correction.Apply(120) / 132, 1, 0.02);
}

TEST(StageCorrection, OneStalledStepMovesLittle) {
  StageCorrection correction;
  for (int i = 0; i < 200; ++i) correction.Learn(100, 100);
  correction.Learn(100, 1500);
  EXPECT_NEAR(correction.Apply(100) / 100, 1, 0.05);
}

}  // namespace
}  // namespace thermoe
