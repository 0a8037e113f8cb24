// SPDX-License-Identifier: Apache-2.0
#include "control/cost/cost_rounds.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "control/cost/cost_model.h"

namespace thermoe {
namespace {

constexpr int64_t kRows[] = {1,  2,  4,   8,   16,  32,  33,  64,  65,   96,   128,  129,
                             192, 256, 257, 384, 512, 768, 1024, 1536, 2048, 2049, 3072, 4096};

CostLine LineOf(const std::function<double(double rows)>& latency_us) {
  CostLine line;
  for (const int64_t rows : kRows) line.nodes.push_back({std::log(static_cast<double>(rows)), std::log(latency_us(static_cast<double>(rows)))});
  return line;
}

// 24 tiles of 256 weight rows for each 128 rows, 132 at once; another kernel up to 64 rows.
double RoundsOf132(double rows) {
  const double tiles = 24 * std::ceil(rows / 128);
  return rows <= 32 ? 3 + rows / 16 : rows <= 64 ? 15 : 10.5 * std::ceil(tiles / 132);
}

TEST(CostRounds, AreFoundWhereLatencyTakesWholeRounds) {
  const double rows = RowsOfRound(LineOf(RoundsOf132));
  EXPECT_GT(rows, 640);  // 5 of 5.5 tiles of rows
  EXPECT_LT(rows, 704);
  // Not by rounds alone: something grows with the rows too, and clocks fall.
  const double other = RowsOfRound(LineOf([](double x) { return RoundsOf132(x) * (1 + 0.05 * std::sin(x)) + 1e-4 * x; }));
  EXPECT_NEAR(other, rows, 0.05 * rows);
}

TEST(CostRounds, AreNotFoundWhereLatencyOnlyRises) {
  EXPECT_EQ(RowsOfRound(LineOf([](double x) { return 3 + 0.01 * x; })), 0);
  EXPECT_EQ(RowsOfRound(LineOf([](double x) { return x; })), 0);
  EXPECT_EQ(RowsOfRound(LineOf([](double) { return 5.0; })), 0);
  for (const double power : {0.3, 0.5, 0.7, 1.2}) EXPECT_EQ(RowsOfRound(LineOf([&](double x) { return std::pow(x, power); })), 0) << power;
  // One step is where a kernel takes over.
  EXPECT_EQ(RowsOfRound(LineOf([](double x) { return x > 512 ? 20.0 : 10.0; })), 0);
  // Rounds of which the points do not say how large they are: of 2,112 rows, by 2,049 and 3,072.
  EXPECT_EQ(RowsOfRound(LineOf([](double x) { return 10 * std::ceil(x / 2112); })), 0);
  EXPECT_EQ(RowsOfRound({}), 0);
}

TEST(CostRounds, HoldTheLatencyOfARoundUntilItIsFull) {
  std::vector<CostPoint> points;
  for (const int64_t rows : kRows) {
    CostPoint point;
    point.shape.family = Family::kLinearQ;
    point.shape.matrix = {DType::kQ8_0, 2048, 2048, false};
    point.shape.tokens = rows;
    point.latency_us = RoundsOf132(static_cast<double>(rows));
    points.push_back(point);
  }
  const KernelCostModel model(points);
  OperationShape shape = points.front().shape;
  double last_us = 0;
  for (shape.tokens = 65; shape.tokens <= 4096; ++shape.tokens) {
    const double us = model.Predict(shape).latency_us;
    EXPECT_GE(us, last_us * (1 - 1e-12)) << shape.tokens;
    last_us = us;
  }
  // What a tile of rows adds is not known: near a round's end one more or less.
  for (const int64_t rows : {320, 640, 900, 1300, 1800, 2500}) {
    shape.tokens = rows;
    EXPECT_NEAR(model.Predict(shape).latency_us / RoundsOf132(static_cast<double>(rows)), 1, 0.01) << rows;
  }
}

}  // namespace
}  // namespace thermoe
