// SPDX-License-Identifier: Apache-2.0
// Quantised matrices with 16 rows interleaved, the layout of the integer kernels: one vector load brings four
// consecutive codes of 16 rows, so 16 dot products advance together, in decode and in prefill alike. It holds what the file
// holds, bit for bit, in nearly as many bytes.
//
// A group is 16 rows. With B = cols / 32 it holds, in this order (lanes are rows):
//   supers  K types: for each 256 columns d [16] binary16, then dmin [16] (kQ6K has none); kQ4K, kQ5K: then KScales
//   scales  for each 32 columns: d [16] binary16, then kQ5_1's m [16]; kQ4K, kQ5K: none;
//           kQ6K: scale [16] of the first 16 columns, [16] of the others; kMXFP4: e [16] bytes
//   (padded to 64 bytes)
//   codes   kQ8_0: [B][8][16][4] bytes, code + 128 of columns 32 b + 4 q + i
//           others: for each 32 columns [4][16][4] bytes, low half: the low four bits of column 32 b + 4 q + i, high half: of
//           the one 16 further on; then for each further bit [4][2][16][4] bits in the order of those nibbles, the first 64
//           bits of a q for its low halves
// The lo plane of kNested8 lies elsewhere, [4][16][4] bytes for each 32 columns.
#pragma once

#include <cstddef>
#include <cstdint>

#include "model/formats.h"

namespace thermoe {

inline constexpr int kInterleave = 16;

// The 6-bit scales and minimums of eight blocks of 32 columns of 16 rows, as many bytes as the file has.
struct KScales {
  struct Six {
    uint8_t low[4][16];   // [b % 4][row]: four low bits of block b, in the low half for b < 4
    uint8_t high[2][16];  // [b / 4][row]: two high bits of block b, from bit 2 (b % 4) on
  };
  Six scale, min;
};
static_assert(sizeof(KScales) == 192);

// Where the parts of a group are, in bytes.
struct GroupShape {
  int64_t super_bytes = 0;  // for each 256 columns
  int64_t scale_bytes = 0;  // for each 32 columns
  int64_t code_bytes = 0;   // for each 32 columns
  int64_t scales_at = 0, codes_at = 0, bytes = 0;
};
GroupShape GroupShapeOf(DType type, int64_t cols);

// Bytes of 16 rows; kNested8: of the hi plane.
int64_t InterleavedGroupBytes(DType type, int64_t cols);

// Whether a matrix of this type and shape can be interleaved.
bool CanInterleave(DType type, int64_t rows, int64_t cols);

// 16 rows of quantised blocks, `row_bytes` apart, as a group of the same type. Not for kNested8.
void InterleaveGroup(DType type, const std::byte* rows, int64_t row_bytes, int64_t cols, std::byte* group);
// 16 rows of Q8_0 blocks as a group of each plane of kNested8.
void InterleavePlanes(const std::byte* rows, int64_t row_bytes, int64_t cols, std::byte* hi, std::byte* lo);

// DecodeRow for interleaved matrices.
void DecodeInterleavedRow(const WeightMatrix& matrix, int64_t row, Planes planes, float* out);

}  // namespace thermoe
