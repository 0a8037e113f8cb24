// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "control/simulate/sim_run.h"

namespace thermoe {
namespace {

constexpr double kSettled_frac = 0.02, kViolation_frac = 0.04;
constexpr double kGrace_s = 1, kMeanFrom_s = 2;
constexpr double kSlack_s = 1e-6;

// Mean power of the second that ends with sample `last`, or of what of it lies after `from_s`.
double MeanOfSecond(const std::vector<SimSample>& samples, size_t last, double from_s) {
  const double start_s = std::max(samples[last].time_s - 1, from_s);
  double joules = 0, seconds = 0;
  for (size_t i = last + 1; i-- > 0;) {
    const double begin_s = i > 0 ? samples[i - 1].time_s : 0;
    if (begin_s < start_s - kSlack_s) break;
    joules += samples[i].power_w * (samples[i].time_s - begin_s);
    seconds += samples[i].time_s - begin_s;
  }
  return seconds > 0 ? joules / seconds : 0;
}

void MeasureDwell(const std::vector<SimSample>& samples, SimDwell* dwell, double* over_s) {
  double joules = 0, tokens = 0, seconds = 0, violated_s = dwell->start_s;
  const bool is_short = dwell->end_s - dwell->start_s < 2 * kMeanFrom_s;
  dwell->worst_1s_frac = -1;
  for (size_t i = 0; i < samples.size(); ++i) {
    const double begin_s = i > 0 ? samples[i - 1].time_s : 0, end_s = samples[i].time_s;
    if (begin_s < dwell->start_s - kSlack_s || end_s > dwell->end_s + kSlack_s) continue;
    if (is_short || begin_s >= dwell->start_s + kMeanFrom_s - kSlack_s) {
      joules += samples[i].power_w * (end_s - begin_s);
      tokens += samples[i].tokens_per_s * (end_s - begin_s);
      seconds += end_s - begin_s;
    }
    if (end_s < dwell->start_s + 1 - kSlack_s) continue;  // no whole second yet
    const double over_frac = MeanOfSecond(samples, i, dwell->start_s) / dwell->cap_w - 1;
    if (over_frac > kSettled_frac) violated_s = end_s;
    if (end_s < dwell->start_s + kGrace_s + 1 - kSlack_s) continue;
    dwell->worst_1s_frac = std::max(dwell->worst_1s_frac, over_frac);
    if (over_frac > kViolation_frac) *over_s += end_s - begin_s;
  }
  dwell->mean_w = seconds > 0 ? joules / seconds : 0;
  dwell->tokens_per_s = seconds > 0 ? tokens / seconds : 0;
  dwell->settle_s = violated_s - dwell->start_s;
  dwell->bound = std::abs(dwell->mean_w / dwell->cap_w - 1) <= kSettled_frac;
}

}  // namespace

void MeasureDwells(const SimScenario& scenario, SimRun* run) {
  run->dwells.clear();
  run->settle_s = run->overshoot_frac = run->over_power_s = 0;
  for (double start_s = 0; start_s < run->seconds;) {
    const double end_s = std::min(scenario.power_w.NextEdge(start_s), run->seconds);
    SimDwell dwell;
    dwell.start_s = start_s;
    dwell.end_s = end_s;
    dwell.cap_w = scenario.power_w.At(start_s);
    start_s = end_s;
    if (!(dwell.cap_w > 0)) continue;
    MeasureDwell(run->samples, &dwell, &run->over_power_s);
    run->settle_s = std::max(run->settle_s, dwell.settle_s);
    run->overshoot_frac = std::max(run->overshoot_frac, dwell.worst_1s_frac);
    run->dwells.push_back(dwell);
  }
}

}  // namespace thermoe
