// SPDX-License-Identifier: Apache-2.0
// How weight matrices lie in GPU memory: in the order of the tensor cores' fragments, so that kernels load them into
// registers as they are. Plain host C++.
//
// A matrix is cut into tiles of 16 rows by 64 columns (4 steps of 16 columns). Eight tiles below each other make a
// group of 128 rows; a group's tiles lie column by column of tiles, the groups one after the other, so that any run of
// columns of a group is one piece: row tile r, column tile k is number (r / 8 * k_tiles + k) * 8 + r % 8.
//
// Lane l of a warp holds of step s the rows g = l / 4 and g + 8 and the columns 16 s + 2 t + {0, 1} and
// 16 s + 2 t + 8 + {0, 1}, t = l % 4: eight weights a0..a7 = (g; 0, 1), (g + 8; 0, 1), (g; 8, 9), (g + 8; 8, 9), as
// mma.m16n8k16 and wgmma want them.
//
//   4 bits   16 bytes a lane and tile: of steps 0 and 1 a word of row g and one of row g + 8, then of steps 2 and 3. Of row g
//            the high half of byte 2 c + s is a[c] of step s of the two, the low half a[4 + c]; of row g + 8 a[2 + c] and
//            a[6 + c]. So a word's bytes are of one row, as mma.m16n8k32 wants them, and every second byte of one step
//   8 bits   plus 128, as two planes of 4 bits, 4 bytes a step (so that prefill makes halves of them step by step). hi: the high
//            half of byte j is a[p(j)], the low half a[4 + p(j)], p = 0, 2, 1, 3. lo: the halves of a byte the other way
//            round, so that (hi & 0xf0f0f0f0) | (lo & 0x0f0f0f0f) is four whole codes
//   halves   64 bytes a lane and tile: a0..a7 of step 0 for all lanes, then of step 1, ...
//   scales   of a tile together, row 0 of the tile first, as Packing says
//
// Rows are filled up to a multiple of 128 and columns to one of 64, with weights of zero.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "model/formats.h"

namespace thermoe::cuda {

// Codes and scales of a tile's row. "code": what the tensor cores multiply.
enum class Packing : uint8_t {
  kPlanes8,    // 8 bits - 128; 2 binary16: d of each 32 columns. Nested experts, Q8_0, Q5_0, IQ4_NL. Hi alone: 16 hi
               // + 7.5
  kNibble,     // 4 bits - 8; 2 binary16. Q4_0
  kNibbleMin,  // 4 bits; binary16 d, dmin, bytes s0, m0, s1, m1: (d * s) * code - dmin * m of each 32 columns. Q4_K
  kByteMin,    // 8 bits - 128; 4 floats d0, m0, d1, m1: d * code - m of each 32 columns. Q5_1, Q5_K
  kByte16,     // 8 bits - 128; binary16 d, 2 bytes unused, 4 signed bytes s: (d * s) * code of each 16 columns. Q6_K
  kMxfp4,      // 4 bits: twice an E2M1; 2 bfloat16 scales. MXFP4
  kHalf,       // binary16, times a power of two of the row: one float a row of the whole matrix. BF16, F16
  kF32,        // floats, rows one after the other, nothing filled up: for what is small (the router's gate)
  kHiPlane,    // no type's: what kernels take kPlanes8 as where nobody reads lo planes
  kBothPlanes,  // no type's: or where everybody does
};

inline constexpr int kTileRows = 16;
inline constexpr int kTileCols = 64;
inline constexpr int kGroupTiles = 8;
inline constexpr int kGroupRows = kTileRows * kGroupTiles;
inline constexpr int kPlaneTileBytes = 512;  // of one plane of codes
inline constexpr int kHalfTileBytes = 2048;

constexpr Packing PackingOf(DType type) {
  switch (type) {
    case DType::kNested8:
    case DType::kQ8_0:
    case DType::kQ5_0:
    case DType::kIQ4NL: return Packing::kPlanes8;
    case DType::kQ4_0: return Packing::kNibble;
    case DType::kQ4K: return Packing::kNibbleMin;
    case DType::kQ5_1:
    case DType::kQ5K: return Packing::kByteMin;
    case DType::kQ6K: return Packing::kByte16;
    case DType::kMXFP4: return Packing::kMxfp4;
    case DType::kBF16:
    case DType::kF16: return Packing::kHalf;
    case DType::kF32: break;
  }
  return Packing::kF32;
}
// Of all 16 rows of a tile; 0 for kHalf and kF32.
constexpr int ScaleTileBytes(Packing packing) {
  switch (packing) {
    case Packing::kPlanes8:
    case Packing::kHiPlane:
    case Packing::kBothPlanes:
    case Packing::kNibble:
    case Packing::kMxfp4: return kTileRows * 4;
    case Packing::kNibbleMin:
    case Packing::kByte16: return kTileRows * 8;
    case Packing::kByteMin: return kTileRows * 16;
    default: return 0;
  }
}
constexpr bool HasLoPlane(Packing packing) {
  return packing == Packing::kPlanes8 || packing == Packing::kBothPlanes || packing == Packing::kByteMin || packing == Packing::kByte16;
}
constexpr bool MoreThanFourBits(Packing packing) { return HasLoPlane(packing) || packing == Packing::kHalf; }
constexpr int CodeTileBytes(Packing packing) { return packing == Packing::kHalf ? kHalfTileBytes : kPlaneTileBytes; }

// A packed matrix [rows, cols] in device memory. Plain data: arrays of it lie in device memory too.
struct DeviceMatrix {
  Packing packing = Packing::kF32;
  int32_t rows = 0, cols = 0;
  int32_t k_tiles = 0;                // tiles of 64 columns; row tile r begins at tile r * k_tiles
  const std::byte* hi = nullptr;      // codes, halves or floats
  const std::byte* lo = nullptr;      // the lo plane; null where the packing has none
  const std::byte* scales = nullptr;  // by tile; kHalf: a float a row
};

// Bytes of a packed matrix: one piece, its parts aligned to 256 bytes.
int64_t PackedBytes(DType type, int64_t rows, int64_t cols);
// Bytes that a pass over the real rows reads.
int64_t ReadBytes(DType type, int64_t rows, int64_t cols, Planes planes);
// The number of a tile in its matrix.
constexpr int64_t TileNumber(int64_t row_tile, int64_t k_tile, int64_t k_tiles) {
  return (row_tile / kGroupTiles * k_tiles + k_tile) * kGroupTiles + row_tile % kGroupTiles;
}
// The reference of what pack.h does on the device. `from` in the layout of files (Layout::kRows), any type; `to`: [PackedBytes], every byte is
// written.
void Pack(const WeightMatrix& from, std::byte* to);
// What Pack's result is once it lies at `packed` (device memory, aligned to 256 bytes).
DeviceMatrix View(DType type, int64_t rows, int64_t cols, const std::byte* packed);

}  // namespace thermoe::cuda
