// SPDX-License-Identifier: Apache-2.0
#include "forward/steering.h"

#include <cmath>

#include "base/errors.h"

namespace thermoe {
namespace {

Status CheckCount(const char* name, int value, int least, int32_t slots, size_t layer) {
  if (value == kAllSlots || (value >= least && value <= slots)) return Status::Ok();
  return InvalidArgument("steering of layer {}: {} is {}; give {} to {} (the model has {} slots per token)", layer, name, value,
                         least, slots, slots);
}

Status CheckLayer(const LayerSteering& steering, const SteeringShape& shape, size_t layer) {
  THERMOE_RETURN_IF_ERROR(CheckCount("guaranteed slots (k0)", steering.guaranteed_slots, 1, shape.slots, layer));
  THERMOE_RETURN_IF_ERROR(CheckCount("most slots (k-max)", steering.max_slots, 1, shape.slots, layer));
  THERMOE_RETURN_IF_ERROR(CheckCount("full slots", steering.full_slots, 0, shape.slots, layer));
  if (!(steering.drop_below_frac >= 0 && steering.drop_below_frac <= 1)) {
    return InvalidArgument("steering of layer {}: drop threshold is {}; give a fraction from 0 to 1", layer, steering.drop_below_frac);
  }
  if (!(steering.soft_batch >= 0 && steering.soft_batch <= kMostSoftBatch)) {
    return InvalidArgument("steering of layer {}: soft batch strength is {}; give a number from 0 to {}", layer, steering.soft_batch,
                           kMostSoftBatch);
  }
  const auto experts = static_cast<size_t>(shape.experts);
  if (!steering.selection_bias.empty() && steering.selection_bias.size() != experts) {
    return InvalidArgument("steering of layer {}: {} selection biases for {} experts; give one for each", layer,
                           steering.selection_bias.size(), experts);
  }
  for (size_t e = 0; e < steering.selection_bias.size(); ++e) {
    if (!std::isfinite(steering.selection_bias[e])) {
      return InvalidArgument("steering of layer {}: the selection bias of expert {} is not a finite number", layer, e);
    }
  }
  if (!steering.plane_cap.empty() && steering.plane_cap.size() != experts) {
    return InvalidArgument("steering of layer {}: {} plane caps for {} experts; give one for each", layer,
                           steering.plane_cap.size(), experts);
  }
  for (size_t e = 0; e < steering.plane_cap.size(); ++e) {
    if (steering.plane_cap[e] != 1 && steering.plane_cap[e] != 2) {
      return InvalidArgument("steering of layer {}: the plane cap of expert {} is {}; give 1 (hi only) or 2 (both planes)", layer,
                             e, steering.plane_cap[e]);
    }
  }
  if (!shape.nested && steering.full_slots != kAllSlots) {
    return InvalidArgument("full slots need nested experts; load the model with --experts nested or leave --full-slots out");
  }
  if (!shape.nested && !steering.plane_cap.empty()) {
    return InvalidArgument("plane caps need nested experts; load the model with --experts nested or leave --plane-cap out");
  }
  return Status::Ok();
}

}  // namespace

Status CheckSteering(const Steering& steering, const SteeringShape& shape) {
  if (!steering.layers.empty() && steering.layers.size() != static_cast<size_t>(shape.layers)) {
    return InvalidArgument("steering has {} layers but the model has {} MoE layers; give one entry for each", steering.layers.size(),
                           shape.layers);
  }
  if (steering.sample_gate_rows < 0 || steering.sample_gate_rows > kMostGateRows) {
    return InvalidArgument("steering samples {} rows of gate logits; give 0 to {}", steering.sample_gate_rows, kMostGateRows);
  }
  for (size_t l = 0; l < steering.layers.size(); ++l) THERMOE_RETURN_IF_ERROR(CheckLayer(steering.layers[l], shape, l));
  return Status::Ok();
}

}  // namespace thermoe
