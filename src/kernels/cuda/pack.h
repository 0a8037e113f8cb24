// SPDX-License-Identifier: Apache-2.0
// Packs weights on the device: rows as files have them, already in its memory, into the layout of weight_layout.h. Every type; the bytes are those of
// Pack on the host, but for rows of numbers that are none (NaN).
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/weight_layout.h"

namespace thermoe::cuda {

// Whole groups of kGroupRows rows of a matrix, from a multiple of kGroupRows on; the matrix's last group may be short.
struct PackLaunch {
  DType type = DType::kF32;
  DeviceMatrix to;                  // View of the whole matrix
  const std::byte* data = nullptr;  // [rows] from first_row on, as Layout::kRows; aligned to 4 bytes
  const std::byte* lo = nullptr;    // kNested8: their other plane
  int64_t first_row = 0, rows = 0;
};
cudaError_t PackRows(const PackLaunch& launch, cudaStream_t stream);

}  // namespace thermoe::cuda
