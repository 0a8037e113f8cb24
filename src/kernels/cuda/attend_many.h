// SPDX-License-Identifier: Apache-2.0
// Attention of many rows on Hopper (compute capability 9.0): the rows of prefill, by wgmma.
#pragma once

#include "kernels/cuda/attention.h"
#include "kernels/cuda/prefill.h"

namespace thermoe::cuda {

// The rows from launch.single on. halves: where not null, they go there instead, as halves that no power of two has been taken out of, and out stays as it is; only where
// no row is single. False, and nothing was launched: not this device or these shapes.
bool AttendMany(const AttentionLaunch& launch, const HalfRows* halves, cudaStream_t stream);

}  // namespace thermoe::cuda
