// SPDX-License-Identifier: Apache-2.0
// How a decode product is cut up, decided on the host from shapes alone. Plain data and arithmetic: no CUDA here.
//
// The kernel is one block on each multiprocessor. Its warp 16 streams packed weights into a ring of shared memory;
// warps 0 to 7 multiply the first and warps 8 to 15 the second of two row tiles, each its own eighth of the columns. A
// *unit* is two row tiles (of gate and up: the same tile of both) by a *slice* of the columns, whose activations lie in
// shared memory as fragments. Units of one slice follow each other. Sums of slices are added by who reads them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/weight_layout.h"

namespace thermoe::cuda {

inline constexpr int kParts = 8;                   // warps that share a row tile's columns
inline constexpr int kMostLinears = 4;             // in one launch: kMostTogether
inline constexpr int kActivationBytes = 64 << 10;  // of a slice's fragments
inline constexpr int kSumStride = 36;              // floats: 32 rows of a unit's sums, and 4 so that banks differ
inline constexpr int kMostSlots = 16;              // of the ring

// One product's columns.
struct Columns {
  int32_t cols = 0;  // real columns
  int32_t k_tiles = 0;
  int32_t slices = 0;
  int32_t slice_tiles = 0;  // of each slice but the last
  int32_t pairs = 0;        // units of a slice: pairs of row tiles (experts: of every chunk)
};

constexpr int32_t CeilDiv(int32_t a, int32_t b) { return (a + b - 1) / b; }

// Most tiles of a slice whose activations fit, for 8 * groups rows.
constexpr int32_t MostSliceTiles(int groups) { return kActivationBytes / (groups * 1024); }

constexpr Columns CutColumns(int32_t cols, int32_t pairs, int groups) {
  Columns out;
  out.cols = cols;
  out.k_tiles = CeilDiv(cols, kTileCols);
  out.slices = CeilDiv(out.k_tiles, MostSliceTiles(groups));
  out.slice_tiles = CeilDiv(out.k_tiles, out.slices);
  out.pairs = pairs;
  return out;
}

// Tiles of one fill: two of each part where they fit the ring well.
constexpr int32_t FillTiles(Packing packing) {
  return packing == Packing::kHalf || packing == Packing::kByteMin ? kParts : 2 * kParts;
}
constexpr int32_t TileBytes(Packing packing) {
  return CodeTileBytes(packing) + (HasLoPlane(packing) ? kPlaneTileBytes : 0) + ScaleTileBytes(packing);
}
constexpr int32_t FillBytes(Packing packing) { return FillTiles(packing) * TileBytes(packing); }

// Rows of activations a block works on at once, in groups of 8: 1, 2, 4 or 8.
constexpr int RowGroups(int32_t rows) { return rows <= 8 ? 1 : rows <= 16 ? 2 : rows <= 32 ? 4 : 8; }

}  // namespace thermoe::cuda
