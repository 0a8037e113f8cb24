// SPDX-License-Identifier: Apache-2.0
// What a decision log tells of a run over time (docs/control-loop.md): read without making the decisions again, so that
// logs of other builds can be looked at too.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "control/router/operating_point.h"
#include "thermoe/status.h"

namespace thermoe {

struct RunLimits {
  double power_w = 0, temp_c = 0, latency_ms = 0;  // 0: none
};

// From one tick to the next. Values of 0 that a sensor shows: unknown.
struct RunTick {
  double from_s = 0, to_s = 0;
  int64_t steps = 0, decoded = 0, prefilled = 0,
          late = 0;  // late: decode steps over the latency target, pause included
  int64_t decode_steps = 0;
  double power_w = 0, temp_c = 0, latency_ms = 0, batch = 0;
  double cap_w = 0;  // what pacing held: of the power limit and what heat allowed
  double lambda_power = 0, lambda_temp = 0, lambda_latency = 0;
  double pause_frac = 0;  // of the last second
  size_t point = 0;       // in force when it began
  double loss_nats = 0;   // mean of its decoded tokens; without any, of that point at the running batch
  std::string reason;
  bool safest = false;
  RunLimits limits;
  std::vector<double> ttha;  // [RunLog::ttha_names] weight times value; empty: not learnt in this tick
};

// Joules between two readings of the counter.
struct EnergySpan {
  double from_s = 0, to_s = 0, joules = 0;
};

struct RunLog {
  std::string model, telemetry;  // "": not told
  bool simulated = false, replayed = false;
  std::string router, prefer;
  double quality_floor_nats = 0;
  std::vector<OperatingPoint> points;
  std::vector<std::string> point_texts;
  std::vector<std::string> ttha_names;  // terms of the hardware adapter (docs/ttha.md); empty: none learnt
  std::vector<RunTick> ticks;
  std::vector<EnergySpan> energy;
  struct Adaptation {
    int64_t segments = 0, learnt = 0, deferred = 0, guards = 0;  // by --ttt auto
  } adaptation;
  bool cut = false;  // the last line has no end

  double begin_s() const { return ticks.front().from_s; }
  double end_s() const { return ticks.back().to_s; }
};

// At least one tick. kCorrupt names `source`, the line and what it must be, whatever the bytes are; keys that it does
// not know are left alone.
Result<RunLog> ParseRunLog(std::string_view text, const std::string& source);

}  // namespace thermoe
