// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "forward/step.h"

namespace thermoe {
namespace {

// The expert that every token visits, scaled by its own gate where the model has one.
void SharedExpert(StepContext& step, int32_t layer, const LayerWeights& weights) {
  Workspace& ws = step.ws;
  const kernels::Ops& ops = step.ops;
  const MutRows gate = step.view(ws.shared_gate, step.config.shared_width);
  const MutRows up = step.view(ws.shared_up, step.config.shared_width);
  ops.Linear({step.h(), weights.shared.gate, {}, gate});
  ops.Linear({step.h(), weights.shared.up, {}, up});
  if (LayerTape* kept = step.tape(layer); kept != nullptr) {
    step.learning->tape.Keep<float>(gate, &kept->shared_gate);
    step.learning->tape.Keep<float>(up, &kept->shared_up);
  }
  ops.SwiGlu({gate, up, gate});
  MutRows scale;
  if (step.config.shared_gate) {
    scale = step.view(ws.shared_scale, 1);
    ops.Linear({step.h(), weights.shared_gate, {}, scale});
  }
  const MutRows out = Workspace::View(ws.slot_out, step.tokens(), step.config.hidden);  // free again after the routed experts
  ops.Linear({gate, weights.shared.down, {}, out});
  ops.Add({out, scale, step.x()});
  for (const WeightMatrix* matrix : {&weights.shared.gate, &weights.shared.up, &weights.shared.down, &weights.shared_gate}) {
    if (!matrix->empty()) step.Count(kernels::LinearCost(*matrix, step.tokens()));
  }
}

}  // namespace

void Experts(StepContext& step, int32_t layer) {
  StageTimer timer(&step.record.times.experts_us);
  const ModelConfig& config = step.config;
  const LayerWeights& weights = step.weights.layers[static_cast<size_t>(layer)];
  Workspace& ws = step.ws;
  const int64_t slots = step.tokens() * config.slots;
  kernels::ExpertFfnArgs args{step.h(), step.experts.layer(layer), &ws.selection, Workspace::View(ws.inner, slots, config.expert_width),
                              Workspace::View(ws.slot_out, slots, config.hidden), step.x()};
  if (LayerTape* kept = step.tape(layer); kept != nullptr && step.learning->tape.keeps_inner()) {
    const Tape& tape = step.learning->tape;
    args.keep_first = tape.first, args.keep_rows = tape.rows;
    args.keep_gate = Workspace::View(kept->inner_gate, tape.rows * config.slots, config.expert_width);
    args.keep_up = Workspace::View(kept->inner_up, tape.rows * config.slots, config.expert_width);
  }
  if (step.recalls) std::copy_n(step.x().data, step.x().size(), ws.before.data());
  step.ops.ExpertFfn(args);
  if (step.recalls) ApplyRecall(step, layer, step.view(ws.before, config.hidden));
  if (config.shared_width > 0) SharedExpert(step, layer, weights);
  ApplyBias(step, DeltaGroup::kResidualBias, layer, step.x());
}

}  // namespace thermoe
