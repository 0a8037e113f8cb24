// SPDX-License-Identifier: Apache-2.0
// Attention of a layer: from the gradient of its middle to that of its input. Keys and values of earlier segments are constants.
#include <algorithm>
#include <cmath>

#include "forward/backward/low_rank.h"
#include "forward/step.h"

namespace thermoe {
namespace {

void SetAngles(StepContext& step) {
  Learning& learning = *step.learning;
  const size_t half = step.ws.inverse_frequency.size();
  const auto first = static_cast<size_t>(learning.tape.first) * half, count = static_cast<size_t>(learning.tape.rows) * half;
  std::copy_n(step.ws.cosines.begin() + static_cast<std::ptrdiff_t>(first), count, learning.ws.cosines.begin());
  std::copy_n(step.ws.sines.begin() + static_cast<std::ptrdiff_t>(first), count, learning.ws.sines.begin());
  std::transform(learning.ws.sines.begin(), learning.ws.sines.begin() + static_cast<std::ptrdiff_t>(count),
                 learning.ws.minus_sines.begin(), [](float sine) { return -sine; });
}

kernels::RopeArgs RopeOf(StepContext& step, MutRows x, std::vector<float>& sines) {
  const ModelConfig& config = step.config;
  const int64_t half = config.attention.rope_dim / 2;
  return {x, config.head_dim, config.attention.rope_dim, config.attention.rope, Workspace::View(step.learning->ws.cosines, x.rows, half),
          Workspace::View(sines, x.rows, half)};
}

MutRows ByHead(MutRows x, const std::vector<float>& gain) {
  const auto width = static_cast<int64_t>(gain.size());
  return {x.data, x.size() / width, width};
}

// q as attention saw it, from the projection: norm, clamp, rope.
void RecomputeQueries(StepContext& step, const LayerWeights& weights, ConstRows raw, MutRows q) {
  const ModelConfig& config = step.config;
  std::copy_n(raw.data, raw.size(), q.data);
  if (config.attention.qk_norm != QkNorm::kNone) {
    const MutRows heads = ByHead(q, weights.q_norm);
    step.ops.RmsNorm({heads, weights.q_norm, config.norm_epsilon, heads});
  }
  if (config.attention.clip_qkv > 0) step.ops.Clamp(q, config.attention.clip_qkv);
  step.ops.Rope(RopeOf(step, q, step.learning->ws.sines));
}

// `dx` in place: from the gradient after rope, clamp and norm to that of the projection `raw`. `scratch`: as large.
void ProjectionGradient(StepContext& step, std::vector<float>& raw, const std::vector<float>& norm, MutRows dx, std::vector<float>& scratch,
                        std::vector<float>& draw) {
  const ModelConfig& config = step.config;
  const MutRows x = Workspace::View(raw, dx.rows, dx.cols);
  step.ops.Rope(RopeOf(step, dx, step.learning->ws.minus_sines));
  const bool normed = config.attention.qk_norm != QkNorm::kNone;
  if (config.attention.clip_qkv > 0) {
    const MutRows before = Workspace::View(scratch, dx.rows, dx.cols);
    std::copy_n(x.data, x.size(), before.data);
    if (normed) step.ops.RmsNorm({ByHead(before, norm), norm, config.norm_epsilon, ByHead(before, norm)});
    step.ops.ClampBackward({before, config.attention.clip_qkv, dx});
  }
  if (!normed) return;
  const MutRows out = Workspace::View(draw, dx.rows, dx.cols);
  std::fill_n(out.data, out.size(), 0.0f);
  step.ops.RmsNormBackward({ByHead(x, norm), norm, config.norm_epsilon, ByHead(dx, norm), ByHead(out, norm)});
  std::copy_n(out.data, out.size(), dx.data);
}

// dh += gradient through a projection of h.
void ThroughProjection(StepContext& step, DeltaGroup group, int32_t layer, const WeightMatrix& weight, ConstRows h, ConstRows dy, MutRows dh) {
  LowRankBackward(step, group, layer, h, dy, dh);
  step.ops.LinearBackward({dy, weight, dh});
  step.Count(kernels::LinearBackwardCost(weight, dy.rows));
}

}  // namespace

void AttentionBackward(StepContext& step, int32_t layer) {
  Learning& learning = *step.learning;
  BackwardWorkspace& ws = learning.ws;
  const ModelConfig& config = step.config;
  const LayerWeights& weights = step.weights.layers[static_cast<size_t>(layer)];
  LayerTape& kept = learning.tape.layer(layer);
  const kernels::Ops& ops = step.ops;
  const int64_t rows = learning.tape.rows, q_width = int64_t{config.heads} * config.head_dim;
  const int64_t kv_width = int64_t{config.kv_heads} * config.head_dim;
  const MutRows dx{learning.tape.dx.data(), rows, config.hidden};
  const MutRows q = Workspace::View(ws.q, rows, q_width), dq = Workspace::View(ws.dq, rows, q_width);
  const MutRows dk = Workspace::View(ws.dk, rows, kv_width), dv = Workspace::View(ws.dv, rows, kv_width);
  const MutRows dattended = Workspace::View(ws.dattended, rows, q_width);
  const ConstRows attended = learning.tape.View(kept.attended, q_width);

  SetAngles(step);
  std::fill_n(dattended.data, dattended.size(), 0.0f);
  ThroughProjection(step, DeltaGroup::kLowRankO, layer, weights.o, attended, dx, dattended);
  RecomputeQueries(step, weights, learning.tape.View(kept.q, q_width), q);
  const std::span<const KvRow> kv_rows = std::span(step.ws.kv_rows).subspan(static_cast<size_t>(learning.tape.first), static_cast<size_t>(rows));
  ops.AttentionBackward({q, kv_rows, step.cache.layer(layer), config.heads, 1.0f / std::sqrt(static_cast<float>(config.head_dim)), attended,
                         dattended, dq, dk, dv});
  step.Count(kernels::AttentionBackwardCost(rows, learning.tape.position, config.heads, config.kv_heads, config.head_dim));
  ProjectionGradient(step, kept.q, weights.q_norm, dq, ws.q, ws.draw);
  ProjectionGradient(step, kept.k, weights.k_norm, dk, ws.k, ws.draw);
  if (config.attention.clip_qkv > 0) ops.ClampBackward({learning.tape.View(kept.v, kv_width), config.attention.clip_qkv, dv});

  const MutRows h = Workspace::View(ws.h, rows, config.hidden), plain_h = Workspace::View(ws.plain_h, rows, config.hidden);
  const MutRows dh = Workspace::View(ws.dh, rows, config.hidden);
  const ConstRows x = learning.tape.View(kept.x, config.hidden);
  const DeltaTensor* gain = learning.Find(DeltaGroup::kAttentionGain, layer);
  ops.RmsNorm({x, weights.attention_norm, config.norm_epsilon, h});
  if (gain != nullptr) {
    std::copy_n(h.data, h.size(), plain_h.data);
    ops.Gain({learning.tape.deltas->of(*gain), h});
  }
  std::fill_n(dh.data, dh.size(), 0.0f);
  ThroughProjection(step, DeltaGroup::kLowRankQ, layer, weights.q, h, dq, dh);
  ThroughProjection(step, DeltaGroup::kLowRankK, layer, weights.k, h, dk, dh);
  ThroughProjection(step, DeltaGroup::kLowRankV, layer, weights.v, h, dv, dh);
  if (gain != nullptr) ops.GainBackward({learning.tape.deltas->of(*gain), plain_h, dh, learning.GradientOf(*gain)});
  ops.RmsNormBackward({x, weights.attention_norm, config.norm_epsilon, dh, dx});
}

}  // namespace thermoe
