// SPDX-License-Identifier: Apache-2.0
#include "control/router/multiplier.h"

#include <algorithm>
#include <cmath>

namespace thermoe {
namespace {

constexpr double kMostViolation = 2, kMostHeadroom = 0.5;  // beyond, one bad reading would decide for seconds
constexpr double kNothing = 1e-3;  // a price below this buys nothing: 0, so that headroom means exactly the plain model

}  // namespace

double Multiplier::Update(double violation, double dt_s) {
  const double v = std::isfinite(violation) ? std::clamp(violation, -kMostHeadroom, kMostViolation) : 0;
  const double before = smoothed_;
  smoothed_ += (v - smoothed_) * -std::expm1(-dt_s / gains_.smooth_s);
  const double slope_per_s = (smoothed_ - before) / dt_s;
  // Anti-windup: the integral neither leaves the multiplier's range nor grows while the multiplier is at its bound.
  const bool full = value_ >= gains_.most && smoothed_ > 0;
  const double keep = std::exp(-dt_s / gains_.leak_s);
  const double next = integral_ * keep + gains_.ki_per_s * gains_.leak_s * (1 - keep) * smoothed_;
  integral_ = std::clamp(full ? std::min(next, integral_) : next, 0.0, gains_.most);
  value_ = std::clamp(gains_.kp * smoothed_ + integral_ + gains_.kd_s * slope_per_s, 0.0, gains_.most);
  if (value_ < kNothing && v <= 0) value_ = 0;
  return value_;
}

void Multiplier::Restore(double integral, double smoothed) {
  integral_ = std::clamp(integral, 0.0, gains_.most);
  smoothed_ = std::clamp(smoothed, -kMostHeadroom, kMostViolation);
  value_ = std::clamp(gains_.kp * smoothed_ + integral_, 0.0, gains_.most);
}

}  // namespace thermoe
