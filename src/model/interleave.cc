// SPDX-License-Identifier: Apache-2.0
#include "model/interleave.h"

#include <cstring>

#include "base/check.h"
#include "base/float16.h"

namespace thermoe {
namespace {

// The place of column j of a block in a nibble-packed group block [4][16][4], and whether it is the high half.
inline int64_t NibbleAt(int lane, int j) { return (j % 16 / 4) * 64 + lane * 4 + j % 4; }

void CopyScale(const std::byte* block, int64_t b, int lane, std::byte* group) { std::memcpy(group + (b * kInterleave + lane) * 2, block, 2); }

}  // namespace

void InterleaveGroup(DType from, const std::byte* rows, int64_t row_bytes, int64_t cols, std::byte* group) {
  THERMOE_CHECK(from == DType::kQ8_0 || from == DType::kQ4_0);
  std::byte* codes = group + InterleavedScaleBytes(cols);
  std::memset(group, 0, static_cast<size_t>(InterleavedScaleBytes(cols)));
  const int64_t block_bytes = TraitsOf(from).block_bytes;
  for (int lane = 0; lane < kInterleave; ++lane) {
    const std::byte* block = rows + lane * row_bytes;
    for (int64_t b = 0; b < cols / kQuantBlock; ++b, block += block_bytes) {
      CopyScale(block, b, lane, group);
      if (from == DType::kQ8_0) {
        std::byte* to = codes + b * 512 + lane * 4;
        for (int q = 0; q < 8; ++q) {
          uint32_t four;
          std::memcpy(&four, block + 2 + 4 * q, 4);
          four ^= 0x80808080u;  // two's complement + 128
          std::memcpy(to + q * 64, &four, 4);
        }
      } else {
        std::byte* to = codes + b * 256 + lane * 4;  // file and group pair columns j and j + 16 alike
        for (int q = 0; q < 4; ++q) std::memcpy(to + q * 64, block + 2 + 4 * q, 4);
      }
    }
  }
}

void InterleavePlanes(const std::byte* rows, int64_t row_bytes, int64_t cols, std::byte* hi, std::byte* lo) {
  std::byte* codes = hi + InterleavedScaleBytes(cols);
  std::memset(hi, 0, static_cast<size_t>(InterleavedScaleBytes(cols)));
  for (int lane = 0; lane < kInterleave; ++lane) {
    const std::byte* block = rows + lane * row_bytes;
    for (int64_t b = 0; b < cols / kQuantBlock; ++b, block += sizeof(BlockQ8_0)) {
      CopyScale(block, b, lane, hi);
      for (int q = 0; q < 4; ++q) {
        uint32_t low, high;  // columns 4 q.. and 16 further on, as code + 128 = 16 * (hi + 8) + lo
        std::memcpy(&low, block + 2 + 4 * q, 4);
        std::memcpy(&high, block + 18 + 4 * q, 4);
        low ^= 0x80808080u;
        high ^= 0x80808080u;
        const uint32_t hi_nibbles = ((low >> 4) & 0x0f0f0f0fu) | (high & 0xf0f0f0f0u);
        const uint32_t lo_nibbles = (low & 0x0f0f0f0fu) | ((high << 4) & 0xf0f0f0f0u);
        std::memcpy(codes + b * 256 + q * 64 + lane * 4, &hi_nibbles, 4);
        std::memcpy(lo + b * 256 + q * 64 + lane * 4, &lo_nibbles, 4);
      }
    }
  }
}

void DecodeInterleavedRow(const WeightMatrix& matrix, int64_t row, Planes planes, float* out) {
  const int lane = static_cast<int>(row % kInterleave);
  const std::byte* group = matrix.data + row / kInterleave * InterleavedGroupBytes(matrix.type, matrix.cols);
  const std::byte* codes = group + InterleavedScaleBytes(matrix.cols);
  const std::byte* lo = IsNested(matrix.type) && planes == Planes::kBoth
                            ? matrix.lo + row / kInterleave * kInterleave * NestedLoRowBytes(matrix.cols)
                            : nullptr;
  const auto nibble = [&](const std::byte* from, int64_t b, int j) {
    const int byte = static_cast<int>(from[b * 256 + NibbleAt(lane, j)]);
    return j < 16 ? byte & 15 : byte >> 4;
  };
  for (int64_t b = 0; b < matrix.cols / kQuantBlock; ++b) {
    uint16_t scale;
    std::memcpy(&scale, group + (b * kInterleave + lane) * 2, 2);
    const float d = HalfToFloat(scale);
    for (int j = 0; j < kQuantBlock; ++j) {
      float code = 0;
      if (matrix.type == DType::kQ8_0x16) {
        code = static_cast<float>(static_cast<int>(codes[b * 512 + j / 4 * 64 + lane * 4 + j % 4]) - 128);
      } else if (matrix.type == DType::kQ4_0x16) {
        code = static_cast<float>(nibble(codes, b, j) - 8);
      } else {
        const int high = 16 * (nibble(codes, b, j) - 8);
        code = lo != nullptr ? static_cast<float>(high + nibble(lo, b, j)) : static_cast<float>(high) + 7.5f;
      }
      out[b * kQuantBlock + j] = d * code;
    }
  }
}

}  // namespace thermoe
