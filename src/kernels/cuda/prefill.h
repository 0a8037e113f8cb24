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
// What experts gave, not added yet.
struct HalfSlots {
  const __half* slots = nullptr;    // [T * K, hidden], by token * K + slot, times the slot's weight
  const int32_t* expert = nullptr;  // [T, K], -1: empty; empty ones come last
  int32_t count = 0;                // K
};
// left: where not null, nothing is added to launch.out, and this is what is to be.
cudaError_t ExpertPrefill(const ExpertFfnLaunch& launch, HalfSlots* left, cudaStream_t stream);
size_t ExpertPrefillScratch(int32_t hidden, int32_t width, int32_t slots, int32_t rows);

// Activations as prefill multiplies them.
struct HalfRows {
  void* halves = nullptr;    // [WholeHalfRows(rows), stride] binary16, zero beyond the columns; whatever there is beyond the rows
  int32_t stride = 0;        // a multiple of 64
  float* unscale = nullptr;  // [rows] times this: the activations
  int32_t* taken = nullptr;  // [kMostTogether] set to zero: what the products after it count
};
constexpr int32_t Padded(int32_t cols) { return (cols + kTileCols - 1) / kTileCols * kTileCols; }    // their stride
constexpr size_t AlignedScratch(size_t bytes) { return (bytes + 255) / 256 * 256; }                  // where the next part of scratch begins
// Rows that may be read: a tensor copy that reaches beyond its tensor is slow (H100: q, k and v of 900 rows 55 us instead of 44).
inline constexpr int32_t kHalfRowsTogether = 256;
constexpr int32_t WholeHalfRows(int32_t rows) { return (rows + kHalfRowsTogether - 1) / kHalfRowsTogether * kHalfRowsTogether; }
cudaError_t RowsToHalves(const float* x, int32_t rows, int32_t cols, HalfRows to, cudaStream_t stream);
// In a part of scratch.
size_t HalfRowsBytes(int32_t rows, int32_t cols);
HalfRows HalfRowsAt(void* at, int32_t rows, int32_t cols);
// Where a launch's products look for them in its scratch: whoever makes the rows may write them there (`prefilled`). Nothing between them and experts may use
// scratch but a selection of these rows; what ExpertPrefill leaves lies beyond those of a linear of as many rows and columns.
HalfRows HalfRowsOf(const LinearLaunch& launch);
HalfRows HalfRowsOf(const ExpertFfnLaunch& launch);

// Multiprocessors of the current device if it is a Hopper and runs the code that was made for it, else 0. Asked once a thread and device.
int HopperMultiprocessors();

// Whether Hopper's own kernels may serve a launch: elsewhere they are empty.
template <typename Launch>
bool MayBeHoppers(const Launch& launch) { return launch.wgmma && HopperMultiprocessors() > 0; }

}  // namespace thermoe::cuda
