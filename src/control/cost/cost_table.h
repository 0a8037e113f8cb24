// SPDX-License-Identifier: Apache-2.0
// The tables of the cost model: measured points of one family, weight type and matrix, made monotone, completed and read.
#pragma once

#include <array>
#include <limits>
#include <vector>

namespace thermoe {

using CostCoords = std::array<double, 2>;  // logarithms: x, y

struct CostNode {
  double y = 0, log_latency = 0, spread_frac = 0;
  double watts = 0;  // energy over latency; 0: unknown
};
struct CostLine {
  double x = 0;
  std::vector<CostNode> nodes;  // y rising
};
struct CostTable {
  std::vector<CostLine> lines;                             // x rising
  double most = std::numeric_limits<double>::infinity();  // x + y up to which it holds
  double rows_of_round = 0;                                // cost_rounds.h; 0: none are known
};
struct CostReading {
  double log_latency = 0, spread_frac = 0, distance = 0, watts = 0;
  bool outside = false;
};

// The nearest values that never fall, by least squares: neighbours that break the order are pooled.
void PoolAdjacent(std::vector<double*>* values);
void MakeMonotone(CostTable* table);
// Watts of nodes whose energy was not measured, from those of the table that were.
void FillWatts(CostTable* table);

CostReading ReadLine(const CostLine& line, double y, double rows_of_round);
CostReading ReadTable(const CostTable& table, const CostCoords& at);
// Of the piece that holds there.
CostReading ReadPieces(const std::vector<CostTable>& pieces, const CostCoords& at);

}  // namespace thermoe
