// SPDX-License-Identifier: Apache-2.0
#include "control/telemetry/replay_source.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"
#include "control/telemetry/snapshot_fields.h"

namespace thermoe {

ReplaySource::ReplaySource(Trace trace, std::string file, Clock clock)
    : trace_(std::move(trace)), file_(std::move(file)), time_(std::move(clock)) {
  THERMOE_CHECK(!trace_.rows.empty());
}

Snapshot ReplaySource::Read() {
  time_.Advance();
  if (!start_s_) start_s_ = time_.now_s();
  const std::vector<Snapshot>& rows = trace_.rows;
  const double now_s = rows.front().time_s + (time_.now_s() - *start_s_);
  while (row_ + 1 < rows.size() && rows[row_ + 1].time_s <= now_s) ++row_;
  if (now_s - rows[row_].time_s > trace_.hold_s) return LostAt(now_s);
  Snapshot snapshot = rows[row_];
  snapshot.time_s = now_s;
  return snapshot;
}

std::vector<SensorReport> ReplaySource::Report() {
  std::vector<SensorReport> reports;
  for (const SnapshotField& field : SnapshotFields()) {
    const auto known = std::count_if(trace_.rows.begin(), trace_.rows.end(),
                                     [&](const Snapshot& row) { return (row.*field.value).has_value(); });
    SensorReport& report = reports.emplace_back();
    report.name = fmt::format("trace {}", field.column);
    report.found = known > 0;
    if (report.found) {
      report.value = fmt::format("{} of {} rows", known, trace_.rows.size());
    } else {
      report.reason =
          fmt::format("{} has no value of {}; record it where the device has that sensor", file_, field.column);
    }
  }
  return reports;
}

}  // namespace thermoe
