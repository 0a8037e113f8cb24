// SPDX-License-Identifier: Apache-2.0
// What happens to q, k and v between their projections and attention, in one launch: norms, clamp, rope, and into the cache.
#pragma once

#include <optional>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/rows.h"

namespace thermoe::cuda {

struct FinishLaunch {
  std::optional<NormLaunch> q_norm, k_norm;  // in place
  float limit = 0;                           // of q, k and v; 0: none
  RopeLaunch q_rope, k_rope;                 // same angles
  StoreLaunch store;                         // k_rope.x and v
};
// Afterwards q is in place and the cache has k and v; the buffers of k and v may not.
bool FinishProjections(const FinishLaunch& launch, cudaStream_t stream);  // false: nothing was launched, other kernels must

}  // namespace thermoe::cuda
