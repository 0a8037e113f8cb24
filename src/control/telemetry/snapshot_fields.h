// SPDX-License-Identifier: Apache-2.0
// The fields of a Snapshot as a table: names in traces, units, and the values that a sensor may show.
#pragma once

#include <optional>
#include <span>

#include "control/telemetry/snapshot.h"

namespace thermoe {

struct SnapshotField {
  const char* column;  // of a trace
  std::optional<double> Snapshot::*value;
  double scale;     // column = value * scale
  double min, max;  // of the value, both allowed; outside the sensor talks nonsense
  const char* meaning;
};

// Every field but time, state and throttle.
std::span<const SnapshotField> SnapshotFields();
// The bits that Throttle defines.
inline constexpr uint32_t kAllThrottleBits = 15;

// Values that no working sensor shows (0 C, 0 W, 0 MHz, 200 C) become unknown.
void DropImplausible(Snapshot* snapshot);
bool AnyKnown(const Snapshot& snapshot);
// Nothing known at `time_s`.
Snapshot LostAt(double time_s);

}  // namespace thermoe
