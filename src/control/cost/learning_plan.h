// SPDX-License-Identifier: Apache-2.0
// The operations of learning from one segment, as forward/backward/ makes them: what a tier of test-time training will
// cost.
#pragma once

#include <cstdint>
#include <vector>

#include "control/cost/operation.h"

namespace thermoe {

struct LearningShape {
  int64_t rows = 0;          // of the segment
  int64_t loss_rows = 0;     // that reach the output matrix
  int64_t position = 0;      // of its first row
  int32_t lowest_layer = 0;  // of the backward pass; the model's number of layers: it ends at the output
  uint32_t groups = 0;       // bits by the number of a DeltaGroup: those that the session has
  int64_t parameters = 0;    // that an update moves
  int64_t rank = kProfiledRank;
  bool inner_kept = true;    // the experts' inner activations
};

// Loss and output matrix, then layer by layer from the top. The update itself is Adam's pass over the parameters and
// those that learn their scale, priced as sums of rows.
std::vector<OperationShape> OperationsOfLearning(const ModelShape& model, const LearningShape& learning);

}  // namespace thermoe
