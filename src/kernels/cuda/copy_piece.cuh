// SPDX-License-Identifier: Apache-2.0
// A piece of memory to another place, by some threads.
#pragma once

#include "kernels/cuda/rows.h"

namespace thermoe::cuda {

// A thread's share.
__device__ inline void CopyPiece(const ScatterLaunch::Piece& piece, int64_t thread, int64_t threads) {
  const int64_t quads = reinterpret_cast<uintptr_t>(piece.to) % 16 == 0 ? piece.bytes / 16 : 0;
  for (int64_t i = thread; i < quads; i += threads) reinterpret_cast<uint4*>(piece.to)[i] = reinterpret_cast<const uint4*>(piece.from)[i];
  for (int64_t i = quads * 16 + thread; i < piece.bytes; i += threads) piece.to[i] = piece.from[i];
}

}  // namespace thermoe::cuda
