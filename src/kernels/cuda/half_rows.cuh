// SPDX-License-Identifier: Apache-2.0
// Rows of activations in binary16 in the order that products of few rows want them: of each 32 columns, lane t of 4 has columns 2t and
// 2t + 1 and those 8, 16 and 24 further on, 16 bytes together (the B fragments of two steps of mma.m16n8k16).
#pragma once

#include "kernels/cuda/fragments.cuh"

namespace thermoe::cuda {

__host__ __device__ constexpr int HalfPlace(int column) {
  const int within = column % 32;
  return column - within + within % 8 / 2 * 8 + within / 8 * 2 + within % 2;
}

__device__ inline void StoreHalf(__half* row, int column, float value) { row[HalfPlace(column)] = SaturatedHalf(value); }

}  // namespace thermoe::cuda
