// SPDX-License-Identifier: Apache-2.0
#include "control/cost/cost_switch.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <map>
#include <set>

namespace thermoe {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kMostLeft = 0.6;     // of what one kernel alone leaves unexplained; noise leaves 0.7 or more wherever so many points are cut
constexpr size_t kLeastPoints = 200;  // among 120, noise of a twentieth passes for a switch one time in seven; among 240 one in 200
constexpr double kPointError = 0.01;  // of a logarithm: points are not as exact as that, and nor need two kernels explain them better
constexpr double kLeastGain = 0.05;   // squares of logarithms: three launches that are a fifth faster than a smaller one

// How far points are from latencies that rise along lines and columns: squares, summed. A kernel's own would be 0.
double FallsOf(const CostTable& table) {
  double sum = 0;
  std::map<double, std::vector<double>> columns;
  const auto add = [&sum](const std::vector<double>& measured) {
    std::vector<double> rising = measured;
    std::vector<double*> values;
    for (double& value : rising) values.push_back(&value);
    PoolAdjacent(&values);
    for (size_t i = 0; i < measured.size(); ++i) sum += (measured[i] - rising[i]) * (measured[i] - rising[i]);
  };
  for (const CostLine& line : table.lines) {
    std::vector<double> measured;
    for (const CostNode& node : line.nodes) {
      measured.push_back(node.log_latency);
      columns[node.y].push_back(node.log_latency);
    }
    add(measured);
  }
  for (const auto& [y, measured] : columns) add(measured);
  return sum;
}

double FallsOf(const std::vector<CostTable>& tables) {
  double sum = 0;
  for (const CostTable& table : tables) sum += FallsOf(table);
  return sum;
}

void Search(const std::vector<CostTable>& tables, std::vector<double>* found) {
  std::set<double> slots;
  size_t points = 0;
  for (const CostTable& table : tables) {
    for (const CostLine& line : table.lines) {
      for (const CostNode& node : line.nodes) slots.insert(line.x + node.y), ++points;
    }
  }
  if (points < kLeastPoints) return;
  const double whole = FallsOf(tables);
  double best = 0, least = whole;
  for (auto at = slots.begin(); at != slots.end() && std::next(at) != slots.end(); ++at) {
    const double middle = (*at + *std::next(at)) / 2;
    double left = 0;
    for (const CostTable& table : tables) left += FallsOf(CutAt({middle}, table));
    if (left < least) best = middle, least = left;
  }
  const double gain = whole - least;
  if (least > kMostLeft * whole || gain < kLeastGain || gain < static_cast<double>(points) * kPointError * kPointError) return;
  std::vector<CostTable> below, above;
  for (const CostTable& table : tables) {
    for (CostTable& piece : CutAt({best}, table)) (piece.lines.front().x + piece.lines.front().nodes.front().y < best ? below : above).push_back(std::move(piece));
  }
  Search(below, found);
  found->push_back(best);
  Search(above, found);
}

}  // namespace

std::vector<double> SwitchesOf(const std::vector<const CostTable*>& tables) {
  std::vector<CostTable> copies;
  for (const CostTable* table : tables) copies.push_back(*table);
  std::vector<double> found;
  Search(copies, &found);
  return found;
}

std::vector<CostTable> CutAt(const std::vector<double>& switches, const CostTable& table) {
  std::vector<CostTable> pieces;
  double from = -kInfinity;
  for (size_t i = 0; i <= switches.size(); ++i) {
    const double to = i < switches.size() ? switches[i] : kInfinity;
    CostTable piece;
    piece.most = to;
    for (const CostLine& line : table.lines) {
      CostLine part;
      part.x = line.x;
      std::copy_if(line.nodes.begin(), line.nodes.end(), std::back_inserter(part.nodes), [&](const CostNode& node) { return line.x + node.y > from && line.x + node.y <= to; });
      if (!part.nodes.empty()) piece.lines.push_back(std::move(part));
    }
    if (piece.lines.empty()) continue;
    pieces.push_back(std::move(piece));
    from = to;
  }
  if (!pieces.empty()) pieces.back().most = kInfinity;
  return pieces;
}

}  // namespace thermoe
