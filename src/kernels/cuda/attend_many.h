// SPDX-License-Identifier: Apache-2.0
// Attention of many rows on Hopper (compute capability 9.0): the rows of prefill, by wgmma.
#pragma once

#include "kernels/cuda/attention.h"

namespace thermoe::cuda {

// The rows from launch.single on. False, and nothing was launched: not this device or these shapes.
bool AttendMany(const AttentionLaunch& launch, cudaStream_t stream);

}  // namespace thermoe::cuda
