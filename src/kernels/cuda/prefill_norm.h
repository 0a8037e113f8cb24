// SPDX-License-Identifier: Apache-2.0
// The norm of many rows between prefill's products: what experts or a product gave is added first, and the halves that the next
// products multiply are written, in one pass over the rows.
#pragma once

#include "kernels/cuda/prefill.h"
#include "kernels/cuda/rows.h"

namespace thermoe::cuda {

struct PrefillNormLaunch {
  NormLaunch norm;  // its slots and halves are not used; out null: nobody reads it
  HalfSlots slots;  // added to x first, if there are any; then norm.add is null
  HalfRows halves;  // out once more, if it has a place
};
// Whether this kernel serves rows of this shape. Sums are RmsNorm's, to the bit.
bool NormsForPrefill(const NormLaunch& norm);
void PrefillNorm(const PrefillNormLaunch& launch, cudaStream_t stream);

}  // namespace thermoe::cuda
