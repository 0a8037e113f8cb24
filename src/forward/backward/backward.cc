// SPDX-License-Identifier: Apache-2.0
// The backward pass on one page: from the last layer's output down to the lowest layer that is adapted.
#include "forward/step.h"

namespace thermoe {

void Backward(StepContext& step) {
  StageTimer timer(&step.record.times.learn_us);
  Learning& learning = *step.learning;
  const MutRows dx{learning.tape.dx.data(), learning.tape.rows, step.config.hidden};
  const auto output_of = [&](int32_t layer) -> ConstRows {
    std::vector<float>& kept = layer + 1 < step.config.layers ? learning.tape.layer(layer + 1).x : learning.tape.output;
    return learning.tape.View(kept, step.config.hidden);
  };
  for (int32_t layer = step.config.layers - 1; layer >= learning.lowest_layer(); --layer) {
    if (learning.features != nullptr) FeaturesBackward(learning, layer, output_of(layer), dx);
    ExpertsBackward(step, layer);
    if (layer == learning.lowest_layer() && !learning.lowest_has_attention()) return;
    AttentionBackward(step, layer);
  }
}

}  // namespace thermoe
