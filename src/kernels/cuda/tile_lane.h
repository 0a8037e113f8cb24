// SPDX-License-Identifier: Apache-2.0
// What a lane holds of a packed tile (weight_layout.h), made from rows as files have them: one definition for the host and the device.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "base/check.h"
#include "base/float16.h"
#include "kernels/cuda/weight_layout.h"
#include "model/quant_blocks.h"

namespace thermoe::cuda {

inline constexpr int kTileLanes = 32;
inline constexpr int kTileSteps = 4;  // of 16 columns

// Row and column in its tile of value i (0..7) of a step.
constexpr int RowOf(int lane, int i) { return lane / 4 + (i / 2 % 2) * 8; }
constexpr int ColOf(int lane, int step, int i) { return step * 16 + lane % 4 * 2 + i % 2 + i / 4 * 8; }

// Rows one after the other in the layout of files, at any address.
struct SourceRows {
  const uint8_t* data = nullptr;
  const uint8_t* lo = nullptr;  // kNested8: its other plane
  int64_t rows = 0, cols = 0;
  int64_t row_bytes = 0;
};

struct PackedLane {
  uint32_t hi[kTileSteps] = {}, lo[kTileSteps] = {};
  uint32_t scales[4] = {};  // of row `lane` of the tile, where lane < kTileRows: the first ScaleTileBytes / kTileRows bytes
};

constexpr int TileBlockWeights(DType type) { return type == DType::kQ4K || type == DType::kQ5K || type == DType::kQ6K ? 256 : kQuantBlock; }
constexpr int TileBlockBytes(DType type) {
  switch (type) {
    case DType::kNested8: return sizeof(NestedHi);
    case DType::kQ8_0: return sizeof(BlockQ8_0);
    case DType::kQ5_0: return sizeof(BlockQ5_0);
    case DType::kQ5_1: return sizeof(BlockQ5_1);
    case DType::kQ4K: return sizeof(BlockQ4K);
    case DType::kQ5K: return sizeof(BlockQ5K);
    case DType::kQ6K: return sizeof(BlockQ6K);
    case DType::kMXFP4: return sizeof(BlockMXFP4);
    default: return sizeof(BlockQ4_0);  // and kIQ4NL
  }
}

// kIQ4NLValues + 128 as one number, a byte each: device code cannot index the table.
constexpr uint64_t IQ4NLBytes(int first) {
  uint64_t bytes = 0;
  for (int i = 0; i < 8; ++i) bytes |= static_cast<uint64_t>(kIQ4NLValues[first + i] + 128) << (8 * i);
  return bytes;
}

// The code of weight j of the s-th 32 of a block. lo: kNested8's other plane of these 32.
template <DType kType>
constexpr uint32_t TileCode(const uint8_t* block, const uint8_t* lo, int s, int j) {
  if constexpr (kType == DType::kQ8_0) {
    return block[offsetof(BlockQ8_0, codes) + static_cast<size_t>(j)] ^ 0x80u;
  } else if constexpr (kType == DType::kNested8) {
    return static_cast<uint32_t>(NibbleAt(block + offsetof(NestedHi, nibbles), j) << 4 | NibbleAt(lo, j));
  } else {
    const auto code = static_cast<uint32_t>(CodeAt<kType>(block, s, j));
    constexpr uint64_t kFirst = IQ4NLBytes(0), kSecond = IQ4NLBytes(8);
    if (kType == DType::kQ5_0) return code + 128 - 16;
    if (kType == DType::kQ5_1 || kType == DType::kQ5K) return code + 128;
    if (kType == DType::kQ6K) return code + 128 - 32;
    if (kType == DType::kIQ4NL) return static_cast<uint32_t>((code < 8 ? kFirst : kSecond) >> (code % 8 * 8)) & 255u;
    return code;
  }
}

// The scales of the s-th 32 weights of a block, which are the first or second (half 0, 1) of their row of the tile.
template <DType kType>
constexpr void TileScales(const uint8_t* block, int s, int half, uint32_t (&scales)[4]) {
  const auto half_at = [block](size_t at) { return static_cast<uint32_t>(block[at]) | static_cast<uint32_t>(block[at + 1]) << 8; };
  const auto float_at = [&](size_t at) { return HalfToFloat(static_cast<uint16_t>(half_at(at))); };
  const auto bits = [](float value) { return std::bit_cast<uint32_t>(value); };
  if constexpr (kType == DType::kMXFP4) {
    scales[0] |= bits(E8M0Half(block[0])) >> 16 << (16 * half);
  } else if constexpr (kType == DType::kQ5_1) {
    scales[2 * half] = bits(float_at(offsetof(BlockQ5_1, d)));
    scales[2 * half + 1] = bits(-float_at(offsetof(BlockQ5_1, m)));
  } else if constexpr (kType == DType::kQ5K) {
    const KScale k = UnpackKScale(block + offsetof(BlockQ5K, scales), s);
    scales[2 * half] = bits(float_at(offsetof(BlockQ5K, d)) * static_cast<float>(k.scale));
    scales[2 * half + 1] = bits(float_at(offsetof(BlockQ5K, dmin)) * static_cast<float>(k.min));
  } else if constexpr (kType == DType::kQ4K) {
    const KScale k = UnpackKScale(block + offsetof(BlockQ4K, scales), s);
    scales[0] = half_at(offsetof(BlockQ4K, d)) | half_at(offsetof(BlockQ4K, dmin)) << 16;
    scales[1] |= (k.scale | static_cast<uint32_t>(k.min) << 8) << (16 * half);
  } else if constexpr (kType == DType::kQ6K) {
    scales[0] = half_at(offsetof(BlockQ6K, d));
    scales[1] |= half_at(offsetof(BlockQ6K, scales) + 2 * static_cast<size_t>(s)) << (16 * half);
  } else {
    scales[0] |= half_at(0) << (16 * half);
  }
}

// What lane `lane` has of the tile whose first row is `first_row` and whose columns begin at 64 * k_tile. What is filled up has the code of zero
// and scales of zero. kType: a quantised type.
template <DType kType>
constexpr PackedLane PackLane(const SourceRows& from, int64_t first_row, int64_t k_tile, int lane) {
  constexpr int kWeights = TileBlockWeights(kType), kBytes = TileBlockBytes(kType);
  constexpr bool kBytePlanes = HasLoPlane(PackingOf(kType));
  constexpr uint32_t kZero = kBytePlanes ? 128 : PackingOf(kType) == Packing::kNibble ? 8 : 0;
  const auto block_of = [&](int64_t row, int64_t col) { return from.data + row * from.row_bytes + col / kWeights * kBytes; };
  PackedLane out;
  for (int step = 0; step < kTileSteps; ++step) {
    uint32_t a[8] = {};
    for (int i = 0; i < 8; ++i) {
      const int64_t row = first_row + RowOf(lane, i), col = k_tile * kTileCols + ColOf(lane, step, i);
      const bool real = row < from.rows && col < from.cols;
      const uint8_t* lo = kType == DType::kNested8 ? from.lo + row * NestedLoRowBytes(from.cols) + NestedLoRowBytes(col) : nullptr;
      const auto s = static_cast<int>(col % kWeights / kQuantBlock), j = static_cast<int>(col % kQuantBlock);
      a[i] = real ? TileCode<kType>(block_of(row, col), lo, s, j) : kZero;
    }
    for (int i = 0; i < 4; ++i) {
      const int word = kBytePlanes ? step : step / 2 * 2 + i / 2, shift = 8 * (i % 2 * 2 + (kBytePlanes ? i / 2 : step % 2));
      const uint32_t first = a[i], second = a[4 + i];
      const uint32_t high = kBytePlanes ? (first & 0xf0u) | second >> 4 : first << 4 | second;
      out.hi[word] |= high << shift;
      if (kBytePlanes) out.lo[word] |= ((first & 15u) | (second & 15u) << 4) << shift;
    }
  }
  const int64_t row = first_row + lane;
  for (int half = 0; half < 2; ++half) {
    const int64_t col = k_tile * kTileCols + half * kQuantBlock;
    if (lane < kTileRows && row < from.rows && col < from.cols) {
      TileScales<kType>(block_of(row, col), static_cast<int>(col % kWeights / kQuantBlock), half, out.scales);
    }
  }
  return out;
}

// Calls `pack` with the type as a std::integral_constant. Quantised types only.
template <typename Function>
void WithQuantisedType(DType type, const Function& pack) {
  switch (type) {
    case DType::kQ8_0: return pack(std::integral_constant<DType, DType::kQ8_0>{});
    case DType::kQ4_0: return pack(std::integral_constant<DType, DType::kQ4_0>{});
    case DType::kQ5_0: return pack(std::integral_constant<DType, DType::kQ5_0>{});
    case DType::kQ5_1: return pack(std::integral_constant<DType, DType::kQ5_1>{});
    case DType::kQ4K: return pack(std::integral_constant<DType, DType::kQ4K>{});
    case DType::kQ5K: return pack(std::integral_constant<DType, DType::kQ5K>{});
    case DType::kQ6K: return pack(std::integral_constant<DType, DType::kQ6K>{});
    case DType::kIQ4NL: return pack(std::integral_constant<DType, DType::kIQ4NL>{});
    case DType::kMXFP4: return pack(std::integral_constant<DType, DType::kMXFP4>{});
    case DType::kNested8: return pack(std::integral_constant<DType, DType::kNested8>{});
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16: THERMOE_CHECK(false);
  }
}

}  // namespace thermoe::cuda
