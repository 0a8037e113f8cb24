// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "forward/step.h"

namespace thermoe {

template <typename Visitor>
void Workspace::VisitBuffers(Workspace& ws, const ModelConfig& config, int32_t max_rows, const Visitor& visit) {
  const int64_t rows = max_rows, slots = rows * config.slots;
  const int64_t half = config.attention.rope_dim / 2;
  visit(ws.ids, rows);
  visit(ws.kv_rows, rows);
  visit(ws.kinds, rows);
  visit(ws.inverse_frequency, half);
  visit(ws.cosines, rows * half);
  visit(ws.sines, rows * half);
  visit(ws.x, rows * config.hidden);
  visit(ws.h, rows * config.hidden);
  visit(ws.q, rows * config.heads * config.head_dim);
  visit(ws.attended, rows * config.heads * config.head_dim);
  visit(ws.k, rows * config.kv_heads * config.head_dim);
  visit(ws.v, rows * config.kv_heads * config.head_dim);
  visit(ws.gate_logits, rows * config.experts);
  visit(ws.scores, rows * config.experts);
  visit(ws.slot_expert, slots);
  visit(ws.slot_weight, slots);
  visit(ws.slot_planes, slots);
  visit(ws.slot_order, slots);
  visit(ws.jobs, int64_t{2} * config.experts);
  visit(ws.inner, slots * config.expert_width);
  visit(ws.slot_out, slots * config.hidden);
  visit(ws.shared_gate, rows * config.shared_width);
  visit(ws.shared_up, rows * config.shared_width);
  visit(ws.shared_scale, config.shared_gate ? rows : 0);
  visit(ws.picked, int64_t{kLogitTile});
  visit(ws.asked, int64_t{kLogitTile});
  visit(ws.summaries, int64_t{kLogitTile});
  visit(ws.logit_rows, int64_t{kLogitTile} * config.hidden);
  visit(ws.logits, int64_t{kLogitTile} * config.vocab);
  visit(ws.low_rank, rows * kernels::kMaxRank);
  visit(ws.recalled, rows);
  visit(ws.layer_kinds, rows);
  visit(ws.row_change, rows);
  visit(ws.row_order, rows);
  visit(ws.before, rows * config.hidden);
  visit(ws.given, config.hidden);
}

Workspace::Workspace(const ModelConfig& config, int32_t max_rows) {
  VisitBuffers(*this, config, max_rows,
               [](auto& buffer, int64_t elements) { buffer.resize(static_cast<size_t>(elements)); });
  draws.reserve(kLogitTile), drawn.resize(kLogitTile);
  for (size_t i = 0; i < inverse_frequency.size(); ++i) {
    const double turn = 2.0 * static_cast<double>(i) / config.attention.rope_dim;
    inverse_frequency[i] = static_cast<float>(1.0 / std::pow(static_cast<double>(config.attention.rope_theta), turn));
  }
}

void Workspace::AdoptBy(kernels::Ops* ops, const ModelConfig& config, int32_t max_rows) {
  VisitBuffers(*this, config, max_rows,
               [ops](auto& buffer, int64_t) { ops->Adopt(std::as_writable_bytes(std::span(buffer))); });
  ops->Publish(std::as_bytes(std::span(inverse_frequency)));
}

int64_t Workspace::BytesFor(const ModelConfig& config, int32_t max_rows) {
  Workspace none;
  int64_t bytes = 0;
  VisitBuffers(none, config, max_rows, [&](const auto& buffer, int64_t elements) {
    bytes += elements * static_cast<int64_t>(sizeof(buffer[0]));
  });
  return bytes;
}

}  // namespace thermoe
