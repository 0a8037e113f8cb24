// SPDX-License-Identifier: Apache-2.0
// A device in virtual time: work in; time, energy, heat and throttling out. Reproducible to the bit from its seed.
#pragma once

#include <cstdint>

#include "base/random.h"
#include "control/plant/device_profile.h"
#include "control/plant/schedule.h"
#include "control/plant/thermal_network.h"

namespace thermoe {

// What a step moves and computes.
struct Work {
  double bytes = 0;
  double flops = 0;
  // What it takes at the nominal clock as a cost model measured it, if that is more than the profile's bandwidth and energies say; 0: unknown.
  double least_s = 0;
  double least_j = 0;  // idle power included
};

struct WorkOutcome {
  double duration_s = 0;
  double energy_j = 0;    // of the whole device over that time, idle power and others' work included
  bool completed = true;  // false when the device shut down before the end
};

// What the device's sensors show until the next update. Rounding and noise as the profile says.
struct PlantSensors {
  double energy_j = 0;         // at the last update
  double power_w = 0;          // mean between the last two updates
  double power_instant_w = 0;  // just before the last update
  double temp_c = 0, memory_temp_c = 0;
  double clock_mhz = 0;
  double utilisation_frac = 0, memory_utilisation_frac = 0;  // between the last two updates; others' work included
  uint32_t throttle = 0;                                     // bits of Throttle (telemetry/snapshot.h)
};

class Plant {
 public:
  // Starts idle at time 0, every stage at the steady state of idle.
  Plant(DeviceProfile profile, Scenario scenario, uint64_t seed);

  // Runs `work` to its end at the clocks that the device then has.
  WorkOutcome Run(const Work& work);
  // Lets time pass without work of ours.
  void Idle(double dt_s);
  // Runs `work`, then idles until dt_s have passed since the call; where the work takes longer, time goes on to its
  // end.
  WorkOutcome Advance(double dt_s, const Work& work);

  // What `work` would take at the present clock, temperature and background load, without noise.
  WorkOutcome Predict(const Work& work) const;
  // Power of the present moment without work of ours.
  double idle_power_w() const;

  double now_s() const { return now_s_; }
  double energy_j() const { return energy_j_; }  // since time 0
  double clock_mhz() const;
  uint32_t throttle() const;  // bits of Throttle
  bool shut_down() const { return shut_down_; }
  const StageArray& temps_c() const { return network_.temps_c(); }
  const PlantSensors& sensors() const { return sensors_; }
  const DeviceProfile& profile() const { return profile_; }

  // Puts the stages where the device would be with the die at die_c after a long idle at some other ambient, as one
  // that was used before. The sensors show it at once.
  void StartFrom(double die_c);

 private:
  // Rates during one stretch of time in which nothing changes but temperatures.
  struct Load {
    double die_w = 0, memory_w = 0;  // above idle
    double bytes_per_s = 0;
    double busy_frac = 0;
  };

  double ThermalClockMhz() const;
  double WorkSeconds(const Work& work, double clock_mhz) const;  // with the whole device
  Load LoadOf(const Work& work, double energy_factor, double seconds, double clock_mhz, double background_frac) const;
  StageArray HeatOf(const Load& load) const;
  double PowerOf(const Load& load, double die_c) const;
  WorkOutcome Progress(const Work* work, double idle_to_s);
  double StretchEnd(double wanted_s, bool rests);
  void PassTo(double end_s, const Load& load, bool frozen);
  bool Settled(const StageArray& temps_before_c, double clock_before_mhz, double passed_s) const;
  void ShutDown();
  void UpdateSensors(const Load& load);

  DeviceProfile profile_;
  Scenario scenario_;
  uint64_t seed_;
  Random random_;
  ThermalNetwork network_;
  double substep_s_;  // while power or clocks move

  double now_s_ = 0, energy_j_ = 0;
  double limit_clock_mhz_;  // where the power limit holds the clock
  double limited_power_w_;  // the average that the limit sees
  bool shut_down_ = false;
  int64_t updates_ = 0;                        // sensor updates passed
  double update_energy_j_ = 0, update_s_ = 0;  // at the last update
  double busy_s_ = 0, bytes_ = 0;              // since the last update
  PlantSensors sensors_;
};

}  // namespace thermoe
