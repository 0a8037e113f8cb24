// SPDX-License-Identifier: Apache-2.0
// QualityBudget: the fewest joules at a given mean loss. A nat buys other joules in other steps: most where few rows
// share a read of the weights and where a cap makes a step wait. With one price for a nat everywhere, joules + price *
// nats is least, and the price at which the mean loss is the budget is found from the steps of the last minutes.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "control/router/operating_point.h"

namespace thermoe {

class QualityBudget {
 public:
  // What a byte more would cost beside its own joules: nothing while the machine waits for requests; idle power for its
  // time; the pause that a cap makes of it.
  enum class Regime : uint8_t { kWaiting, kBusy, kCapped };

  // `floor_nats`: no point that loses more is chosen at any step. `budget_nats`: of the mean; 0: off.
  QualityBudget(const std::vector<OperatingPoint>& points, double floor_nats, double budget_nats);

  bool on() const { return budget_nats_ > 0; }
  // A step with `rows` decode rows, run by `point`. `plain_expert_bytes`: that the plain model would have read; 0 where
  // prompt rows read them too.
  void Add(int32_t rows, int32_t point, double plain_expert_bytes);
  // Finds the price anew. `j_per_byte`: of one byte more in `regime`, which is the present one. Allocates nothing.
  void Solve(Regime regime, double j_per_byte, double dt_s);
  // For a step of so many decode rows in the present regime; plain before the first Solve that knows anything.
  int32_t PointFor(int32_t rows) const { return choice_[Bin(rows)]; }

  double mean_loss_nats() const { return tokens_ > 0 ? spent_nats_ / tokens_ : 0; }  // of the last minutes
  double j_per_nat() const { return price_; }                                        // the price; 0: not known yet

 private:
  static constexpr int kBins = 16, kRegimes = 3;  // batches of 1 to 16 rows; costs are flat beyond
  struct Cell {
    double tokens = 0;   // of the last minutes
    double plain_j = 0;  // joules of a token's expert bytes in the plain model
  };
  struct Cost {
    double loss_nats = 0, bytes_frac = 1;
    bool allowed = true;  // by the floor
  };

  static size_t Bin(int32_t rows);
  double PlainBytes(size_t bin) const;  // of a token; 0: unknown
  size_t BestAt(double price, double plain_j, size_t bin) const;
  double MeanLossAt(double price) const;

  double budget_nats_, floor_nats_;
  size_t points_;
  std::vector<Cost> costs_;  // [kBins, points]
  std::array<std::array<Cell, kBins>, kRegimes> cells_;
  std::array<double, kBins> pending_ = {};     // tokens since the last Solve
  std::array<double, kBins> step_bytes_ = {};  // plain expert bytes of a step, running mean; 0: never seen
  std::array<int32_t, kBins> choice_ = {};
  double spent_nats_ = 0, tokens_ = 0;  // of the last minutes
  double price_ = 0;
};

}  // namespace thermoe
