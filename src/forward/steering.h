// SPDX-License-Identifier: Apache-2.0
// The seam between data flow and control loop: plain data (include/thermoe/steering.h) and its validity.
// The only header of forward/ that control/ may include.
#pragma once

#include "thermoe/status.h"
#include "thermoe/steering.h"

namespace thermoe {

// Strongest soft batch rule: at 10 the first sharer already multiplies a score by 148.
inline constexpr float kMostSoftBatch = 10.0f;

// What a Steering must fit.
struct SteeringShape {
  int32_t layers = 0;   // MoE layers
  int32_t experts = 0;  // E
  int32_t slots = 0;    // K
  bool nested = false;  // experts have planes
};

// kInvalidArgument names layer, field and remedy.
Status CheckSteering(const Steering& steering, const SteeringShape& shape);

// The rules of one MoE layer, or null for the plain model.
inline const LayerSteering* SteeringOfLayer(const Steering* steering, int32_t layer) {
  return steering == nullptr || steering->layers.empty() ? nullptr : &steering->layers[static_cast<size_t>(layer)];
}

}  // namespace thermoe
