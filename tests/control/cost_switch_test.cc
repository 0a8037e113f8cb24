// SPDX-License-Identifier: Apache-2.0
#include "control/cost/cost_switch.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "base/random.h"
#include "control/cost/cost_model.h"

namespace thermoe {
namespace {

constexpr int64_t kExperts[] = {1, 2, 4, 8, 16, 20, 24, 32, 40, 48, 56, 64}, kEach[] = {1, 2, 4, 8, 12, 16, 17, 20, 24, 32, 48, 64};

using Latency = std::function<double(double experts, double each)>;

CostTable TableOf(const Latency& latency_us) {
  CostTable table;
  for (const int64_t experts : kExperts) {
    CostLine line;
    line.x = std::log(static_cast<double>(experts));
    for (const int64_t each : kEach) {
      line.nodes.push_back({std::log(static_cast<double>(each)), std::log(latency_us(static_cast<double>(experts), static_cast<double>(each)))});
    }
    table.lines.push_back(std::move(line));
  }
  return table;
}

// Up to 1,024 slots an expert's rows come in passes of 16; beyond, 128 at once.
double Switching(double experts, double each) {
  return experts * each <= 1024 ? 10 + 1.5 * experts * std::ceil(each / 16) : 10 + 2 * experts;
}
double Rising(double experts, double each) { return 10 + 1.5 * experts * std::ceil(each / 16); }

// Both precisions, with noise.
std::vector<CostTable> TablesOf(const Latency& latency_us, double noise, uint64_t seed) {
  Random random(seed);
  std::vector<CostTable> tables;
  for (const double faster : {1.0, 0.8}) {
    tables.push_back(TableOf([&](double experts, double each) { return latency_us(experts, each) * faster * std::exp(noise * random.Normal()); }));
  }
  return tables;
}

TEST(CostSwitch, IsWhereLatencyFalls) {
  for (const double noise : {0.0, 0.01, 0.05}) {
    const std::vector<CostTable> tables = TablesOf(Switching, noise, 1);
    const std::vector<double> switches = SwitchesOf({&tables[0], &tables[1]});
    ASSERT_EQ(switches.size(), 1u) << noise;
    EXPECT_GE(std::exp(switches[0]), 1024) << noise;
    EXPECT_LT(std::exp(switches[0]), 1088) << noise;  // 64 experts of 17
  }
}

TEST(CostSwitch, IsNotFoundInNoise) {
  for (const double noise : {0.0, 0.01, 0.1, 0.3}) {
    for (uint64_t seed = 1; seed <= 30; ++seed) {
      const std::vector<CostTable> tables = TablesOf(Rising, noise, seed);
      EXPECT_TRUE(SwitchesOf({&tables[0], &tables[1]}).empty()) << noise << " " << seed;
      EXPECT_TRUE(SwitchesOf({&tables[0]}).empty()) << noise << " " << seed;  // too few to tell
    }
  }
  EXPECT_TRUE(SwitchesOf({}).empty());
}

TEST(CostSwitch, CutsATableIntoOneOfEachKernel) {
  const CostTable table = TableOf(Switching);
  const std::vector<CostTable> pieces = CutAt({std::log(1050)}, table);
  ASSERT_EQ(pieces.size(), 2u);
  size_t nodes = 0;
  for (const CostTable& piece : pieces) {
    for (const CostLine& line : piece.lines) {
      nodes += line.nodes.size();
      EXPECT_FALSE(line.nodes.empty());
      for (const CostNode& node : line.nodes) EXPECT_EQ(&piece == &pieces[1], std::exp(line.x + node.y) > 1050);
    }
  }
  EXPECT_EQ(nodes, std::size(kExperts) * std::size(kEach));
  EXPECT_EQ(CutAt({}, table).size(), 1u);
  // A switch beyond all points leaves no piece without any.
  EXPECT_EQ(CutAt({std::log(1e6)}, table).size(), 1u);
  EXPECT_EQ(CutAt({std::log(0.5)}, table).size(), 1u);
}

TEST(CostSwitch, IsBelievedByTheModel) {
  std::vector<CostPoint> points;
  const auto shape_of = [](int64_t experts, int64_t each, bool hi) {
    OperationShape shape;
    shape.family = hi ? Family::kExpertNestedHi : Family::kExpertNestedBoth;
    shape.matrix = {DType::kNested8, 1024, 2048, false};
    shape.down_type = DType::kNested8;
    shape.tokens = (experts * each + 7) / 8;
    shape.experts = experts;
    (hi ? shape.experts_hi : shape.experts_full) = experts;
    (hi ? shape.slots_hi : shape.slots_full) = experts * each;
    return shape;
  };
  for (const int64_t experts : kExperts) {
    for (const int64_t each : kEach) {
      for (const bool hi : {false, true}) {
        CostPoint point;
        point.shape = shape_of(experts, each, hi);
        point.latency_us = Switching(static_cast<double>(experts), static_cast<double>(each)) * (hi ? 0.8 : 1);
        points.push_back(point);
      }
    }
  }
  const KernelCostModel model(points);
  for (const auto& [experts, each] : std::vector<std::pair<int64_t, int64_t>>{{45, 20}, {45, 26}, {44, 20}, {54, 20}, {60, 17}, {36, 24}, {36, 32}}) {
    for (const bool hi : {false, true}) {
      const double us = Switching(static_cast<double>(experts), static_cast<double>(each)) * (hi ? 0.8 : 1);
      EXPECT_NEAR(model.Predict(shape_of(experts, each, hi)).latency_us / us, 1, 0.07) << experts << " of " << each;
    }
  }
}

}  // namespace
}  // namespace thermoe
