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
  // Rows that keep what their experts gave keep the choice of those experts too: their inner activations are still on the tape.
  for (int64_t t = tape.first; t < tape.first + tape.rows; ++t) {
    if (step.recalls && step.ws.recalled[static_cast<size_t>(t)] != 0) continue;
    tape.KeepRow(logits, t, &kept->gate_logits);
    tape.KeepRow<int32_t>(selection.expert, t, &kept->expert);
    tape.KeepRow<float>(selection.weight, t, &kept->weight);
    tape.KeepRow<Planes>(selection.planes, t, &kept->planes);
  }
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
  std::span<const kernels::RowKind> kinds = std::span(ws.kinds).first(step.batch.rows.size());
  SampleLogits(step.ops, kinds, logits, step.steering == nullptr ? 0 : step.steering->sample_gate_rows,
               step.record.step, &record.gate_logits);

  if (step.recalls) {
    ChooseRecalled(step, layer);
    for (size_t t = 0; t < kinds.size(); ++t) ws.layer_kinds[t] = ws.recalled[t] != 0 ? kernels::RowKind::kPadding : kinds[t];
    kinds = std::span(ws.layer_kinds).first(kinds.size());
  }
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
