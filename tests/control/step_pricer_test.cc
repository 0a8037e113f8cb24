// SPDX-License-Identifier: Apache-2.0
#include "control/cost/step_pricer.h"

#include <gtest/gtest.h>

#include "base/random.h"

namespace thermoe {
namespace {

ModelShape SmallModel() {
  ModelShape model;
  ModelConfig& config = model.config;
  config.hidden = 256;
  config.heads = config.kv_heads = 4;
  config.head_dim = 64;
  config.vocab = 1000;
  config.experts = 16;
  config.slots = 4;
  config.expert_width = 128;
  config.context = 512;
  config.attention.rope_dim = 64;
  const auto matrix = [](int64_t rows, int64_t cols) { return MatrixShape{DType::kQ8_0, rows, cols, true}; };
  model.embedding = model.output = matrix(1000, 256);
  LayerShape layer;
  layer.q = layer.k = layer.v = layer.o = matrix(256, 256);
  layer.gate = {DType::kF32, 16, 256, false};
  layer.expert_gate = matrix(128, 256);
  layer.expert_down = matrix(256, 128);
  model.layers.assign(3, layer);
  return model;
}

StepRecord RecordOf(const ModelShape& model, int32_t rows, int32_t experts) {
  StepRecord record;
  record.tokens = record.decode_tokens = record.logit_rows = rows;
  LayerRecord layer;
  layer.distinct_experts = layer.distinct_full_experts = experts;
  layer.slots_full = rows * model.config.slots;
  record.layers.assign(model.layers.size(), layer);
  StepShape step = StepShapeFrom(record, model);
  step.decode_positions = 100 * rows;
  for (const PlannedOperation& operation : OperationsOfStep(model, step))
    record.kv_bytes += CostOf(operation.shape).kv_bytes;
  return record;
}

// A machine that takes `factor` times what a model without points thinks, and half a microsecond for each stage.
void SetTimes(const ModelShape& model, double factor, StepRecord* record) {
  const StepPrediction blind = KernelCostModel().PredictStep(model, StepShapeFrom(*record, model));
  StageTimes& times = record->times;
  double StageTimes::*const stages[] = {&StageTimes::embed_us,   &StageTimes::attention_us, &StageTimes::gate_us,
                                        &StageTimes::experts_us, &StageTimes::logits_us,    &StageTimes::sample_us};
  for (size_t s = 0; s < kStages; ++s) times.total_us += times.*stages[s] = factor * blind.stage_us[s] + 0.5;
}

TEST(StepPricer, LearnsTenTimesASecondAndSaysHowFarOffItWas) {
  const ModelShape model = SmallModel();
  StepPricer pricer(model, {});
  Random random(1);
  double now_s = 0;
  const auto run = [&](int steps, double factor) {
    for (int i = 0; i < steps; ++i) {
      const auto rows = static_cast<int32_t>(1 + random.Below(8));
      StepRecord record = RecordOf(model, rows, std::min(16, 4 + 2 * rows));
      SetTimes(model, factor, &record);
      now_s += 0.01;
      pricer.Observe(now_s, record);
    }
  };
  run(1000, 2);
  EXPECT_NEAR(static_cast<double>(pricer.steps()), 100, 10);
  EXPECT_LT(pricer.error_frac(), 0.05);
  EXPECT_GT(pricer.plain_error_frac(), 0.4);
  EXPECT_NEAR(pricer.model().correction(Stage::kExperts).factor(), 2, 0.2);
  run(5000, 0.7);  // another machine, as far as the model sees; it forgets the old one within some hundred looks
  EXPECT_LT(pricer.error_frac(), 0.05);

  const int64_t steps = pricer.steps();
  StepRecord untimed = RecordOf(model, 2, 8);
  pricer.Observe(now_s + 1, untimed);
  EXPECT_EQ(pricer.steps(), steps) << "a record without times teaches nothing";
}

TEST(StepPricer, KnowsRatesBeforeAnyStep) {
  const ModelShape model = SmallModel();
  const StepPricer pricer(model, {});
  // The roofline of nothing known: 10 GB/s and 20 GFLOP/s, and a microsecond for each call.
  EXPECT_GT(pricer.DecodeBytesPerSecond(), 1e9);
  EXPECT_LT(pricer.DecodeBytesPerSecond(), 10e9);
  EXPECT_GT(pricer.PrefillFlopsPerSecond(256), 5e9);
  EXPECT_LE(pricer.PrefillFlopsPerSecond(256), 20e9);
  EXPECT_LT(pricer.PrefillFlopsPerSecond(1), pricer.PrefillFlopsPerSecond(100000))
      << "longer than the context: the context";
}

}  // namespace
}  // namespace thermoe
