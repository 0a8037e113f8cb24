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
constexpr int kMostAlone = 7;
static_assert((kMostAlone + 1) * kWays * kWays <= 256);

// For so many items, for the least time of the busiest of the blocks, in stages; what a unit's end costs is about one.
inline ExpertCuts CutsOfExperts(int items, int blocks, const CutShape& up, const CutShape& down) {
  const auto rounds = [&](int units) { return (std::max(units, 0) + blocks - 1) / blocks; };
  // Calls for each way with its units and the stages of one, its end with them.
  const auto each_way = [&](const CutShape& shape, auto&& with) {
    for (int way = 0; way < kWays; ++way) {
      const int share_log = FirstShare(shape.mats) + way;
      if (shape.slice_stages >> share_log == 0 || (shape.mats * shape.depth << share_log) > 32) continue;
      with(way, items * UnitsOf(shape.matrix_rows, kMostTiles - way), StepsOf(shape.k_tiles, share_log, shape.depth) + 1);
    }
  };
  int first = 0, up_units = 0, up_steps = 0, least = INT32_MAX;
  each_way(up, [&](int way, int units, int steps) {
    if (const int time = rounds(units) * steps; time < least) least = time, first = way, up_units = units, up_steps = steps;
  });
  const int turns = rounds(up_units), light = turns * blocks - up_units;
  int second = 0, second_alone = 0;
  least = INT32_MAX;
  for (int alone = 0; alone <= kMostAlone; ++alone) {
    each_way(down, [&](int way, int units, int steps) {
      const int left = units - alone * light;
      if (alone > 0 && (light == 0 || left < 0)) return;
      const int of_light = light > 0 ? std::max(turns - 1, 0) * up_steps + (alone + rounds(left)) * steps : 0;
      const int time = std::max(of_light, turns * up_steps + rounds(left - light) * steps);
      if (time < least) least = time, second = way, second_alone = alone;
    });
  }
  return {static_cast<uint8_t>(first + kWays * (second + kWays * second_alone))};
}

}  // namespace thermoe::cuda
