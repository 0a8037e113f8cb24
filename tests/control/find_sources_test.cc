// SPDX-License-Identifier: Apache-2.0
#include "control/telemetry/find_sources.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "control/nvml_fixture.h"

namespace thermoe {
namespace {

using ::testing::HasSubstr;

class FindSourceTest : public NvmlFixture {
 protected:
  void SetUp() override {
    NvmlFixture::SetUp();
    options_ = {clock_.clock(), THERMOE_FAKE_NVML, folder_.path()};
  }
  std::string NameOf(const std::string& choice) {
    auto found = FindSource(choice, options_);
    return found.ok() ? (*found)->name() : found.status().message();
  }
  TempFolder folder_;
  SourceOptions options_;
};

TEST_F(FindSourceTest, EveryChoice) {
  fake_->devices = 2;
  EXPECT_EQ(NameOf("nvml"), "nvml:0 Fake GPU");
  EXPECT_EQ(NameOf("nvml:1"), "nvml:1 Fake GPU");
  EXPECT_EQ(NameOf("linux"), "linux");
  const std::string file = folder_.Write("a:b.csv", "time_s,gpu_temp_c\n1,50\n");
  EXPECT_EQ(NameOf("replay:" + file), "replay:" + file);
}

// The device that computes is named by its UUID: numbers of the driver are not always those of NVML.
TEST_F(FindSourceTest, NvmlByUuid) {
  fake_->devices = 2;
  EXPECT_EQ(NameOf("nvml:GPU-0"), "nvml:0 Fake GPU");
  EXPECT_EQ(NameOf("nvml:GPU-ano"), "nvml:1 Fake GPU");
  EXPECT_THAT(NameOf("nvml:GPU-gone"), HasSubstr("no device of this UUID"));
  fake_->devices = 1;
  EXPECT_EQ(NameOf("nvml:MIG-12"), "nvml:0 Fake GPU") << "a part of the only one";
}

TEST_F(FindSourceTest, AutoTakesTheGpuIfItAnswers) {
  EXPECT_EQ(NameOf("auto"), "nvml:0 Fake GPU");
  fake_->ret[kFakeInit] = 9;
  EXPECT_EQ(NameOf("auto"), "linux");
  fake_->ret[kFakeInit] = 0;
  fake_->devices = 0;
  EXPECT_EQ(NameOf("auto"), "linux");
  options_.nvml_path = "/nowhere/libnvidia-ml.so.1";
  EXPECT_EQ(NameOf("auto"), "linux");
  EXPECT_THAT(NameOf("nvml"), HasSubstr("/nowhere/libnvidia-ml.so.1"));
}

TEST_F(FindSourceTest, OtherWordsNameTheChoices) {
  EXPECT_EQ(SourceChoices(), "auto, nvml, nvml:N, linux, replay:FILE or plant:FILE");
  for (const char* choice : {"", "gpu", "nvml:", "linux:1", "auto:", "replay", "replay:", "plant", "plant:", ":", "NVML"}) {
    const auto found = FindSource(choice, options_);
    ASSERT_FALSE(found.ok()) << choice;
    EXPECT_EQ(found.status().code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(found.status().message(), HasSubstr(SourceChoices()));
  }
  for (const char* choice : {"nvml:x", "nvml:-1", "nvml:1x", "nvml:99999999999", "nvml: 1"}) {
    EXPECT_EQ(FindSource(choice, options_).status().code(), StatusCode::kInvalidArgument) << choice;
    EXPECT_THAT(NameOf(choice), HasSubstr("count from 0"));
  }
  EXPECT_THAT(NameOf("nvml:7"), HasSubstr("1 NVIDIA device;"));
  EXPECT_THAT(NameOf("replay:/nowhere.csv"), HasSubstr("no such file"));
  EXPECT_THAT(NameOf("plant:/nowhere.toml"), HasSubstr("/nowhere.toml"));
}

TEST_F(FindSourceTest, APlantRestsAtTheSpeedOfTheClock) {
  const auto found = FindSource("plant:" + std::string(THERMOE_SOURCE_DIR) + "/data/profiles/small.toml", options_);
  ASSERT_TRUE(found.ok()) << found.status().message();
  EXPECT_EQ((*found)->name(), "plant:small");
  EXPECT_EQ(*(*found)->Read().energy_j, 0);
  clock_.now_s += 10;
  const Snapshot snapshot = (*found)->Read();
  EXPECT_NEAR(*snapshot.energy_j, 11, 0.5);  // 1.1 W of idle power
  EXPECT_EQ(*snapshot.utilisation_frac, 0);
}

}  // namespace
}  // namespace thermoe
