// SPDX-License-Identifier: Apache-2.0
// measured = factor * predicted + offset, learnt step by step: recursive least squares with forgetting (Ljung, System
// Identification, 1999, section 11.2), on relative errors, bounded whatever it is fed.
#pragma once

#include <cstdint>

namespace thermoe {

class StageCorrection {
 public:
  static constexpr double kLeastFactor = 1.0 / 16, kMostFactor = 16;  // a roofline of nothing known may be as far off
  static constexpr double kMostOffset_us = 2000;

  // False when the pair cannot be true and was ignored.
  bool Learn(double predicted_us, double measured_us);
  // Between kLeastFactor and kMostFactor times `predicted_us`, rising with it.
  double Apply(double predicted_us) const;

  double factor() const { return factor_; }
  double offset_us() const { return offset_us_; }
  int64_t records() const { return records_; }

 private:
  // Regressors are 1 and kScale_us / predicted: offsets of about kScale_us are as likely as factors are far from 1.
  double factor_ = 1, offset_us_ = 0;
  double p00_ = 1, p01_ = 0, p11_ = 0.01;  // covariance; offsets are thought small until records say otherwise
  int64_t records_ = 0;
};

}  // namespace thermoe
