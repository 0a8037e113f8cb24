// SPDX-License-Identifier: Apache-2.0
// Nothing that the engine launches is missing from the list of operations: calls are counted and compared, one by one.
#include "control/cost/operation.h"

#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <tuple>

#include "engine/model_impl.h"
#include "engine/profile_target.h"
#include "forward/step.h"
#include "kernels/dispatch.h"
#include "support/fixtures.h"

namespace thermoe {
namespace {

using testing::EmberPath;
using testing::FixturePath;
using testing::OpenModel;

// What was called: function, rows in, and the shape of the weights or the width of a row.
using Called = std::tuple<std::string, int64_t, int64_t, int64_t>;

// Passes every call on and writes it down.
class CountingOps final : public kernels::Ops {
 public:
  explicit CountingOps(const kernels::Ops& ops) : ops_(ops) {}
  std::string_view name() const override { return ops_.name(); }
  void Embed(const WeightMatrix& table, std::span<const int32_t> ids, MutRows out) const override {
    Count("Embed", static_cast<int64_t>(ids.size()), table.rows, table.cols);
    ops_.Embed(table, ids, out);
  }
  void RmsNorm(const kernels::RmsNormArgs& args) const override {
    Count("RmsNorm", args.x.rows, 1, args.x.cols);
    ops_.RmsNorm(args);
  }
  void Linear(const kernels::LinearArgs& args) const override {
    Count("Linear", args.x.rows, args.weight.rows, args.weight.cols);
    ops_.Linear(args);
  }
  void Rope(const kernels::RopeArgs& args) const override {
    Count("Rope", args.x.rows, 1, args.x.cols);
    ops_.Rope(args);
  }
  void StoreKv(const kernels::StoreKvArgs& args) const override {
    Count("StoreKv", args.k.rows, 1, args.k.cols);
    ops_.StoreKv(args);
  }
  void Attention(const kernels::AttentionArgs& args) const override {
    Count("Attention", args.q.rows, args.heads, args.cache.head_dim);
    ops_.Attention(args);
  }
  void Select(const kernels::SelectArgs& args) const override {
    Count("Select", args.logits.rows, args.slots, args.logits.cols);
    ops_.Select(args);
  }
  void ExpertFfn(const kernels::ExpertFfnArgs& args) const override {
    Count("ExpertFfn", args.x.rows, args.experts.front().gate.rows, args.experts.front().gate.cols);
    ops_.ExpertFfn(args);
  }
  void SwiGlu(const kernels::SwiGluArgs& args) const override {
    Count("SwiGlu", args.gate.rows, 1, args.gate.cols);
    ops_.SwiGlu(args);
  }
  void Add(const kernels::AddArgs& args) const override {
    Count("Add", args.x.rows, 1, args.x.cols);
    ops_.Add(args);
  }
  void AddRow(const kernels::AddRowArgs& args) const override {
    Count("AddRow", args.out.rows, 1, args.out.cols);
    ops_.AddRow(args);
  }
  void Gain(const kernels::GainArgs& args) const override {
    Count("Gain", args.x.rows, 1, args.x.cols);
    ops_.Gain(args);
  }
  void LowRank(const kernels::LowRankArgs& args) const override {
    Count("LowRank", args.x.rows, args.out.cols, args.x.cols);
    ops_.LowRank(args);
  }
  void ScaleSlots(const kernels::ScaleSlotsArgs& args) const override {
    Count("ScaleSlots", args.weight.rows, 1, args.weight.cols);
    ops_.ScaleSlots(args);
  }
  void ExpertInner(const kernels::ExpertInnerArgs& args) const override {
    Count("ExpertInner", args.x.rows, args.gate.cols, args.x.cols);
    ops_.ExpertInner(args);
  }
  void LinearBackward(const kernels::LinearBackwardArgs& args) const override {
    Count("LinearBackward", args.dy.rows, args.weight.rows, args.weight.cols);
    ops_.LinearBackward(args);
  }
  void RmsNormBackward(const kernels::RmsNormBackwardArgs& args) const override {
    Count("RmsNormBackward", args.x.rows, 1, args.x.cols);
    ops_.RmsNormBackward(args);
  }
  void GainBackward(const kernels::GainBackwardArgs& args) const override {
    Count("GainBackward", args.x.rows, 1, args.x.cols);
    ops_.GainBackward(args);
  }
  void RowChange(const kernels::RowChangeArgs& args) const override {
    Count("RowChange", args.x.rows, 1, args.x.cols);
    ops_.RowChange(args);
  }
  void SumRows(const kernels::SumRowsArgs& args) const override {
    Count("SumRows", args.x.rows, 1, args.x.cols);
    ops_.SumRows(args);
  }
  void LowRankBackward(const kernels::LowRankBackwardArgs& args) const override {
    Count("LowRankBackward", args.x.rows, args.dy.cols, args.x.cols);
    ops_.LowRankBackward(args);
  }
  void ClampBackward(const kernels::ClampBackwardArgs& args) const override {
    Count("ClampBackward", args.x.rows, 1, args.x.cols);
    ops_.ClampBackward(args);
  }
  void AttentionBackward(const kernels::AttentionBackwardArgs& args) const override {
    Count("AttentionBackward", args.q.rows, args.heads, args.cache.head_dim);
    ops_.AttentionBackward(args);
  }
  void ExpertFfnBackward(const kernels::ExpertFfnBackwardArgs& args) const override {
    Count("ExpertFfnBackward", args.dx.rows, args.gate.cols, args.dx.cols);
    ops_.ExpertFfnBackward(args);
  }
  void SelectBackward(const kernels::SelectBackwardArgs& args) const override {
    Count("SelectBackward", args.logits.rows, args.selection->slots, args.logits.cols);
    ops_.SelectBackward(args);
  }
  void ScaleSlotsBackward(const kernels::ScaleSlotsBackwardArgs& args) const override {
    Count("ScaleSlotsBackward", args.weight.rows, 1, args.weight.cols);
    ops_.ScaleSlotsBackward(args);
  }
  void SwiGluBackward(const kernels::SwiGluBackwardArgs& args) const override {
    Count("SwiGluBackward", args.gate.rows, 1, args.gate.cols);
    ops_.SwiGluBackward(args);
  }
  void AddBackward(const kernels::AddBackwardArgs& args) const override {
    Count("AddBackward", args.x.rows, 1, args.x.cols);
    ops_.AddBackward(args);
  }
  void LossBackward(const kernels::LossBackwardArgs& args) const override {
    Count("LossBackward", args.logits.rows, 1, args.logits.cols);
    ops_.LossBackward(args);
  }
  void Adam(std::span<const kernels::AdamArgs> tensors) const override { ops_.Adam(tensors); }
  void Clamp(MutRows x, float limit) const override {
    Count("Clamp", x.rows, 1, x.cols);
    ops_.Clamp(x, limit);
  }
  const std::map<Called, int>& calls() const { return calls_; }

 private:
  void Count(const char* function, int64_t tokens, int64_t rows, int64_t cols) const { ++calls_[{function, tokens, rows, cols}]; }
  const kernels::Ops& ops_;
  mutable std::map<Called, int> calls_;
};

class NoSink final : public LogitSink {
 public:
  void OnLogits(size_t, LogitRow*) override {}
};

void CompareOneStep(const Model& model, int32_t tokens, bool decode) {
  const ModelImpl& impl = model.impl();
  const ModelConfig& config = impl.config();
  ThreadPool threads(1);
  const std::unique_ptr<kernels::Ops> cpu = std::move(kernels::MakeCpuOps(&threads)).value();
  const CountingOps ops(*cpu);
  const std::unique_ptr<KvCache> cache =
      std::move(KvCache::Create({config.layers, config.kv_heads, config.head_dim}, 64 * tokens)).value();
  std::vector<KvSequence> sequences(static_cast<size_t>(decode ? tokens : 1));
  Batch batch;
  for (int32_t t = 0; t < tokens; ++t) {
    KvSequence& sequence = sequences[static_cast<size_t>(decode ? t : 0)];
    ASSERT_TRUE(cache->Reserve(&sequence, decode ? t + 2 : tokens).ok());
    batch.rows.push_back({t % 7, &sequence, decode ? t + 1 : t, decode ? kernels::RowKind::kDecode : kernels::RowKind::kPrefill,
                          decode || t + 1 == tokens});
  }
  Workspace workspace(config, tokens);
  StepRecord record;
  record.layers.resize(static_cast<size_t>(config.layers));
  NoSink sink;
  StepContext step{config, impl.loaded().weights, impl.experts(), ops, *cache, nullptr, batch, workspace, record, sink};
  Forward(step);

  const ModelShape shape = ShapeOf(ProfileTargetOf(model));
  const StepShape was = StepShapeFrom(record, shape);
  std::map<Called, int> listed;
  kernels::OpCost cost;
  for (const PlannedOperation& operation : OperationsOfStep(shape, was)) {
    const FamilyInfo& info = InfoOf(operation.shape.family);
    EXPECT_EQ(FindFamily(info.name), &info);
    cost += CostOf(operation.shape);
    const MatrixShape& matrix = operation.shape.matrix;
    if (!info.function.empty()) ++listed[{std::string(info.function), operation.shape.tokens, matrix.rows, matrix.cols}];
  }
  EXPECT_EQ(listed, ops.calls()) << config.architecture;
  // The list's bytes are the step's own.
  EXPECT_NEAR(cost.weight_bytes, record.weight_bytes, 1) << config.architecture;
  EXPECT_NEAR(cost.kv_bytes, record.kv_bytes, 1) << config.architecture;
  // Of keys and values in two bytes it was the same step.
  StepRecord halves = record;
  halves.kv_bytes /= 2, halves.kv_element_bytes = 2;
  const StepShape same = StepShapeFrom(halves, shape);
  EXPECT_EQ(same.decode_positions, was.decode_positions);
  EXPECT_EQ(same.prefill_distinct_positions, was.prefill_distinct_positions);
}

TEST(Operations, OfAStepAreTheCallsThatItMakes) {
  for (const std::string& path : {EmberPath(), FixturePath("olmoe"), FixturePath("qwen2moe"), FixturePath("qwen3moe"), FixturePath("mixtral")}) {
    SCOPED_TRACE(path);
    const std::shared_ptr<const Model> model = OpenModel(path);
    ASSERT_NE(model, nullptr);
    CompareOneStep(*model, 5, false);
    CompareOneStep(*model, 5, true);
    CompareOneStep(*model, 40, true);  // more rows than one tile of logits
  }
}

TEST(Operations, CoverEveryFunctionOfTheContract) {
  std::ifstream file(std::string(THERMOE_SOURCE_DIR) + "/src/kernels/ops.h");
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  std::set<std::string> listed;
  for (const FamilyInfo& info : Families()) {
    if (!info.function.empty()) listed.emplace(info.function);
  }
  std::set<std::string> declared;
  const std::regex function(R"(virtual void (\w+)\()");
  for (std::sregex_iterator it(text.begin(), text.end(), function), end; it != end; ++it) declared.insert((*it)[1]);
  EXPECT_GE(declared.size(), 11u);
  EXPECT_EQ(declared, listed);
}

TEST(Operations, HaveOneRowAFamily) {
  std::set<std::string_view> names;
  for (size_t i = 0; i < Families().size(); ++i) {
    EXPECT_EQ(static_cast<size_t>(Families()[i].family), i);
    EXPECT_TRUE(names.insert(Families()[i].name).second);
  }
}

TEST(Operations, OfAStepKnowWhichExpertsReadHiOnly) {
  StepRecord record;
  record.tokens = record.decode_tokens = 2;
  LayerRecord layer;
  layer.distinct_experts = 5;
  layer.distinct_full_experts = 3;
  layer.distinct_hi_experts = 4;
  layer.slots_full = 6;
  layer.slots_hi = 7;
  record.layers = {layer};
  ModelShape model;
  model.config.heads = model.config.kv_heads = 1;
  model.config.head_dim = 8;
  model.layers.resize(1);
  const StepShape step = StepShapeFrom(record, model);
  ASSERT_EQ(step.layers.size(), 1u);
  EXPECT_EQ(step.layers[0].experts, 5);
  EXPECT_EQ(step.layers[0].experts_full, 3);
  EXPECT_EQ(step.layers[0].experts_hi, 4);
  EXPECT_EQ(step.layers[0].slots_full, 6);
  EXPECT_EQ(step.layers[0].slots_hi, 7);
}

}  // namespace
}  // namespace thermoe
