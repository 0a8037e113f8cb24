// SPDX-License-Identifier: Apache-2.0
#include "control/cost/stage_correction.h"

#include <algorithm>
#include <cmath>

namespace thermoe {
namespace {

constexpr double kScale_us = 100;
constexpr double kForget = 0.98;   // a memory of about 50 steps
constexpr double kMostRatio = 20;  // a step that took this many times as long was disturbed, not mispredicted
constexpr double kMostInnovation =
    0.5;                               // of one record, relative: an outlier moves the factor no further than this says
constexpr double kMostCovariance = 1;  // forgetting without news would let it grow without end

}  // namespace

bool StageCorrection::Learn(double predicted_us, double measured_us) {
  if (!std::isfinite(predicted_us) || !std::isfinite(measured_us) || predicted_us <= 0 || measured_us <= 0)
    return false;
  const double ratio = measured_us / predicted_us;
  if (!(ratio < kMostRatio && ratio > 1 / kMostRatio)) return false;
  const double u = std::min(kScale_us / predicted_us, 10.0);
  const double offset = offset_us_ / kScale_us;
  const double limit = kMostInnovation * std::max(factor_, 0.5);
  const double innovation = std::clamp(ratio - (factor_ + offset * u), -limit, limit);
  const double pu0 = p00_ + p01_ * u, pu1 = p01_ + p11_ * u;
  const double denominator = kForget + pu0 + u * pu1;
  const double gain0 = pu0 / denominator, gain1 = pu1 / denominator;
  factor_ = std::clamp(factor_ + gain0 * innovation, kLeastFactor, kMostFactor);
  offset_us_ = std::clamp((offset + gain1 * innovation) * kScale_us, -kMostOffset_us, kMostOffset_us);
  p00_ = (p00_ - gain0 * pu0) / kForget;
  p01_ = (p01_ - gain0 * pu1) / kForget;
  p11_ = (p11_ - gain1 * pu1) / kForget;
  const double most = std::max(p00_, p11_);
  if (most > kMostCovariance) {
    const double shrink = kMostCovariance / most;
    p00_ *= shrink;
    p01_ *= shrink;
    p11_ *= shrink;
  }
  if (!(p00_ > 0 && p11_ > 0 && p00_ * p11_ >= p01_ * p01_)) {  // rounding spoilt it
    p00_ = 1;
    p01_ = 0;
    p11_ = 0.01;
  }
  ++records_;
  return true;
}

double StageCorrection::Apply(double predicted_us) const {
  return std::clamp(factor_ * predicted_us + offset_us_, kLeastFactor * predicted_us, kMostFactor * predicted_us);
}

}  // namespace thermoe
