// SPDX-License-Identifier: Apache-2.0
#include "forward/step.h"

namespace thermoe {

void Layer(StepContext& step, int32_t layer) {
  Attention(step, layer);
  Gate(step, layer);
  Experts(step, layer);
}

}  // namespace thermoe
