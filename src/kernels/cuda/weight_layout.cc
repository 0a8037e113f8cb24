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

// Sixteen bytes as one value, which compilers turn into vector instructions: loading weights must keep up with the link to the device.
using Bytes16 = uint8_t __attribute__((vector_size(16)));
using Words4 = uint32_t __attribute__((vector_size(16)));

template <typename T>
Bytes16 Load16(const T* from) {
  Bytes16 value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

void BytesOfQ8(const std::byte* codes, uint8_t* out) {
  for (int j = 0; j < kQuantBlock; ++j) out[j] = static_cast<uint8_t>(static_cast<uint8_t>(codes[j]) ^ 0x80u);
}

void BytesOfPlanes(const std::byte* hi, const std::byte* lo, uint8_t* out) {
  static_assert(kQuantBlock == 32);
  const Bytes16 h = Load16(hi), l = Load16(lo);
  Store(reinterpret_cast<std::byte*>(out), (h << 4) | (l & 15));
  Store(reinterpret_cast<std::byte*>(out + 16), (h & 0xf0) | (l >> 4));
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
  const auto unpack = [&] { UnpackCodes(from.type, block, s, reinterpret_cast<uint8_t(&)[kQuantBlock]>(*codes)); };
  const auto nibbles = [&](size_t at) {
    const Bytes16 both = Load16(block + at);
    Store(reinterpret_cast<std::byte*>(codes), both & 15);
    Store(reinterpret_cast<std::byte*>(codes + 16), both >> 4);
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
      nibbles(offsetof(BlockQ4_0, nibbles));
      for (int j = 0; j < kQuantBlock; ++j) codes[j] = static_cast<uint8_t>(kIQ4NLValues[codes[j]] + 128);
      return Store(scales + half * 2, Load<uint16_t>(block));
    case DType::kQ4_0:
      nibbles(offsetof(BlockQ4_0, nibbles));
      return Store(scales + half * 2, Load<uint16_t>(block));
    case DType::kMXFP4:
      nibbles(offsetof(BlockMXFP4, nibbles));
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

// Eight rows apart, a row's 16 columns of a step each: byte j of lane q's word is of value 0, 2, 1, 3 of the fragment, with value 4, 6, 5, 7 as its
// other nibble (RowOf, ColOf). Halves of a row lie in one byte: the first as its upper (`first_high`) or its lower nibble.
Bytes16 NibbleWords(Bytes16 row, Bytes16 below, bool upper_nibbles, bool first_high) {
  const auto pair = [&](Bytes16 of) {  // the first half of the columns and the second, in the lower 8 bytes
    const Bytes16 second = __builtin_shufflevector(of, of, 8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15);
    if (upper_nibbles) return (of & 0xf0) | (second >> 4);
    return first_high ? (of << 4) | (second & 15) : (second << 4) | (of & 15);
  };
  return __builtin_shufflevector(pair(row), pair(below), 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}

// The words of four steps, lane by lane.
void StoreLanes(const Bytes16 (&steps)[kSteps], std::byte* to) {
  const auto a = reinterpret_cast<Words4>(steps[0]), b = reinterpret_cast<Words4>(steps[1]), c = reinterpret_cast<Words4>(steps[2]),
             d = reinterpret_cast<Words4>(steps[3]);
  const Words4 ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5), cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  const Words4 ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7), cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  Store(to, __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5));
  Store(to + 16, __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7));
  Store(to + 32, __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5));
  Store(to + 48, __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7));
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
  constexpr int kLaneBytes = kSteps * 4, kRowLanes = 4;
  for (int r = 0; r < kTileRows / 2; ++r) {
    Bytes16 words[kSteps];
    for (int step = 0; step < kSteps; ++step) {
      words[step] = NibbleWords(Load16(codes.code[r] + step * 16), Load16(codes.code[r + 8] + step * 16), bytes, true);
    }
    StoreLanes(words, hi + r * kRowLanes * kLaneBytes);
    if (!bytes) continue;
    for (int step = 0; step < kSteps; ++step) {
      words[step] = NibbleWords(Load16(codes.code[r] + step * 16), Load16(codes.code[r + 8] + step * 16), false, false);
    }
    StoreLanes(words, lo + r * kRowLanes * kLaneBytes);
  }
}

// 16 rows as halves, each scaled so that its largest magnitude is just below 2^15. They become row tile `to_tile` of `to`.
void PackHalfRows(const WeightMatrix& from, int64_t row_tile, int64_t to_tile, int64_t k_tiles, std::byte* to, std::byte* row_scales) {
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
        std::memcpy(to + ((TileNumber(to_tile, k, k_tiles) * kSteps + step) * kLanes + lane) * 16, fragment,
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

namespace {

// Sixteen rows are read side by side, which no processor foresees, but the next sixteen lie behind them.
void FetchAhead(const std::byte* from, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(from + at);
}

}  // namespace

int64_t GroupsOf(int64_t rows) { return (rows + kGroupRows - 1) / kGroupRows; }

std::array<PackedRange, 3> RangesOf(DType type, int64_t rows, int64_t cols, int64_t first, int64_t count) {
  const Packing packing = PackingOf(type);
  const Parts parts = PartsOf(packing, rows, cols);
  if (packing == Packing::kF32) {
    const int64_t begin = first * kGroupRows, end = std::min(rows, begin + count * kGroupRows);
    return {{{begin * cols * 4, (end - begin) * cols * 4}, {0, 0}, {0, 0}}};
  }
  const int64_t group_tiles = parts.k_tiles * kGroupTiles;
  const auto range = [&](int64_t at, int64_t group_bytes) { return PackedRange{at + first * group_bytes, count * group_bytes}; };
  return {range(0, group_tiles * CodeTileBytes(packing)), range(parts.lo, HasLoPlane(packing) ? group_tiles * kPlaneTileBytes : 0),
          range(parts.scales, packing == Packing::kHalf ? kGroupRows * 4 : group_tiles * ScaleTileBytes(packing))};
}

void Pack(const WeightMatrix& from, std::byte* to) {
  const int64_t groups = GroupsOf(from.rows);
  std::array<std::byte*, 3> places{};
  int64_t end = 0;
  // What is between the parts, to align them.
  for (size_t i = 0; i < places.size(); ++i) {
    const PackedRange range = RangesOf(from.type, from.rows, from.cols, 0, groups)[i];
    if (range.bytes == 0) continue;
    places[i] = to + range.at;
    std::memset(to + end, 0, static_cast<size_t>(range.at - end));
    end = range.at + range.bytes;
  }
  std::memset(to + end, 0, static_cast<size_t>(PackedBytes(from.type, from.rows, from.cols) - end));
  PackGroups(from, 0, groups, places);
}

void PackGroups(const WeightMatrix& from, int64_t first, int64_t count, const std::array<std::byte*, 3>& to) {
  THERMOE_CHECK(!from.interleaved());
  const Packing packing = PackingOf(from.type);
  const Parts parts = PartsOf(packing, from.rows, from.cols);
  const auto& [hi, lo, scales] = to;
  if (packing == Packing::kF32) {
    const PackedRange range = RangesOf(from.type, from.rows, from.cols, first, count)[0];
    std::memcpy(hi, from.data + range.at, static_cast<size_t>(range.bytes));
    return;
  }
  const int64_t first_row_tile = first * kGroupTiles;
  for (int64_t r = first_row_tile; r < first_row_tile + count * kGroupTiles; ++r) {
    if (packing == Packing::kHalf) {
      PackHalfRows(from, r, r - first_row_tile, parts.k_tiles, hi, scales + (r - first_row_tile) * kTileRows * 4);
      continue;
    }
    const int64_t next_row = (r + 1) * kTileRows, tile_bytes = kTileRows * from.row_bytes() / parts.k_tiles;
    for (int64_t k = 0; k < parts.k_tiles; ++k) {
      const int64_t tile = TileNumber(r - first_row_tile, k, parts.k_tiles);
      if (next_row + kTileRows <= from.rows) FetchAhead(from.row(next_row) + k * tile_bytes, tile_bytes);
      PackTile(from, packing, r, k, hi + tile * kPlaneTileBytes, lo + tile * kPlaneTileBytes, scales + tile * ScaleTileBytes(packing));
    }
  }
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
