// SPDX-License-Identifier: Apache-2.0
// Gate and experts of a layer, the choice of experts held fixed: from the gradient of the layer's output to that of its middle.
#include <algorithm>

#include "forward/backward/low_rank.h"
#include "forward/step.h"
#include "kernels/select.h"

namespace thermoe {
namespace {

// The segment's part of what the forward pass chose, with dispatch lists of its own.
kernels::Selection SelectionOf(StepContext& step, LayerTape& kept) {
  Learning& learning = *step.learning;
  const int64_t slots = step.config.slots;
  kernels::Selection selection;
  selection.slots = step.config.slots;
  selection.scores = Workspace::View(learning.ws.scores, learning.tape.rows, step.config.experts);
  selection.expert = learning.tape.View(kept.expert, slots);
  selection.weight = Workspace::View(learning.ws.weight, learning.tape.rows, slots);
  selection.planes = learning.tape.View(kept.planes, slots);
  selection.jobs = learning.ws.jobs;
  selection.order = learning.ws.order;
  std::copy_n(kept.weight.data(), selection.weight.size(), selection.weight.data);
  kernels::DispatchSelection(step.config.experts, &selection);
  return selection;
}

// dh += gradient through the shared expert.
void SharedExpertBackward(StepContext& step, LayerTape& kept, const LayerWeights& weights, ConstRows h, ConstRows dout, MutRows dh) {
  Learning& learning = *step.learning;
  BackwardWorkspace& ws = learning.ws;
  const kernels::Ops& ops = step.ops;
  const int64_t rows = learning.tape.rows, width = step.config.shared_width;
  ConstRows dshared = dout;
  const MutRows inner = Workspace::View(ws.shared_gate, rows, width);
  if (step.config.shared_gate) {
    const MutRows out = Workspace::View(ws.shared_out, rows, h.cols), scale = Workspace::View(ws.shared_scale, rows, 1);
    const MutRows dscale = Workspace::View(ws.shared_dscale, rows, 1), dx = Workspace::View(ws.shared_dout, rows, h.cols);
    ops.SwiGlu({learning.tape.View(kept.shared_gate, width), learning.tape.View(kept.shared_up, width), inner});
    ops.Linear({inner, weights.shared.down, {}, out});
    ops.Linear({h, weights.shared_gate, {}, scale});
    ops.AddBackward({out, scale, dout, dx, dscale});
    ops.LinearBackward({dscale, weights.shared_gate, dh});
    dshared = dx;
    step.Count(kernels::LinearCost(weights.shared.down, rows));
  }
  std::fill_n(inner.data, inner.size(), 0.0f);
  ops.LinearBackward({dshared, weights.shared.down, inner});
  ops.SwiGluBackward({inner, learning.tape.View(kept.shared_gate, width), learning.tape.View(kept.shared_up, width)});
  ops.LinearBackward({learning.tape.View(kept.shared_gate, width), weights.shared.gate, dh});
  ops.LinearBackward({learning.tape.View(kept.shared_up, width), weights.shared.up, dh});
  for (const WeightMatrix* matrix : {&weights.shared.gate, &weights.shared.up, &weights.shared.down}) {
    step.Count(kernels::LinearBackwardCost(*matrix, rows));
  }
}

// dh += gradient through the routed experts; the gradient of the gate's logits stays in the workspace.
void RoutedBackward(StepContext& step, int32_t layer, LayerTape& kept, ConstRows h, MutRows dx, MutRows dh) {
  Learning& learning = *step.learning;
  BackwardWorkspace& ws = learning.ws;
  const int64_t rows = learning.tape.rows, slots = step.config.slots;
  const std::span<const FfnWeights> experts = step.experts.layer(layer);
  const kernels::Selection selection = SelectionOf(step, kept);
  const DeltaTensor* scale = learning.Find(DeltaGroup::kExpertScale, layer);
  if (scale != nullptr) step.ops.ScaleSlots({learning.tape.deltas->of(*scale), selection.expert, selection.weight});

  const bool kept_inner = learning.tape.keeps_inner();
  const MutRows gate = Workspace::View(kept_inner ? kept.inner_gate : ws.inner_gate, rows * slots, step.config.expert_width);
  const MutRows up = Workspace::View(kept_inner ? kept.inner_up : ws.inner_up, rows * slots, step.config.expert_width);
  if (!kept_inner) {
    step.ops.ExpertInner({h, experts, &selection, gate, up});
    step.Count(kernels::ExpertInnerCost(experts, selection));
  }
  const MutRows dweight = Workspace::View(ws.dweight, rows, slots);
  step.ops.ExpertFfnBackward({experts, &selection, gate, up, dx, Workspace::View(ws.slot_dx, rows * slots, step.config.hidden), dh, dweight});
  const kernels::OpCost cost = kernels::ExpertFfnBackwardCost(experts, selection);
  step.Count(cost);
  step.record.expert_bytes += cost.weight_bytes;

  const ConstRows weight{kept.weight.data(), rows, slots};
  if (scale != nullptr) {
    step.ops.ScaleSlotsBackward({learning.tape.deltas->of(*scale), selection.expert, weight, dweight, learning.GradientOf(*scale)});
  }
  const MutRows dlogits = Workspace::View(ws.dgate, rows, step.config.experts);
  step.ops.SelectBackward({learning.tape.View(kept.gate_logits, step.config.experts), step.config.gate, &selection, weight, dweight, dlogits});
}

}  // namespace

void ExpertsBackward(StepContext& step, int32_t layer) {
  Learning& learning = *step.learning;
  BackwardWorkspace& ws = learning.ws;
  const ModelConfig& config = step.config;
  const LayerWeights& weights = step.weights.layers[static_cast<size_t>(layer)];
  LayerTape& kept = learning.tape.layer(layer);
  const kernels::Ops& ops = step.ops;
  const int64_t rows = learning.tape.rows;
  const ConstRows middle = learning.tape.View(kept.middle, config.hidden);
  const MutRows dx{learning.tape.dx.data(), rows, config.hidden};
  const MutRows h = Workspace::View(ws.h, rows, config.hidden), plain_h = Workspace::View(ws.plain_h, rows, config.hidden);
  const MutRows dh = Workspace::View(ws.dh, rows, config.hidden);
  const DeltaTensor* gain = learning.Find(DeltaGroup::kExpertGain, layer);

  if (const DeltaTensor* bias = learning.Find(DeltaGroup::kResidualBias, layer)) ops.SumRows({dx, learning.GradientOf(*bias)});
  ops.RmsNorm({middle, weights.expert_norm, config.norm_epsilon, h});
  if (gain != nullptr) {
    std::copy_n(h.data, h.size(), plain_h.data);
    ops.Gain({learning.tape.deltas->of(*gain), h});
  }
  std::fill_n(dh.data, dh.size(), 0.0f);
  RoutedBackward(step, layer, kept, h, dx, dh);
  const ConstRows dlogits = Workspace::View(ws.dgate, rows, config.experts);
  if (const DeltaTensor* shift = learning.Find(DeltaGroup::kRouterShift, layer)) ops.SumRows({dlogits, learning.GradientOf(*shift)});
  LowRankBackward(step, DeltaGroup::kLowRankGate, layer, h, dlogits, dh);
  ops.LinearBackward({dlogits, weights.gate, dh});
  step.Count(kernels::LinearBackwardCost(weights.gate, rows));
  if (config.shared_width > 0) SharedExpertBackward(step, kept, weights, h, dx, dh);
  if (gain != nullptr) ops.GainBackward({learning.tape.deltas->of(*gain), plain_h, dh, learning.GradientOf(*gain)});
  ops.RmsNormBackward({middle, weights.expert_norm, config.norm_epsilon, dh, dx});
}

}  // namespace thermoe
