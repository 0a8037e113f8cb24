// SPDX-License-Identifier: Apache-2.0
// Recordings of a device as CSV: one row a snapshot, columns by name in any order, an empty cell where unknown.
//
// time_s is required and rises; the other columns are those of SnapshotFields(), throttle (bits of Throttle), state
// (ok, stale, lost) and power_avg_w, which stands in for power_from_energy_w where that is unknown. Without a column
// power_from_energy_w, power is the difference of energy_mj between rows. Other columns are ignored, as are lines that
// begin with '#'. energy_mj may start anywhere and may be reset.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "control/telemetry/snapshot.h"
#include "thermoe/status.h"

namespace thermoe {

struct Trace {
  std::vector<Snapshot> rows;        // at least one; time_s rises
  double hold_s = 0;                 // how long a row stands when none follows
  std::vector<std::string> columns;  // those that were understood
};

// Errors: kNotFound, kInvalidArgument (no regular file), kCorrupt with file, line, column name and remedy.
Result<Trace> ReadTrace(const std::string& path);
// `name` stands for the file in errors.
Result<Trace> ParseTrace(std::string_view text, const std::string& name);

// What `thermoe record` writes: comments that explain the columns and the header line; then lines of rows.
std::string TraceHeader(const std::string& source_name);
std::string TraceLine(const Snapshot& snapshot);

}  // namespace thermoe
