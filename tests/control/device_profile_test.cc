// SPDX-License-Identifier: Apache-2.0
#include "control/plant/device_profile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

#include "support/plant_util.h"

namespace thermoe {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string SmallText() {
  std::ostringstream text;
  text << std::ifstream(DataPath("profiles/small.toml")).rdbuf();
  return text.str();
}

// The small profile with the line of `key` replaced.
std::string WithLine(const std::string& key, const std::string& line) {
  std::string text = SmallText();
  const size_t begin = text.find("\n" + key + " = ") + 1;
  EXPECT_NE(begin, 0u) << key;
  return text.replace(begin, text.find('\n', begin) - begin, line);
}

std::string Error(const std::string& text, StatusCode code = StatusCode::kInvalidArgument) {
  const TempFile file(text);
  const Result<DeviceProfile> profile = LoadDeviceProfile(file.path());
  EXPECT_FALSE(profile.ok());
  EXPECT_EQ(profile.status().code(), code);
  EXPECT_THAT(profile.status().message(), HasSubstr(file.path()));
  EXPECT_EQ(profile.status().message().find('\n'), std::string::npos);
  return profile.status().message();
}

TEST(DeviceProfile, ShippedProfilesLoad) {
  const DeviceProfile h100 = ShippedProfile("h100");
  EXPECT_EQ(h100.name, "h100");
  EXPECT_EQ(h100.limit_w, 700);
  EXPECT_EQ(h100.nominal_mhz, 1980);
  const DeviceProfile small = ShippedProfile("small");
  EXPECT_EQ(small.idle_w, 1.1);
  EXPECT_EQ(small.memory_traffic_frac, 0.5);
}

TEST(DeviceProfile, ErrorsNameFileLineKeyRangeAndRemedy) {
  EXPECT_THAT(Error(WithLine("idle_w", "idle_w = -3")),
              AllOf(HasSubstr("line 9: power.idle_w is -3; make it a number from 0 to 10000")));
  EXPECT_THAT(Error(WithLine("idle_w", "")), HasSubstr("power.idle_w is missing; add it as a number from 0 to 10000"));
  EXPECT_THAT(Error(WithLine("idle_w", "idle_w = \"70 W\"")),
              HasSubstr("power.idle_w is a text; make it a number from 0 to 10000"));
  EXPECT_THAT(Error(WithLine("idle_w", "idle_w = true")), HasSubstr("power.idle_w is a boolean"));
  EXPECT_THAT(Error(WithLine("idle_w", "idle_w = nan")), HasSubstr("power.idle_w is nan; make it"));
  EXPECT_THAT(Error(WithLine("idle_w", "idle_w = inf")), HasSubstr("power.idle_w is inf; make it"));
  EXPECT_THAT(Error(WithLine("idle_w", "idle_w = 1.1\nidel_w = 2")), HasSubstr("line 10: power.idel_w is no key"));
  EXPECT_THAT(Error(WithLine("idle_w", "idle_w = ")), HasSubstr("correct the TOML there"));
  EXPECT_THAT(Error(WithLine("schema", "schema = 2")), HasSubstr("schema is 2; make it a number from 1 to 1"));
  EXPECT_THAT(Error(WithLine("name", "name = \"\"")), HasSubstr("name is empty"));
  EXPECT_THAT(Error("schema = 1\nname = \"x\"\npower = 5\n"), HasSubstr("power.idle_w is missing"));
  EXPECT_THAT(Error("\xff\xfe"), HasSubstr("line 1: is not UTF-8"));
}

TEST(DeviceProfile, RefusesWhatCannotBeTogether) {
  EXPECT_THAT(Error(WithLine("lowest_mhz", "lowest_mhz = 1900")),
              HasSubstr("above clock.nominal_mhz 1800; make it at most that"));
  EXPECT_THAT(Error(WithLine("limit_w", "limit_w = 1")),
              HasSubstr("power.limit_w is 1, at most power.idle_w 1.1; make it higher"));
  EXPECT_THAT(Error(WithLine("shutdown_c", "shutdown_c = 80")),
              HasSubstr("at most limits.slowdown_c 80; make it higher"));
  EXPECT_THAT(Error(WithLine("leakage_w_per_c", "leakage_w_per_c = 0.1")), HasSubstr("run away; make it below 0.072"));
}

TEST(DeviceProfile, MissingFilesAndFoldersAreRefused) {
  const Result<DeviceProfile> missing = LoadDeviceProfile("/no/such/profile.toml");
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.status().code(), StatusCode::kNotFound);
  EXPECT_THAT(missing.status().message(), HasSubstr("/no/such/profile.toml"));
  const Result<DeviceProfile> folder = LoadDeviceProfile(::testing::TempDir());
  ASSERT_FALSE(folder.ok());
  EXPECT_EQ(folder.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(folder.status().message(), AllOf(HasSubstr(::testing::TempDir()), HasSubstr("TOML file")));
}

}  // namespace
}  // namespace thermoe
