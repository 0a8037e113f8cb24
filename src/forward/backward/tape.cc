// SPDX-License-Identifier: Apache-2.0
#include "forward/backward/tape.h"

#include "base/check.h"

namespace thermoe {

template <typename Visitor>
void Tape::VisitLayer(LayerTape& layer, const ModelConfig& config, int64_t rows, bool keep_inner, const Visitor& visit) {
  const int64_t q = int64_t{config.heads} * config.head_dim, kv = int64_t{config.kv_heads} * config.head_dim;
  const int64_t slots = rows * config.slots, inner = keep_inner ? slots * config.expert_width : 0;
  visit(layer.x, rows * config.hidden);
  visit(layer.q, rows * q);
  visit(layer.k, rows * kv);
  visit(layer.v, config.attention.clip_qkv > 0 ? rows * kv : 0);
  visit(layer.attended, rows * q);
  visit(layer.middle, rows * config.hidden);
  visit(layer.gate_logits, rows * config.experts);
  visit(layer.expert, slots);
  visit(layer.weight, slots);
  visit(layer.planes, slots);
  visit(layer.inner_gate, inner);
  visit(layer.inner_up, inner);
  visit(layer.shared_gate, rows * config.shared_width);
  visit(layer.shared_up, rows * config.shared_width);
}

int64_t Tape::BytesFor(const ModelConfig& config, int32_t lowest_layer, int64_t rows, bool keep_inner) {
  int64_t bytes = 0;
  LayerTape none;
  VisitLayer(none, config, rows, keep_inner,
             [&](const auto& buffer, int64_t elements) { bytes += elements * static_cast<int64_t>(sizeof(buffer[0])); });
  return bytes * (config.layers - lowest_layer) + 2 * rows * config.hidden * static_cast<int64_t>(sizeof(float));
}

Tape::Tape(const ModelConfig& config, int32_t lowest_layer, int64_t max_rows, bool keep_inner)
    : output(static_cast<size_t>(max_rows * config.hidden)),
      dx(output.size()),
      lowest_layer_(lowest_layer),
      lowest_kept_(lowest_layer),
      max_rows_(max_rows),
      keeps_inner_(keep_inner),
      layers_(static_cast<size_t>(config.layers - lowest_layer)) {
  for (LayerTape& layer : layers_) {
    VisitLayer(layer, config, max_rows, keep_inner,
               [](auto& buffer, int64_t elements) { buffer.resize(static_cast<size_t>(elements)); });
  }
}

void Tape::Begin(int64_t first_row, int64_t count, const Deltas* learnt, const KvSequence* of, int32_t first_position, int32_t lowest_kept) {
  THERMOE_CHECK(count > 0 && count <= max_rows_ && lowest_kept >= lowest_layer_);
  first = first_row;
  rows = count;
  deltas = learnt;
  sequence = of;
  position = first_position;
  lowest_kept_ = lowest_kept;
}

}  // namespace thermoe
