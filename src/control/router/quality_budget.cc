// SPDX-License-Identifier: Apache-2.0
#include "control/router/quality_budget.h"

#include <algorithm>
#include <cmath>

#include "control/router/load_mix.h"

namespace thermoe {
namespace {

constexpr double kWindow_s = 300;        // time constant of what "the last minutes" are
constexpr double kBytesShare = 0.05;     // of a step in the running mean of its bytes
constexpr double kBytesExponent = -0.5;  // bytes of a token over batch, between batches that were seen
// Prices from where even the dearest nat is spent to where none is: joules per nat, of a token's plain joules.
constexpr double kLeastPrice = 1e-3, kMostPrice = 1e6;
constexpr int kHalvings = 24;  // of nine decades: to 1 in a million

}  // namespace

QualityBudget::QualityBudget(const std::vector<OperatingPoint>& points, double floor_nats, double budget_nats)
    : budget_nats_(budget_nats), floor_nats_(floor_nats), points_(points.size()) {
  if (!on()) return;
  for (int bin = 0; bin < kBins; ++bin) {
    for (size_t i = 0; i < points_; ++i) {
      const double loss = LossAt(points[i], bin + 1);
      costs_.push_back({loss, BytesFracAt(points[i], bin + 1), i == 0 || loss <= floor_nats});
    }
  }
}

size_t QualityBudget::Bin(int32_t rows) { return static_cast<size_t>(std::clamp(rows, 1, kBins) - 1); }

void QualityBudget::Add(int32_t rows, int32_t point, double plain_expert_bytes) {
  if (!on() || rows < 1) return;
  const size_t bin = Bin(rows);
  pending_[bin] += rows;
  tokens_ += rows;
  // Above the floor where the batch has just fallen: the point was chosen for the step before.
  spent_nats_ += rows * costs_[bin * points_ + static_cast<size_t>(point)].loss_nats;
  if (!(plain_expert_bytes > 0)) return;
  double& mean = step_bytes_[bin];
  mean += (mean > 0 ? kBytesShare : 1) * (plain_expert_bytes - mean);
}

double QualityBudget::PlainBytes(size_t bin) const {
  for (size_t off = 0; off < kBins; ++off) {
    for (const size_t at : {bin - off, bin + off}) {  // below 0 wraps beyond kBins
      if (at >= kBins || !(step_bytes_[at] > 0)) continue;
      const double rows = static_cast<double>(at + 1);
      return step_bytes_[at] / rows * std::pow(static_cast<double>(bin + 1) / rows, kBytesExponent);
    }
  }
  return 0;
}

size_t QualityBudget::BestAt(double price, double plain_j, size_t bin) const {
  const Cost* costs = costs_.data() + bin * points_;
  size_t best = 0;
  double least = plain_j;
  for (size_t i = 1; i < points_; ++i) {
    const double cost = plain_j * costs[i].bytes_frac + price * costs[i].loss_nats;
    if (costs[i].allowed && cost < least) least = cost, best = i;
  }
  return best;
}

double QualityBudget::MeanLossAt(double price) const {
  double nats = 0, tokens = 0;
  for (const auto& regime : cells_) {
    for (size_t bin = 0; bin < kBins; ++bin) {
      const Cell& cell = regime[bin];
      if (!(cell.tokens > 0)) continue;
      tokens += cell.tokens;
      nats += cell.tokens * costs_[bin * points_ + BestAt(price, cell.plain_j, bin)].loss_nats;
    }
  }
  return tokens > 0 ? nats / tokens : 0;
}

void QualityBudget::Solve(Regime regime, double j_per_byte, double dt_s) {
  if (!on()) return;
  const double keep = std::exp(-dt_s / kWindow_s);
  spent_nats_ *= keep, tokens_ *= keep;
  auto& now = cells_[static_cast<size_t>(regime)];
  double joules = 0, weight = 0;
  for (auto& each : cells_) {
    for (size_t bin = 0; bin < kBins; ++bin) {
      Cell& cell = each[bin];
      cell.tokens *= keep;
      if (&each == &now && pending_[bin] > 0) {
        cell.tokens += pending_[bin];
        cell.plain_j = j_per_byte * PlainBytes(bin);
      }
      joules += cell.tokens * cell.plain_j, weight += cell.tokens;
    }
  }
  pending_.fill(0);
  if (!(joules > 0)) return;
  // What the last minutes left over is spent over the next, and what they spent too much is saved.
  const double target = std::clamp(2 * budget_nats_ - mean_loss_nats(), 0.0, floor_nats_);
  // The mean loss falls in steps as the price rises: `low` is the last price above the target, `high` the first below.
  double low = std::log(kLeastPrice * joules / weight), high = std::log(kMostPrice * joules / weight);
  if (MeanLossAt(std::exp(low)) <= target) {
    high = low;
  } else {
    for (int i = 0; i < kHalvings; ++i) {
      const double middle = 0.5 * (low + high);
      (MeanLossAt(std::exp(middle)) > target ? low : high) = middle;
    }
  }
  price_ = std::exp(mean_loss_nats() <= budget_nats_ ? low : high);
  for (size_t bin = 0; bin < kBins; ++bin)
    choice_[bin] = static_cast<int32_t>(BestAt(price_, j_per_byte * PlainBytes(bin), bin));
}

}  // namespace thermoe
