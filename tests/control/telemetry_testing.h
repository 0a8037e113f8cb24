// SPDX-License-Identifier: Apache-2.0
// What the telemetry tests share: virtual time, bounds that every snapshot keeps.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <string>

#include "control/telemetry/clock.h"
#include "control/telemetry/snapshot.h"
#include "support/temp_folder.h"

namespace thermoe {

struct VirtualClock {
  double now_s = 1000;
  Clock clock() {
    return [this] { return now_s; };
  }
};

// Whether fields are unknown or possible, and unknown when lost. Bounds are written out here on purpose.
inline ::testing::AssertionResult Sane(const Snapshot& snapshot, double max_power_w = 1e4) {
  const auto within = [](const std::optional<double>& value, double min, double max) {
    return !value || (*value >= min && *value <= max);
  };
  const auto fail = [](const char* what) { return ::testing::AssertionFailure() << what; };
  for (const auto& celsius : {snapshot.temp_c, snapshot.memory_temp_c, snapshot.temp_slowdown_c,
                              snapshot.temp_shutdown_c, snapshot.memory_temp_limit_c, snapshot.temp_max_c}) {
    if (!within(celsius, 1e-9, 150)) return fail("temperature");
  }
  if (!within(snapshot.temp_margin_c, -150, 150)) return fail("margin");
  if (!within(snapshot.power_w, 1e-9, max_power_w)) return fail("power") << " " << *snapshot.power_w;
  if (!within(snapshot.power_instant_w, 1e-9, 1e4) || !within(snapshot.power_limit_w, 1e-9, 1e4)) return fail("watts");
  if (!within(snapshot.energy_j, 0, 1e13)) return fail("energy");
  if (!within(snapshot.utilisation_frac, 0, 1) || !within(snapshot.memory_utilisation_frac, 0, 1))
    return fail("utilisation");
  for (const auto& mhz : {snapshot.clock_mhz, snapshot.memory_clock_mhz, snapshot.clock_limit_mhz}) {
    if (!within(mhz, 1e-9, 2e4)) return fail("clock");
  }
  if (snapshot.throttle && *snapshot.throttle > 15) return fail("throttle");
  if (snapshot.state == SourceState::kLost &&
      (snapshot.temp_c || snapshot.memory_temp_c || snapshot.temp_margin_c || snapshot.power_w ||
       snapshot.power_instant_w || snapshot.energy_j || snapshot.utilisation_frac || snapshot.memory_utilisation_frac ||
       snapshot.clock_mhz || snapshot.memory_clock_mhz || snapshot.throttle || snapshot.power_limit_w ||
       snapshot.temp_slowdown_c || snapshot.temp_shutdown_c || snapshot.memory_temp_limit_c ||
       snapshot.clock_limit_mhz || snapshot.temp_max_c)) {
    return fail("a lost source knows something");
  }
  if (snapshot.state == SourceState::kStale && snapshot.power_w) return fail("stale power");
  return ::testing::AssertionSuccess();
}

}  // namespace thermoe
