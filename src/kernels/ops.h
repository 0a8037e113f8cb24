// SPDX-License-Identifier: Apache-2.0
// The contract of every operation that a forward pass launches. kernels/reference/ is its specification in plain
// scalar code; the other backends agree with it within the tolerances of tests/kernels/op_table.h.
//
// T: rows (tokens) of the step, D: hidden, E: experts, K: slots, F: expert width. All float buffers are row-major
// and contiguous. Every output row depends only on that row's inputs, in an order of additions that does not change
// with T or with the other rows: a sequence's result does not depend on its neighbours. (Select with k0 < K is the
// one exception, by definition.)
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/views.h"
#include "kernels/backward_ops.h"
#include "kernels/residency.h"
#include "model/config.h"
#include "model/formats.h"
#include "model/weights.h"
#include "runtime/kv_layout.h"
#include "thermoe/steering.h"

namespace thermoe::kernels {

struct RmsNormArgs {
  ConstRows x;                  // [rows, n]; may alias out
  std::span<const float> gain;  // [n]
  float epsilon = 0;
  MutRows out;                  // [rows, n] = x / sqrt(mean(x^2) + epsilon) * gain
};

struct LinearArgs {
  ConstRows x;                  // [T, in]
  // [out, in]; nested types are read by both planes. For interleaved types a backend may quantise x to 8 bits by blocks of 32
  // (scale: the largest magnitude / 127); the products of a block are then exact. The same in ExpertFfn.
  WeightMatrix weight;
  std::span<const float> bias;  // [out] or empty
  MutRows out;                  // [T, out] = x * weight^T + bias
};

struct RopeArgs {
  MutRows x;                // [T, heads * head_dim], in place
  int32_t head_dim = 0;
  int32_t rope_dim = 0;     // the first rope_dim elements of each head turn
  RopeKind kind = RopeKind::kHalves;
  ConstRows cosines;        // [T, rope_dim / 2]
  ConstRows sines;          // [T, rope_dim / 2]
};

struct StoreKvArgs {
  ConstRows k;                  // [T, kv_heads * head_dim]
  ConstRows v;                  // the same
  std::span<const KvRow> rows;  // [T]; no two rows share a place
  KvLayer cache;
};

struct AttentionArgs {
  ConstRows q;                  // [T, heads * head_dim]
  std::span<const KvRow> rows;  // [T]; row t sees positions 0..rows[t].position
  KvLayer cache;
  int32_t heads = 0;            // query head h reads kv head h / (heads / kv_heads)
  float scale = 0;              // of the scores before softmax
  MutRows out;                  // [T, heads * head_dim]
};

// Bounds of Select's stack scratch; models beyond them are refused at load.
inline constexpr int kMaxExperts = 1024;
inline constexpr int kMaxSlots = 64;

enum class RowKind : uint8_t { kPrefill, kDecode, kPadding };

// What Select writes. Everything is set by Select(), but scores by a device in a step; jobs, order and counts describe only the kept slots.
struct Selection {
  int32_t slots = 0;            // K
  MutRows scores;               // [T, E] scratch: the model's scores of all experts
  Rows<int32_t> expert;         // [T, K] by falling weight; -1: an empty slot (all empty ones come last)
  MutRows weight;               // [T, K]; 0 for empty slots
  Rows<Planes> planes;          // [T, K]
  // Kept slots grouped by (expert, planes), experts rising, kBoth before kHi, tokens rising inside a group.
  struct Job {
    int32_t expert = 0;
    Planes planes = Planes::kBoth;
    int32_t first = 0;          // into order
    int32_t count = 0;
  };
  std::span<Job> jobs;          // [job_count of capacity 2 * E]
  int32_t job_count = 0;
  std::span<int32_t> order;     // [kept slots of capacity T * K] token * K + slot
  LayerRecord* record = nullptr;  // expert_slots [E] and the counts
};

struct SelectArgs {
  ConstRows logits;                      // [T, E] gate logits
  GateOptions options;
  int32_t slots = 0;                     // K
  bool nested = false;                   // experts have planes: full_slots and plane_cap apply
  const LayerSteering* steering = nullptr;  // null: the plain model
  std::span<const RowKind> kinds;        // [T] padding rows select nothing; decode rows form the batch of k0
  Selection* out = nullptr;
};

struct ExpertFfnArgs {
  ConstRows x;                            // [T, D]
  std::span<const FfnWeights> experts;    // [E]
  const Selection* selection = nullptr;
  MutRows inner;                          // scratch [T * K, F], by order
  MutRows slot_out;                       // scratch [T * K, D], by token * K + slot
  MutRows out;                            // [T, D] += sum over slots, in slot order, of weight * down(silu(gate x) * up x)
  // Where a backward pass follows: gate x and up x of the kept slots of rows [keep_first, keep_first + keep_rows), by token
  // and slot: row (token - keep_first) * K + slot. [keep_rows * K, F]; data null: not kept.
  MutRows keep_gate = {}, keep_up = {};
  int64_t keep_first = 0, keep_rows = 0;
};

struct SwiGluArgs {
  ConstRows gate;  // [T, F]; may alias out
  ConstRows up;    // [T, F]
  MutRows out;     // [T, F] = gate / (1 + exp(-gate)) * up
};

struct AddArgs {
  ConstRows x;     // [T, D]
  ConstRows gate;  // [T, 1]: x is scaled by 1 / (1 + exp(-gate)); empty: by 1
  MutRows out;     // [T, D] += x
};

// One backend. Calls are made from one thread at a time; on a device they may return before the work is done (residency.h).
class Ops : public Residency {
 public:
  virtual std::string_view name() const = 0;  // "reference", "cpu/avx512", "cuda"

  virtual void Embed(const WeightMatrix& table, std::span<const int32_t> ids, MutRows out) const = 0;  // out [T, D]
  virtual void RmsNorm(const RmsNormArgs& args) const = 0;
  virtual void Linear(const LinearArgs& args) const = 0;
  virtual void Rope(const RopeArgs& args) const = 0;
  virtual void StoreKv(const StoreKvArgs& args) const = 0;
  virtual void Attention(const AttentionArgs& args) const = 0;
  virtual void Select(const SelectArgs& args) const = 0;
  virtual void ExpertFfn(const ExpertFfnArgs& args) const = 0;
  virtual void SwiGlu(const SwiGluArgs& args) const = 0;
  virtual void Add(const AddArgs& args) const = 0;

  // Test-time training: deltas in the forward pass, and gradients (backward_ops.h).
  virtual void AddRow(const AddRowArgs& args) const = 0;
  virtual void Gain(const GainArgs& args) const = 0;
  virtual void LowRank(const LowRankArgs& args) const = 0;
  virtual void ScaleSlots(const ScaleSlotsArgs& args) const = 0;
  virtual void RowChange(const RowChangeArgs& args) const = 0;
  virtual void ExpertInner(const ExpertInnerArgs& args) const = 0;
  virtual void LinearBackward(const LinearBackwardArgs& args) const = 0;
  virtual void RmsNormBackward(const RmsNormBackwardArgs& args) const = 0;
  virtual void GainBackward(const GainBackwardArgs& args) const = 0;
  virtual void SumRows(const SumRowsArgs& args) const = 0;
  virtual void LowRankBackward(const LowRankBackwardArgs& args) const = 0;
  virtual void ClampBackward(const ClampBackwardArgs& args) const = 0;
  virtual void AttentionBackward(const AttentionBackwardArgs& args) const = 0;
  virtual void ExpertFfnBackward(const ExpertFfnBackwardArgs& args) const = 0;
  virtual void SelectBackward(const SelectBackwardArgs& args) const = 0;
  virtual void ScaleSlotsBackward(const ScaleSlotsBackwardArgs& args) const = 0;
  virtual void SwiGluBackward(const SwiGluBackwardArgs& args) const = 0;
  virtual void AddBackward(const AddBackwardArgs& args) const = 0;
  virtual void LossBackward(const LossBackwardArgs& args) const = 0;
  virtual void Adam(std::span<const AdamArgs> tensors) const = 0;

  // x = min(max(x, -limit), limit), in place; not a number stays so.
  virtual void Clamp(MutRows x, float limit) const {
    for (int64_t i = 0; i < x.size(); ++i) x.data[i] = x.data[i] > limit ? limit : x.data[i] < -limit ? -limit : x.data[i];
  }
};

}  // namespace thermoe::kernels
