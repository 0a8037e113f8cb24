// SPDX-License-Identifier: Apache-2.0
// Attention of rows of decoding with what comes before it, in one launch: norms, limits and rope of q and k, the cache (project.h, attention.h).
#pragma once

#include "kernels/cuda/attention.h"
#include "kernels/cuda/project.h"

namespace thermoe::cuda {

inline constexpr int64_t kAttendCounters = 4096;  // rows times kv heads, or twice as many of few rows

// False, and nothing was launched: not these shapes, or not this device. q, k and v keep what they had. early: the launch before wrote neither the rows' places
// nor the angles nor keys or values of earlier positions, and waited for what did. counters: [kAttendCounters], zero between launches, of no other launch under way;
// null: none. block_bytes: shared memory that a block may have; 0: what the device gives one.
bool FinishAndAttend(const FinishLaunch& finish, const AttentionLaunch& attention, bool early, uint32_t* counters, cudaStream_t stream, int block_bytes = 0);

}  // namespace thermoe::cuda
