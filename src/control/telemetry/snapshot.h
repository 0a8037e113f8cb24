// SPDX-License-Identifier: Apache-2.0
// What the machine is doing now, as far as its sensors say. A field without a value is unknown, never 0.
#pragma once

#include <cstdint>
#include <optional>

namespace thermoe {

// Why clocks are lower than they could be. Bits of Snapshot::throttle.
enum class Throttle : uint32_t {
  kPowerLimit = 1,  // the software or hardware power limit
  kThermal = 2,     // a software or hardware slowdown for temperature
  kPowerBrake = 4,  // an outside signal
  kOther = 8,
};

enum class SourceState : uint8_t {
  kOk,     // fields are as fresh as the sensors allow
  kStale,  // a sensor that should move rests: its field is unknown; the others are right
  kLost,   // the device or file is gone; every field is unknown
};

// A sensor that should move and rests for this long is stale; a snapshot this old is lost.
inline constexpr double kStaleAfter_s = 0.3;
// What a poll every 25 ms must have seen resting for that: the last change came up to a poll before it was seen.
inline constexpr double kRestLimit_s = 0.27;

struct Snapshot {
  double time_s = 0;  // of the source's clock; never falls
  SourceState state = SourceState::kLost;
  std::optional<double> temp_c, memory_temp_c;
  std::optional<double> temp_margin_c;  // to the slowdown, where the device says so itself
  std::optional<double> power_w;        // over the last change of the energy counter, else the device's own average
  std::optional<double> power_instant_w;
  std::optional<double> energy_j;  // since the source was opened: wraps and resets are taken out
  std::optional<double> utilisation_frac, memory_utilisation_frac;
  std::optional<double> clock_mhz, memory_clock_mhz;
  std::optional<uint32_t> throttle;  // bits of Throttle
  // Limits of the device itself.
  std::optional<double> temp_max_c;  // the highest it is meant to run at; the slowdown may lie above
  std::optional<double> power_limit_w, temp_slowdown_c, temp_shutdown_c, memory_temp_limit_c, clock_limit_mhz;
};

}  // namespace thermoe
