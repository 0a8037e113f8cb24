// SPDX-License-Identifier: Apache-2.0
// doctor and record, on this machine's sensors, on a fake NVML and on a recording.
#include <gmock/gmock.h>

#include "cli_test_util.h"

namespace thermoe {
namespace {

using ::testing::HasSubstr;

class TelemetryCliTest : public CliTest {};

std::string PowerStep() { return std::string(THERMOE_SOURCE_DIR) + "/data/h100_power_step.csv"; }

TEST_F(TelemetryCliTest, DoctorSaysWhatIsMissingAndWhy) {
  const Json json = ThermoeJson({"doctor"});
  ASSERT_EQ(json["sources"].size(), 2u);
  for (const Json& source : json["sources"]) {
    EXPECT_THAT(Keys(source), ::testing::UnorderedElementsAre("name", "error", "sensors"));
    EXPECT_TRUE(source["error"].is_null() != source["sensors"].empty()) << source;
    for (const Json& sensor : source["sensors"]) {
      EXPECT_NE(sensor["found"].get<bool>(), sensor["value"].is_null());
      EXPECT_EQ(sensor["found"].get<bool>(), sensor["reason"].is_null()) << sensor;
    }
  }
  const ProcessResult text = Thermoe({"doctor"});
  EXPECT_EQ(text.exit_code, 0);
  EXPECT_THAT(text.out, HasSubstr("/proc/stat utilisation"));
  ExpectRefused({"doctor", "--telemetry", "nvidia"}, {"nvidia", "replay:FILE"});
}

TEST_F(TelemetryCliTest, DoctorFindsAnNvmlThatIsNamed) {
  const ProcessResult result = Thermoe({"doctor", "--telemetry", "nvml", "--json"}, "", {{"THERMOE_NVML", THERMOE_FAKE_NVML}});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  const Json json = Json::parse(result.out, nullptr, false);
  ASSERT_TRUE(json.is_object()) << result.out;
  EXPECT_THAT(json["sources"][0]["name"].get<std::string>(), HasSubstr("nvml:0"));
  EXPECT_GT(json["sources"][0]["sensors"].size(), 5u);
  const ProcessResult missing = Thermoe({"doctor"}, "", {{"THERMOE_NVML", Path("none.so")}});
  EXPECT_EQ(missing.exit_code, 0);
  EXPECT_THAT(missing.out, HasSubstr("none.so"));
}

TEST_F(TelemetryCliTest, RecordsARecordingOfARecording) {
  const Json json = ThermoeJson({"record", "--telemetry", "replay:" + PowerStep(), "--seconds", "0.7", "--period-ms", "50", "--out", Path("a.csv")});
  EXPECT_GE(json["rows"], 10);
  EXPECT_EQ(json["lost_rows"], 0);
  const std::string csv = ReadAll(Path("a.csv"));
  EXPECT_THAT(csv, HasSubstr("gpu_temp_c"));
  EXPECT_THAT(csv, HasSubstr(",34,"));  // the die at the start
  EXPECT_EQ(ThermoeJson({"record", "--telemetry", "replay:" + Path("a.csv"), "--seconds", "0.2", "--out", Path("b.csv")})["lost_rows"], 0);
}

TEST_F(TelemetryCliTest, RecordRefusals) {
  WriteAll(Path("there.csv"), "precious");
  ExpectRefused({"record", "--out", Path("there.csv"), "--telemetry", "linux"}, {"there.csv", "--force"});
  EXPECT_EQ(ReadAll(Path("there.csv")), "precious");
  ExpectRefused({"record", "--out", Path("no/such.csv"), "--telemetry", "linux"}, {"no/such.csv", "--out"});
  ExpectRefused({"record", "--out", Path("x.csv"), "--telemetry", "replay:" + Path("none.csv")}, {"none.csv", "no such file"});
  EXPECT_FALSE(std::filesystem::exists(Path("x.csv")));
  WriteAll(Path("bad.csv"), "time_s,gpu_temp_c\n0,hot\n");
  ExpectRefused({"record", "--out", Path("x.csv"), "--telemetry", "replay:" + Path("bad.csv")}, {"bad.csv", "line 2", "gpu_temp_c"});
  if (std::filesystem::exists("/dev/full")) {
    ExpectRefused({"record", "--out", "/dev/full", "--telemetry", "linux", "--seconds", "1"}, {"/dev/full", "No space left"});
  }
}

}  // namespace
}  // namespace thermoe
