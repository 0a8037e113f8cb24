// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "forward/backward/learn.h"

namespace thermoe {

template <typename Visitor>
void BackwardWorkspace::VisitBuffers(BackwardWorkspace& ws, const ModelConfig& config, int64_t rows, bool keeps_inner,
                                     const Visitor& visit) {
  const int64_t q = rows * config.heads * config.head_dim, kv = rows * config.kv_heads * config.head_dim;
  const int64_t slots = rows * config.slots, hidden = rows * config.hidden, half = rows * config.attention.rope_dim / 2;
  for (auto* buffer : {&ws.h, &ws.plain_h, &ws.dh}) visit(*buffer, hidden);
  for (auto* buffer : {&ws.q, &ws.dq, &ws.dattended, &ws.draw}) visit(*buffer, q);
  for (auto* buffer : {&ws.k, &ws.dk, &ws.dv}) visit(*buffer, kv);
  for (auto* buffer : {&ws.cosines, &ws.sines, &ws.minus_sines}) visit(*buffer, half);
  for (auto* buffer : {&ws.scores, &ws.dgate}) visit(*buffer, rows * config.experts);
  for (auto* buffer : {&ws.weight, &ws.dweight}) visit(*buffer, slots);
  visit(ws.order, slots);
  visit(ws.jobs, int64_t{2} * config.experts);
  visit(ws.slot_dx, slots * config.hidden);
  for (auto* buffer : {&ws.inner_gate, &ws.inner_up}) visit(*buffer, keeps_inner ? 0 : slots * config.expert_width);
  for (auto* buffer : {&ws.shared_gate, &ws.shared_up}) visit(*buffer, rows * config.shared_width);
  for (auto* buffer : {&ws.shared_out, &ws.shared_dout}) visit(*buffer, config.shared_width > 0 ? hidden : 0);
  for (auto* buffer : {&ws.shared_scale, &ws.shared_dscale}) visit(*buffer, config.shared_gate ? rows : 0);
  for (auto* buffer : {&ws.low_rank, &ws.dlow_rank}) visit(*buffer, rows * kernels::kMaxRank);
  visit(ws.targets, rows);
  for (auto* buffer : {&ws.loss_scale, &ws.loss}) visit(*buffer, rows);
}

BackwardWorkspace::BackwardWorkspace(const ModelConfig& config, int64_t max_rows, bool keeps_inner) {
  VisitBuffers(*this, config, max_rows, keeps_inner,
               [](auto& buffer, int64_t elements) { buffer.resize(static_cast<size_t>(elements)); });
}

int64_t BackwardWorkspace::BytesFor(const ModelConfig& config, int64_t max_rows, bool keeps_inner) {
  BackwardWorkspace none;
  int64_t bytes = 0;
  VisitBuffers(none, config, max_rows, keeps_inner, [&](const auto& buffer, int64_t elements) {
    bytes += elements * static_cast<int64_t>(sizeof(buffer[0]));
  });
  return bytes;
}

int64_t LearningBytes(const ModelConfig& config, int32_t lowest_layer, int64_t max_rows, bool keeps_inner) {
  return Tape::BytesFor(config, lowest_layer, max_rows, keeps_inner) + BackwardWorkspace::BytesFor(config, max_rows, keeps_inner);
}

void Learning::Begin() {
  std::fill(gradient.begin(), gradient.end(), 0.0f);
  std::fill(tape.dx.begin(), tape.dx.end(), 0.0f);
  loss_nats = 0;
  loss_rows = 0;
  rows = 0;
  spent_bytes = spent_flops = 0;
  left_out = 0;
  held.assign(picks_rows() ? static_cast<size_t>(tape.rows) : 0, 1);
}

}  // namespace thermoe
