// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/weight_layout.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "base/float16.h"
#include "kernels/cuda/tile_lane.h"

namespace thermoe::cuda {
namespace {

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

template <typename T>
void Store(std::byte* to, const T& value) {
  std::memcpy(to, &value, sizeof(value));
}

template <DType kType>
void PackTiles(const WeightMatrix& from, const Parts& parts, std::byte* to) {
  const auto* data = reinterpret_cast<const uint8_t*>(from.data);
  const SourceRows rows{data, reinterpret_cast<const uint8_t*>(from.lo), from.rows, from.cols, from.row_bytes()};
  constexpr Packing kPacking = PackingOf(kType);
  constexpr int kRowScaleBytes = ScaleTileBytes(kPacking) / kTileRows;
  for (int64_t r = 0; r < parts.row_tiles; ++r) {
    for (int64_t k = 0; k < parts.k_tiles; ++k) {
      const int64_t tile = TileNumber(r, k, parts.k_tiles);
      for (int lane = 0; lane < kTileLanes; ++lane) {
        const PackedLane packed = PackLane<kType>(rows, r * kTileRows, k, lane);
        const int64_t at = tile * kPlaneTileBytes + lane * static_cast<int64_t>(sizeof(packed.hi));
        Store(to + at, packed.hi);
        if (HasLoPlane(kPacking)) Store(to + parts.lo + at, packed.lo);
        std::byte* scales = to + parts.scales + tile * ScaleTileBytes(kPacking) + lane * kRowScaleBytes;
        if (lane < kTileRows) std::memcpy(scales, packed.scales, kRowScaleBytes);
      }
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
    for (int step = 0; step < kTileSteps; ++step) {
      for (int lane = 0; lane < kTileLanes; ++lane) {
        uint16_t fragment[8];
        for (int i = 0; i < 8; ++i) {
          fragment[i] = rows[static_cast<size_t>((RowOf(lane, i) * k_tiles + k) * kTileCols + ColOf(lane, step, i))];
        }
        std::memcpy(to + ((TileNumber(row_tile, k, k_tiles) * kTileSteps + step) * kTileLanes + lane) * 16, fragment,
                    sizeof(fragment));
      }
    }
  }
}

}  // namespace

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
  std::memset(to, 0, static_cast<size_t>(parts.bytes));  // what is between the parts, to align them
  if (packing == Packing::kF32) {
    std::memcpy(to, from.data, static_cast<size_t>(from.bytes()));
  } else if (packing == Packing::kHalf) {
    for (int64_t r = 0; r < parts.row_tiles; ++r) PackHalfRows(from, r, parts.k_tiles, to, to + parts.scales + r * kTileRows * 4);
  } else {
    WithQuantisedType(from.type, [&](auto type) { PackTiles<type()>(from, parts, to); });
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
