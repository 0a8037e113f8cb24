// SPDX-License-Identifier: Apache-2.0
#include "model/formats.h"

#include <array>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "base/float16.h"
#include "model/interleave.h"

namespace thermoe {
namespace {

constexpr std::array<DTypeTraits, 9> kTraits = {{
    {"f32", 1, 4},
    {"f16", 1, 2},
    {"bf16", 1, 2},
    {"q8_0", kQuantBlock, sizeof(BlockQ8_0)},
    {"q4_0", kQuantBlock, sizeof(BlockQ4_0)},
    {"nested8", kQuantBlock, sizeof(NestedHi)},
    {"q8_0", kQuantBlock, sizeof(BlockQ8_0)},
    {"q4_0", kQuantBlock, sizeof(BlockQ4_0)},
    {"nested8", kQuantBlock, sizeof(NestedHi)},
}};

template <typename T>
T Load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

// A code in range for any input: not a number becomes 0.
float ClampCode(float code, float most) { return code != code ? 0.0f : std::min(std::max(code, -most), most); }

// The nibble of weight j in a packed block of 32.
inline int Nibble(const uint8_t* nibbles, int j) { return j < 16 ? nibbles[j] & 15 : nibbles[j - 16] >> 4; }

inline void SetNibble(uint8_t* nibbles, int j, int value) {
  nibbles[j & 15] = static_cast<uint8_t>(nibbles[j & 15] | (j < 16 ? value : value << 4));
}

}  // namespace

const DTypeTraits& TraitsOf(DType type) { return kTraits[static_cast<size_t>(type)]; }

int64_t RowBytes(DType type, int64_t cols) {
  const DTypeTraits& traits = TraitsOf(type);
  if (IsInterleaved(type)) return InterleavedGroupBytes(type, cols) / kInterleave;
  return cols / traits.block_elements * traits.block_bytes;
}

void DecodeRow(const WeightMatrix& matrix, int64_t row, Planes planes, float* out) {
  if (IsInterleaved(matrix.type)) return DecodeInterleavedRow(matrix, row, planes, out);
  const std::byte* from = matrix.row(row);
  const int64_t blocks = matrix.cols / kQuantBlock;
  switch (matrix.type) {
    case DType::kF32: std::memcpy(out, from, static_cast<size_t>(matrix.cols) * 4); return;
    case DType::kF16:
      for (int64_t i = 0; i < matrix.cols; ++i) out[i] = HalfToFloat(Load<uint16_t>(from + 2 * i));
      return;
    case DType::kBF16:
      for (int64_t i = 0; i < matrix.cols; ++i) out[i] = Bf16ToFloat(Load<uint16_t>(from + 2 * i));
      return;
    case DType::kQ8_0:
      for (int64_t b = 0; b < blocks; ++b) {
        const auto block = Load<BlockQ8_0>(from + b * static_cast<int64_t>(sizeof(BlockQ8_0)));
        const float d = HalfToFloat(block.d);
        for (int j = 0; j < kQuantBlock; ++j) out[b * kQuantBlock + j] = d * static_cast<float>(block.codes[j]);
      }
      return;
    case DType::kQ4_0:
      for (int64_t b = 0; b < blocks; ++b) {
        const auto block = Load<BlockQ4_0>(from + b * static_cast<int64_t>(sizeof(BlockQ4_0)));
        const float d = HalfToFloat(block.d);
        for (int j = 0; j < kQuantBlock; ++j) {
          out[b * kQuantBlock + j] = d * static_cast<float>(Nibble(block.nibbles, j) - 8);
        }
      }
      return;
    case DType::kNested8:
      for (int64_t b = 0; b < blocks; ++b) {
        const auto hi = Load<NestedHi>(from + b * static_cast<int64_t>(sizeof(NestedHi)));
        const float d = HalfToFloat(hi.d);
        NestedLo lo{};
        if (planes == Planes::kBoth) {
          lo = Load<NestedLo>(matrix.lo_row(row) + b * static_cast<int64_t>(sizeof(NestedLo)));
        }
        for (int j = 0; j < kQuantBlock; ++j) {
          const int high = 16 * (Nibble(hi.nibbles, j) - 8);
          out[b * kQuantBlock + j] =
              d * (planes == Planes::kBoth ? static_cast<float>(high + Nibble(lo.nibbles, j)) : static_cast<float>(high) + 7.5f);
        }
      }
      return;
    case DType::kQ8_0x16:
    case DType::kQ4_0x16:
    case DType::kNested8x16: break;
  }
  THERMOE_CHECK(false);
}

void EncodeRow(DType type, const float* values, int64_t cols, std::byte* out) {
  const int64_t blocks = cols / kQuantBlock;
  switch (type) {
    case DType::kF32: std::memcpy(out, values, static_cast<size_t>(cols) * 4); return;
    case DType::kF16:
    case DType::kBF16:
      for (int64_t i = 0; i < cols; ++i) {
        const uint16_t h = type == DType::kF16 ? FloatToHalf(values[i]) : FloatToBf16(values[i]);
        std::memcpy(out + 2 * i, &h, 2);
      }
      return;
    case DType::kQ8_0:
      for (int64_t b = 0; b < blocks; ++b) {
        const float* x = values + b * kQuantBlock;
        float most = 0;
        for (int j = 0; j < kQuantBlock; ++j) most = std::max(most, std::fabs(x[j]));
        const float d = most / 127.0f;
        const float inverse = d != 0 ? 1.0f / d : 0.0f;
        BlockQ8_0 block{};
        block.d = FloatToHalf(d);
        for (int j = 0; j < kQuantBlock; ++j) block.codes[j] = static_cast<int8_t>(ClampCode(std::round(x[j] * inverse), 127));
        std::memcpy(out + b * static_cast<int64_t>(sizeof(block)), &block, sizeof(block));
      }
      return;
    case DType::kQ4_0:
      for (int64_t b = 0; b < blocks; ++b) {
        const float* x = values + b * kQuantBlock;
        float most = 0, signed_most = 0;
        for (int j = 0; j < kQuantBlock; ++j) {
          if (std::fabs(x[j]) > most) {
            most = std::fabs(x[j]);
            signed_most = x[j];
          }
        }
        const float d = signed_most / -8.0f;
        const float inverse = d != 0 ? 1.0f / d : 0.0f;
        BlockQ4_0 block{};
        block.d = FloatToHalf(d);
        for (int j = 0; j < kQuantBlock; ++j) {
          SetNibble(block.nibbles, j, std::min(15, static_cast<int>(ClampCode(x[j] * inverse, 8) + 8.5f)));
        }
        std::memcpy(out + b * static_cast<int64_t>(sizeof(block)), &block, sizeof(block));
      }
      return;
    case DType::kNested8:
    case DType::kQ8_0x16:
    case DType::kQ4_0x16:
    case DType::kNested8x16: break;
  }
  THERMOE_CHECK(false);
}

void SplitPlanes(const BlockQ8_0* blocks, int64_t count, NestedHi* hi, NestedLo* lo) {
  for (int64_t b = 0; b < count; ++b) {
    NestedHi high{blocks[b].d, {}};
    NestedLo low{};
    for (int j = 0; j < kQuantBlock; ++j) {
      const int code = blocks[b].codes[j];
      SetNibble(high.nibbles, j, (code >> 4) + 8);
      SetNibble(low.nibbles, j, code & 15);
    }
    std::memcpy(&hi[b], &high, sizeof(high));
    std::memcpy(&lo[b], &low, sizeof(low));
  }
}

}  // namespace thermoe
