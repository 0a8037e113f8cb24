// SPDX-License-Identifier: Apache-2.0
// What a forward pass keeps for the backward pass through one segment: neighbouring rows of a step that belong to one sequence.
//
// Kept for each layer that takes part: its input, q and k before their norms and rope (v where it is clamped), the result of
// attention, the input of the experts' norm, gate logits and the choice of experts, and the experts' inner activations (gate and
// up products) as far as they fit. Computed again in the backward pass: norms, gains, rope, SwiGLU, low-rank inner products, the shared expert's
// output, and inner activations that were not kept. Keys and values are in the cache.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/views.h"
#include "forward/deltas.h"
#include "kernels/ops.h"
#include "model/config.h"
#include "runtime/kv_cache.h"
#include "thermoe/ttt.h"

namespace thermoe {

// Buffers of one layer, T the rows of the segment.
struct LayerTape {
  std::vector<float> x;           // [T, D] input of the layer
  std::vector<float> q, k, v;     // [T, heads * head_dim], [T, kv_heads * head_dim]: projections, before norm, clamp and rope
  std::vector<float> attended;    // [T, heads * head_dim]
  std::vector<float> middle;      // [T, D] after attention: input of the experts' norm
  std::vector<float> gate_logits;  // [T, E] router shift included
  std::vector<int32_t> expert;    // [T, K]
  std::vector<float> weight;      // [T, K] before expert scales
  std::vector<Planes> planes;     // [T, K]
  std::vector<float> inner_gate, inner_up;    // [T * K, F]; empty: not kept
  std::vector<float> shared_gate, shared_up;  // [T, shared width]
};

class Tape {
 public:
  static int64_t BytesFor(const ModelConfig& config, int32_t lowest_layer, int64_t rows, bool keep_inner);

  // Room for `max_rows` rows of the layers from `lowest_layer` on.
  Tape(const ModelConfig& config, int32_t lowest_layer, int64_t max_rows, bool keep_inner);

  // Begins a segment: rows [first, first + rows) of the step, whose deltas are learnt, from `position` of `sequence` on. Layers below
  // `lowest_kept` are not kept.
  void Begin(int64_t first, int64_t rows, const Deltas* deltas, const KvSequence* sequence, int32_t position, int32_t lowest_kept);

  bool keeps(int32_t layer) const { return layer >= lowest_kept_; }
  LayerTape& layer(int32_t index) { return layers_[static_cast<size_t>(index - lowest_layer_)]; }

  // Copies the segment's rows of a step's buffer.
  template <typename T>
  void Keep(Rows<const T> step, std::vector<T>* kept) const {
    std::copy(step.row(first), step.row(first) + rows * step.cols, kept->begin());
  }
  // The same of row `row` of the step alone.
  template <typename T>
  void KeepRow(Rows<const T> step, int64_t row, std::vector<T>* kept) const {
    std::copy_n(step.row(row), step.cols, kept->begin() + (row - first) * step.cols);
  }
  // A view of a kept buffer.
  template <typename T>
  Rows<T> View(std::vector<T>& kept, int64_t cols) const {
    return {kept.data(), rows, cols};
  }

  int64_t first = 0, rows = 0;  // of the step
  const Deltas* deltas = nullptr;
  const KvSequence* sequence = nullptr;
  int32_t position = 0;         // of the first row
  std::vector<float> output;    // [T, D] after the last layer
  std::vector<float> dx;        // [T, D] gradient with respect to `output`, set by the loss

  int64_t max_rows() const { return max_rows_; }
  int32_t lowest_layer() const { return lowest_layer_; }
  bool keeps_inner() const { return keeps_inner_; }

 private:
  template <typename Visitor>
  static void VisitLayer(LayerTape& layer, const ModelConfig& config, int64_t rows, bool keep_inner, const Visitor& visit);

  int32_t lowest_layer_, lowest_kept_;  // there is room for; kept of the present segment
  int64_t max_rows_;
  bool keeps_inner_;
  std::vector<LayerTape> layers_;
};

}  // namespace thermoe
