// SPDX-License-Identifier: Apache-2.0
// Graphs that are kept are those used last; every graph is dropped once.
#include "kernels/cuda/step_graphs.h"

#include <gtest/gtest.h>

#include <map>
#include <vector>

namespace thermoe::cuda {
namespace {

struct CountDrops {
  std::map<const int*, int>* drops;
  void operator()(const int* graph) const { ++(*drops)[graph]; }
};
using Graphs = StepGraphs<const int*, CountDrops>;

TEST(StepGraphs, KeepsThoseUsedLast) {
  const std::vector<int> places(6);
  std::map<const int*, int> drops;
  Graphs graphs(3, {&drops});
  for (uint64_t key = 1; key <= 3; ++key) graphs.Put(key, &places[key]);
  EXPECT_EQ(graphs.Find(1), &places[1]);  // 2 is the oldest now
  graphs.Put(4, &places[4]);
  EXPECT_EQ(graphs.Find(2), nullptr);
  EXPECT_FALSE(graphs.Knows(2));
  for (const uint64_t key : {1, 3, 4}) EXPECT_EQ(graphs.Find(key), &places[key]) << key;
  EXPECT_EQ(drops, (std::map<const int*, int>{{&places[2], 1}}));
}

TEST(StepGraphs, KnowsAStepBeforeItsGraph) {
  const int place = 0, other = 0;
  std::map<const int*, int> drops;
  {
    Graphs graphs(2, {&drops});
    EXPECT_FALSE(graphs.Knows(7));
    graphs.Put(7, nullptr);
    EXPECT_TRUE(graphs.Knows(7));
    EXPECT_EQ(graphs.Find(7), nullptr);
    graphs.Put(7, &place);
    EXPECT_EQ(graphs.Find(7), &place);
    graphs.Put(8, nullptr), graphs.Put(9, nullptr);  // those without a graph count, too
    EXPECT_FALSE(graphs.Knows(7));
    EXPECT_EQ(drops[&place], 1);
    graphs.Put(9, &place), graphs.Put(9, &other);
    EXPECT_EQ(drops[&place], 2);
    graphs.Clear();
    EXPECT_FALSE(graphs.Knows(9));
    EXPECT_EQ(drops[&other], 1);
    graphs.Put(10, &place);
  }
  EXPECT_EQ(drops[&place], 3);
  EXPECT_EQ(drops.size(), 2u);
}

}  // namespace
}  // namespace thermoe::cuda
