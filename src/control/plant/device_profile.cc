// SPDX-License-Identifier: Apache-2.0
#include "control/plant/device_profile.h"

#include "base/errors.h"
#include "control/plant/toml_file.h"

namespace thermoe {
namespace {

struct Field {
  const char* key;
  double DeviceProfile::*member;
  double low, high;  // wide enough for a phone and a 10 kW board; what lies outside is a slip of units
};

using P = DeviceProfile;
constexpr Field kFields[] = {
    {"power.idle_w", &P::idle_w, 0, 10'000},
    {"power.leakage_w_per_c", &P::leakage_w_per_c, 0, 100},
    {"power.leakage_reference_c", &P::leakage_reference_c, -50, 150},
    {"power.energy_per_byte_pj", &P::energy_per_byte_pj, 0, 1e6},
    {"power.energy_per_flop_pj", &P::energy_per_flop_pj, 0, 1e6},
    {"power.limit_w", &P::limit_w, 0.01, 20'000},
    {"power.limit_window_s", &P::limit_window_s, 0.001, 10},
    {"throughput.bandwidth_gbps", &P::bandwidth_gbps, 0.001, 1e6},
    {"throughput.compute_tflops", &P::compute_tflops, 1e-6, 1e6},
    {"clock.nominal_mhz", &P::nominal_mhz, 1, 20'000},
    {"clock.lowest_mhz", &P::lowest_mhz, 1, 20'000},
    {"clock.quantum_mhz", &P::quantum_mhz, 0, 1'000},
    {"clock.compute_exponent", &P::compute_exponent, 0, 2},
    {"clock.energy_exponent", &P::energy_exponent, 0, 4},
    {"clock.bandwidth_knee_mhz", &P::bandwidth_knee_mhz, 1, 20'000},
    {"limits.slowdown_c", &P::slowdown_c, 0, 200},
    {"limits.slowdown_band_c", &P::slowdown_band_c, 0.1, 50},
    {"limits.shutdown_c", &P::shutdown_c, 0, 250},
    {"limits.memory_max_c", &P::memory_max_c, 0, 200},
    {"thermal.ambient_c", &P::ambient_c, -50, 100},
    {"thermal.die_capacity_j_per_c", &P::die_capacity_j_per_c, 1e-3, 1e5},
    {"thermal.die_resistance_c_per_w", &P::die_resistance_c_per_w, 1e-5, 1e3},
    {"thermal.spreader_capacity_j_per_c", &P::spreader_capacity_j_per_c, 1e-3, 1e6},
    {"thermal.spreader_resistance_c_per_w", &P::spreader_resistance_c_per_w, 1e-5, 1e3},
    {"thermal.sink_capacity_j_per_c", &P::sink_capacity_j_per_c, 1e-3, 1e7},
    {"thermal.sink_resistance_c_per_w", &P::sink_resistance_c_per_w, 1e-5, 1e3},
    {"thermal.memory_capacity_j_per_c", &P::memory_capacity_j_per_c, 1e-3, 1e5},
    {"thermal.memory_resistance_c_per_w", &P::memory_resistance_c_per_w, 1e-5, 1e3},
    {"thermal.memory_idle_frac", &P::memory_idle_frac, 0, 1},
    {"thermal.memory_traffic_frac", &P::memory_traffic_frac, 0, 1},
    {"sensors.update_s", &P::update_s, 0.001, 60},
    {"sensors.temp_quantum_c", &P::temp_quantum_c, 0, 10},
    {"sensors.temp_noise_c", &P::temp_noise_c, 0, 10},
    {"sensors.power_noise_frac", &P::power_noise_frac, 0, 0.5},
    {"noise.step_time_frac", &P::step_time_frac, 0, 0.2},
    {"noise.step_energy_frac", &P::step_energy_frac, 0, 0.2},
};

constexpr double kSchema = 1;

// What no key can say alone.
Status CheckTogether(const TomlFile& file, const DeviceProfile& p) {
  if (p.lowest_mhz > p.nominal_mhz) {
    return InvalidArgument("{} is {}, above clock.nominal_mhz {}; make it at most that", file.Where("clock.lowest_mhz"),
                           p.lowest_mhz, p.nominal_mhz);
  }
  if (p.limit_w <= p.idle_w) {
    return InvalidArgument("{} is {}, at most power.idle_w {}; make it higher, or the device can never run",
                           file.Where("power.limit_w"), p.limit_w, p.idle_w);
  }
  if (p.shutdown_c <= p.slowdown_c) {
    return InvalidArgument("{} is {}, at most limits.slowdown_c {}; make it higher", file.Where("limits.shutdown_c"),
                           p.shutdown_c, p.slowdown_c);
  }
  const double resistance = p.die_resistance_c_per_w + p.spreader_resistance_c_per_w + p.sink_resistance_c_per_w;
  if (p.leakage_w_per_c * resistance >= 0.9) {
    return InvalidArgument("{} is {}, but with the {} C/W from die to ambient the die would run away; make it below {}",
                           file.Where("power.leakage_w_per_c"), p.leakage_w_per_c, resistance, 0.9 / resistance);
  }
  return Status::Ok();
}

}  // namespace

Result<DeviceProfile> LoadDeviceProfile(const std::string& path) {
  Result<TomlFile> file = TomlFile::Open(path);
  if (!file.ok()) return file.status();
  if (const Result<double> schema = file->Number("schema", kSchema, kSchema); !schema.ok()) return schema.status();
  DeviceProfile profile;
  Result<std::string> name = file->Text("name");
  if (!name.ok()) return name.status();
  if (name->empty())
    return InvalidArgument("{} is empty; give the device a name such as \"h100\"", file->Where("name"));
  profile.name = std::move(name).value();
  for (const Field& field : kFields) {
    const Result<double> number = file->Number(field.key, field.low, field.high);
    if (!number.ok()) return number.status();
    profile.*field.member = *number;
  }
  THERMOE_RETURN_IF_ERROR(file->CheckAllRead());
  THERMOE_RETURN_IF_ERROR(CheckTogether(*file, profile));
  return profile;
}

}  // namespace thermoe
