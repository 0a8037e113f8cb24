// SPDX-License-Identifier: Apache-2.0
#include "control/plant/plant_source.h"

#include <fmt/format.h>

#include <utility>

namespace thermoe {

Snapshot PlantSource::Read() {
  const DeviceProfile& profile = plant_->profile();
  const PlantSensors& sensors = plant_->sensors();
  Snapshot snapshot;
  snapshot.time_s = plant_->now_s();
  if (plant_->shut_down()) return snapshot;  // lost, as a device that fell off the bus
  snapshot.state = SourceState::kOk;
  snapshot.temp_c = sensors.temp_c;
  snapshot.memory_temp_c = sensors.memory_temp_c;
  snapshot.temp_margin_c = profile.slowdown_c - sensors.temp_c;
  snapshot.power_w = sensors.power_w;
  snapshot.power_instant_w = sensors.power_instant_w;
  snapshot.energy_j = sensors.energy_j - opened_j_;
  snapshot.utilisation_frac = sensors.utilisation_frac;
  snapshot.memory_utilisation_frac = sensors.memory_utilisation_frac;
  snapshot.clock_mhz = sensors.clock_mhz;
  snapshot.throttle = sensors.throttle;
  snapshot.power_limit_w = profile.limit_w;
  snapshot.temp_slowdown_c = profile.slowdown_c;
  snapshot.temp_shutdown_c = profile.shutdown_c;
  snapshot.memory_temp_limit_c = profile.memory_max_c;
  snapshot.clock_limit_mhz = profile.nominal_mhz;
  return snapshot;
}

std::vector<SensorReport> PlantSource::Report() {
  const PlantSensors& sensors = plant_->sensors();
  const std::string lost = plant_->shut_down() ? "the simulated device shut down for heat; start a new plant" : "";
  const auto report = [&lost](const char* name, std::string value) {
    return SensorReport{name, lost.empty(), lost.empty() ? std::move(value) : "", lost};
  };
  return {
      report("plant energy counter", fmt::format("{:.1f} J", sensors.energy_j - opened_j_)),
      report("plant power", fmt::format("{:.1f} W", sensors.power_w)),
      report("plant temperature", fmt::format("{:.0f} C", sensors.temp_c)),
      report("plant memory temperature", fmt::format("{:.0f} C", sensors.memory_temp_c)),
      report("plant clock", fmt::format("{:.0f} MHz", sensors.clock_mhz)),
  };
}

}  // namespace thermoe
