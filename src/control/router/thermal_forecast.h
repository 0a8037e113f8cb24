// SPDX-License-Identifier: Apache-2.0
// Temperature some seconds ahead, by a small model identified from snapshots: temperature = base + fast * power. `fast` (C/W) is the
// die above its surroundings, which follows power within a tick; the base (heat sink and room) moves slowly, with a slope. So the
// power at which the limit will just be kept at the horizon is known before the limit is reached.
#pragma once

#include <array>
#include <cstddef>

namespace thermoe {

class ThermalForecast {
 public:
  static constexpr double kHorizon_s = 2;
  struct State {
    double fast_c_per_w = 0;
    double moment_cw = 0, moment_ww = 0;  // sums behind it
  };

  // `device_w`, `device_temp_c`: the device's limits, 0 where unknown; they size the first guess.
  ThermalForecast(double device_w, double device_temp_c);

  // Once a tick, `dt_s` after the last: the sensor and mean power since.
  void Learn(double temp_c, double power_w, double dt_s);
  // Readings were missing: the base is found anew.
  void Restart() { known_ = false; }

  bool known() const { return known_; }
  // At the horizon under constant `power_w`.
  double TempAt(double power_w) const;
  // The power that brings it to `temp_c` at the horizon; may be below 0.
  double PowerFor(double temp_c) const;

  double base_c() const { return base_c_; }
  double slope_c_per_s() const { return slope_c_per_s_; }
  const State& state() const { return state_; }
  bool Restore(const State& state);

 private:
  static constexpr size_t kLag = 8;  // ticks between two readings that `fast` is identified from

  double prior_c_per_w_;
  State state_;
  bool known_ = false;
  double base_c_ = 0, slope_c_per_s_ = 0, power_w_ = 0;
  std::array<double, kLag> temps_{}, powers_{};
  size_t count_ = 0;
};

}  // namespace thermoe
