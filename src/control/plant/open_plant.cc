// SPDX-License-Identifier: Apache-2.0
#include "control/plant/open_plant.h"

#include <algorithm>
#include <utility>

#include "control/plant/plant_source.h"

namespace thermoe {
namespace {

constexpr uint64_t kSeed = 1;
constexpr double kMostStep_s = 3600;  // between two readings; a device that rests for longer looks the same

class IdlePlantSource final : public TelemetrySource {
 public:
  IdlePlantSource(std::unique_ptr<Plant> plant, Clock clock)
      : plant_(std::move(plant)), source_(plant_.get()), time_(std::move(clock)) {}

  std::string name() const override { return source_.name(); }
  Snapshot Read() override {
    time_.Advance();
    const double step_s = time_.now_s() - passed_s_;
    passed_s_ = time_.now_s();
    plant_->Idle(std::min(step_s, kMostStep_s));
    return source_.Read();
  }
  std::vector<SensorReport> Report() override { return source_.Report(); }

 private:
  std::unique_ptr<Plant> plant_;
  PlantSource source_;
  SourceTime time_;
  double passed_s_ = 0;
};

}  // namespace

Result<std::unique_ptr<Plant>> OpenPlant(const std::string& profile_path) {
  Result<DeviceProfile> profile = LoadDeviceProfile(profile_path);
  if (!profile.ok()) return profile.status();
  const double ambient_c = profile->ambient_c;
  return {std::make_unique<Plant>(std::move(profile).value(), ConstantScenario(ambient_c), kSeed)};
}

Result<std::unique_ptr<TelemetrySource>> OpenIdlePlant(const std::string& profile_path, const Clock& clock) {
  Result<std::unique_ptr<Plant>> plant = OpenPlant(profile_path);
  if (!plant.ok()) return plant.status();
  return {std::make_unique<IdlePlantSource>(std::move(plant).value(), clock)};
}

}  // namespace thermoe
