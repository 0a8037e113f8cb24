// SPDX-License-Identifier: Apache-2.0
// Where snapshots come from: NVML, Linux, a recording or the plant.
#pragma once

#include <string>
#include <vector>

#include "control/telemetry/snapshot.h"

namespace thermoe {

// What `thermoe doctor` prints of one sensor.
struct SensorReport {
  std::string name;  // "NVML energy counter", "RAPL package-0"
  bool found = false;
  std::string value;   // "71.2 W", "" when not found
  std::string reason;  // why it is missing and what to do, "" when found
};

// One device. Calls come from one thread at a time; they may take milliseconds, so a TelemetrySampler makes them, never
// a step.
class TelemetrySource {
 public:
  virtual ~TelemetrySource() = default;
  // "nvml:0 NVIDIA H100", "linux", "replay:trace.csv", "plant:h100".
  virtual std::string name() const = 0;
  // Reads every sensor. Never fails: what cannot be read is unknown, what was lost is tried again at each call.
  virtual Snapshot Read() = 0;
  // One entry a sensor, after a Read().
  virtual std::vector<SensorReport> Report() = 0;
  // The caller knows that work runs (or no longer does): counters that rest meanwhile are stale. Without this a source
  // goes by the device's utilisation.
  virtual void SetWorking(bool /*working*/) {}
  // Readings closer together than this show nothing new.
  virtual double least_period_s() const { return 0; }
};

}  // namespace thermoe
