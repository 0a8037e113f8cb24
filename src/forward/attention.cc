// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "forward/step.h"

namespace thermoe {
namespace {

// One RMS norm over each head, or over all heads together.
void NormHeads(const StepContext& step, MutRows x, const std::vector<float>& gain) {
  const auto width = static_cast<int64_t>(gain.size());
  const MutRows groups{x.data, x.size() / width, width};
  step.ops.RmsNorm({groups, gain, step.config.norm_epsilon, groups});
}

void Project(StepContext& step, const WeightMatrix& weight, const std::vector<float>& bias, MutRows x, MutRows out) {
  step.ops.Linear({x, weight, bias, out});
  step.Count(kernels::LinearCost(weight, x.rows));
}

void KeepProjections(const StepContext& step, int32_t layer, ConstRows q, ConstRows k, ConstRows v) {
  LayerTape* kept = step.tape(layer);
  if (kept == nullptr) return;
  const Tape& tape = step.learning->tape;
  tape.Keep<float>(step.x(), &kept->x);
  tape.Keep(q, &kept->q);
  tape.Keep(k, &kept->k);
  if (step.config.attention.clip_qkv > 0) tape.Keep(v, &kept->v);
}

void CountAttention(StepContext& step) {
  int64_t seen = 0, distinct = 0;
  const KvSequence* last = nullptr;
  for (const BatchRow& row : step.batch.rows) {  // rows of one sequence stand together, positions rising
    seen += row.position + 1;
    distinct += row.sequence == last ? 1 : row.position + 1;
    last = row.sequence;
  }
  const ModelConfig& config = step.config;
  step.record.kv_element_bytes = step.ops.kv_element_bytes();
  step.Count(kernels::AttentionCost(step.tokens(), seen, distinct, config.heads, config.kv_heads, config.head_dim, step.record.kv_element_bytes));
}

}  // namespace

void Attention(StepContext& step, int32_t layer) {
  StageTimer timer(&step.record.times.attention_us);
  const ModelConfig& config = step.config;
  const LayerWeights& weights = step.weights.layers[static_cast<size_t>(layer)];
  const kernels::Ops& ops = step.ops;
  Workspace& ws = step.ws;
  const MutRows h = step.h();
  const MutRows q = step.view(ws.q, int64_t{config.heads} * config.head_dim);
  const MutRows k = step.view(ws.k, int64_t{config.kv_heads} * config.head_dim);
  const MutRows v = step.view(ws.v, int64_t{config.kv_heads} * config.head_dim);
  const MutRows attended = step.view(ws.attended, q.cols);
  const std::span<const KvRow> rows = std::span(ws.kv_rows).first(step.batch.rows.size());
  const KvLayer cache = step.cache.layer(layer);

  ops.RmsNorm({step.x(), weights.attention_norm, config.norm_epsilon, h});
  ApplyGain(step, DeltaGroup::kAttentionGain, layer, h);
  Project(step, weights.q, weights.q_bias, h, q);
  ApplyLowRank(step, DeltaGroup::kLowRankQ, layer, h, q);
  Project(step, weights.k, weights.k_bias, h, k);
  ApplyLowRank(step, DeltaGroup::kLowRankK, layer, h, k);
  Project(step, weights.v, weights.v_bias, h, v);
  ApplyLowRank(step, DeltaGroup::kLowRankV, layer, h, v);
  KeepProjections(step, layer, q, k, v);
  if (config.attention.qk_norm != QkNorm::kNone) {
    NormHeads(step, q, weights.q_norm);
    NormHeads(step, k, weights.k_norm);
  }
  if (config.attention.clip_qkv > 0) {
    for (const MutRows& part : {q, k, v}) ops.Clamp(part, config.attention.clip_qkv);
  }
  const int64_t half = config.attention.rope_dim / 2;
  for (const MutRows& part : {q, k}) {
    ops.Rope({part, config.head_dim, config.attention.rope_dim, config.attention.rope, step.view(ws.cosines, half),
              step.view(ws.sines, half)});
  }
  ops.StoreKv({k, v, rows, cache});
  ops.Attention({q, rows, cache, config.heads, 1.0f / std::sqrt(static_cast<float>(config.head_dim)), attended});
  CountAttention(step);
  Project(step, weights.o, {}, attended, h);
  ApplyLowRank(step, DeltaGroup::kLowRankO, layer, attended, h);
  if (LayerTape* kept = step.tape(layer); kept != nullptr) step.learning->tape.Keep<float>(attended, &kept->attended);
  ops.Add({h, {}, step.x()});
}

}  // namespace thermoe
