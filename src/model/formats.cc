// SPDX-License-Identifier: Apache-2.0
#include "model/formats.h"

#include <array>
#include <cstring>

#include "base/float16.h"
#include "model/interleave.h"
#include "model/quant_blocks.h"

namespace thermoe {
namespace {

constexpr std::array<DTypeTraits, kDTypes> kTraits = {{
    {"f32", 1, 4, 32},
    {"f16", 1, 2, 16},
    {"bf16", 1, 2, 16},
    {"q8_0", kQuantBlock, sizeof(BlockQ8_0), 8},
    {"q4_0", kQuantBlock, sizeof(BlockQ4_0), 4},
    {"q5_0", kQuantBlock, sizeof(BlockQ5_0), 5},
    {"q5_1", kQuantBlock, sizeof(BlockQ5_1), 5},
    {"q4_k", 256, sizeof(BlockQ4K), 4},
    {"q5_k", 256, sizeof(BlockQ5K), 5},
    {"q6_k", 256, sizeof(BlockQ6K), 6},
    {"iq4_nl", kQuantBlock, sizeof(BlockQ4_0), 4},
    {"mxfp4", kQuantBlock, sizeof(BlockMXFP4), 4},
    {"nested8", kQuantBlock, sizeof(NestedHi), 8},
}};

template <typename T>
T Load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

// The nibble of weight j in a packed block of 32.
inline int Nibble(const uint8_t* nibbles, int j) { return j < 16 ? nibbles[j] & 15 : nibbles[j - 16] >> 4; }

inline void SetNibble(uint8_t* nibbles, int j, int value) {
  nibbles[j & 15] = static_cast<uint8_t>(nibbles[j & 15] | (j < 16 ? value : value << 4));
}

}  // namespace

const DTypeTraits& TraitsOf(DType type) { return kTraits[static_cast<size_t>(type)]; }

int64_t RowBytes(DType type, int64_t cols, Layout layout) {
  if (layout == Layout::kInterleaved) return InterleavedGroupBytes(type, cols) / kInterleave;
  const DTypeTraits& traits = TraitsOf(type);
  return cols / traits.block_elements * traits.block_bytes;
}

void DecodeRow(const WeightMatrix& matrix, int64_t row, Planes planes, float* out) {
  if (matrix.interleaved()) return DecodeInterleavedRow(matrix, row, planes, out);
  const std::byte* from = matrix.row(row);
  switch (matrix.type) {
    case DType::kF32: std::memcpy(out, from, static_cast<size_t>(matrix.cols) * 4); return;
    case DType::kF16:
      for (int64_t i = 0; i < matrix.cols; ++i) out[i] = HalfToFloat(Load<uint16_t>(from + 2 * i));
      return;
    case DType::kBF16:
      for (int64_t i = 0; i < matrix.cols; ++i) out[i] = Bf16ToFloat(Load<uint16_t>(from + 2 * i));
      return;
    case DType::kNested8:
      for (int64_t b = 0; b < matrix.cols / kQuantBlock; ++b) {
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
    default: break;
  }
  const DTypeTraits& traits = TraitsOf(matrix.type);
  for (int64_t at = 0; at < matrix.cols; at += traits.block_elements, from += traits.block_bytes) {
    DecodeBlock(matrix.type, from, out + at);
  }
}

void EncodeRow(DType type, const float* values, int64_t cols, std::byte* out) {
  switch (type) {
    case DType::kF32: std::memcpy(out, values, static_cast<size_t>(cols) * 4); return;
    case DType::kF16:
    case DType::kBF16:
      for (int64_t i = 0; i < cols; ++i) {
        const uint16_t h = type == DType::kF16 ? FloatToHalf(values[i]) : FloatToBf16(values[i]);
        std::memcpy(out + 2 * i, &h, 2);
      }
      return;
    default: break;
  }
  const DTypeTraits& traits = TraitsOf(type);
  for (int64_t at = 0; at < cols; at += traits.block_elements, out += traits.block_bytes) EncodeBlock(type, values + at, out);
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
