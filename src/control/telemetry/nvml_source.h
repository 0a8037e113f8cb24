// SPDX-License-Identifier: Apache-2.0
// An NVIDIA GPU by NVML.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "control/telemetry/clock.h"
#include "control/telemetry/energy_meter.h"
#include "control/telemetry/nvml_library.h"
#include "control/telemetry/nvml_probes.h"
#include "control/telemetry/source.h"
#include "thermoe/status.h"

namespace thermoe {

// A call that fails for itself makes its fields unknown. One that says that the device or the driver is gone makes the
// source lost; it then opens NVML anew, once a second at most, until the same device (by UUID) answers.
class NvmlSource : public TelemetrySource {
 public:
  // Errors: kNotFound (no driver, no device of this index), each with its remedy.
  static Result<std::unique_ptr<NvmlSource>> Open(NvmlLibrary library, int index, Clock clock = SteadySeconds);
  // The device whose UUID begins like this; where there is only one device, that one (a part of a GPU has a UUID of its own).
  static Result<std::unique_ptr<NvmlSource>> Open(NvmlLibrary library, const std::string& uuid, Clock clock = SteadySeconds);
  ~NvmlSource() override;

  std::string name() const override;
  Snapshot Read() override;
  std::vector<SensorReport> Report() override;
  void SetWorking(bool working) override { working_ = working; }

 private:
  struct ProbeState {
    double due_s = 0;
    NvmlReturn code = NvmlReturn::kNotReady;  // of the last call
    bool suspect = false;                     // it said "perhaps lost" last time
  };

  NvmlSource(NvmlLibrary library, int index, std::string wanted, Clock clock);
  NvmlReturn FindWanted(NvmlDevice* device);

  // nvmlInit, the handle, and the UUID if it is the first time. On an error NVML is shut down again.
  NvmlReturn OpenDevice();
  void Lose();
  // Calls what is due. False if the device turned out to be lost.
  bool RunProbes();
  Snapshot Compose();

  const NvmlLibrary library_;
  int index_;
  const std::string wanted_;  // beginning of a UUID, "": index_
  SourceTime time_;
  bool working_ = false;
  std::string device_name_, uuid_;

  NvmlDevice device_ = nullptr;  // null: lost
  double opened_s_ = 0;          // when it was last tried
  NvmlReturn open_code_ = NvmlReturn::kNotReady;
  std::vector<ProbeState> probes_;
  bool stagger_ = true;  // spread the calls over their periods after the next round
  NvmlReadings readings_;
  EnergyMeter meter_;
  double instant_changed_s_ = 0;
  std::optional<double> instant_w_;
};

}  // namespace thermoe
