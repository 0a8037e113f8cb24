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

// Points along a line or a column of a table: slots rise.
struct Point {
  double slots, log_latency;  // slots: logarithm
};
using Chain = std::vector<Point>;

void AddChains(const CostTable& table, std::vector<Chain>* chains) {
  std::map<double, Chain> columns;
  for (const CostLine& line : table.lines) {
    Chain chain;
    for (const CostNode& node : line.nodes) {
      chain.push_back({line.x + node.y, node.log_latency});
      columns[node.y].push_back(chain.back());
    }
    chains->push_back(std::move(chain));
  }
  for (auto& [y, chain] : columns) chains->push_back(std::move(chain));
}

// How far points are from latencies that rise along them: squares, summed. A kernel's own would be 0.
double FallsOf(Chain::const_iterator begin, Chain::const_iterator end) {
  std::vector<double> rising;
  for (auto point = begin; point != end; ++point) rising.push_back(point->log_latency);
  std::vector<double*> values;
  for (double& value : rising) values.push_back(&value);
  PoolAdjacent(&values);
  double sum = 0;
  for (const double value : rising) {
    const double off = (begin++)->log_latency - value;
    sum += off * off;
  }
  return sum;
}

void Search(const std::vector<Chain>& chains, std::vector<double>* found) {
  std::set<double> slots;
  size_t points = 0;
  double whole = 0;
  for (const Chain& chain : chains) {
    for (const Point& point : chain) slots.insert(point.slots);
    points += chain.size();
    whole += FallsOf(chain.begin(), chain.end());
  }
  points /= 2;  // each is in a line and in a column
  if (points < kLeastPoints) return;
  // What is left of the falls where all chains are cut at some slots: a chain's own changes only where one of its points does.
  std::map<double, double> changes;
  for (const Chain& chain : chains) {
    double before = FallsOf(chain.begin(), chain.end());
    for (auto from = chain.begin(); from != chain.end(); ++from) {
      const double now = FallsOf(chain.begin(), from + 1) + FallsOf(from + 1, chain.end());
      changes[from->slots] += now - before;
      before = now;
    }
  }
  double best = 0, left = whole, least = whole;
  for (auto at = slots.begin(); std::next(at) != slots.end(); ++at) {
    left += changes[*at];
    if (left < least) best = (*at + *std::next(at)) / 2, least = left;
  }
  const double gain = whole - least;
  if (least > kMostLeft * whole || gain < kLeastGain || gain < static_cast<double>(points) * kPointError * kPointError) return;
  std::vector<Chain> below, above;
  for (const Chain& chain : chains) {
    const auto cut = std::find_if(chain.begin(), chain.end(), [&](const Point& point) { return point.slots > best; });
    below.emplace_back(chain.begin(), cut), above.emplace_back(cut, chain.end());
  }
  Search(below, found);
  found->push_back(best);
  Search(above, found);
}

}  // namespace

std::vector<double> SwitchesOf(const std::vector<const CostTable*>& tables) {
  std::vector<Chain> chains;
  for (const CostTable* table : tables) AddChains(*table, &chains);
  std::vector<double> found;
  Search(chains, &found);
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
