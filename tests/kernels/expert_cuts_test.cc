// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/expert_cuts.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace thermoe::cuda {
namespace {

struct Way {
  int units, time;  // of one unit, in tiles, with its end, which is half a stage of 16 warps; of few items whole stages, an end as one of them
  bool allowed;
};
Way WayOf(const CutShape& shape, int items, int way) {
  const int share = 1 << (FirstShare(shape.mats) + way), row_tiles = (shape.matrix_rows + kTileRows - 1) / kTileRows, tiles = kGroupTiles >> way;
  const int columns = share * shape.depth, steps = (shape.k_tiles + columns - 1) / columns, stage = 16 * shape.depth;
  const int time = items <= kFewItems ? (steps + 1) * stage : tiles * shape.k_tiles * shape.mats + stage / 2;
  return {items * ((row_tiles + tiles - 1) / tiles), time, shape.slice_stages / share > 0 && shape.mats * share * shape.depth <= 32};
}

// The busiest block's time, by giving every unit to its block one after the other as Work::UnitAt does; -1 where a unit would be nobody's.
int BusiestOf(int blocks, const Way& up, const Way& down, int alone) {
  std::vector<int> times(static_cast<size_t>(blocks)), had(static_cast<size_t>(blocks));
  for (int unit = 0; unit < up.units; ++unit) times[static_cast<size_t>(unit % blocks)] += up.time, ++had[static_cast<size_t>(unit % blocks)];
  const int most = up.units == 0 ? 0 : had[0];
  int light = 0;
  for (const int count : had) light += count < most ? 1 : 0;
  if (alone > 0 && (light == 0 || alone * light > down.units)) return -1;
  for (int unit = 0; unit < down.units; ++unit) {
    const int place = unit < alone * light ? unit % light : (unit - alone * light) % blocks;
    times[static_cast<size_t>(blocks - 1 - place)] += down.time;
  }
  return *std::max_element(times.begin(), times.end());
}

TEST(ExpertCuts, AreTheBestOfAll) {
  const CutShape shapes[][2] = {{{1024, 32, 2, 2, 16}, {2048, 16, 1, 2, 16}}, {{1024, 32, 2, 4, 8}, {2048, 16, 1, 4, 8}}, {{768, 32, 2, 4, 8}, {2048, 12, 1, 4, 8}},
                                {{14336, 64, 2, 2, 16}, {4096, 224, 1, 2, 16}}, {{96, 4, 2, 1, 32}, {256, 2, 1, 1, 32}}, {{1024, 32, 2, 4, 4}, {2048, 16, 1, 4, 4}}};
  for (const auto& [up, down] : shapes) {
    for (const int blocks : {1, 7, 78, 132}) {
      for (const int items : {1, 2, 8, 11, kFewItems, kFewItems + 1, 42, 64, 128, 200}) {
        const ExpertCuts cuts = CutsOfExperts(items, blocks, up, down);
        const int first = cuts.up_way(), second = cuts.down_way(), alone = cuts.alone();
        const Way mine = WayOf(up, items, first);
        ASSERT_TRUE(mine.allowed && WayOf(down, items, second).allowed) << items;
        const auto time_of_first = [&](int way) { return (WayOf(up, items, way).units + blocks - 1) / blocks * WayOf(up, items, way).time; };
        const int busiest = BusiestOf(blocks, mine, WayOf(down, items, second), alone);
        ASSERT_GE(busiest, 0) << items;
        const bool together = up.depth >= kFewBytesDepth && items > kFewItems;
        for (int up_way = 0; up_way < kWays; ++up_way) {
          const Way other_first = WayOf(up, items, up_way);
          if (!other_first.allowed) continue;
          if (!together) {
            EXPECT_LE(time_of_first(first), time_of_first(up_way)) << items << " items, " << blocks << " blocks";
          }
          for (int way = 0; way < kWays; ++way) {
            for (int other = 0; other <= kMostAlone && WayOf(down, items, way).allowed && (together || up_way == first); ++other) {
              const int time = BusiestOf(blocks, other_first, WayOf(down, items, way), other);
              if (time >= 0) {
                EXPECT_LE(busiest, time) << items << " items, " << blocks << " blocks, ways " << up_way << " and " << way << ", " << other << " alone";
              }
            }
          }
        }
      }
    }
  }
}

// What cuda_test's ExpertsWhoseFirstProductHasFewPieces is for: with 132 multiprocessors, of nearly all its experts, stages of the first product have two pieces
// and those of the second more.
TEST(ExpertCuts, OfTheTestOfFewPieces) {
  for (const int items : {9, 10, 11, 12}) {
    const ExpertCuts cuts = CutsOfExperts(items, 132, {1280, 896 / kTileCols, 2, 1, 32}, {896, 1280 / kTileCols, 1, 1, 32});
    EXPECT_EQ(cuts.up_way(), 0) << items;
    EXPECT_GT(cuts.down_way(), 0) << items;
  }
}

TEST(ExpertCuts, OfNoItemsHaveNobodyAlone) { EXPECT_EQ(CutsOfExperts(0, 132, {1024, 32, 2, 2, 16}, {2048, 16, 1, 2, 16}).alone(), 0); }

// What kernels do with more items than their table has.
TEST(ExpertCuts, OfManyItemsServeMore) {
  const CutShape up = {768, 32, 2, 4, 8}, down = {2048, 12, 1, 4, 8};
  const ExpertCuts last = CutsOfExperts(255, 132, up, down);
  for (const int items : {256, 300, 512, 700}) {
    const ExpertCuts best = CutsOfExperts(items, 132, up, down);
    const int time = BusiestOf(132, WayOf(up, items, last.up_way()), WayOf(down, items, last.down_way()), last.alone());
    const int least = BusiestOf(132, WayOf(up, items, best.up_way()), WayOf(down, items, best.down_way()), best.alone());
    EXPECT_GE(time, least) << items;
    EXPECT_LE(time, 1.05 * least) << items;
  }
}

}  // namespace
}  // namespace thermoe::cuda
