// SPDX-License-Identifier: Apache-2.0
// How a decode product is cut up, decided on the host from shapes alone. Plain data and arithmetic: no CUDA here.
//
// The kernel is one block on each multiprocessor. Its warp 16 streams packed weights into a ring of shared memory; the
// others multiply, each a row tile of its own: warps 0 to 7 one group of 128 rows and warps 8 to 15 another (of gate
// and up: the same of both). A *unit* is two groups by a *piece* of the columns; its sums are added with those of the
// other pieces by who reads them. Activations lie in shared memory as fragments, a *slice* of some pieces at a time;
// two tiles of columns of one row, a *segment*, share a scale.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/weight_layout.h"

namespace thermoe::cuda {

inline constexpr int kMostLinears = 4;  // in one launch: kMostTogether
inline constexpr int kSegmentTiles = 2;
// With this many groups of 8 rows a whole slice of a row shares a scale: registers are short.
constexpr bool SliceShares(int groups) { return groups >= 4; }
inline constexpr int kMostSlots = 16;  // of the ring

constexpr int32_t CeilDiv(int32_t a, int32_t b) { return (a + b - 1) / b; }

// Shared memory of the activations of one tile of columns, for 8 * groups rows: fragments, and the sums that products
// begin with for either row group.
constexpr int32_t ActivationTileBytes(int groups) { return groups * (1024 + 2 * 2 * 64 + 16); }
inline constexpr int kActivationBytes = 82 << 10;
constexpr int32_t MostSliceTiles(int groups) { return kActivationBytes / ActivationTileBytes(groups); }

// One product's columns and rows.
struct Columns {
  int32_t cols = 0;  // real columns
  int32_t k_tiles = 0;
  int32_t piece_tiles = 0;  // of each piece but the last
  int32_t pieces = 0;
  int32_t slice_pieces = 0;  // pieces whose activations lie in shared memory together
  int32_t row_units = 0;     // units of a piece (linears: of all matrices together)
};

// `groups`: of 8 activations. `chunks`: lists of activations to be expected. Pieces are small enough that each of
// `blocks` blocks has about eight units, so that none waits long for another.
constexpr Columns CutColumns(int32_t cols, int32_t row_units, int groups, int32_t chunks, int32_t blocks) {
  constexpr int32_t kUnitsOfBlock = 8;
  Columns out;
  out.cols = cols;
  out.k_tiles = CeilDiv(cols, kTileCols);
  out.row_units = row_units;
  const int32_t most = MostSliceTiles(groups);
  int32_t pieces = CeilDiv(out.k_tiles, most);
  while (row_units * chunks * pieces < kUnitsOfBlock * blocks && out.k_tiles > kSegmentTiles * pieces) pieces *= 2;
  out.piece_tiles = CeilDiv(CeilDiv(out.k_tiles, pieces), kSegmentTiles) * kSegmentTiles;
  out.pieces = CeilDiv(out.k_tiles, out.piece_tiles);
  out.slice_pieces = std::min(out.pieces, most / out.piece_tiles);
  return out;
}
constexpr int32_t SliceTiles(const Columns& columns) {
  return std::min(columns.k_tiles, columns.slice_pieces * columns.piece_tiles);
}

constexpr int32_t TileBytes(Packing packing) {
  return CodeTileBytes(packing) + (HasLoPlane(packing) ? kPlaneTileBytes : 0) + ScaleTileBytes(packing);
}
// A slot of the ring holds two groups by at least this many tiles of columns.
constexpr int32_t SlotBytes(Packing packing) {
  return 2 * kGroupTiles * TileBytes(packing) * (packing == Packing::kHalf ? 1 : kSegmentTiles);
}

// Groups of 8 rows of activations that a block works on at once: 1, 2, 4 or 8.
constexpr int RowGroups(int32_t rows) { return rows <= 8 ? 1 : rows <= 16 ? 2 : rows <= 32 ? 4 : 8; }

// Experts: enough for most experts of an even routing, mean + 2 sqrt(mean) + 2; what has more rows is read again.
constexpr int ExpertRowGroups(int32_t rows, int32_t slots, int32_t experts) {
  const int32_t mean = CeilDiv(rows * slots, experts);
  int32_t root = 0;
  while (root * root < mean) ++root;
  return RowGroups(std::min(rows, mean + 2 * root + 2));
}
// Distinct experts of an even routing of independent rows, at least a row's own.
constexpr int32_t ExpectedExperts(int32_t rows, int32_t slots, int32_t experts) {
  double missed = experts;
  for (int32_t t = 0; t < std::min(rows, 64); ++t)
    missed *= 1.0 - static_cast<double>(std::min(slots, experts)) / experts;
  return std::max(1, static_cast<int32_t>(experts - missed + 0.5));
}

}  // namespace thermoe::cuda
