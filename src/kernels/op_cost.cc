// SPDX-License-Identifier: Apache-2.0
#include "kernels/op_cost.h"

#include "kernels/ops.h"

namespace thermoe::kernels {
namespace {

// `floats` read and written and `flops` done for each element of [rows, cols].
OpCost ElementCost(int64_t rows, int64_t cols, double floats, double flops) {
  const double elements = static_cast<double>(rows) * static_cast<double>(cols);
  OpCost cost;
  cost.activation_bytes = 4.0 * floats * elements;
  cost.flops = flops * elements;
  return cost;
}

}  // namespace

OpCost& OpCost::operator+=(const OpCost& other) {
  weight_bytes += other.weight_bytes;
  activation_bytes += other.activation_bytes;
  kv_bytes += other.kv_bytes;
  flops += other.flops;
  return *this;
}

OpCost LinearCost(const WeightMatrix& weight, int64_t tokens) {
  OpCost cost;
  cost.weight_bytes = static_cast<double>(weight.bytes());
  cost.activation_bytes = 4.0 * static_cast<double>(tokens) * static_cast<double>(weight.rows + weight.cols);
  cost.flops = 2.0 * static_cast<double>(tokens) * static_cast<double>(weight.rows) * static_cast<double>(weight.cols);
  return cost;
}

OpCost EmbedCost(const WeightMatrix& table, int64_t tokens) {
  OpCost cost;
  cost.weight_bytes = static_cast<double>(tokens) * static_cast<double>(RowBytes(table.type, table.cols));
  cost.activation_bytes = 4.0 * static_cast<double>(tokens) * static_cast<double>(table.cols);
  return cost;
}

OpCost AttentionCost(int64_t tokens, int64_t positions, int64_t distinct_positions, int32_t heads, int32_t kv_heads,
                     int32_t head_dim, int32_t kv_element_bytes) {
  OpCost cost;
  cost.kv_bytes = 2.0 * kv_element_bytes * head_dim * kv_heads * static_cast<double>(distinct_positions + tokens);  // read, and stored
  cost.activation_bytes = 2.0 * sizeof(float) * head_dim * heads * static_cast<double>(tokens);
  cost.flops = 4.0 * heads * head_dim * static_cast<double>(positions);
  return cost;
}

OpCost NormCost(int64_t rows, int64_t cols) { return ElementCost(rows, cols, 2, 4); }

OpCost RopeCost(int64_t tokens, int64_t cols, int64_t rope_dim) {
  OpCost cost = ElementCost(tokens, cols, 2, 3);
  cost.activation_bytes += 4.0 * static_cast<double>(tokens) * static_cast<double>(rope_dim);  // a cosine and a sine a pair
  return cost;
}

OpCost StoreKvCost(int64_t tokens, int64_t cols) { return ElementCost(tokens, 2 * cols, 1, 0); }

OpCost SelectCost(int64_t tokens, int64_t experts, int64_t slots) {
  OpCost cost = ElementCost(tokens, experts, 2, 3.0 + static_cast<double>(slots));  // softmax, then a pass a slot at worst
  cost.activation_bytes += 12.0 * static_cast<double>(tokens) * static_cast<double>(slots);
  return cost;
}

OpCost SwiGluCost(int64_t tokens, int64_t cols) { return ElementCost(tokens, cols, 3, 4); }
OpCost AddCost(int64_t tokens, int64_t cols) { return ElementCost(tokens, cols, 3, 2); }
OpCost ClampCost(int64_t rows, int64_t cols) { return ElementCost(rows, cols, 2, 2); }
OpCost SampleCost(int64_t rows, int64_t vocab) { return ElementCost(rows, vocab, 1, 1); }

OpCost LinearBackwardCost(const WeightMatrix& weight, int64_t tokens) { return LinearCost(weight, tokens); }

OpCost AttentionBackwardCost(int64_t rows, int64_t first, int32_t heads, int32_t kv_heads, int32_t head_dim) {
  const double row = 4.0 * head_dim, own = 0.5 * static_cast<double>(rows) * static_cast<double>(rows + 1);
  const double seen = static_cast<double>(rows) * static_cast<double>(first) + own;
  OpCost cost;
  cost.kv_bytes = 2.0 * row * kv_heads * static_cast<double>(first + rows);
  cost.activation_bytes = row * static_cast<double>(rows) * (4.0 * heads + 2.0 * kv_heads);
  // Scores, their gradients and those of the queries over all positions; keys and values over the segment's own.
  cost.flops = heads * head_dim * (6.0 * seen + 4.0 * own);
  return cost;
}

namespace {

// Products of `matrices` of an expert's three for every kept slot, each expert's read once for each precision.
OpCost SlotsCost(std::span<const FfnWeights> experts, const Selection& selection, double matrices) {
  OpCost cost;
  for (const Selection::Job& job : selection.jobs.first(static_cast<size_t>(selection.job_count))) {
    const FfnWeights& expert = experts[static_cast<size_t>(job.expert)];
    const double elements = static_cast<double>(expert.gate.rows) * static_cast<double>(expert.gate.cols);
    cost.weight_bytes += ExpertBytes(expert, job.planes) * matrices / 3;
    cost.flops += 2.0 * matrices * job.count * elements;
    cost.activation_bytes += 4.0 * matrices * job.count * static_cast<double>(expert.gate.rows + expert.gate.cols);
  }
  return cost;
}

}  // namespace

OpCost ExpertInnerCost(std::span<const FfnWeights> experts, const Selection& selection) { return SlotsCost(experts, selection, 2); }
OpCost ExpertFfnBackwardCost(std::span<const FfnWeights> experts, const Selection& selection) {
  return SlotsCost(experts, selection, 3);
}

OpCost AddRowCost(int64_t tokens, int64_t cols) { return ElementCost(tokens, cols, 2, 1); }
OpCost GainCost(int64_t tokens, int64_t cols) { return ElementCost(tokens, cols, 2, 2); }

OpCost LowRankCost(int64_t tokens, int64_t in, int64_t out, int64_t rank) {
  OpCost cost = ElementCost(tokens, in, 1, 2.0 * static_cast<double>(rank));
  cost += ElementCost(tokens, out, 2, 2.0 * static_cast<double>(rank));
  cost += ElementCost(rank, in + out, 1, 0);
  cost += ElementCost(tokens, rank, 1, 0);
  return cost;
}

OpCost ScaleSlotsCost(int64_t tokens, int64_t slots) { return ElementCost(tokens, slots, 3, 2); }
OpCost RowChangeCost(int64_t tokens, int64_t cols) { return ElementCost(tokens, cols, 2, 5); }
OpCost NormBackwardCost(int64_t rows, int64_t cols) { return ElementCost(rows, cols, 4, 10); }
OpCost GainBackwardCost(int64_t tokens, int64_t cols) { return ElementCost(tokens, cols, 3, 4); }
OpCost SumRowsCost(int64_t tokens, int64_t cols) { return ElementCost(tokens, cols, 1, 1); }

OpCost LowRankBackwardCost(int64_t tokens, int64_t in, int64_t out, int64_t rank) {
  OpCost cost = ElementCost(tokens, in, 3, 4.0 * static_cast<double>(rank));  // da, dx
  cost += ElementCost(tokens, out, 1, 4.0 * static_cast<double>(rank));       // db, dinner
  cost += ElementCost(rank, in + out, 3, 0);
  cost += ElementCost(tokens, rank, 2, 0);
  return cost;
}

OpCost ClampBackwardCost(int64_t rows, int64_t cols) { return ElementCost(rows, cols, 3, 1); }

OpCost SelectBackwardCost(int64_t tokens, int64_t experts, int64_t slots) {
  OpCost cost = ElementCost(tokens, experts, 2, 8);
  cost.activation_bytes += 12.0 * static_cast<double>(tokens) * static_cast<double>(slots);
  return cost;
}

OpCost ScaleSlotsBackwardCost(int64_t tokens, int64_t slots) { return ElementCost(tokens, slots, 4, 4); }
OpCost SwiGluBackwardCost(int64_t tokens, int64_t cols) { return ElementCost(tokens, cols, 5, 10); }
OpCost AddBackwardCost(int64_t tokens, int64_t cols) { return ElementCost(tokens, cols, 3, 3); }
OpCost LossBackwardCost(int64_t rows, int64_t vocab) { return ElementCost(rows, vocab, 2, 4); }

double ExpertBytes(const FfnWeights& expert, Planes planes) {
  return static_cast<double>(expert.gate.bytes(planes) + expert.up.bytes(planes) + expert.down.bytes(planes));
}

OpCost ExpertsCost(std::span<const FfnWeights> experts, const LayerRecord& record) {
  const FfnWeights& one = experts.front();  // all experts of a layer have one shape and type
  const double hi = ExpertBytes(one, Planes::kHi), both = ExpertBytes(one, Planes::kBoth);
  const double slots = record.slots_full + record.slots_hi;
  OpCost cost;
  cost.weight_bytes = record.distinct_experts * hi + record.distinct_full_experts * (both - hi);
  cost.activation_bytes = 4.0 * slots * static_cast<double>(2 * one.gate.cols + 2 * one.gate.rows);
  cost.flops = 6.0 * slots * static_cast<double>(one.gate.cols) * static_cast<double>(one.gate.rows);
  return cost;
}

}  // namespace thermoe::kernels
