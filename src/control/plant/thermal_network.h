// SPDX-License-Identifier: Apache-2.0
// The device's thermal network: die -> spreader -> sink -> ambient, memory -> spreader, linear, solved exactly.
#pragma once

#include <array>

#include "control/plant/device_profile.h"

namespace thermoe {

enum ThermalStage { kDie, kSpreader, kSink, kMemory, kThermalStages };
using StageArray = std::array<double, kThermalStages>;  // indexed by ThermalStage

// C dT/dt = heat + leakage * (T_die - reference) e_die - G T + G_ambient T_ambient. The matrix C^-1/2 (G - leakage)
// C^-1/2 is symmetric, so the network is four independent modes, and under constant heat any time passes in one exact
// step.
class ThermalNetwork {
 public:
  explicit ThermalNetwork(const DeviceProfile& profile);

  // Lets dt_s pass under constant heat (without leakage) and ambient. Returns each stage's mean over that time.
  StageArray Advance(double dt_s, const StageArray& heat_w, double ambient_c);
  // Where Advance ends after a long time.
  StageArray Steady(const StageArray& heat_w, double ambient_c) const;

  const StageArray& temps_c() const { return temps_c_; }
  void set_temps_c(const StageArray& temps_c) { temps_c_ = temps_c; }

 private:
  // Modes of constant inputs: (V^T C^-1/2 q)_i / rate_i.
  StageArray SteadyModes(const StageArray& heat_w, double ambient_c) const;
  StageArray FromModes(const StageArray& modes) const;

  double leakage_w_per_c_, leakage_reference_c_, sink_conductance_w_per_c_;
  StageArray root_capacity_;              // sqrt(C), (J/C)^1/2
  std::array<StageArray, kThermalStages> axes_;  // [mode][stage], orthonormal
  StageArray rates_per_s_;                // of each mode, > 0
  StageArray temps_c_{};
};

}  // namespace thermoe
