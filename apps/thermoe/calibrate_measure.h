// SPDX-License-Identifier: Apache-2.0
// The measurements of `thermoe calibrate`: the paired loss of settings, and what they read.
#pragma once

#include <string>
#include <vector>

#include "control/router/operating_point.h"
#include "eval_score.h"
#include "eval_windows.h"
#include "thermoe/engine.h"

namespace thermoe {

inline constexpr int kCalibrationBatch = 16;

// Measures points on fixed windows of each text, always against the plain model on the same windows.
class PointMeter {
 public:
  // `windows`: of each text, a multiple of kCalibrationBatch or fewer. `engine` must outlive it.
  PointMeter(Engine* engine, std::vector<std::vector<EvalWindow>> windows) : engine_(engine), windows_(std::move(windows)) {}

  int64_t predictions() const;  // of one point

  // Fills batch1, batch16 and windows of *point. A point that does not look at its batch gives every token the same
  // logits at both sizes, so one run in lock step measures both; the others take batch 1 from `alone`, measured before.
  Status Measure(OperatingPoint* point, const OperatingPoint* alone, const ScoreProgress& progress);

  // The loss at batch 1 alone, by prefill: cheaper, for ranking layers.
  Result<double> PrefillLoss(const OperatingPoint& point, const ScoreProgress& progress);

 private:
  Result<std::vector<Scores>> Score(const OperatingPoint* point, bool prefill, const ScoreProgress& progress);

  Engine* engine_;
  std::vector<std::vector<EvalWindow>> windows_;  // [texts]
  std::vector<Scores> plain_, plain_prefill_;     // [texts], measured when first needed
};

}  // namespace thermoe
