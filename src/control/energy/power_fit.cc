// SPDX-License-Identifier: Apache-2.0
#include "control/energy/power_fit.h"

#include <algorithm>
#include <cmath>

namespace thermoe {
namespace {

constexpr double kForget = 0.995;  // a memory of about 200 windows
constexpr double kNoise =
    0.01;  // variance of a window's power, relative: its edges are known to some milliseconds of 100
constexpr double kMostVariance = 1e6;  // idle power alone for hours says nothing about work

}  // namespace

void PowerFit::Learn(double power_w, double work_w) {
  if (!(power_w > 0 && power_w < 1e5) || !(work_w >= 0 && work_w < 1e9)) return;
  // 1 = idle_ * u + scale_ * v
  const double u = prior_w_ / power_w, v = work_w / power_w;
  const double error = 1 - idle_ * u - scale_ * v;
  const double pu = p00_ * u + p01_ * v, pv = p01_ * u + p11_ * v;
  const double denominator = kForget * kNoise + u * pu + v * pv;
  const double gain_u = pu / denominator, gain_v = pv / denominator;
  idle_ = std::clamp(idle_ + gain_u * error, kLeast, kMost);
  scale_ = std::clamp(scale_ + gain_v * error, kLeast, kMost);
  p00_ = std::min((p00_ - gain_u * pu) / kForget, kMostVariance);
  p01_ = (p01_ - gain_u * pv) / kForget;
  p11_ = std::min((p11_ - gain_v * pv) / kForget, kMostVariance);
  if (!(p00_ > 0 && p11_ > 0 && p00_ * p11_ >= p01_ * p01_)) {  // rounding, or a bound, spoilt it
    p00_ = p11_ = kPriorVariance;
    p01_ = 0;
  }
}

}  // namespace thermoe
