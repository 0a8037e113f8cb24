// SPDX-License-Identifier: Apache-2.0
// This machine's processors by what Linux shows in /sys and /proc.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "control/telemetry/clock.h"
#include "control/telemetry/energy_meter.h"
#include "control/telemetry/source.h"

namespace thermoe {

// Energy: RAPL packages and their DRAM (the sum is known only when every one of them is). Temperature: the hottest of
// k10temp, coretemp and zenpower, else of the thermal zones that name a CPU. Clock: the mean of cpufreq. Utilisation:
// /proc/stat. Folders are listed once a second, so that a driver loaded later is found.
class LinuxSource : public TelemetrySource {
 public:
  // `root` stands before /sys and /proc: "" for this machine, a folder in tests.
  explicit LinuxSource(std::string root = "", Clock clock = SteadySeconds);

  std::string name() const override { return "linux"; }
  Snapshot Read() override;
  std::vector<SensorReport> Report() override;
  void SetWorking(bool working) override { working_ = working; }
  double least_period_s() const override;

 private:
  struct RaplDomain {
    std::string folder, name;  // ".../intel-rapl:0", "package-0"
    bool package = false;
    EnergyMeter meter;
    int error = 0;  // errno of the last reading; EINVAL for text that is no count
  };
  struct TempSensor {
    std::string name, input;  // "k10temp Tctl", path of the reading
    std::optional<double> slowdown_c, shutdown_c;
  };

  void FindSensors();
  void FindRapl();
  void FindTemperatures();
  void FindThermalZones();
  void FindClocks();
  void ReadEnergy(Snapshot* snapshot);
  void ReadTemperatures(Snapshot* snapshot);
  void ReadClocks(Snapshot* snapshot);
  void ReadUtilisation();

  const std::string root_;
  SourceTime time_;
  bool working_ = false;
  double find_due_s_ = 0;
  std::vector<RaplDomain> rapl_;
  std::vector<TempSensor> temps_;
  std::vector<std::string> clocks_;  // cpufreq folders
  std::optional<double> clock_limit_mhz_;

  // Ticks of /proc/stat at the last change, and the share of work since the change before.
  std::optional<int64_t> busy_ticks_, all_ticks_;
  double ticks_s_ = 0;
  std::optional<double> utilisation_frac_;
  Snapshot last_;
};

}  // namespace thermoe
