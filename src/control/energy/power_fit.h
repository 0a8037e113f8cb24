// SPDX-License-Identifier: Apache-2.0
// What idling and predicted work draw on this machine, learnt from windows of a counter: power = idle_w + scale *
// predicted power of work. Recursive least squares with forgetting on relative errors (Ljung, System Identification,
// 1999, section 11.2), bounded.
#pragma once

namespace thermoe {

class PowerFit {
 public:
  static constexpr double kLeast = 1e-3, kMost = 1e3;  // of both, relative to what was thought before

  // `idle_w`: idle power before anything is measured; above 0.
  explicit PowerFit(double idle_w) : prior_w_(idle_w) {}

  // One window: its mean power, and the mean power that prices per byte and FLOP predict for the work in it. What
  // cannot be is ignored.
  void Learn(double power_w, double work_w);

  double idle_w() const { return idle_ * prior_w_; }
  double scale() const { return scale_; }

 private:
  static constexpr double kPriorVariance = 4;  // prices are orders of size: a standard deviation of twice their value

  double prior_w_;
  double idle_ = 1, scale_ = 1;  // relative
  double p00_ = kPriorVariance, p01_ = 0, p11_ = kPriorVariance;
};

}  // namespace thermoe
