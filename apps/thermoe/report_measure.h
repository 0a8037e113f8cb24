// SPDX-License-Identifier: Apache-2.0
// What came of a run, from its decision log: series to draw and one number of each kind.
#pragma once

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "json_out.h"
#include "report_log.h"
#include "svg.h"

namespace thermoe {

// Mean power between changes of the counter; where none is read, power as it was shown. NaN: unknown.
TimeSeries PowerSeries(const RunLog& log);
// One value a tick.
TimeSeries TickSeries(const RunLog& log, double RunTick::*value, double scale = 1);
TimeSeries RateSeries(const RunLog& log);  // decoded tokens per second
TimeSeries LimitSeries(const RunLog& log, double RunLimits::*limit);
// At the end of each span of `series` the mean of the last `window_s` seconds, of what is known in them.
TimeSeries TrailingMean(const TimeSeries& series, double window_s);
// 0 as unknown.
TimeSeries ZeroUnknown(TimeSeries series);

// NaN: unknown, or no such limit was set.
struct RunSummary {
  double seconds = 0;
  int64_t steps = 0, decoded = 0, prefilled = 0;
  double tokens_per_s = 0, joules = std::nan(""), joules_per_token = std::nan(""), mean_w = std::nan("");
  double worst_over_cap_frac =
      std::nan("");  // worst 1 s mean over the cap, less 1, from 1 s after the cap was set; may be negative
  double most_temp_c = std::nan(""), late_frac = std::nan("");
  double loss_nats = 0;  // mean over decoded tokens
  double pause_frac = 0, safest_s = 0;
  int64_t point_changes = 0;
  std::vector<double> point_frac;  // [points] of the time
};
RunSummary Summarise(const RunLog& log);

Json SummaryJson(const RunLog& log, const RunSummary& summary);
// Name and value, for people. What is unknown is left out.
std::vector<std::pair<std::string, std::string>> SummaryRows(const RunLog& log, const RunSummary& summary);
// "ember-22m, adaptive router, plant:small (simulated)".
std::string RunTitle(const RunLog& log);

}  // namespace thermoe
