// SPDX-License-Identifier: Apache-2.0
#include "control/cost/cost_rounds.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

namespace thermoe {
namespace {

constexpr double kTolerance = 0.15;  // of a logarithm: rounds may be as unlike, for the last is not full and clocks move
constexpr double kWide = 1.25;       // points that are so far apart show that latency stands still between them
constexpr size_t kLeastStills = 2;   // in so many rounds
constexpr int kMostFilled = 8;       // a point may be where the last of so many rounds is full
constexpr double kMostDoubt = 1.1;   // between the least and the most rows that a round may have by the points

// How far latencies are from those of rounds of so many rows, on the average; not a number where a point speaks against it.
double ErrorOf(const std::vector<CostNode>& nodes, double rows) {
  std::set<double> stills;
  double sum = 0;
  int pairs = 0;
  for (size_t i = 0; i + 1 < nodes.size(); ++i) {
    const CostNode &a = nodes[i], &b = nodes[i + 1];
    if (std::exp(a.y) < rows / 2) continue;
    const double first = RoundsOf(a.y, rows), last = RoundsOf(b.y, rows);
    const double error = std::abs(b.log_latency - a.log_latency - std::log(last / first));
    if (error > kTolerance) return NAN;
    if (first == last && b.y - a.y >= std::log(kWide)) stills.insert(first);
    sum += error, ++pairs;
  }
  return stills.size() >= kLeastStills ? sum / pairs : NAN;
}

}  // namespace

double RoundsOf(double log_rows, double rows_of_round) {
  if (rows_of_round <= 0) return 1;
  constexpr double kRounding = 1e-6;  // a round's last row is its own
  return std::max(1.0, std::ceil(std::exp(log_rows) / rows_of_round - kRounding));
}

double RowsOfRound(const CostLine& line) {
  double best = 0, least = std::numeric_limits<double>::infinity();
  for (const CostNode& filled : line.nodes) {
    for (int rounds = 1; rounds <= kMostFilled; ++rounds) {
      const double rows = std::exp(filled.y) / rounds;
      if (const double error = ErrorOf(line.nodes, rows); error < least) best = rows, least = error;
    }
  }
  if (best == 0) return 0;
  // All that put the points into the same rounds are as good.
  double from = 0, to = std::numeric_limits<double>::infinity();
  for (const CostNode& node : line.nodes) {
    const double rounds = RoundsOf(node.y, best), rows = std::exp(node.y);
    from = std::max(from, rows / rounds);
    if (rounds > 1) to = std::min(to, rows / (rounds - 1));
  }
  return to <= kMostDoubt * from ? std::sqrt(from * to) : 0;
}

}  // namespace thermoe
