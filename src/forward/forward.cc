// SPDX-License-Identifier: Apache-2.0
// The data flow on one page: tokens -> embedding -> layers (attention, gate, experts) -> logits -> sink.
#include "forward/step.h"

namespace thermoe {

void Forward(StepContext& step) {
  StageTimer timer(&step.record.times.total_us);
  Embed(step);
  for (int32_t layer = 0; layer < step.config.layers; ++layer) Layer(step, layer);
  Logits(step);
}

void StepContext::Count(const kernels::OpCost& cost) {
  record.weight_bytes += cost.weight_bytes;
  record.kv_bytes += cost.kv_bytes;
  record.flops += cost.flops;
}

}  // namespace thermoe
