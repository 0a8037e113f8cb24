// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/weight_layout.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "base/float16.h"
#include "model/quant_blocks.h"

namespace thermoe::cuda {
namespace {

constexpr int kLanes = 32;
constexpr int kSteps = 4;  // of 16 columns in a tile
constexpr int kOrder[4] = {0, 2, 1, 3};
constexpr int64_t kAlignment = 256;

int64_t AlignUp(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// Tiles and where the parts of a packed matrix begin.
struct Parts {
  int64_t row_tiles, k_tiles;
  int64_t lo, scales, bytes;
};

Parts PartsOf(Packing packing, int64_t rows, int64_t cols) {
  if (packing == Packing::kF32) return {0, 0, 0, 0, AlignUp(rows * cols * 4, kAlignment)};
  Parts parts{AlignUp(rows, kGroupRows) / kTileRows, AlignUp(cols, kTileCols) / kTileCols, 0, 0, 0};
  const int64_t tiles = parts.row_tiles * parts.k_tiles;
  parts.lo = AlignUp(tiles * CodeTileBytes(packing), kAlignment);
  parts.scales = parts.lo + (HasLoPlane(packing) ? AlignUp(tiles * kPlaneTileBytes, kAlignment) : 0);
  const int64_t scale_bytes =
      packing == Packing::kHalf ? parts.row_tiles * kTileRows * 4 : tiles * ScaleTileBytes(packing);
  parts.bytes = parts.scales + AlignUp(scale_bytes, kAlignment);
  return parts;
}

int64_t TileNumber(int64_t row_tile, int64_t k_tile, int64_t k_tiles) {
  return (row_tile / kGroupTiles * k_tiles + k_tile) * kGroupTiles + row_tile % kGroupTiles;
}

// Row and column in its tile of value i (0..7) of a step, for a lane.
int RowOf(int lane, int i) { return lane / 4 + (i / 2 % 2) * 8; }
int ColOf(int lane, int step, int i) { return step * 16 + lane % 4 * 2 + i % 2 + i / 4 * 8; }

// Codes of 32 weights as the tensor cores' bytes (code + 128) or nibbles, and their scales. A row of a tile has two of
// them.
struct Codes {
  uint8_t code[kTileRows][kTileCols];
};

template <typename T>
T Load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}
template <typename T>
void Store(std::byte* to, T value) {
  std::memcpy(to, &value, sizeof(value));
}

void BytesOfQ8(const std::byte* codes, uint8_t* out) {
  for (int j = 0; j < kQuantBlock; ++j) out[j] = static_cast<uint8_t>(static_cast<uint8_t>(codes[j]) ^ 0x80u);
}

void BytesOfPlanes(const std::byte* hi, const std::byte* lo, uint8_t* out) {
  for (int j = 0; j < kQuantBlock / 2; ++j) {
    const auto h = static_cast<unsigned>(hi[j]), l = static_cast<unsigned>(lo[j]);
    out[j] = static_cast<uint8_t>((h & 15u) << 4 | (l & 15u));
    out[j + kQuantBlock / 2] = static_cast<uint8_t>((h & 0xf0u) | l >> 4);
  }
}

// Block b of 32 weights of a row. codes: [32]. scales: this row's place in the tile; half: which 32 columns of the
// tile.
void PackBlock(const WeightMatrix& from, int64_t row, int64_t b, uint8_t* codes, std::byte* scales, int half) {
  const int per_block = TraitsOf(from.type).block_elements / kQuantBlock;
  const std::byte* block = from.row(row) + b / per_block * TraitsOf(from.type).block_bytes;
  const int s = static_cast<int>(b % per_block);
  const auto plus = [&](int add) {
    for (int j = 0; j < kQuantBlock; ++j) codes[j] = static_cast<uint8_t>(codes[j] + add);
  };
  uint8_t raw[kQuantBlock];
  const auto unpack = [&] {
    UnpackCodes(from.type, block, s, raw);
    std::memcpy(codes, raw, sizeof(raw));
  };
  switch (from.type) {
    case DType::kNested8:
      BytesOfPlanes(block + offsetof(NestedHi, nibbles), from.lo_row(row) + b * static_cast<int64_t>(sizeof(NestedLo)),
                    codes);
      return Store(scales + half * 2, Load<uint16_t>(block));
    case DType::kQ8_0:
      BytesOfQ8(block + offsetof(BlockQ8_0, codes), codes);
      return Store(scales + half * 2, Load<uint16_t>(block));
    case DType::kQ5_0:
      unpack();
      plus(128 - 16);
      return Store(scales + half * 2, Load<uint16_t>(block));
    case DType::kIQ4NL:
      unpack();
      for (int j = 0; j < kQuantBlock; ++j) codes[j] = static_cast<uint8_t>(kIQ4NLValues[raw[j]] + 128);
      return Store(scales + half * 2, Load<uint16_t>(block));
    case DType::kQ4_0: unpack(); return Store(scales + half * 2, Load<uint16_t>(block));
    case DType::kMXFP4:
      unpack();
      return Store(scales + half * 2,
                   static_cast<uint16_t>(std::bit_cast<uint32_t>(E8M0Half(static_cast<uint8_t>(block[0]))) >> 16));
    case DType::kQ5_1:
      unpack();
      plus(128);
      Store(scales + half * 8, HalfToFloat(Load<BlockQ5_1>(block).d));
      return Store(scales + half * 8 + 4, -HalfToFloat(Load<BlockQ5_1>(block).m));
    case DType::kQ5K: {
      unpack();
      plus(128);
      const auto k = Load<BlockQ5K>(block);
      const KScale scale = UnpackKScale(k.scales, s);
      Store(scales + half * 8, HalfToFloat(k.d) * static_cast<float>(scale.scale));
      return Store(scales + half * 8 + 4, HalfToFloat(k.dmin) * static_cast<float>(scale.min));
    }
    case DType::kQ4K: {
      unpack();
      const auto k = Load<BlockQ4K>(block);
      const KScale scale = UnpackKScale(k.scales, s);
      Store(scales, k.d);
      Store(scales + 2, k.dmin);
      Store(scales + 4 + half * 2, scale.scale);
      return Store(scales + 5 + half * 2, scale.min);
    }
    case DType::kQ6K: {
      unpack();
      plus(128 - 32);
      const auto k = Load<BlockQ6K>(block);
      Store(scales, k.d);
      Store(scales + 4 + half * 2, k.scales[s * 2]);
      return Store(scales + 5 + half * 2, k.scales[s * 2 + 1]);
    }
    default: THERMOE_CHECK(false);
  }
}

uint32_t NibbleWord(const Codes& codes, int lane, int step, int shift, bool first_high) {
  uint32_t word = 0;
  for (int j = 0; j < 4; ++j) {
    const int i = kOrder[j];
    const auto nibble = [&](int at) {
      return static_cast<uint32_t>(codes.code[RowOf(lane, at)][ColOf(lane, step, at)] >> shift & 15);
    };
    const uint32_t first = nibble(i), second = nibble(4 + i);
    word |= (first_high ? first << 4 | second : second << 4 | first) << (8 * j);
  }
  return word;
}

void PackTile(const WeightMatrix& from, Packing packing, int64_t row_tile, int64_t k_tile, std::byte* hi, std::byte* lo,
              std::byte* scales) {
  Codes codes;
  const bool bytes = HasLoPlane(packing);
  // What is filled up has the code of zero and scales of zero.
  std::memset(&codes, bytes ? 128 : packing == Packing::kNibble ? 8 : 0, sizeof(codes));
  const int row_scale_bytes = ScaleTileBytes(packing) / kTileRows;
  std::memset(scales, 0, static_cast<size_t>(ScaleTileBytes(packing)));
  for (int r = 0; r < kTileRows; ++r) {
    const int64_t row = row_tile * kTileRows + r;
    if (row >= from.rows) break;
    for (int half = 0; half < 2; ++half) {
      const int64_t b = k_tile * 2 + half;
      if (b * kQuantBlock >= from.cols) break;
      PackBlock(from, row, b, codes.code[r] + half * kQuantBlock, scales + r * row_scale_bytes, half);
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int step = 0; step < kSteps; ++step) {
      const int at = (lane * kSteps + step) * 4;
      Store(hi + at, NibbleWord(codes, lane, step, bytes ? 4 : 0, true));
      if (bytes) Store(lo + at, NibbleWord(codes, lane, step, 0, false));
    }
  }
}

// 16 rows as halves, each scaled so that its largest magnitude is just below 2^15.
void PackHalfRows(const WeightMatrix& from, int64_t row_tile, int64_t k_tiles, std::byte* to, std::byte* row_scales) {
  std::vector<uint16_t> rows(static_cast<size_t>(kTileRows * k_tiles * kTileCols));
  std::vector<float> values(static_cast<size_t>(from.cols));
  for (int r = 0; r < kTileRows; ++r) {
    float scale = 0;
    if (const int64_t row = row_tile * kTileRows + r; row < from.rows) {
      DecodeRow(from, row, Planes::kBoth, values.data());
      float most = 0;
      for (const float value : values) most = std::max(most, std::fabs(value));
      const int exponent = most > 0 && std::isfinite(most) ? std::clamp(std::ilogb(most) - 14, -126, 126) : 0;
      scale = std::ldexp(1.0f, exponent);
      const float inverse = std::ldexp(1.0f, -exponent);
      for (int64_t c = 0; c < from.cols; ++c) {
        rows[static_cast<size_t>(r * k_tiles * kTileCols + c)] = FloatToHalf(values[static_cast<size_t>(c)] * inverse);
      }
    }
    Store(row_scales + r * 4, scale);
  }
  for (int64_t k = 0; k < k_tiles; ++k) {
    for (int step = 0; step < kSteps; ++step) {
      for (int lane = 0; lane < kLanes; ++lane) {
        uint16_t fragment[8];
        for (int i = 0; i < 8; ++i) {
          fragment[i] = rows[static_cast<size_t>((RowOf(lane, i) * k_tiles + k) * kTileCols + ColOf(lane, step, i))];
        }
        std::memcpy(to + ((TileNumber(row_tile, k, k_tiles) * kSteps + step) * kLanes + lane) * 16, fragment,
                    sizeof(fragment));
      }
    }
  }
}

}  // namespace

Packing PackingOf(DType type) {
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
    case DType::kF32: return Packing::kF32;
  }
  THERMOE_CHECK(false);
}

int64_t PackedBytes(DType type, int64_t rows, int64_t cols) { return PartsOf(PackingOf(type), rows, cols).bytes; }

int64_t ReadBytes(DType type, int64_t rows, int64_t cols, Planes planes) {
  const Packing packing = PackingOf(type);
  if (packing == Packing::kF32) return rows * cols * 4;
  const int64_t tiles = AlignUp(rows, kGroupRows) / kTileRows * (AlignUp(cols, kTileCols) / kTileCols);
  const int lo_bytes = HasLoPlane(packing) && planes == Planes::kBoth ? kPlaneTileBytes : 0;
  return tiles * (CodeTileBytes(packing) + lo_bytes + ScaleTileBytes(packing));
}

void Pack(const WeightMatrix& from, std::byte* to) {
  THERMOE_CHECK(!from.interleaved());
  const Packing packing = PackingOf(from.type);
  const Parts parts = PartsOf(packing, from.rows, from.cols);
  if (packing == Packing::kF32) {
    const auto bytes = static_cast<size_t>(from.rows * from.cols * 4);
    std::memcpy(to, from.data, bytes);
    std::memset(to + bytes, 0, static_cast<size_t>(parts.bytes) - bytes);
    return;
  }
  const int64_t tiles = parts.row_tiles * parts.k_tiles;
  const auto clear = [&](int64_t begin, int64_t end) { std::memset(to + begin, 0, static_cast<size_t>(end - begin)); };
  clear(tiles * CodeTileBytes(packing), parts.lo);
  if (parts.scales > parts.lo) clear(parts.lo + tiles * kPlaneTileBytes, parts.scales);
  for (int64_t r = 0; r < parts.row_tiles; ++r) {
    if (packing == Packing::kHalf) {
      PackHalfRows(from, r, parts.k_tiles, to, to + parts.scales + r * kTileRows * 4);
      continue;
    }
    for (int64_t k = 0; k < parts.k_tiles; ++k) {
      const int64_t tile = TileNumber(r, k, parts.k_tiles);
      PackTile(from, packing, r, k, to + tile * kPlaneTileBytes, to + parts.lo + tile * kPlaneTileBytes,
               to + parts.scales + tile * ScaleTileBytes(packing));
    }
  }
  const int64_t scale_bytes =
      packing == Packing::kHalf ? parts.row_tiles * kTileRows * 4 : tiles * ScaleTileBytes(packing);
  clear(parts.scales + scale_bytes, parts.bytes);
}

DeviceMatrix View(DType type, int64_t rows, int64_t cols, const std::byte* packed) {
  const Packing packing = PackingOf(type);
  const Parts parts = PartsOf(packing, rows, cols);
  DeviceMatrix view;
  view.packing = packing;
  view.rows = static_cast<int32_t>(rows);
  view.cols = static_cast<int32_t>(cols);
  view.k_tiles = static_cast<int32_t>(parts.k_tiles);
  view.hi = packed;
  if (packing == Packing::kF32) return view;
  view.lo = HasLoPlane(packing) ? packed + parts.lo : nullptr;
  view.scales = packed + parts.scales;
  return view;
}

}  // namespace thermoe::cuda
