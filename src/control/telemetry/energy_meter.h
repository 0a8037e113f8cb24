// SPDX-License-Identifier: Apache-2.0
// From a counter of energy that moves in steps, wraps and may be reset, to energy that never falls and to power.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace thermoe {

class EnergyMeter {
 public:
  struct Options {
    double joules_per_count = 1e-3;
    std::vector<uint64_t> wraps_at;  // the counter may restart from 0 after this many counts (0: 2^64)
    double max_power_w = 1e4;        // more between two readings is a reset, not energy
  };
  explicit EnergyMeter(Options options) : options_(std::move(options)) {}

  // A reading. Times never fall.
  void Update(double time_s, uint64_t count);
  // No reading, or time that cannot be trusted: power is unknown until the counter changed twice more.
  void RestartWindow();
  void set_max_power_w(double max_power_w) { options_.max_power_w = max_power_w; }

  double energy_j() const { return energy_j_; }
  // Mean power between changes of the counter that lie at least 90 ms apart; unknown once it rests for kRestLimit_s.
  std::optional<double> power_w() const;
  // How long the counter has rested, by readings: a single long wait between two readings counts 200 ms at most.
  double rest_s() const { return rest_s_; }

 private:
  // Energy since the last reading, or nothing if it must have been a reset.
  std::optional<double> Gained(double time_s, uint64_t count) const;

  Options options_;
  bool started_ = false;
  uint64_t count_ = 0;
  double energy_j_ = 0;
  double read_s_ = 0, changed_s_ = 0, rest_s_ = 0;
  bool window_open_ = false;
  double window_s_ = 0, window_j_ = 0;  // where it began
  std::optional<double> power_w_;
};

}  // namespace thermoe
