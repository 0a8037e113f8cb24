// SPDX-License-Identifier: Apache-2.0
// The data flow on one page: tokens -> embedding -> layers (attention, gate, experts) -> logits -> sink.
#include <algorithm>

#include "forward/step.h"

namespace thermoe {
namespace {

// The rows of the step are the tape's.
void ResumeFromTape(StepContext& step) {
  Tape& tape = step.learning->tape;
  const std::vector<float>& x = step.first_layer < step.config.layers ? tape.layer(step.first_layer).x : tape.output;
  std::copy_n(x.begin(), step.x().size(), step.x().data);
}

// Steps over as many decode rows launch the same operations, whatever the rows are; so do not others.
uint64_t GraphKey(const StepContext& step) {
  const bool sampled =
      step.steering != nullptr && step.steering->sample_gate_rows > 0;  // gate logits are read on the way
  if (step.learning != nullptr || sampled) return 0;
  for (const BatchRow& row : step.batch.rows) {
    if (row.kind != kernels::RowKind::kDecode || row.deltas != nullptr || !row.wants_logits) return 0;
  }
  return step.batch.rows.size();
}

// What the routed experts did is known when their records are.
void CountExperts(StepContext& step) {
  step.ops.FinishRecords();
  for (int32_t layer = step.first_layer; layer < step.config.layers; ++layer) {
    const kernels::OpCost cost =
        kernels::ExpertsCost(step.experts.layer(layer), step.record.layers[static_cast<size_t>(layer)]);
    step.Count(cost);
    step.record.expert_bytes += cost.weight_bytes;
  }
}

}  // namespace

void BeginForward(StepContext& step, bool ahead) {
  StageTimer timer(&step.record.times.total_us);
  SetRows(step);
  const uint64_t key = GraphKey(step);
  if (key != 0) step.inside = WholeStep(step);
  step.ops.BeginStep(key, ahead);
  Embed(step);
  if (step.first_layer > 0) ResumeFromTape(step);
  for (int32_t layer = step.first_layer; layer < step.config.layers; ++layer) Layer(step, layer);
  if (step.inside.count > 0) LogitsInside(step);
  step.ops.EndStep();
  DrawInside(step);
}

void FinishForward(StepContext& step) {
  StageTimer timer(&step.record.times.total_us);
  Logits(step);
  CountExperts(step);
}

void Forward(StepContext& step) {
  BeginForward(step);
  FinishForward(step);
}

void StepContext::Count(const kernels::OpCost& cost) {
  record.weight_bytes += cost.weight_bytes;
  record.kv_bytes += cost.kv_bytes;
  record.flops += cost.flops;
}

}  // namespace thermoe
