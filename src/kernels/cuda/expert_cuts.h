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
  int matrix_rows, k_tiles, mats, depth, slice_stages;
};
// Both products' ways to cut, and how many rounds of the second are those blocks' alone that had less to do of the first.
struct ExpertCuts {
  uint8_t packed;
  constexpr int up_way() const { return packed % kWays; }
  constexpr int down_way() const { return packed / kWays % kWays; }
  constexpr int alone() const { return packed / (kWays * kWays); }
};
inline constexpr int kMostAlone = 7;
inline constexpr int kFewItems = 16;
inline constexpr int kFewBytesDepth = 4;  // of stages of tiles of few bytes: hi planes, Q4_0, MXFP4
static_assert((kMostAlone + 1) * kWays * kWays <= 256);

// For so many items, for the least time of the busiest of the blocks, which goes by tiles; a unit's end takes what half a stage does. Of few items, whose products
// wait for each other more, stages count as wholes, and an end as one.
inline ExpertCuts CutsOfExperts(int items, int blocks, const CutShape& up, const CutShape& down) {
  struct Best {
    int time = INT32_MAX, up_way = 0, down_way = 0, alone = 0;
  };
  const bool few = items <= kFewItems;
  const auto rounds = [&](int units) { return (std::max(units, 0) + blocks - 1) / blocks; };
  // Calls for each way with its units and the time of one.
  const auto each_way = [&](const CutShape& shape, auto&& with) {
    for (int way = 0; way < kWays; ++way) {
      const int share_log = FirstShare(shape.mats) + way, tiles_log = kMostTiles - way;
      if (shape.slice_stages >> share_log == 0 || (shape.mats * shape.depth << share_log) > 32) continue;
      const int stage = 2 * kGroupTiles * shape.depth, tiles = shape.mats * shape.k_tiles << tiles_log;
      with(way, items * UnitsOf(shape.matrix_rows, tiles_log), few ? (StepsOf(shape.k_tiles, share_log, shape.depth) + 1) * stage : tiles + stage / 2);
    }
  };
  // The second product for a way of the first.
  const auto with_up = [&](int up_way, int up_units, int up_time) {
    Best best;
    const int turns = rounds(up_units), light = turns * blocks - up_units;
    for (int alone = 0; alone <= kMostAlone; ++alone) {
      each_way(down, [&](int way, int units, int time_of_one) {
        const int left = units - alone * light;
        if (alone > 0 && (light == 0 || left < 0)) return;
        const int of_light = light > 0 ? std::max(turns - 1, 0) * up_time + (alone + rounds(left)) * time_of_one : 0;
        const int time = std::max(of_light, turns * up_time + rounds(left - light) * time_of_one);
        if (time < best.time) best = {time, up_way, way, alone};
      });
    }
    return best;
  };
  // Of tiles of few bytes both ways are chosen together: mostly large units of the first product, in few copies. Of others the first product's is chosen for
  // itself: rounds alone, which make up for its large units, gain less there than the model says.
  const bool together = up.depth >= kFewBytesDepth && !few;
  Best best;
  int least_up = INT32_MAX;
  each_way(up, [&](int way, int units, int time_of_one) {
    if (!together && rounds(units) * time_of_one >= least_up) return;
    least_up = rounds(units) * time_of_one;
    if (const Best with = with_up(way, units, time_of_one); !together || with.time < best.time) best = with;
  });
  return {static_cast<uint8_t>(best.up_way + kWays * (best.down_way + kWays * best.alone))};
}

}  // namespace thermoe::cuda
