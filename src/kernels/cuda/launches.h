// SPDX-License-Identifier: Apache-2.0
// What matrix_kernels.h chooses from. Preconditions are checked there.
#pragma once

#include "kernels/cuda/matrix_kernels.h"

namespace thermoe::cuda {

// kF32.
cudaError_t LinearPlain(const LinearLaunch& launch, cudaStream_t stream);
// Of up to 256 rows by tensor cores, as matrix_tf32.cu does it; false: not this shape, or not on this device.
bool LinearOfTf32(const LinearLaunch& launch, cudaStream_t stream);
// Of 2,048 rows and more by tensor cores, as matrix_tf32_many.cu does it; false: likewise.
bool LinearOfManyTf32(const LinearLaunch& launch, cudaStream_t stream);
// Of many rows, as matrix_split.cu does it; false: not these columns, or not on this device.
bool LinearOfSplitColumns(const LinearLaunch& launch, cudaStream_t stream);
size_t ExpertPlainScratch(int32_t width, int32_t slots, int32_t rows);
cudaError_t ExpertPlain(const ExpertFfnLaunch& launch, cudaStream_t stream);

}  // namespace thermoe::cuda
