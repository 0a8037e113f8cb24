// SPDX-License-Identifier: Apache-2.0
// The plant's sensors as a TelemetrySource, in the plant's virtual time.
#pragma once

#include <string>
#include <vector>

#include "control/plant/plant.h"
#include "control/telemetry/source.h"

namespace thermoe {

class PlantSource final : public TelemetrySource {
 public:
  // The plant must outlive the source; whoever runs work on it moves time on. Energy counts from here.
  explicit PlantSource(const Plant* plant) : plant_(plant), opened_j_(plant->sensors().energy_j) {}

  std::string name() const override { return "plant:" + plant_->profile().name; }
  Snapshot Read() override;
  std::vector<SensorReport> Report() override;

 private:
  const Plant* plant_;
  double opened_j_;
};

}  // namespace thermoe
