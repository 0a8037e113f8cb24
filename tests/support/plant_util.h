// SPDX-License-Identifier: Apache-2.0
// Profiles and files for the plant's tests.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "control/plant/plant.h"

namespace thermoe {

inline std::string DataPath(const std::string& name) { return std::string(THERMOE_SOURCE_DIR) + "/data/" + name; }

inline DeviceProfile ShippedProfile(const std::string& name) {
  Result<DeviceProfile> profile = LoadDeviceProfile(DataPath("profiles/" + name + ".toml"));
  EXPECT_TRUE(profile.ok()) << profile.status().message();
  return profile.ok() ? *profile : DeviceProfile{};
}

// Without noise of any kind, and with sensors that do not round.
inline DeviceProfile Noiseless(DeviceProfile profile) {
  profile.temp_quantum_c = profile.temp_noise_c = profile.power_noise_frac = profile.quantum_mhz = 0;
  profile.step_time_frac = profile.step_energy_frac = 0;
  return profile;
}

// A file in the test's own folder.
class TempFile {
 public:
  explicit TempFile(const std::string& text)
      : path_(std::filesystem::path(::testing::TempDir()) /
              (std::string("plant_") + ::testing::UnitTest::GetInstance()->current_test_info()->name() + ".toml")) {
    Write(text);
  }
  ~TempFile() {
    std::error_code ignored;
    std::filesystem::remove(path_, ignored);
  }
  TempFile(const TempFile&) = delete;
  TempFile& operator=(const TempFile&) = delete;

  void Write(const std::string& text) { std::ofstream(path_, std::ios::binary | std::ios::trunc) << text; }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

}  // namespace thermoe
