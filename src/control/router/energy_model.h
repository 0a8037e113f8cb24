// SPDX-License-Identifier: Apache-2.0
// What a step costs on this device: joules = idle_w * seconds + j_per_byte * bytes + j_per_flop * FLOPs, identified
// from what a counter counted (recursive least squares on relative errors, prices taken to drift: a Kalman filter of a
// random walk), and seconds = max(bytes / bytes_per_s, FLOPs / flops_per_s), followed step by step.
#pragma once

#include <array>

#include "control/cost/cost_model.h"

namespace thermoe {

// What ran in some stretch of time.
struct WorkTotals {
  double seconds = 0;  // the whole stretch, pauses included
  double bytes = 0, flops = 0;

  WorkTotals& operator+=(const WorkTotals& other) {
    seconds += other.seconds, bytes += other.bytes, flops += other.flops;
    return *this;
  }
};

class EnergyModel {
 public:
  static constexpr int kTerms = 3;  // idle, bytes, FLOPs
  struct State {
    std::array<double, kTerms> value;                       // relative to the prices
    std::array<std::array<double, kTerms>, kTerms> spread;  // covariance
    double noise = 0.0025;                                  // variance of a window's joules, relative
    double bytes_per_s = 0, flops_per_s = 0;
    double windows = 0;
  };

  // `device_w`: the most that the device draws, 0 where unknown: until enough was measured, a step is taken to draw
  // that.
  EnergyModel(const EnergyPrices& prices, double bytes_per_s, double flops_per_s, double device_w);

  // Joules counted over `work`. What cannot be is ignored. `cut_j2`: variance of what lies on the wrong side of the
  // ends of `work`, joules squared: a counter does not say when it moved.
  void LearnEnergy(double joules, const WorkTotals& work, double cut_j2 = 0);
  // Seconds of one step, without pause.
  void LearnTime(double seconds, double bytes, double flops);

  double Joules(const WorkTotals& work) const;
  // The same, but never too little while little is known.
  double CautiousJoules(const WorkTotals& work) const;
  // One standard deviation of Joules(work), relative: what is not known of the prices yet.
  double UncertaintyFrac(const WorkTotals& work) const;
  double Seconds(double bytes, double flops) const;
  bool known() const { return state_.windows >= kEnough; }

  double idle_w() const { return state_.value[0] * prior_[0]; }
  double j_per_byte() const { return state_.value[1] * prior_[1]; }
  double j_per_flop() const { return state_.value[2] * prior_[2]; }

  const State& state() const { return state_; }
  // False, and nothing changes, when it is not one that this class can come to.
  bool Restore(const State& state);

 private:
  static constexpr double kEnough = 5;

  std::array<double, kTerms> prior_;
  double device_w_;
  State state_;
};

}  // namespace thermoe
