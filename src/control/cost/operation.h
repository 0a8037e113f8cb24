// SPDX-License-Identifier: Apache-2.0
// The list of everything that the engine launches, as plain data: families, shapes, and which operations a step
// consists of.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/op_cost.h"
#include "model/config.h"
#include "model/weights.h"
#include "thermoe/steering.h"

namespace thermoe {

// Operations that share a curve of cost. Linear products are told apart by role: what lies around them differs.
enum class Family : uint8_t {
  kEmbed,
  kNorm,
  kLinearQ,
  kLinearK,
  kLinearV,
  kLinearO,
  kLinearGate,
  kLinearShared,
  kLinearOutput,
  kRope,
  kStoreKv,
  kAttentionPrefill,
  kAttentionDecode,
  kClamp,
  kSelect,
  kExpertNative,
  kExpertNestedBoth,
  kExpertNestedHi,  // kExpertNestedHi: with slots_full > 0 a mixed step
  kSwiGlu,
  kAdd,
  kSample,
  // Test-time training (kernels/backward_ops.h). Products of all roles share a family: a tier prices them by their
  // matrix.
  kAddRow,
  kGain,
  kLowRank,
  kScaleSlots,
  kLinearBackward,
  kNormBackward,
  kGainBackward,
  kSumRows,
  kLowRankBackward,
  kClampBackward,
  kAttentionBackward,
  kSelectBackward,
  kScaleSlotsBackward,
  kSwiGluBackward,
  kAddBackward,
  kLossBackward,
  kRowChange,
  kExpertInner,
  kExpertInnerHi,
  kExpertBackward,
  kExpertBackwardHi,
  kAdam,
  // A tick of the hardware adapter: forward, update, biases (router/ttha_adapter.h).
  kAdapterTick,
};
inline constexpr int kFamilies = 44;
inline bool IsExpertBackward(Family family) {
  return family >= Family::kExpertInner && family <= Family::kExpertBackwardHi;
}
inline bool IsExpert(Family family) {
  return (family >= Family::kExpertNative && family <= Family::kExpertNestedHi) || IsExpertBackward(family);
}
// Products with weights of a model: what they take is what memory takes, where rows are few.
inline bool ReadsWeights(Family family) { return (family >= Family::kLinearQ && family <= Family::kLinearOutput) || IsExpert(family); }
inline bool IsAttention(Family family) {
  return family == Family::kAttentionPrefill || family == Family::kAttentionDecode ||
         family == Family::kAttentionBackward;
}

// The rank that low-rank families are measured at: that of the tier "combined". Part of a profile's key.
inline constexpr int64_t kProfiledRank = 24;

// Rows of the output matrix's product that the forward pass computes at once (forward/step.h; engine/profile_target.cc
// checks).
inline constexpr int64_t kLogitRows = 32;

// The parts of a step whose wall time a StepRecord holds.
enum class Stage : uint8_t { kEmbed, kAttention, kGate, kExperts, kLogits, kSample, kNone };
inline constexpr int kStages = 6;

struct FamilyInfo {
  Family family;
  std::string_view name;      // "linear q", stable: stored profiles use it
  std::string_view function;  // of kernels::Ops; "" where there is none
};
// In the order of the enum.
const std::array<FamilyInfo, kFamilies>& Families();
const FamilyInfo& InfoOf(Family family);
// Null for a name that no family has.
const FamilyInfo* FindFamily(std::string_view name);
// False for a name that no type of weights has.
bool FindType(std::string_view name, DType* type);

// A weight matrix without its data; for other operations rows and cols are named in OperationShape.
struct MatrixShape {
  DType type = DType::kF32;
  int64_t rows = 0, cols = 0;
  bool interleaved = false;

  bool operator==(const MatrixShape&) const = default;
};
MatrixShape ShapeOf(const WeightMatrix& matrix);

// One call. What does not apply stays 0.
struct OperationShape {
  Family family = Family::kEmbed;
  // Weights: their shape. Attention: [heads, head_dim]. Select: [K, E]. Experts: the gate matrix, [F, D].
  // Norm, rope, store, add, SwiGLU, clamp, sample, loss: [1, width of a row]. Low rank: [out, in], at kProfiledRank.
  // Adam: [1, 1]. Adapter: [L, E].
  MatrixShape matrix;
  DType down_type = DType::kF32;   // experts
  int32_t kv_heads = 0;            // attention
  int32_t rope_dim = 0;            // rope
  int64_t tokens = 0;  // rows that go in; Adam: parameters; adapter: rows of gate logits that it keeps of a layer
  int64_t positions = 0;           // attention: keys that the rows see, summed
  int64_t distinct_positions = 0;  // attention: shared ones counted once
  // Experts. An expert may be in both counts; `experts` counts it once.
  int64_t experts = 0, experts_full = 0, experts_hi = 0;
  int64_t slots_full = 0, slots_hi = 0;  // native storage: all slots are full

  bool operator==(const OperationShape&) const = default;
};

// Bytes and FLOPs by kernels/op_cost.h.
kernels::OpCost CostOf(const OperationShape& shape);
// All of them: weights, activations, keys and values.
double BytesOf(const kernels::OpCost& cost);
// "linear q q8_0 288x288 tokens 8": unique, stable, for people and as a key.
std::string TextOf(const OperationShape& shape);

struct LayerShape {
  MatrixShape q, k, v, o, gate;
  MatrixShape expert_gate, expert_down;                               // of one expert; up has gate's shape
  MatrixShape shared_gate_proj, shared_up, shared_down, shared_gate;  // rows 0: the model has none
  int64_t q_norm = 0, k_norm = 0;                                     // widths of their gains; 0: none

  bool operator==(const LayerShape&) const = default;
};

// A model as the cost model sees it: sizes and types, no weights.
struct ModelShape {
  ModelConfig config;
  MatrixShape embedding, output;
  std::vector<LayerShape> layers;
  bool nested = false;
};
// `experts`: [L][E], as the expert store keeps them.
ModelShape ShapeOf(const ModelConfig& config, const ModelWeights& weights,
                   std::span<const std::span<const FfnWeights>> experts);

// What one MoE layer of a step reads.
struct LayerUse {
  int64_t experts = 0, experts_full = 0, experts_hi = 0, slots_full = 0, slots_hi = 0;
};

// What one step computes. Positions are summed over rows and include the row itself.
struct StepShape {
  int64_t prefill_tokens = 0, decode_tokens = 0, logit_rows = 0;
  int64_t prefill_positions = 0, prefill_distinct_positions = 0;
  int64_t decode_positions = 0;
  std::vector<LayerUse> layers;  // [L]
};

// What a step was. Context comes from its kv_bytes; in a step of prefill and decode rows the decode rows are taken to
// see as many positions as the prefill's last row.
StepShape StepShapeFrom(const StepRecord& record, const ModelShape& model);
// The same into `step`, whose memory is used again.
void StepShapeFrom(const StepRecord& record, const ModelShape& model, StepShape* step);

// One call and where its time is recorded.
struct PlannedOperation {
  OperationShape shape;
  Stage stage = Stage::kNone;
};
// Every call of kernels::Ops that the forward pass makes for such a step, and the sampler's, in order. Attention of
// prefill and decode rows is one call there and two entries here.
std::vector<PlannedOperation> OperationsOfStep(const ModelShape& model, const StepShape& step);
// The same into `plan`, whose memory is used again.
void OperationsOfStep(const ModelShape& model, const StepShape& step, std::vector<PlannedOperation>* plan);

}  // namespace thermoe
