// SPDX-License-Identifier: Apache-2.0
// Products for one row of decoding with codes of 4 bits (one_row_experts.cu, one_row_linear.cu; Hopper): as stream_rows.h, which serves what these do not. False: not these.
#pragma once

#include <span>

#include "kernels/cuda/matrix_kernels.h"

namespace thermoe::cuda {

// Adds what the experts give to `launch.out`.
bool ExpertsOfOneRow(const ExpertFfnLaunch& launch, cudaStream_t stream);
bool LinearOfOneRow(std::span<const LinearLaunch> launches, cudaStream_t stream);

}  // namespace thermoe::cuda
