// SPDX-License-Identifier: Apache-2.0
// Products of so many rows that every weight is quicker unpacked once, to halves in memory, than by each block for itself: then both factors
// come to the tensor cores from shared memory. To the bit what LinearPrefill gives otherwise, of columns in one part.
#pragma once

#include <cstddef>
#include <span>

#include "kernels/cuda/prefill.h"

namespace thermoe::cuda {

// What is unpacked at once: q, k and v of 2,048 columns, half of the L2 cache of an H100. Larger ones go in pieces.
inline constexpr size_t kUnpackedBytes = size_t{24} << 20;
// What steps of so many rows want of LinearLaunch.unpacked: all or nothing.
size_t UnpackedRoom(int32_t rows);

bool PrefillsUnpacked(std::span<const LinearLaunch> launches);
// Matrices with the same x, whose halves the launch before this one makes: that is under way when the first weights are written to
// `unpacked`, which the products before read: it must wait for the launches before it before it lets the next begin.
cudaError_t LinearUnpacked(std::span<const LinearLaunch> launches, const HalfRows& x, cudaStream_t stream);

// Groups of 128 rows of one matrix, unpacked.
struct UnpackedPart {
  DeviceMatrix weight;
  int32_t first_group = 0, groups = 0;  // of the matrix
  int32_t at = 0;                       // its first among all that are unpacked
  float* out = nullptr;                 // [rows of x, weight.rows]
  const float* bias = nullptr;          // [weight.rows] or null
};
inline constexpr int kUnpackedTileBytes = kGroupRows * kTileCols * static_cast<int>(sizeof(__half));

// Parts of one packing to `to`: [groups][k_tiles][128][64] halves, as shared memory has them: 16-byte pieces of row r exchanged by r % 8. waits: only
// when the launch before has ended; else when all before that have.
cudaError_t Unpack(std::span<const UnpackedPart> parts, std::byte* to, bool waits, cudaStream_t stream);

}  // namespace thermoe::cuda
