// SPDX-License-Identifier: Apache-2.0
// A reading of the device's memory, to be timed: CudaOps::MeasureReadSpeed (measure.cc) and bench/gpu_matrix.cu do.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace thermoe::cuda {

// Reads `bytes`, a multiple of 16, aligned to 16, once, by all multiprocessors. out: one word, which may be of what is read; written in one case of 2^32.
void ReadAll(const std::byte* data, int64_t bytes, uint32_t* out, cudaStream_t stream);

}  // namespace thermoe::cuda
