// SPDX-License-Identifier: Apache-2.0
// Quantised matrices with 16 rows interleaved, the layout of the integer kernels: one vector load brings four
// consecutive codes of 16 rows, so 16 dot products advance together, in decode and in prefill alike.
//
// A group is 16 rows. With B = cols / 32 blocks it holds, in this order:
//   scales  [B][16] binary16, padded to 64 bytes
//   codes   kQ8_0x16: [B][8][16][4] bytes, code + 128 of columns 32 b + 4 q + i
//           kQ4_0x16, planes of kNested8x16: [B][4][16][4] bytes; low half: column 32 b + 4 q + i, high half: 16 further on
// The lo plane of kNested8x16 lies elsewhere and has no scales.
#pragma once

#include <cstddef>
#include <cstdint>

#include "model/formats.h"

namespace thermoe {

inline constexpr int kInterleave = 16;

inline constexpr int64_t InterleavedScaleBytes(int64_t cols) { return (cols / kQuantBlock * 32 + 63) / 64 * 64; }
// Bytes of 16 rows; nested: of the hi plane.
inline constexpr int64_t InterleavedGroupBytes(DType type, int64_t cols) {
  return InterleavedScaleBytes(cols) + cols / kQuantBlock * (type == DType::kQ8_0x16 ? 512 : 256);
}

// Whether a matrix of this shape can be interleaved.
inline constexpr bool CanInterleave(int64_t rows, int64_t cols) { return rows % kInterleave == 0 && cols % kQuantBlock == 0; }

// 16 rows of Q8_0 or Q4_0 blocks, `row_bytes` apart, as a group of kQ8_0x16 or kQ4_0x16.
void InterleaveGroup(DType from, const std::byte* rows, int64_t row_bytes, int64_t cols, std::byte* group);
// 16 rows of Q8_0 blocks as a group of each plane of kNested8x16.
void InterleavePlanes(const std::byte* rows, int64_t row_bytes, int64_t cols, std::byte* hi, std::byte* lo);

// DecodeRow for the interleaved types.
void DecodeInterleavedRow(const WeightMatrix& matrix, int64_t row, Planes planes, float* out);

}  // namespace thermoe
