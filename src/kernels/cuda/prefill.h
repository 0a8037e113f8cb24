// SPDX-License-Identifier: Apache-2.0
// Products for many rows of activations, bound by the tensor cores: what prefill does, on Hopper (compute
// capability 9.0). Same meaning as matrix_kernels.h, whose launches they serve. Weights are read once for each 128
// rows.
#pragma once

#include <span>

#include "kernels/cuda/matrix_kernels.h"

namespace thermoe::cuda {

// Whether these kernels serve a launch: enough rows, the device, the packings, sizes they can write 16 bytes of.
bool PrefillsLinear(const LinearLaunch& launch);
bool PrefillsExperts(const ExpertFfnLaunch& launch);

// Matrices with the same x, rows and scratch.
cudaError_t LinearPrefill(std::span<const LinearLaunch> launches, cudaStream_t stream);
size_t LinearPrefillScratch(int32_t rows, int32_t in);
// Parts of the columns that multiprocessors share where there would be too few items for all: 1, 2 or 4 of a matrix alone, whose sums are added afterwards.
int PrefillColumnParts(std::span<const LinearLaunch> launches);
cudaError_t ExpertPrefill(const ExpertFfnLaunch& launch, cudaStream_t stream);
size_t ExpertPrefillScratch(int32_t hidden, int32_t width, int32_t slots, int32_t rows);

// Activations as prefill multiplies them.
struct HalfRows {
  void* halves = nullptr;    // [rows, stride] binary16, zero beyond the columns
  int32_t stride = 0;        // a multiple of 64
  float* unscale = nullptr;  // [rows] times this: the activations
  int32_t* taken = nullptr;  // [kMostTogether] set to zero: what the products after it count
};
cudaError_t RowsToHalves(const float* x, int32_t rows, int32_t cols, HalfRows to, cudaStream_t stream);

// Multiprocessors of the current device if it is a Hopper, else 0. Asked once a thread and device.
int HopperMultiprocessors();

}  // namespace thermoe::cuda
