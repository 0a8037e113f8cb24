// SPDX-License-Identifier: Apache-2.0
#include "control/cost/cost_table.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/random.h"

namespace thermoe {
namespace {

// Lines of x = 1, 2, 4 ... that have points where x times y is in between.
CostTable Ragged(double least, double most, double noise, uint64_t seed) {
  Random random(seed);
  CostTable table;
  for (double x = 1; x <= 64; x *= 2) {
    CostLine line;
    line.x = std::log(x);
    for (double y = 1; y <= 64; y *= 2) {
      if (x * y < least || x * y > most) continue;
      const double us = (10 + x) * std::ceil(y / 16);  // one step at 16, another at 32
      line.nodes.push_back({std::log(y), std::log(us) + noise * random.Normal()});
    }
    if (!line.nodes.empty()) table.lines.push_back(std::move(line));
  }
  return table;
}

double At(const CostTable& table, double x, double y) { return std::exp(ReadTable(table, {std::log(x), std::log(y)}).log_latency); }

TEST(CostTable, LineBeyondItsEndRisesAsTheNearestThatHasPoints) {
  const CostTable below = Ragged(1, 512, 0, 1), above = Ragged(512, 4096, 0, 1);
  // 32 ends at 16, and 16 goes on to 32; its own last segment is level.
  EXPECT_NEAR(At(below, 32, 32), 84, 1e-6);
  EXPECT_NEAR(At(below, 24, 32), std::sqrt(52.0 * 84), 8);
  // 16 begins at 32; 32 has 16.
  EXPECT_NEAR(At(above, 16, 16), 26, 1e-6);
  EXPECT_TRUE(ReadTable(above, {std::log(16.0), std::log(16.0)}).outside);
  // Where no line has points: along its own last segment.
  EXPECT_NEAR(At(above, 64, 128), 74 * 4 * 2, 1e-6);
}

TEST(CostTable, NeverFallsBeyondTheEndsOfItsLines) {
  for (const auto& [least, most] : {std::pair(1.0, 256.0), {64.0, 4096.0}, {16.0, 512.0}}) {
    for (uint64_t seed = 1; seed <= 20; ++seed) {
      CostTable table = Ragged(least, most, 0.2, seed);
      MakeMonotone(&table);
      for (double x = 1; x <= 64; x *= 1.13) {
        double last = 0;
        for (double y = 1; y <= 100; y *= 1.07) {
          const double us = At(table, x, y);
          EXPECT_GE(us, last * (1 - 1e-9)) << x << " " << y << " seed " << seed;
          last = us;
        }
      }
    }
  }
}

}  // namespace
}  // namespace thermoe
