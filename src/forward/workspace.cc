// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "forward/step.h"

namespace thermoe {
namespace {

size_t Size(int64_t rows, int64_t cols) { return static_cast<size_t>(rows * cols); }

}  // namespace

Workspace::Workspace(const ModelConfig& config, int32_t max_rows) {
  const int64_t rows = max_rows, slots = rows * config.slots;
  const int64_t half = config.attention.rope_dim / 2;
  ids.resize(Size(rows, 1));
  kv_rows.resize(Size(rows, 1));
  kinds.resize(Size(rows, 1));
  inverse_frequency.resize(Size(half, 1));
  for (int64_t i = 0; i < half; ++i) {
    inverse_frequency[Size(i, 1)] = static_cast<float>(
        1.0 / std::pow(static_cast<double>(config.attention.rope_theta), 2.0 * static_cast<double>(i) / config.attention.rope_dim));
  }
  cosines.resize(Size(rows, half));
  sines.resize(Size(rows, half));
  x.resize(Size(rows, config.hidden));
  h.resize(Size(rows, config.hidden));
  q.resize(Size(rows, int64_t{config.heads} * config.head_dim));
  attended.resize(q.size());
  k.resize(Size(rows, int64_t{config.kv_heads} * config.head_dim));
  v.resize(k.size());
  gate_logits.resize(Size(rows, config.experts));
  scores.resize(Size(rows, config.experts));
  slot_expert.resize(Size(slots, 1));
  slot_weight.resize(Size(slots, 1));
  slot_planes.resize(Size(slots, 1));
  slot_order.resize(Size(slots, 1));
  jobs.resize(Size(2, config.experts));
  inner.resize(Size(slots, config.expert_width));
  slot_out.resize(Size(slots, config.hidden));
  shared_gate.resize(Size(rows, config.shared_width));
  shared_up.resize(Size(rows, config.shared_width));
  shared_scale.resize(config.shared_gate ? Size(rows, 1) : 0);
  logit_rows.resize(Size(kLogitTile, config.hidden));
  logits.resize(Size(kLogitTile, config.vocab));
}

}  // namespace thermoe
