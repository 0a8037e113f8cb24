// SPDX-License-Identifier: Apache-2.0
#include "forward/step.h"

namespace thermoe {

void Gate(StepContext& step, int32_t layer) {
  StageTimer timer(&step.record.times.gate_us);
  const ModelConfig& config = step.config;
  const LayerWeights& weights = step.weights.layers[static_cast<size_t>(layer)];
  Workspace& ws = step.ws;
  const MutRows logits = step.view(ws.gate_logits, config.experts);

  step.ops.RmsNorm({step.x(), weights.expert_norm, config.norm_epsilon, step.h()});
  step.ops.Linear({step.h(), weights.gate, {}, logits});
  step.Count(kernels::LinearCost(weights.gate, step.tokens()));

  kernels::Selection& selection = ws.selection;
  selection.slots = config.slots;
  selection.scores = step.view(ws.scores, config.experts);
  selection.expert = {ws.slot_expert.data(), step.tokens(), config.slots};
  selection.weight = step.view(ws.slot_weight, config.slots);
  selection.planes = {ws.slot_planes.data(), step.tokens(), config.slots};
  selection.jobs = ws.jobs;
  selection.order = ws.slot_order;
  selection.record = &step.record.layers[static_cast<size_t>(layer)];
  step.ops.Select({logits, config.gate, config.slots, step.experts.storage() == ExpertStorage::kNested,
                   SteeringOfLayer(step.steering, layer), std::span(ws.kinds).first(step.batch.rows.size()), &selection});
}

}  // namespace thermoe
