// SPDX-License-Identifier: Apache-2.0
// One entry an NVML call: what it fills in, how often it is made, and what its error codes mean.
#pragma once

#include <optional>
#include <span>
#include <string>

#include "control/telemetry/nvml_api.h"
#include "control/telemetry/snapshot.h"

namespace thermoe {

// What the calls left behind. Every call clears its fields before it tries.
struct NvmlReadings {
  std::optional<uint64_t> energy_mj;
  std::optional<double> power_average_w;
  Snapshot fields;  // all but time, state, power_w and energy_j
};

struct NvmlProbe {
  const char* symbol;
  double period_s;  // 0: at every Read
  NvmlReturn (*read)(const NvmlApi& api, NvmlDevice device, NvmlReadings* readings);
};
std::span<const NvmlProbe> NvmlProbes();

// One line of a report: a sensor that a probe reads.
struct NvmlSensorLine {
  const char* name;
  size_t probe;                                        // into NvmlProbes()
  std::string (*value)(const NvmlReadings& readings);  // "" when unknown
};
std::span<const NvmlSensorLine> NvmlSensorLines();

// Bits of Throttle.
uint32_t ThrottleFromNvml(uint64_t reasons);

enum class NvmlMeaning {
  kFine,
  kFieldUnknown,  // this call will not answer; the device is there
  kLost,          // the device or the driver is gone
  kPerhapsLost,   // lost, unless the same call says so again right after the driver was opened anew
};
NvmlMeaning MeaningOf(NvmlReturn code);

}  // namespace thermoe
