// SPDX-License-Identifier: Apache-2.0
// How stream_rows.cu cuts experts' matrices into units for its blocks. Plain arithmetic.
#pragma once

#include <algorithm>
#include <climits>
#include <cstdint>

#include "kernels/cuda/weight_layout.h"

namespace thermoe::cuda {

// Ways to cut: units of 8, 4, 2 or 1 tiles, each tile by as many warps as there are for it.
inline constexpr int kMostTiles = 3, kWays = 4;
static_assert(kGroupTiles == 1 << kMostTiles);
constexpr int FirstShare(int mats) { return mats == 2 ? 0 : 1; }
constexpr int UnitsOf(int rows, int tiles_log) { return (rows + (kTileRows << tiles_log) - 1) / kTileRows >> tiles_log; }
constexpr int StepsOf(int k_tiles, int share_log, int depth) { return (k_tiles + (depth << share_log) - 1) / depth >> share_log; }

// Of a product of experts, what its cut depends on beside the number of items: a slice of an expert's rows is a whole number of stages, and a lane has at most
// one piece of a stage to copy.
struct CutShape {
  int matrix_rows, k_tiles, mats, depth, slice_stages, tile_bytes;
};
// Both products' ways to cut and, where blocks take units in turn, how many rounds of the second are those blocks' alone that had less to do of the first.
struct ExpertCuts {
  uint8_t packed;
  constexpr int up_way() const { return packed % kWays; }
  constexpr int down_way() const { return packed / kWays % kWays; }
  constexpr int alone() const { return packed / (kWays * kWays); }
};
inline constexpr int kMostAlone = 7;
static_assert((kMostAlone + 1) * kWays * kWays <= 256);
constexpr ExpertCuts CutsOf(int up_way, int down_way, int alone) { return {static_cast<uint8_t>(up_way + kWays * (down_way + kWays * alone))}; }

// Calls with each way that there is for a product, its units, and the tiles and the stages of one of them.
template <typename With>
constexpr void EachWay(const CutShape& shape, int items, With&& with) {
  for (int way = 0; way < kWays; ++way) {
    const int share_log = FirstShare(shape.mats) + way, tiles_log = kMostTiles - way;
    if (shape.slice_stages >> share_log == 0 || (shape.mats * shape.depth << share_log) > 32) continue;
    with(way, items * UnitsOf(shape.matrix_rows, tiles_log), shape.mats * shape.k_tiles << tiles_log, StepsOf(shape.k_tiles, share_log, shape.depth));
  }
}
constexpr int TilesOfStage(const CutShape& shape) { return 2 * kGroupTiles * shape.depth; }

// Where blocks claim units, each when it can copy more: all are busy until there are none, and then wait half of a unit for each other, once a product. A unit's
// end takes what half a stage does, and an item's rows, which come once a unit, as long as tiles of as many bytes. rows: of all items.
inline ExpertCuts CutsOfClaims(int items, int rows, int blocks, const CutShape& up, const CutShape& down) {
  const auto best_way = [&](const CutShape& shape) {
    const int row_bytes = 2 * kTileCols * shape.k_tiles, rows_in_tiles = rows * row_bytes / (std::max(items, 1) * shape.tile_bytes);
    int64_t least = INT64_MAX;
    int best = 0;
    EachWay(shape, items, [&](int way, int units, int tiles, int) {
      const int64_t halves = int64_t{tiles + TilesOfStage(shape) / 2 + rows_in_tiles} * (2 * units + blocks);
      if (halves < least) least = halves, best = way;
    });
    return best;
  };
  return CutsOf(best_way(up), best_way(down), 0);
}

// Where blocks take units in turn, for few items, whose products wait for each other more: for the least time of the busiest of the blocks, which goes by whole
// stages, with a unit's end as one. First the first product's.
inline ExpertCuts CutsInTurn(int items, int blocks, const CutShape& up, const CutShape& down) {
  const auto rounds = [&](int units) { return (std::max(units, 0) + blocks - 1) / blocks; };
  int up_way = 0, up_units = 0, up_time = 0, least_up = INT_MAX;
  EachWay(up, items, [&](int way, int units, int, int steps) {
    const int time = (steps + 1) * TilesOfStage(up);
    if (rounds(units) * time < least_up) least_up = rounds(units) * time, up_way = way, up_units = units, up_time = time;
  });
  const int turns = rounds(up_units), light = turns * blocks - up_units;
  ExpertCuts best{};
  int least = INT_MAX;
  for (int alone = 0; alone <= kMostAlone; ++alone) {
    EachWay(down, items, [&](int way, int units, int, int steps) {
      const int left = units - alone * light, time_of_one = (steps + 1) * TilesOfStage(down);
      if (alone > 0 && (light == 0 || left < 0)) return;
      const int of_light = light > 0 ? std::max(turns - 1, 0) * up_time + (alone + rounds(left)) * time_of_one : 0;
      const int time = std::max(of_light, turns * up_time + rounds(left - light) * time_of_one);
      if (time < least) least = time, best = CutsOf(up_way, way, alone);
    });
  }
  return best;
}

}  // namespace thermoe::cuda
