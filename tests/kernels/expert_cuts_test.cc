// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/expert_cuts.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <queue>
#include <vector>

namespace thermoe::cuda {
namespace {

struct Way {
  int units, tiles, stages;  // of one unit
  bool allowed;
};
Way WayOf(const CutShape& shape, int items, int way) {
  const int share = 1 << (FirstShare(shape.mats) + way), row_tiles = (shape.matrix_rows + kTileRows - 1) / kTileRows, tiles = kGroupTiles >> way;
  const int columns = share * shape.depth, steps = (shape.k_tiles + columns - 1) / columns;
  return {items * ((row_tiles + tiles - 1) / tiles), tiles * shape.k_tiles * shape.mats, steps, shape.slice_stages / share > 0 && shape.mats * share * shape.depth <= 32};
}
int StageOf(const CutShape& shape) { return 16 * shape.depth; }

// The busiest block's time, by giving every unit to its block one after the other as Work::UnitAt does, a unit's end being a stage; -1 where a unit would be nobody's.
int BusiestOf(int blocks, const Way& up, int up_stage, const Way& down, int down_stage, int alone) {
  std::vector<int> times(static_cast<size_t>(blocks)), had(static_cast<size_t>(blocks));
  for (int unit = 0; unit < up.units; ++unit) times[static_cast<size_t>(unit % blocks)] += (up.stages + 1) * up_stage, ++had[static_cast<size_t>(unit % blocks)];
  const int most = up.units == 0 ? 0 : had[0];
  int light = 0;
  for (const int count : had) light += count < most ? 1 : 0;
  if (alone > 0 && (light == 0 || alone * light > down.units)) return -1;
  for (int unit = 0; unit < down.units; ++unit) {
    const int place = unit < alone * light ? unit % light : (unit - alone * light) % blocks;
    times[static_cast<size_t>(blocks - 1 - place)] += (down.stages + 1) * down_stage;
  }
  return *std::max_element(times.begin(), times.end());
}

constexpr CutShape kShapes[][2] = {{{1024, 32, 2, 2, 16, 1088}, {2048, 16, 1, 2, 16, 1088}}, {{1024, 32, 2, 4, 8, 576}, {2048, 16, 1, 4, 8, 576}},
                                   {{768, 32, 2, 4, 8, 576}, {2048, 12, 1, 4, 8, 576}},      {{14336, 64, 2, 2, 16, 1088}, {4096, 224, 1, 2, 16, 1088}},
                                   {{96, 4, 2, 1, 32, 2048}, {256, 2, 1, 1, 32, 2048}},      {{1024, 32, 2, 4, 4, 576}, {2048, 16, 1, 4, 4, 576}}};

TEST(ExpertCuts, InTurnAreTheBestOfAll) {
  for (const auto& [up, down] : kShapes) {
    for (const int blocks : {1, 7, 78, 132}) {
      for (const int items : {1, 2, 8, 11, 16}) {
        const ExpertCuts cuts = CutsInTurn(items, blocks, up, down);
        const int first = cuts.up_way(), second = cuts.down_way(), alone = cuts.alone();
        const Way mine = WayOf(up, items, first);
        ASSERT_TRUE(mine.allowed && WayOf(down, items, second).allowed) << items;
        const auto time_of_first = [&](const Way& way) { return (way.units + blocks - 1) / blocks * (way.stages + 1); };
        const auto busiest = [&](int way, int other) { return BusiestOf(blocks, mine, StageOf(up), WayOf(down, items, way), StageOf(down), other); };
        ASSERT_GE(busiest(second, alone), 0) << items;
        for (int way = 0; way < kWays; ++way) {
          if (const Way other = WayOf(up, items, way); other.allowed) {
            EXPECT_LE(time_of_first(mine), time_of_first(other)) << items << " items, " << blocks << " blocks";
          }
          for (int other = 0; other <= kMostAlone && WayOf(down, items, way).allowed; ++other) {
            if (busiest(way, other) >= 0) {
              EXPECT_LE(busiest(second, alone), busiest(way, other)) << items << " items, " << blocks << " blocks, way " << way << ", " << other << " alone";
            }
          }
        }
      }
    }
  }
}

// When the last block is done, a claim each time that one is free; in tiles. beside: what a unit takes beside its tiles.
int LastOf(int blocks, const Way& way, int beside) {
  std::priority_queue<int, std::vector<int>, std::greater<>> free_at;
  for (int block = 0; block < blocks; ++block) free_at.push(0);
  int last = 0;
  for (int unit = 0; unit < way.units; ++unit) {
    const int end = free_at.top() + way.tiles + beside;
    free_at.pop(), free_at.push(end);
    last = std::max(last, end);
  }
  return last;
}

int BesideOf(const CutShape& shape, int rows) { return StageOf(shape) / 2 + rows * 2 * kTileCols * shape.k_tiles / shape.tile_bytes; }

// By claims as they are made no other way is better by more than half of a unit of the one that was taken.
TEST(ExpertCuts, OfClaimsAreNearlyTheBestOfAll) {
  for (const auto& shapes : kShapes) {
    for (const int blocks : {1, 7, 78, 132}) {
      for (const int items : {1, 5, 16, 17, 42, 64, 128, 200}) {
        const int rows = items * (items % 8 + 1);
        const ExpertCuts cuts = CutsOfClaims(items, rows, blocks, shapes[0], shapes[1]);
        EXPECT_EQ(cuts.alone(), 0);
        for (const int product : {0, 1}) {
          const CutShape& shape = shapes[product];
          const int beside = BesideOf(shape, rows / items);
          const Way mine = WayOf(shape, items, product == 0 ? cuts.up_way() : cuts.down_way());
          ASSERT_TRUE(mine.allowed) << items;
          for (int way = 0; way < kWays; ++way) {
            const Way other = WayOf(shape, items, way);
            if (!other.allowed) continue;
            EXPECT_LE(LastOf(blocks, mine, beside), LastOf(blocks, other, beside) + (mine.tiles + beside) / 2 + other.tiles + beside)
                << items << " items, " << blocks << " blocks, product " << product << ", way " << way;
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
    const CutShape up = {1280, 896 / kTileCols, 2, 1, 32, 2048};
    const ExpertCuts cuts = CutsInTurn(items, 132, up, {896, 1280 / kTileCols, 1, 1, 32, 2048});
    EXPECT_GT(StepsOf(up.k_tiles, FirstShare(2) + cuts.up_way(), 1), 12) << items;  // than the ring has
    EXPECT_EQ(cuts.up_way(), 0) << items;
    EXPECT_GT(cuts.down_way(), 0) << items;
  }
}

TEST(ExpertCuts, OfNoItemsHaveNobodyAlone) { EXPECT_EQ(CutsInTurn(0, 132, {1024, 32, 2, 2, 16, 1088}, {2048, 16, 1, 2, 16, 1088}).alone(), 0); }

// What kernels do with more items than their table has.
TEST(ExpertCuts, OfManyItemsServeMore) {
  const CutShape up = {768, 32, 2, 4, 8, 576}, down = {2048, 12, 1, 4, 8, 576};
  const ExpertCuts last = CutsOfClaims(255, 1024, 132, up, down);
  const auto time = [&](int items, const ExpertCuts& cuts) {
    const int rows = 1024 / items;
    return LastOf(132, WayOf(up, items, cuts.up_way()), BesideOf(up, rows)) + LastOf(132, WayOf(down, items, cuts.down_way()), BesideOf(down, rows));
  };
  for (const int items : {256, 300, 512, 700}) EXPECT_LE(time(items, last), 1.05 * time(items, CutsOfClaims(items, 1024, 132, up, down))) << items;
}

}  // namespace
}  // namespace thermoe::cuda
