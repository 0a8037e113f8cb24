// SPDX-License-Identifier: Apache-2.0
// Bytes and floating-point operations of each operation, stated once: StepRecord, bench and the cost model read these.
// Weights count once per call, as a backend that decodes each block once per step reads them.
#pragma once

#include <cstdint>
#include <span>

#include "model/weights.h"
#include "thermoe/steering.h"

namespace thermoe::kernels {

struct Selection;

struct OpCost {
  double weight_bytes = 0;
  double activation_bytes = 0;  // inputs read and outputs written once
  double kv_bytes = 0;
  double flops = 0;  // a multiply-add is two

  OpCost& operator+=(const OpCost& other);
};

OpCost LinearCost(const WeightMatrix& weight, int64_t tokens);
OpCost EmbedCost(const WeightMatrix& table, int64_t tokens);
// `positions`: keys that the rows see, summed over rows. `distinct_positions`: the same, shared ones counted once.
// kv_element_bytes: as Residency has it.
OpCost AttentionCost(int64_t tokens, int64_t positions, int64_t distinct_positions, int32_t heads, int32_t kv_heads,
                     int32_t head_dim, int32_t kv_element_bytes = sizeof(float));
// The routed experts of one layer as a step's record says they were used.
OpCost ExpertsCost(std::span<const FfnWeights> experts, const LayerRecord& record);

// Operations without a weight matrix: what they read and write, once. Additions and exponentials count as one.
OpCost NormCost(int64_t rows, int64_t cols);                         // RmsNorm; its gain is noise beside a row
OpCost RopeCost(int64_t tokens, int64_t cols, int64_t rope_dim);     // cols: heads * head_dim
OpCost StoreKvCost(int64_t tokens, int64_t cols);                    // k and v read; what is stored counts in AttentionCost
OpCost SelectCost(int64_t tokens, int64_t experts, int64_t slots);
OpCost SwiGluCost(int64_t tokens, int64_t cols);
OpCost AddCost(int64_t tokens, int64_t cols);
OpCost ClampCost(int64_t rows, int64_t cols);
OpCost SampleCost(int64_t rows, int64_t vocab);

// Gradients of a segment. The transposed products read and multiply what the forward ones do.
OpCost LinearBackwardCost(const WeightMatrix& weight, int64_t tokens);
// `rows` positions from `first` on.
OpCost AttentionBackwardCost(int64_t rows, int64_t first, int32_t heads, int32_t kv_heads, int32_t head_dim);
OpCost ExpertInnerCost(std::span<const FfnWeights> experts, const Selection& selection);
OpCost ExpertFfnBackwardCost(std::span<const FfnWeights> experts, const Selection& selection);

// Without a weight matrix, as above.
OpCost AddRowCost(int64_t tokens, int64_t cols);
OpCost GainCost(int64_t tokens, int64_t cols);
OpCost LowRankCost(int64_t tokens, int64_t in, int64_t out, int64_t rank);
OpCost ScaleSlotsCost(int64_t tokens, int64_t slots);
OpCost RowChangeCost(int64_t tokens, int64_t cols);
OpCost NormBackwardCost(int64_t rows, int64_t cols);
OpCost GainBackwardCost(int64_t tokens, int64_t cols);
OpCost SumRowsCost(int64_t tokens, int64_t cols);
OpCost LowRankBackwardCost(int64_t tokens, int64_t in, int64_t out, int64_t rank);
OpCost ClampBackwardCost(int64_t rows, int64_t cols);
OpCost SelectBackwardCost(int64_t tokens, int64_t experts, int64_t slots);
OpCost ScaleSlotsBackwardCost(int64_t tokens, int64_t slots);
OpCost SwiGluBackwardCost(int64_t tokens, int64_t cols);
OpCost AddBackwardCost(int64_t tokens, int64_t cols);
OpCost LossBackwardCost(int64_t rows, int64_t vocab);

// One expert's matrices by these planes.
double ExpertBytes(const FfnWeights& expert, Planes planes);

}  // namespace thermoe::kernels
