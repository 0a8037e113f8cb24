// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "forward/step.h"

namespace thermoe {
namespace {

// Keeps the logits of up to `wanted` decode rows in *kept. Rows take turns, so that all sequences of a batch are seen.
void SampleLogits(const kernels::Ops& ops, std::span<const kernels::RowKind> kinds, MutRows logits, int64_t wanted,
                  uint64_t turn, std::vector<float>* kept) {
  kept->clear();
  if (wanted <= 0) return;
  ops.Fetch(std::as_writable_bytes(std::span(logits.data, static_cast<size_t>(logits.size()))));
  kept->reserve(static_cast<size_t>(wanted * logits.cols));  // for the largest batch, so that no later step allocates
  const int64_t rows = std::count(kinds.begin(), kinds.end(), kernels::RowKind::kDecode);
  if (rows == 0) return;
  const int64_t first = static_cast<int64_t>(turn % static_cast<uint64_t>(rows)) * wanted % rows;
  int64_t decode_row = 0;
  for (int64_t t = 0; t < logits.rows; ++t) {
    if (kinds[static_cast<size_t>(t)] != kernels::RowKind::kDecode) continue;
    if ((decode_row++ - first + rows) % rows >= wanted) continue;
    kept->insert(kept->end(), logits.row(t), logits.row(t) + logits.cols);
  }
}

void KeepChoice(const StepContext& step, int32_t layer, ConstRows logits) {
  LayerTape* kept = step.tape(layer);
  if (kept == nullptr) return;
  const Tape& tape = step.learning->tape;
  const kernels::Selection& selection = step.ws.selection;
  tape.Keep<float>(step.x(), &kept->middle);
  tape.Keep(logits, &kept->gate_logits);
  tape.Keep<int32_t>(selection.expert, &kept->expert);
  tape.Keep<float>(selection.weight, &kept->weight);
  tape.Keep<Planes>(selection.planes, &kept->planes);
}

}  // namespace

void Gate(StepContext& step, int32_t layer) {
  StageTimer timer(&step.record.times.gate_us);
  const ModelConfig& config = step.config;
  const LayerWeights& weights = step.weights.layers[static_cast<size_t>(layer)];
  Workspace& ws = step.ws;
  const MutRows logits = step.view(ws.gate_logits, config.experts);

  step.ops.RmsNorm({step.x(), weights.expert_norm, config.norm_epsilon, step.h()});
  ApplyGain(step, DeltaGroup::kExpertGain, layer, step.h());
  step.ops.Linear({step.h(), weights.gate, {}, logits});
  step.Count(kernels::LinearCost(weights.gate, step.tokens()));
  ApplyLowRank(step, DeltaGroup::kLowRankGate, layer, step.h(), logits);
  ApplyBias(step, DeltaGroup::kRouterShift, layer, logits);
  LayerRecord& record = step.record.layers[static_cast<size_t>(layer)];
  const std::span<const kernels::RowKind> kinds = std::span(ws.kinds).first(step.batch.rows.size());
  SampleLogits(step.ops, kinds, logits, step.steering == nullptr ? 0 : step.steering->sample_gate_rows,
               step.record.step, &record.gate_logits);

  kernels::Selection& selection = ws.selection;
  selection.slots = config.slots;
  selection.scores = step.view(ws.scores, config.experts);
  selection.expert = {ws.slot_expert.data(), step.tokens(), config.slots};
  selection.weight = step.view(ws.slot_weight, config.slots);
  selection.planes = {ws.slot_planes.data(), step.tokens(), config.slots};
  selection.jobs = ws.jobs;
  selection.order = ws.slot_order;
  selection.record = &record;
  step.ops.Select({logits, config.gate, config.slots, step.experts.storage() == ExpertStorage::kNested,
                   SteeringOfLayer(step.steering, layer), kinds, &selection});
  KeepChoice(step, layer, logits);
  ApplyScale(step, layer);
}

}  // namespace thermoe
