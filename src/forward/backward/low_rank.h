// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "forward/step.h"

namespace thermoe {

// Gradients of y += (x A) B with respect to A, B and (+=) x, where the segment's deltas have this group; nothing otherwise.
inline void LowRankBackward(StepContext& step, DeltaGroup group, int32_t layer, ConstRows x, ConstRows dy, MutRows dx) {
  Learning& learning = *step.learning;
  const DeltaTensor* a = learning.Find(group, layer, DeltaPart::kA);
  if (a == nullptr) return;
  const DeltaTensor* b = learning.Find(group, layer, DeltaPart::kB);
  const Deltas& deltas = *learning.tape.deltas;
  const ConstRows a_values = deltas.matrix(*a), b_values = deltas.matrix(*b);
  const MutRows inner = Workspace::View(learning.ws.low_rank, x.rows, a->rows);
  step.ops.Linear({x, {DType::kF32, a->rows, a->cols, reinterpret_cast<const std::byte*>(a_values.data)}, {}, inner});
  step.ops.LowRankBackward({x, a_values, b_values, inner, dy, Workspace::View(learning.ws.dlow_rank, x.rows, a->rows), dx,
                            {learning.GradientOf(*a).data(), a->rows, a->cols}, {learning.GradientOf(*b).data(), b->rows, b->cols}});
  step.record.flops += 2.0 * static_cast<double>(x.rows) * static_cast<double>(3 * a->size() + 2 * b->size());
}

}  // namespace thermoe
