// SPDX-License-Identifier: Apache-2.0
// A sequential test of "the adapted model is no worse than the plain one", on tokens that both scored. It may be looked
// at after every token: the chance that it ever rejects a harmless adaptation stays below 1 / kRejectAt.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace thermoe {

// With S the sum and V the sum of squares of differences d (adapted less plain NLL), exp(x S - x^2 V / 2) mixed over x
// > 0 from a half-normal of precision kPrior has mean at most 1 where d is symmetric around 0 (de la Pena 1999):
// evidence against the adaptation.
class GuardTest {
 public:
  static constexpr double kRejectAt = 20;  // times as likely

  void Add(double worse_nats) {
    if (!std::isfinite(worse_nats)) return;
    sum_ += worse_nats;
    squares_ += worse_nats * worse_nats;
    ++tokens_;
  }

  double log_evidence() const {
    if (sum_ <= 0) return 0;
    const double precision = kPrior + squares_;
    const double log_tail = std::log(2 * Phi(sum_ / std::sqrt(precision)));
    return 0.5 * std::log(kPrior / precision) + sum_ * sum_ / (2 * precision) + log_tail;
  }
  // The sum is a deviation above 0: worth looking again soon.
  bool Suspects() const { return sum_ > std::sqrt(squares_); }
  bool Rejects() const { return log_evidence() > std::log(kRejectAt); }

  int64_t tokens() const { return tokens_; }
  double mean_nats() const { return tokens_ > 0 ? sum_ / static_cast<double>(tokens_) : 0; }
  // Of the mean.
  double variance() const {
    if (tokens_ == 0) return 0;
    const auto n = static_cast<double>(tokens_);
    return std::max(squares_ / n - mean_nats() * mean_nats(), 1e-6) / n;
  }

 private:
  // Differences of a tenth of a nat a token over some 30 tokens should be seen: x of about 1.
  static constexpr double kPrior = 1;
  static double Phi(double z) { return 0.5 * std::erfc(-z / std::sqrt(2.0)); }

  double sum_ = 0, squares_ = 0;
  int64_t tokens_ = 0;
};

}  // namespace thermoe
