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

}  // namespace

void Forward(StepContext& step) {
  StageTimer timer(&step.record.times.total_us);
  Embed(step);
  if (step.first_layer > 0) ResumeFromTape(step);
  for (int32_t layer = step.first_layer; layer < step.config.layers; ++layer) Layer(step, layer);
  Logits(step);
}

void StepContext::Count(const kernels::OpCost& cost) {
  record.weight_bytes += cost.weight_bytes;
  record.kv_bytes += cost.kv_bytes;
  record.flops += cost.flops;
}

}  // namespace thermoe
