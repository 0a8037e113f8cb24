// SPDX-License-Identifier: Apache-2.0
#include "engine/profile_target.h"

#include <algorithm>
#include <cmath>

#include "base/random.h"
#include "control/cost/operation.h"
#include "engine/model_impl.h"
#include "forward/sample.h"
#include "forward/step.h"

namespace thermoe {

static_assert(kLogitRows == kLogitTile);  // control does not see forward

ProfileTarget ProfileTargetOf(const Model& model) {
  const ModelImpl& impl = model.impl();
  ProfileTarget target;
  target.config = &impl.config();
  target.weights = &impl.loaded().weights;
  target.experts = &impl.experts();
  auto sampler = std::make_shared<Sampler>(impl.config().vocab);
  target.sample = [sampler](std::span<float> logits) {
    // As the engine's own sink: are the logits finite, the model's own normaliser, the choice.
    Random random(1);
    if (!AllFinite(logits)) return;
    (void)LogSumExp(logits);
    (void)sampler->Sample(logits, SamplingOptions{}, {}, &random);
  };
  return target;
}

}  // namespace thermoe
