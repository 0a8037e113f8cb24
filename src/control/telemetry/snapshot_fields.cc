// SPDX-License-Identifier: Apache-2.0
#include "control/telemetry/snapshot_fields.h"

#include <array>

namespace thermoe {
namespace {

// Chips stop far below 150 C; a reading of exactly 0 is how drivers show a sensor that is not there.
constexpr double kMinTemp_c = 0.1, kMaxTemp_c = 150;
// The largest modules of 2025 draw under 3 kW; a host with many packages stays under 10 kW.
constexpr double kMinPower_w = 1e-3, kMaxPower_w = 1e4;
constexpr double kMinClock_mhz = 1, kMaxClock_mhz = 2e4;
constexpr double kMaxEnergy_j = 1e13;  // 10 kW for 30 years

constexpr std::array<SnapshotField, 16> kFields = {{
    {"energy_mj", &Snapshot::energy_j, 1000, 0, kMaxEnergy_j, "energy since the start, mJ"},
    {"power_from_energy_w", &Snapshot::power_w, 1, kMinPower_w, kMaxPower_w, "power over the counter's last change, W"},
    {"power_instant_w", &Snapshot::power_instant_w, 1, kMinPower_w, kMaxPower_w, "instant power, W"},
    {"gpu_temp_c", &Snapshot::temp_c, 1, kMinTemp_c, kMaxTemp_c, "temperature of the chip, C"},
    {"hbm_temp_c", &Snapshot::memory_temp_c, 1, kMinTemp_c, kMaxTemp_c, "temperature of its memory, C"},
    {"temp_margin_c", &Snapshot::temp_margin_c, 1, -kMaxTemp_c, kMaxTemp_c, "distance to the slowdown, C"},
    {"utilisation_frac", &Snapshot::utilisation_frac, 1, 0, 1, "share of time with work, 0 to 1"},
    {"memory_utilisation_frac", &Snapshot::memory_utilisation_frac, 1, 0, 1,
     "share of time with memory traffic, 0 to 1"},
    {"sm_clock_mhz", &Snapshot::clock_mhz, 1, kMinClock_mhz, kMaxClock_mhz, "clock of the chip, MHz"},
    {"memory_clock_mhz", &Snapshot::memory_clock_mhz, 1, kMinClock_mhz, kMaxClock_mhz, "clock of its memory, MHz"},
    {"power_limit_w", &Snapshot::power_limit_w, 1, kMinPower_w, kMaxPower_w, "enforced power limit, W"},
    {"temp_max_c", &Snapshot::temp_max_c, 1, kMinTemp_c, kMaxTemp_c, "highest running temperature, C"},
    {"temp_slowdown_c", &Snapshot::temp_slowdown_c, 1, kMinTemp_c, kMaxTemp_c, "slowdown temperature, C"},
    {"temp_shutdown_c", &Snapshot::temp_shutdown_c, 1, kMinTemp_c, kMaxTemp_c, "shutdown temperature, C"},
    {"memory_temp_limit_c", &Snapshot::memory_temp_limit_c, 1, kMinTemp_c, kMaxTemp_c, "highest memory temperature, C"},
    {"clock_limit_mhz", &Snapshot::clock_limit_mhz, 1, kMinClock_mhz, kMaxClock_mhz, "highest clock, MHz"},
}};

}  // namespace

std::span<const SnapshotField> SnapshotFields() { return kFields; }

void DropImplausible(Snapshot* snapshot) {
  for (const SnapshotField& field : kFields) {
    std::optional<double>& value = snapshot->*field.value;
    if (value && !(*value >= field.min && *value <= field.max)) value.reset();  // not-a-number fails both
  }
  if (snapshot->throttle && (*snapshot->throttle & ~kAllThrottleBits) != 0) snapshot->throttle.reset();
}

bool AnyKnown(const Snapshot& snapshot) {
  for (const SnapshotField& field : kFields) {
    if (snapshot.*field.value) return true;
  }
  return snapshot.throttle.has_value();
}

Snapshot LostAt(double time_s) {
  Snapshot snapshot;
  snapshot.time_s = time_s;
  return snapshot;
}

}  // namespace thermoe
