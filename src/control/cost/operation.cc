// SPDX-License-Identifier: Apache-2.0
#include "control/cost/operation.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "control/router/ttha_network.h"
#include "kernels/ops.h"

namespace thermoe {
namespace {

constexpr std::array<FamilyInfo, kFamilies> kTable = {{
    {Family::kEmbed, "embed", "Embed"},
    {Family::kNorm, "norm", "RmsNorm"},
    {Family::kLinearQ, "linear q", "Linear"},
    {Family::kLinearK, "linear k", "Linear"},
    {Family::kLinearV, "linear v", "Linear"},
    {Family::kLinearO, "linear o", "Linear"},
    {Family::kLinearGate, "linear gate", "Linear"},
    {Family::kLinearShared, "linear shared", "Linear"},
    {Family::kLinearOutput, "linear output", "Linear"},
    {Family::kRope, "rope", "Rope"},
    {Family::kStoreKv, "store kv", "StoreKv"},
    {Family::kAttentionPrefill, "attention prefill", "Attention"},
    {Family::kAttentionDecode, "attention decode", "Attention"},
    {Family::kClamp, "clamp", "Clamp"},
    {Family::kSelect, "select", "Select"},
    {Family::kExpertNative, "experts native", "ExpertFfn"},
    {Family::kExpertNestedBoth, "experts nested both", "ExpertFfn"},
    {Family::kExpertNestedHi, "experts nested hi", "ExpertFfn"},
    {Family::kSwiGlu, "swiglu", "SwiGlu"},
    {Family::kAdd, "add", "Add"},
    {Family::kSample, "sample", ""},
    {Family::kAddRow, "add row", "AddRow"},
    {Family::kGain, "gain", "Gain"},
    {Family::kLowRank, "low rank", "LowRank"},
    {Family::kScaleSlots, "scale slots", "ScaleSlots"},
    {Family::kLinearBackward, "linear backward", "LinearBackward"},
    {Family::kNormBackward, "norm backward", "RmsNormBackward"},
    {Family::kGainBackward, "gain backward", "GainBackward"},
    {Family::kSumRows, "sum rows", "SumRows"},
    {Family::kLowRankBackward, "low rank backward", "LowRankBackward"},
    {Family::kClampBackward, "clamp backward", "ClampBackward"},
    {Family::kAttentionBackward, "attention backward", "AttentionBackward"},
    {Family::kSelectBackward, "select backward", "SelectBackward"},
    {Family::kScaleSlotsBackward, "scale slots backward", "ScaleSlotsBackward"},
    {Family::kSwiGluBackward, "swiglu backward", "SwiGluBackward"},
    {Family::kAddBackward, "add backward", "AddBackward"},
    {Family::kLossBackward, "loss backward", "LossBackward"},
    {Family::kRowChange, "row change", "RowChange"},
    {Family::kExpertInner, "expert inner", "ExpertInner"},
    {Family::kExpertInnerHi, "expert inner hi", "ExpertInner"},
    {Family::kExpertBackward, "experts backward", "ExpertFfnBackward"},
    {Family::kExpertBackwardHi, "experts backward hi", "ExpertFfnBackward"},
    {Family::kAdam, "adam", "Adam"},
    {Family::kAdapterTick, "hardware adapter", ""},
}};

WeightMatrix MatrixOf(const MatrixShape& shape, DType type) {
  WeightMatrix matrix;
  matrix.type = type;
  matrix.rows = shape.rows;
  matrix.cols = shape.cols;
  matrix.layout = shape.interleaved ? Layout::kInterleaved : Layout::kRows;
  return matrix;
}

kernels::OpCost ExpertCostOf(const OperationShape& shape) {
  FfnWeights expert;
  expert.gate = expert.up = MatrixOf(shape.matrix, shape.matrix.type);
  expert.down =
      MatrixOf({shape.down_type, shape.matrix.cols, shape.matrix.rows, shape.matrix.interleaved}, shape.down_type);
  LayerRecord record;
  record.distinct_experts = static_cast<int32_t>(shape.experts);
  record.distinct_full_experts = static_cast<int32_t>(shape.experts_full);
  record.slots_full = static_cast<int32_t>(shape.slots_full);
  record.slots_hi = static_cast<int32_t>(shape.slots_hi);
  return kernels::ExpertsCost({&expert, 1}, record);
}

// Backward: all experts are alike, so that a job of each precision, with all its slots, stands for them.
kernels::OpCost ExpertBackwardCostOf(const OperationShape& shape) {
  FfnWeights expert;
  expert.gate = expert.up = MatrixOf(shape.matrix, shape.matrix.type);
  expert.down =
      MatrixOf({shape.down_type, shape.matrix.cols, shape.matrix.rows, shape.matrix.interleaved}, shape.down_type);
  const bool inner = shape.family == Family::kExpertInner || shape.family == Family::kExpertInnerHi;
  kernels::OpCost sum;
  for (const Planes planes : {Planes::kBoth, Planes::kHi}) {
    const bool full = planes == Planes::kBoth;
    const int64_t experts = full ? shape.experts_full : shape.experts_hi;
    if (experts == 0) continue;
    kernels::Selection::Job job{0, planes, 0, static_cast<int32_t>(full ? shape.slots_full : shape.slots_hi)};
    kernels::Selection selection;
    selection.jobs = {&job, 1};
    selection.job_count = 1;
    kernels::OpCost cost = inner ? kernels::ExpertInnerCost({&expert, 1}, selection)
                                 : kernels::ExpertFfnBackwardCost({&expert, 1}, selection);
    cost.weight_bytes *= static_cast<double>(experts);
    sum += cost;
  }
  return sum;
}

// Reads gradient, moments and values, writes the last three; 12 FLOPs each.
kernels::OpCost AdamCost(int64_t parameters) {
  kernels::OpCost cost;
  cost.activation_bytes = 28.0 * static_cast<double>(parameters);
  cost.flops = 12.0 * static_cast<double>(parameters);
  return cost;
}

// Orders of size, for where nothing was measured. Network: 2 FLOPs a weight forward, 4 backward, for each expert.
// Relaxation: some 200 a kept row and expert. Features, hidden layer and about 16 arrays of a float an expert pass
// through memory; no weights of the model.
kernels::OpCost AdapterCost(int64_t layers, int64_t experts, int64_t rows) {
  const auto all = static_cast<double>(layers * experts);
  kernels::OpCost cost;
  cost.activation_bytes = 4 * all * (TthaNetwork::kFeatures + TthaNetwork::kHidden + 16 + static_cast<double>(rows));
  cost.flops = all * (6.0 * TthaNetwork::kFeatures * TthaNetwork::kHidden + 200.0 * static_cast<double>(rows));
  return cost;
}

// Collects the calls of one step.
class StepPlan {
 public:
  StepPlan(const ModelShape& model, const StepShape& step, std::vector<PlannedOperation>* plan)
      : model_(model),
        config_(model.config),
        step_(step),
        tokens_(step.prefill_tokens + step.decode_tokens),
        plan_(*plan) {}

  void Make() {
    plan_.clear();
    stage_ = Stage::kEmbed;
    Add(Family::kEmbed, model_.embedding, tokens_);
    for (size_t l = 0; l < model_.layers.size(); ++l) {
      AttentionStage(model_.layers[l]);
      GateStage(model_.layers[l]);
      ExpertStage(model_.layers[l], l < step_.layers.size() ? step_.layers[l] : LayerUse{});
    }
    LogitStage();
  }

 private:
  OperationShape& Add(Family family, const MatrixShape& matrix, int64_t tokens) {
    PlannedOperation operation;
    operation.stage = stage_;
    operation.shape.family = family;
    operation.shape.matrix = matrix;
    operation.shape.tokens = tokens;
    plan_.push_back(operation);
    return plan_.back().shape;
  }
  void AddRows(Family family, int64_t rows, int64_t width) { Add(family, {DType::kF32, 1, width, false}, rows); }

  void AttentionStage(const LayerShape& layer) {
    stage_ = Stage::kAttention;
    const int64_t q_width = layer.q.rows, kv_width = layer.k.rows;
    AddRows(Family::kNorm, tokens_, config_.hidden);
    Add(Family::kLinearQ, layer.q, tokens_);
    Add(Family::kLinearK, layer.k, tokens_);
    Add(Family::kLinearV, layer.v, tokens_);
    if (layer.q_norm > 0) AddRows(Family::kNorm, tokens_ * q_width / layer.q_norm, layer.q_norm);
    if (layer.k_norm > 0) AddRows(Family::kNorm, tokens_ * kv_width / layer.k_norm, layer.k_norm);
    if (config_.attention.clip_qkv > 0) {
      for (const int64_t width : {q_width, kv_width, kv_width}) AddRows(Family::kClamp, tokens_, width);
    }
    for (const int64_t width : {q_width, kv_width}) {
      Add(Family::kRope, {DType::kF32, 1, width, false}, tokens_).rope_dim = config_.attention.rope_dim;
    }
    AddRows(Family::kStoreKv, tokens_, kv_width);
    AddAttention(Family::kAttentionPrefill, step_.prefill_tokens, step_.prefill_positions,
                 step_.prefill_distinct_positions);
    AddAttention(Family::kAttentionDecode, step_.decode_tokens, step_.decode_positions, step_.decode_positions);
    Add(Family::kLinearO, layer.o, tokens_);
    AddRows(Family::kAdd, tokens_, config_.hidden);
  }

  void AddAttention(Family family, int64_t tokens, int64_t positions, int64_t distinct) {
    if (tokens == 0) return;
    OperationShape& shape = Add(family, {DType::kF32, config_.heads, config_.head_dim, false}, tokens);
    shape.kv_heads = config_.kv_heads;
    shape.positions = positions;
    shape.distinct_positions = distinct;
  }

  void GateStage(const LayerShape& layer) {
    stage_ = Stage::kGate;
    AddRows(Family::kNorm, tokens_, config_.hidden);
    Add(Family::kLinearGate, layer.gate, tokens_);
    Add(Family::kSelect, {DType::kF32, config_.slots, config_.experts, false}, tokens_);
  }

  void ExpertStage(const LayerShape& layer, const LayerUse& use) {
    stage_ = Stage::kExperts;
    const Family family = !model_.nested      ? Family::kExpertNative
                          : use.slots_hi == 0 ? Family::kExpertNestedBoth
                                              : Family::kExpertNestedHi;
    OperationShape& shape = Add(family, layer.expert_gate, tokens_);
    shape.down_type = layer.expert_down.type;
    shape.experts = use.experts;
    shape.experts_full = use.experts_full;
    shape.experts_hi = use.experts_hi;
    shape.slots_full = use.slots_full;
    shape.slots_hi = use.slots_hi;
    if (layer.shared_gate_proj.rows == 0) return;
    Add(Family::kLinearShared, layer.shared_gate_proj, tokens_);
    Add(Family::kLinearShared, layer.shared_up, tokens_);
    AddRows(Family::kSwiGlu, tokens_, config_.shared_width);
    if (layer.shared_gate.rows > 0) Add(Family::kLinearShared, layer.shared_gate, tokens_);
    Add(Family::kLinearShared, layer.shared_down, tokens_);
    AddRows(Family::kAdd, tokens_, config_.hidden);
  }

  void LogitStage() {
    for (int64_t left = step_.logit_rows; left > 0; left -= kLogitRows) {
      const int64_t rows = std::min(left, kLogitRows);
      stage_ = Stage::kLogits;
      AddRows(Family::kNorm, rows, config_.hidden);
      Add(Family::kLinearOutput, model_.output, rows);
      stage_ = Stage::kSample;
      AddRows(Family::kSample, rows, config_.vocab);
    }
  }

  const ModelShape& model_;
  const ModelConfig& config_;
  const StepShape& step_;
  int64_t tokens_;
  Stage stage_ = Stage::kNone;
  std::vector<PlannedOperation>& plan_;
};

}  // namespace

const std::array<FamilyInfo, kFamilies>& Families() { return kTable; }
const FamilyInfo& InfoOf(Family family) { return kTable[static_cast<size_t>(family)]; }

const FamilyInfo* FindFamily(std::string_view name) {
  for (const FamilyInfo& info : kTable) {
    if (info.name == name) return &info;
  }
  return nullptr;
}

bool FindType(std::string_view name, DType* type) {
  for (int i = 0; i < kDTypes; ++i) {
    if (TraitsOf(static_cast<DType>(i)).name == name) {
      *type = static_cast<DType>(i);
      return true;
    }
  }
  return false;
}

MatrixShape ShapeOf(const WeightMatrix& matrix) {
  return {matrix.type, matrix.rows, matrix.cols, matrix.interleaved()};
}

kernels::OpCost CostOf(const OperationShape& shape) {
  const MatrixShape& matrix = shape.matrix;
  switch (shape.family) {
    case Family::kEmbed: return kernels::EmbedCost(MatrixOf(matrix, matrix.type), shape.tokens);
    case Family::kNorm: return kernels::NormCost(shape.tokens, matrix.cols);
    case Family::kLinearQ:
    case Family::kLinearK:
    case Family::kLinearV:
    case Family::kLinearO:
    case Family::kLinearGate:
    case Family::kLinearShared:
    case Family::kLinearOutput: return kernels::LinearCost(MatrixOf(matrix, matrix.type), shape.tokens);
    case Family::kRope: return kernels::RopeCost(shape.tokens, matrix.cols, shape.rope_dim);
    case Family::kStoreKv: return kernels::StoreKvCost(shape.tokens, matrix.cols);
    case Family::kAttentionPrefill:
    case Family::kAttentionDecode:
      return kernels::AttentionCost(shape.tokens, shape.positions, shape.distinct_positions,
                                    static_cast<int32_t>(matrix.rows), shape.kv_heads,
                                    static_cast<int32_t>(matrix.cols));
    case Family::kClamp: return kernels::ClampCost(shape.tokens, matrix.cols);
    case Family::kSelect: return kernels::SelectCost(shape.tokens, matrix.cols, matrix.rows);
    case Family::kExpertNative:
    case Family::kExpertNestedBoth:
    case Family::kExpertNestedHi: return ExpertCostOf(shape);
    case Family::kExpertInner:
    case Family::kExpertInnerHi:
    case Family::kExpertBackward:
    case Family::kExpertBackwardHi: return ExpertBackwardCostOf(shape);
    case Family::kSwiGlu: return kernels::SwiGluCost(shape.tokens, matrix.cols);
    case Family::kAdd: return kernels::AddCost(shape.tokens, matrix.cols);
    case Family::kSample: return kernels::SampleCost(shape.tokens, matrix.cols);
    case Family::kAddRow: return kernels::AddRowCost(shape.tokens, matrix.cols);
    case Family::kGain: return kernels::GainCost(shape.tokens, matrix.cols);
    case Family::kLowRank: return kernels::LowRankCost(shape.tokens, matrix.cols, matrix.rows, kProfiledRank);
    case Family::kScaleSlots: return kernels::ScaleSlotsCost(shape.tokens, matrix.rows);
    case Family::kLinearBackward: return kernels::LinearBackwardCost(MatrixOf(matrix, matrix.type), shape.tokens);
    case Family::kNormBackward: return kernels::NormBackwardCost(shape.tokens, matrix.cols);
    case Family::kGainBackward: return kernels::GainBackwardCost(shape.tokens, matrix.cols);
    case Family::kSumRows: return kernels::SumRowsCost(shape.tokens, matrix.cols);
    case Family::kLowRankBackward:
      return kernels::LowRankBackwardCost(shape.tokens, matrix.cols, matrix.rows, kProfiledRank);
    case Family::kClampBackward: return kernels::ClampBackwardCost(shape.tokens, matrix.cols);
    case Family::kAttentionBackward:
      return kernels::AttentionBackwardCost(shape.tokens, shape.distinct_positions - shape.tokens,
                                            static_cast<int32_t>(matrix.rows), shape.kv_heads,
                                            static_cast<int32_t>(matrix.cols));
    case Family::kSelectBackward: return kernels::SelectBackwardCost(shape.tokens, matrix.cols, matrix.rows);
    case Family::kScaleSlotsBackward: return kernels::ScaleSlotsBackwardCost(shape.tokens, matrix.rows);
    case Family::kSwiGluBackward: return kernels::SwiGluBackwardCost(shape.tokens, matrix.cols);
    case Family::kAddBackward: return kernels::AddBackwardCost(shape.tokens, matrix.cols);
    case Family::kLossBackward: return kernels::LossBackwardCost(shape.tokens, matrix.cols);
    case Family::kRowChange: return kernels::RowChangeCost(shape.tokens, matrix.cols);
    case Family::kAdam: return AdamCost(shape.tokens);
    case Family::kAdapterTick: return AdapterCost(matrix.rows, matrix.cols, shape.tokens);
  }
  return {};
}

double BytesOf(const kernels::OpCost& cost) { return cost.weight_bytes + cost.activation_bytes + cost.kv_bytes; }

std::string TextOf(const OperationShape& shape) {
  std::string text = fmt::format("{} {}{} {}x{}", InfoOf(shape.family).name, TraitsOf(shape.matrix.type).name,
                                 shape.matrix.interleaved ? " interleaved" : "", shape.matrix.rows, shape.matrix.cols);
  if (IsExpert(shape.family)) text += fmt::format(" down {}", TraitsOf(shape.down_type).name);
  if (shape.kv_heads > 0) text += fmt::format(" kv heads {}", shape.kv_heads);
  if (shape.rope_dim > 0) text += fmt::format(" rope {}", shape.rope_dim);
  text += fmt::format(" tokens {}", shape.tokens);
  if (IsAttention(shape.family))
    text += fmt::format(" positions {} distinct {}", shape.positions, shape.distinct_positions);
  if (IsExpert(shape.family)) {
    text += fmt::format(" experts {} full {} hi {} slots full {} hi {}", shape.experts, shape.experts_full,
                        shape.experts_hi, shape.slots_full, shape.slots_hi);
  }
  return text;
}

ModelShape ShapeOf(const ModelConfig& config, const ModelWeights& weights,
                   std::span<const std::span<const FfnWeights>> experts) {
  THERMOE_CHECK(experts.size() == weights.layers.size());
  ModelShape shape;
  shape.config = config;
  shape.embedding = ShapeOf(weights.embedding);
  shape.output = ShapeOf(weights.output);
  for (size_t l = 0; l < weights.layers.size(); ++l) {
    const LayerWeights& from = weights.layers[l];
    LayerShape layer;
    layer.q = ShapeOf(from.q);
    layer.k = ShapeOf(from.k);
    layer.v = ShapeOf(from.v);
    layer.o = ShapeOf(from.o);
    layer.gate = ShapeOf(from.gate);
    layer.expert_gate = ShapeOf(experts[l].front().gate);
    layer.expert_down = ShapeOf(experts[l].front().down);
    shape.nested = layer.expert_gate.type == DType::kNested8;
    if (config.shared_width > 0) {
      layer.shared_gate_proj = ShapeOf(from.shared.gate);
      layer.shared_up = ShapeOf(from.shared.up);
      layer.shared_down = ShapeOf(from.shared.down);
      if (config.shared_gate) layer.shared_gate = ShapeOf(from.shared_gate);
    }
    if (config.attention.qk_norm != QkNorm::kNone) {
      layer.q_norm = static_cast<int64_t>(from.q_norm.size());
      layer.k_norm = static_cast<int64_t>(from.k_norm.size());
    }
    shape.layers.push_back(layer);
  }
  return shape;
}

StepShape StepShapeFrom(const StepRecord& record, const ModelShape& model) {
  StepShape step;
  StepShapeFrom(record, model, &step);
  return step;
}

void StepShapeFrom(const StepRecord& record, const ModelShape& model, StepShape* into) {
  StepShape step;
  step.layers = std::move(into->layers);
  step.layers.clear();
  step.prefill_tokens = record.prefill_tokens;
  step.decode_tokens = record.decode_tokens;
  step.logit_rows = record.logit_rows;
  const ModelConfig& config = model.config;
  // AttentionCost's kv_bytes, turned round.
  const kernels::OpCost one = kernels::AttentionCost(0, 1, 1, config.heads, config.kv_heads, config.head_dim, std::max(record.kv_element_bytes, 1));
  const double per_layer = one.kv_bytes * static_cast<double>(std::max<size_t>(model.layers.size(), 1));
  const double tokens = step.prefill_tokens + step.decode_tokens;
  const auto distinct = static_cast<int64_t>(std::max(0.0, std::round(record.kv_bytes / per_layer - tokens)));
  const int64_t shares = step.decode_tokens + (step.prefill_tokens > 0 ? 1 : 0);  // sequences, one prefill
  const int64_t each = shares > 0 ? distinct / shares : 0;
  step.decode_positions = step.prefill_tokens > 0 ? each * step.decode_tokens : distinct;
  if (step.prefill_tokens > 0) {
    const int64_t last = distinct - step.decode_positions;
    step.prefill_distinct_positions = last;
    const int64_t first = std::max<int64_t>(last - step.prefill_tokens + 1, 1);
    step.prefill_positions = step.prefill_tokens * (first + std::max(last, first)) / 2;
  }
  for (const LayerRecord& layer : record.layers) {
    step.layers.push_back({layer.distinct_experts, layer.distinct_full_experts, layer.distinct_hi_experts,
                           layer.slots_full, layer.slots_hi});
  }
  *into = std::move(step);
}

std::vector<PlannedOperation> OperationsOfStep(const ModelShape& model, const StepShape& step) {
  std::vector<PlannedOperation> plan;
  OperationsOfStep(model, step, &plan);
  return plan;
}

void OperationsOfStep(const ModelShape& model, const StepShape& step, std::vector<PlannedOperation>* plan) {
  StepPlan(model, step, plan).Make();
}

}  // namespace thermoe
