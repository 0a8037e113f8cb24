// SPDX-License-Identifier: Apache-2.0
// How fast the device reads its memory.
#pragma once

#include <cuda_runtime_api.h>

namespace thermoe::cuda {

// Bytes a second, the best of a few readings of up to 1 GiB, of memory allocated for it; 0 where there is too little left, or the device fails. Waits.
double ReadBytesPerSecond(cudaStream_t stream);

}  // namespace thermoe::cuda
