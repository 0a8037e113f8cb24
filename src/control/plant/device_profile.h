// SPDX-License-Identifier: Apache-2.0
// What the plant must know of a device: every physical constant, as plain data. Files: data/profiles/*.toml.
#pragma once

#include <string>

#include "thermoe/status.h"

namespace thermoe {

// Field names are the TOML keys; sections are the tables. device_profile.cc states each key's range.
struct DeviceProfile {
  std::string name;

  // [power]. Power = idle + leakage * (die - reference) + energy per byte * bytes/s + energy per FLOP * FLOP/s.
  double idle_w = 0;           // with a context open, at the nominal clock and leakage_reference_c
  double leakage_w_per_c = 0;  // what idle power gains per degree of the die
  double leakage_reference_c = 0;
  double energy_per_byte_pj = 0;  // above idle
  double energy_per_flop_pj = 0;  // above idle, at the nominal clock
  double limit_w = 0;
  double limit_window_s = 0;  // time constant of the average that the limit holds; longer than a step's bursts

  // [throughput]. A step takes the longer of bytes / bandwidth and FLOPs / compute.
  double bandwidth_gbps = 0;  // 1e9 bytes per second
  double compute_tflops = 0;  // at the nominal clock

  // [clock]
  double nominal_mhz = 0;
  double lowest_mhz = 0;          // throttling ends here
  double quantum_mhz = 0;         // of the sensor
  double compute_exponent = 0;    // FLOP/s ~ clock^this
  double energy_exponent = 0;     // energy per FLOP ~ clock^this: voltage falls with the clock
  double bandwidth_knee_mhz = 0;  // below this clock the bandwidth falls in proportion to it

  // [limits]
  double slowdown_c = 0;  // die: from slowdown - band to slowdown the clock falls from nominal to lowest
  double slowdown_band_c = 0;
  double shutdown_c = 0;    // die: the device is lost
  double memory_max_c = 0;  // memory: as slowdown_c

  // [thermal]. die -> spreader -> sink -> ambient; memory -> spreader. Each resistance is to the next stage.
  double ambient_c = 0;
  double die_capacity_j_per_c = 0, die_resistance_c_per_w = 0;
  double spreader_capacity_j_per_c = 0, spreader_resistance_c_per_w = 0;
  double sink_capacity_j_per_c = 0, sink_resistance_c_per_w = 0;
  double memory_capacity_j_per_c = 0, memory_resistance_c_per_w = 0;
  double memory_idle_frac = 0;     // share of idle_w spent in memory; the rest in the die
  double memory_traffic_frac = 0;  // share of the energy per byte spent in memory

  // [sensors]
  double update_s = 0;  // every sensor changes once in this time
  double temp_quantum_c = 0;
  double temp_noise_c = 0;      // standard deviation, before rounding
  double power_noise_frac = 0;  // of the instant power; the energy counter counts exactly

  // [noise]: standard deviations of a step's duration and of its energy above idle
  double step_time_frac = 0;
  double step_energy_frac = 0;
};

Result<DeviceProfile> LoadDeviceProfile(const std::string& path);

}  // namespace thermoe
