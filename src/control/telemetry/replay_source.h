// SPDX-License-Identifier: Apache-2.0
// A recording, played at the speed of a clock.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "control/telemetry/clock.h"
#include "control/telemetry/source.h"
#include "control/telemetry/trace_csv.h"

namespace thermoe {

// The first Read() shows the first row; a row stands until the next, for the trace's hold_s at most. After the end, and
// in gaps, the source is lost.
class ReplaySource : public TelemetrySource {
 public:
  ReplaySource(Trace trace, std::string file, Clock clock = SteadySeconds);

  std::string name() const override { return "replay:" + file_; }
  Snapshot Read() override;
  std::vector<SensorReport> Report() override;

 private:
  const Trace trace_;
  const std::string file_;
  SourceTime time_;
  std::optional<double> start_s_;  // of the clock, at the first Read
  size_t row_ = 0;
};

}  // namespace thermoe
