// SPDX-License-Identifier: Apache-2.0
// The price of a constraint: a Lagrange multiplier moved by a PID rule on the constraint's violation (Stooke, Achiam and Abbeel,
// Responsive Safety in Reinforcement Learning by PID Lagrangian Methods, ICML 2020).
#pragma once

namespace thermoe {

// lambda = clamp(kp * v + I + kd * dv/dt, 0, most), v being the smoothed violation.
struct MultiplierGains {
  double kp = 2;
  double ki_per_s = 8;
  double kd_s = 0.05;
  double smooth_s = 0.2;  // time constant of the moving average of v
  // The integral forgets with this time constant, so that a violation which no actuator can end has a price in proportion to it
  // (10 v at rest) instead of the highest there is.
  double leak_s = 1;
  double most = 1;
};

class Multiplier {
 public:
  explicit Multiplier(const MultiplierGains& gains = {}) : gains_(gains) {}

  // `violation`: measured over limit - 1; below 0 with headroom. `dt_s` > 0. What is not finite counts as 0.
  double Update(double violation, double dt_s);
  void Reset() { integral_ = smoothed_ = value_ = 0; }
  // As saved: both are brought into range.
  void Restore(double integral, double smoothed);

  double value() const { return value_; }  // exactly 0 with headroom
  double integral() const { return integral_; }
  double smoothed() const { return smoothed_; }

 private:
  MultiplierGains gains_;
  double integral_ = 0, smoothed_ = 0, value_ = 0;
};

}  // namespace thermoe
