// SPDX-License-Identifier: Apache-2.0
// What matrix_kernels.h chooses from. Preconditions are checked there.
#pragma once

#include "kernels/cuda/matrix_kernels.h"

namespace thermoe::cuda {

// Few rows: bound by the bytes of the weights. Any packing but kF32.
size_t LinearDecodeScratch(int32_t rows, int32_t in, std::span<const int32_t> outs);
cudaError_t LinearDecode(std::span<const LinearLaunch> launches, cudaStream_t stream);
size_t ExpertDecodeScratch(int32_t experts, int32_t hidden, int32_t width, int32_t slots, int32_t rows);
cudaError_t ExpertDecode(const ExpertFfnLaunch& launch, cudaStream_t stream);

// kF32.
cudaError_t LinearPlain(const LinearLaunch& launch, cudaStream_t stream);
size_t ExpertPlainScratch(int32_t width, int32_t slots, int32_t rows);
cudaError_t ExpertPlain(const ExpertFfnLaunch& launch, cudaStream_t stream);

}  // namespace thermoe::cuda
