// SPDX-License-Identifier: Apache-2.0
// The tables of the cost model: made monotone, completed and read.
#include "control/cost/cost_table.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>
#include <utility>

#include "control/cost/cost_rounds.h"

namespace thermoe {
namespace {

// Whether latencies fall at `at` for good: the next three are all well below the last two. Not noise then: where operations share launches, what one adds
// to them falls where another kernel takes over.
template <typename Nodes>
bool FallsForGood(const Nodes& nodes, size_t at) {
  constexpr size_t kBefore = 2, kAfter = 3;
  const double fall = std::log(0.85);
  if (at < kBefore || at + kAfter > nodes.size()) return false;
  for (size_t after = at; after < at + kAfter; ++after) {
    for (size_t before = at - kBefore; before < at; ++before) {
      if (nodes[after].log_latency > nodes[before].log_latency + fall) return false;
    }
  }
  return true;
}

}  // namespace

void PoolAdjacent(std::vector<double*>* values) {
  struct Block {
    double sum;
    int count;
  };
  std::vector<Block> blocks;
  for (const double* value : *values) {
    blocks.push_back({*value, 1});
    while (blocks.size() > 1) {
      const Block last = blocks.back();
      Block& before = blocks[blocks.size() - 2];
      if (before.sum / before.count <= last.sum / last.count) break;
      before.sum += last.sum;
      before.count += last.count;
      blocks.pop_back();
    }
  }
  size_t i = 0;
  for (const Block& block : blocks) {
    if (block.count == 1) {  // not touched, to the last bit
      ++i;
      continue;
    }
    for (int n = 0; n < block.count; ++n) *(*values)[i++] = block.sum / block.count;
  }
}

// Noise can make a larger operation look faster. Pooling along each axis takes out most of it without bias; what is
// left is lifted. Operations of one size only, rows, may fall for good.
void MakeMonotone(CostTable* table) {
  if (table->lines.size() == 1) {
    std::vector<CostNode>& nodes = table->lines.front().nodes;
    std::vector<size_t> ends;  // of pieces that rise; found before any is changed
    for (size_t i = 1; i < nodes.size(); ++i) {
      if (FallsForGood(nodes, i)) ends.push_back(i);
    }
    ends.push_back(nodes.size());
    for (size_t i = 0, piece = 0; i < nodes.size(); i = ends[piece++]) {
      std::vector<double*> values;
      for (size_t n = i; n < ends[piece]; ++n) values.push_back(&nodes[n].log_latency);
      PoolAdjacent(&values);
    }
    return;
  }
  for (int round = 0; round < 4; ++round) {
    for (CostLine& line : table->lines) {
      std::vector<double*> values;
      for (CostNode& node : line.nodes) values.push_back(&node.log_latency);
      PoolAdjacent(&values);
    }
    std::map<double, std::vector<double*>> columns;
    for (CostLine& line : table->lines) {
      for (CostNode& node : line.nodes) columns[node.y].push_back(&node.log_latency);
    }
    for (auto& [y, values] : columns) PoolAdjacent(&values);
  }
  for (size_t i = 0; i < table->lines.size(); ++i) {
    for (CostNode& node : table->lines[i].nodes) {
      for (size_t j = 0; j <= i; ++j) {
        for (const CostNode& smaller : table->lines[j].nodes) {
          if (smaller.y <= node.y) node.log_latency = std::max(node.log_latency, smaller.log_latency);
        }
      }
    }
  }
}

// Between the nearest that know, along a line and then from line to line; at the ends as the nearest.
void FillWatts(CostTable* table) {
  std::vector<CostLine*> known;
  for (CostLine& line : table->lines) {
    std::vector<std::pair<double, double>> measured;  // size, watts
    for (const CostNode& node : line.nodes) {
      if (node.watts > 0) measured.emplace_back(node.y, node.watts);
    }
    if (measured.empty()) continue;
    known.push_back(&line);
    for (CostNode& node : line.nodes) {
      const auto above = std::lower_bound(measured.begin(), measured.end(), std::pair(node.y, 0.0));
      if (above == measured.end()) {
        node.watts = measured.back().second;
      } else if (above == measured.begin()) {
        node.watts = above->second;
      } else {
        const auto& [below_y, below_w] = *std::prev(above);
        node.watts = below_w + (node.y - below_y) / (above->first - below_y) * (above->second - below_w);
      }
    }
  }
  if (known.empty()) return;
  for (CostLine& line : table->lines) {
    if (line.nodes.front().watts > 0) continue;
    const auto found = std::lower_bound(known.begin(), known.end(), line.x, [](const CostLine* other, double x) { return other->x < x; });
    const CostLine *above = found == known.end() ? known.back() : *found, *below = found == known.begin() ? known.front() : *std::prev(found);
    const double t = above->x > below->x ? (line.x - below->x) / (above->x - below->x) : 0;
    for (CostNode& node : line.nodes) {
      const double below_w = ReadLine(*below, node.y, 0).watts;
      node.watts = below_w + t * (ReadLine(*above, node.y, 0).watts - below_w);
    }
  }
}

CostReading ReadLine(const CostLine& line, double y, double rows_of_round) {
  const std::vector<CostNode>& nodes = line.nodes;
  const auto above =
      std::lower_bound(nodes.begin(), nodes.end(), y, [](const CostNode& node, double at) { return node.y < at; });
  if (above != nodes.end() && above->y == y) return {above->log_latency, above->spread_frac, 0, above->watts, false};
  if (above == nodes.begin() || above == nodes.end()) {
    // Beyond the edge: on along the last segment, at most proportionally to size.
    const bool low = above == nodes.begin();
    const CostNode& edge = low ? nodes.front() : nodes.back();
    double slope = low ? 0 : 1;
    if (nodes.size() > 1) {
      const CostNode& next = low ? nodes[1] : nodes[nodes.size() - 2];
      slope = std::clamp((next.log_latency - edge.log_latency) / (next.y - edge.y), 0.0, 1.0);
    }
    return {edge.log_latency + slope * (y - edge.y), edge.spread_frac, std::abs(y - edge.y), edge.watts, true};
  }
  const CostNode &a = *std::prev(above), &b = *above;
  const double t = (y - a.y) / (b.y - a.y);
  double risen = t;
  if (const double rounds = RoundsOf(b.y, rows_of_round) / RoundsOf(a.y, rows_of_round); rounds > 1) {
    risen = std::log(RoundsOf(y, rows_of_round) / RoundsOf(a.y, rows_of_round)) / std::log(rounds);
  }
  return {a.log_latency + risen * (b.log_latency - a.log_latency), std::max(a.spread_frac, b.spread_frac),
          std::min(y - a.y, b.y - y), a.watts > 0 && b.watts > 0 ? a.watts + t * (b.watts - a.watts) : 0, false};
}

namespace {

bool Reaches(const CostLine& line, double y) { return line.nodes.front().y <= y && y <= line.nodes.back().y; }

// A line beyond its end: it rises as the nearest does that has points there, as far as these go, and then along its own last segment.
double LatencyBeyond(const CostTable& table, size_t index, double y) {
  const std::vector<CostLine>& lines = table.lines;
  const CostLine& line = lines[index];
  const auto at = [&](const CostLine& other, double y_there) { return ReadLine(other, y_there, table.rows_of_round).log_latency; };
  const bool up = y > line.nodes.back().y;
  double from = up ? line.nodes.back().y : line.nodes.front().y, latency = at(line, from);
  while (from != y) {
    const CostLine* guide = nullptr;
    const auto guides = [&](size_t i) { return i < lines.size() && Reaches(lines[i], from) && (up ? lines[i].nodes.back().y > from : lines[i].nodes.front().y < from); };
    for (size_t away = 1; guide == nullptr && away < lines.size(); ++away) {
      if (guides(index - away)) guide = &lines[index - away];  // below 0 is beyond the last
      else if (guides(index + away)) guide = &lines[index + away];
    }
    if (guide == nullptr) return latency + at(line, y) - at(line, from);
    const double to = up ? std::min(y, guide->nodes.back().y) : std::max(y, guide->nodes.front().y);
    latency += at(*guide, to) - at(*guide, from);
    from = to;
  }
  return latency;
}

// The line of the table at `y`. Beyond their ends lines may cross: there it is read as no more than those after it that have points, and no less than
// those before it that reach so far down.
CostReading ReadLineOf(const CostTable& table, size_t index, double y) {
  const std::vector<CostLine>& lines = table.lines;
  CostReading reading = ReadLine(lines[index], y, table.rows_of_round);
  const auto at = [&](size_t i) { return ReadLine(lines[i], y, table.rows_of_round).log_latency; };
  const auto beyond = [&](size_t i) {
    double latency = LatencyBeyond(table, i, y);
    for (size_t later = i + 1; later < lines.size(); ++later) {
      if (Reaches(lines[later], y)) latency = std::min(latency, at(later));
    }
    return latency;
  };
  const bool inside = Reaches(lines[index], y);
  if (!inside) reading.log_latency = beyond(index);
  for (size_t i = 0; i < index; ++i) {
    if (lines[i].nodes.front().y > y) continue;
    if (Reaches(lines[i], y)) reading.log_latency = std::max(reading.log_latency, at(i));
    else if (!inside) reading.log_latency = std::max(reading.log_latency, beyond(i));
  }
  return reading;
}

}  // namespace

CostReading ReadTable(const CostTable& table, const CostCoords& at) {
  const std::vector<CostLine>& lines = table.lines;
  const auto read = [&](std::ptrdiff_t index) { return ReadLineOf(table, static_cast<size_t>(index), at[1]); };
  const auto found =
      std::lower_bound(lines.begin(), lines.end(), at[0], [](const CostLine& line, double x) { return line.x < x; });
  const std::ptrdiff_t above = found - lines.begin(), count = std::ssize(lines);
  if (above < count && found->x == at[0]) return read(above);
  if (above == 0 || above == count) {
    const std::ptrdiff_t edge = above == 0 ? 0 : count - 1;
    const double away = at[0] - lines[static_cast<size_t>(edge)].x;
    CostReading reading = read(edge);
    double slope = above == 0 ? 0 : 1;
    if (count > 1) {
      const std::ptrdiff_t next = above == 0 ? 1 : count - 2;
      const double rise = read(next).log_latency - reading.log_latency;
      slope = std::clamp(rise / (lines[static_cast<size_t>(next)].x - lines[static_cast<size_t>(edge)].x), 0.0, 1.0);
    }
    reading.log_latency += slope * away;
    reading.distance += std::abs(away);
    reading.outside = true;
    return reading;
  }
  const double a = lines[static_cast<size_t>(above - 1)].x, b = found->x, t = (at[0] - a) / (b - a);
  const CostReading from = read(above - 1), to = read(above);
  CostReading reading;
  reading.log_latency = from.log_latency + t * (to.log_latency - from.log_latency);
  reading.spread_frac = std::max(from.spread_frac, to.spread_frac);
  reading.distance = std::min(at[0] - a, b - at[0]) + std::max(from.distance, to.distance);
  reading.watts = from.watts > 0 && to.watts > 0 ? from.watts + t * (to.watts - from.watts) : 0;
  reading.outside = from.outside || to.outside;
  return reading;
}

CostReading ReadPieces(const std::vector<CostTable>& pieces, const CostCoords& at) {
  const auto piece = std::find_if(pieces.begin(), pieces.end(), [&](const CostTable& table) { return at[0] + at[1] <= table.most; });
  return ReadTable(piece == pieces.end() ? pieces.back() : *piece, at);
}

}  // namespace thermoe
