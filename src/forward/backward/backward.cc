// SPDX-License-Identifier: Apache-2.0
// The backward pass on one page: from the last layer's output down to the lowest layer that is adapted.
#include <algorithm>

#include "forward/step.h"

namespace thermoe {

namespace {

// Rows that the layers leave alone have no experts to go back through.
void HoldExperts(Learning& learning, int32_t layer, int64_t slots) {
  for (size_t row = 0; row < learning.held.size(); ++row) {
    if (learning.held[row] != 0) std::fill_n(learning.tape.layer(layer).expert.begin() + static_cast<int64_t>(row) * slots, slots, -1);
  }
}

// What reached them as keys and values of later rows ends here: they are constants, as the tokens of earlier segments are.
void HoldGradients(Learning& learning, MutRows dx) {
  for (size_t row = 0; row < learning.held.size(); ++row) {
    if (learning.held[row] != 0) std::fill_n(dx.row(static_cast<int64_t>(row)), dx.cols, 0.0f);
  }
}

}  // namespace

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
    HoldExperts(learning, layer, step.config.slots);
    ExpertsBackward(step, layer);
    if (layer == learning.lowest_layer() && !learning.lowest_has_attention()) return;
    AttentionBackward(step, layer);
    HoldGradients(learning, dx);
  }
}

}  // namespace thermoe
