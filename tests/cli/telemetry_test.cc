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
    EXPECT_THAT(Keys(source),
                ::testing::UnorderedElementsAre("name", "error", "slowest_reading_ms", "energy_source", "sensors"));
    EXPECT_EQ(source["energy_source"].is_null(), !source["error"].is_null());
    EXPECT_TRUE(source["error"].is_null() != source["sensors"].empty()) << source;
    for (const Json& sensor : source["sensors"]) {
      EXPECT_NE(sensor["found"].get<bool>(), sensor["value"].is_null());
      EXPECT_EQ(sensor["found"].get<bool>(), sensor["reason"].is_null()) << sensor;
    }
  }
  const ProcessResult text = Thermoe({"doctor"});
  EXPECT_EQ(text.exit_code, 0);
  EXPECT_THAT(text.out, HasSubstr("/proc/stat utilisation"));
  const bool estimates = json["sources"][1]["energy_source"] == "estimate";
  EXPECT_EQ(
      text.out.find("joules") != std::string::npos && text.out.find("estimates, and called so") != std::string::npos,
      estimates);
  ExpectRefused({"doctor", "--telemetry", "nvidia"}, {"nvidia", "replay:FILE"});
}

TEST_F(TelemetryCliTest, DoctorFindsAnNvmlThatIsNamed) {
  const ProcessResult result =
      Thermoe({"doctor", "--telemetry", "nvml", "--json"}, "", {{"THERMOE_NVML", THERMOE_FAKE_NVML}});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  const Json json = Json::parse(result.out, nullptr, false);
  ASSERT_TRUE(json.is_object()) << result.out;
  EXPECT_THAT(json["sources"][0]["name"].get<std::string>(), HasSubstr("nvml:0"));
  EXPECT_EQ(json["sources"][0]["energy_source"], "counter");
  EXPECT_GT(json["sources"][0]["sensors"].size(), 5u);
  const ProcessResult missing = Thermoe({"doctor"}, "", {{"THERMOE_NVML", Path("none.so")}});
  EXPECT_EQ(missing.exit_code, 0);
  EXPECT_THAT(missing.out, HasSubstr("none.so"));
}

TEST_F(TelemetryCliTest, RecordsARecordingOfARecording) {
  const Json json = ThermoeJson({"record", "--telemetry", "replay:" + PowerStep(), "--seconds", "0.7", "--period-ms",
                                 "50", "--out", Path("a.csv")});
  EXPECT_GE(json["rows"], 10);
  EXPECT_EQ(json["lost_rows"], 0);
  const std::string csv = ReadAll(Path("a.csv"));
  EXPECT_THAT(csv, HasSubstr("gpu_temp_c"));
  EXPECT_THAT(csv, HasSubstr(",34,"));  // the die at the start
  EXPECT_EQ(ThermoeJson({"record", "--telemetry", "replay:" + Path("a.csv"), "--seconds", "0.2", "--out",
                         Path("b.csv")})["lost_rows"],
            0);
}

TEST_F(TelemetryCliTest, RecordRefusals) {
  WriteAll(Path("there.csv"), "precious");
  ExpectRefused({"record", "--out", Path("there.csv"), "--telemetry", "linux"}, {"there.csv", "--force"});
  EXPECT_EQ(ReadAll(Path("there.csv")), "precious");
  ExpectRefused({"record", "--out", Path("no/such.csv"), "--telemetry", "linux"}, {"no/such.csv", "--out"});
  ExpectRefused({"record", "--out", Path("x.csv"), "--telemetry", "replay:" + Path("none.csv")},
                {"none.csv", "no such file"});
  EXPECT_FALSE(std::filesystem::exists(Path("x.csv")));
  WriteAll(Path("bad.csv"), "time_s,gpu_temp_c\n0,hot\n");
  ExpectRefused({"record", "--out", Path("x.csv"), "--telemetry", "replay:" + Path("bad.csv")},
                {"bad.csv", "line 2", "gpu_temp_c"});
  if (std::filesystem::exists("/dev/full")) {
    ExpectRefused({"record", "--out", "/dev/full", "--telemetry", "linux", "--seconds", "1"},
                  {"/dev/full", "No space left"});
  }
}

// A GPU is named as run and bench name it; no file is made for one that is not there.
TEST_F(TelemetryCliTest, RecordsTheGpuThatIsNamed) {
  const auto record = [&](const std::vector<std::string>& flags) {
    std::vector<std::string> args = {"record", "--out", Path("gpu.csv"), "--seconds", "0.2"};
    args.insert(args.end(), flags.begin(), flags.end());
    return args;
  };
  ExpectRefused(record({"--device", "no such card"}), {"device \"no such card\" (--device"});
  ExpectRefused(record({"--device", "0", "--telemetry", "linux"}), {"--device 0", "--telemetry linux", "give one of them"});
  EXPECT_FALSE(std::filesystem::exists(Path("gpu.csv")));
  ExpectRefused({"doctor", "--device", "0", "--telemetry", "linux"}, {"--device 0", "--telemetry linux", "give one of them"});
  const Json doctor = ThermoeJson({"doctor"}), gpus = doctor["gpus"];
  EXPECT_EQ(doctor["gpus_error"].is_null(), !gpus.empty());
  if (gpus.empty()) {
    EXPECT_THAT(doctor["gpus_error"].get<std::string>(), HasSubstr("CUDA"));
    ExpectRefused(record({"--device", "0"}), {"no CUDA device is here", "--telemetry"});
    const ProcessResult beside = Thermoe(record({"--json"}), "", {{"THERMOE_DEVICE", "no such card"}});
    EXPECT_EQ(beside.exit_code, 0) << beside.err;  // the variable is for --backend cuda
    ExpectRefused({"doctor", "--device", "0"}, {"device \"0\" (--device)", "no CUDA device is here"});
    EXPECT_THAT(Thermoe({"doctor"}).out, HasSubstr("GPUs for --backend cuda"));
    return;
  }
  const Json json = ThermoeJson(record({"--device", gpus[0]["uuid"].get<std::string>()}));
  EXPECT_THAT(json["source"].get<std::string>(), HasSubstr("nvml:"));
  EXPECT_GE(json["rows"], 1);
}

TEST_F(TelemetryCliTest, DoctorDoesNotHangWithTheDriver) {
  const ProcessResult slow = Thermoe({"doctor", "--telemetry", "nvml"}, "",
                                     {{"THERMOE_NVML", THERMOE_FAKE_NVML}, {"FAKE_NVML_DELAY_MS", "40"}});
  EXPECT_EQ(slow.exit_code, 0) << slow.err;
  EXPECT_THAT(slow.out, HasSubstr("slow: one took"));
  const ProcessResult hung = Thermoe({"doctor", "--telemetry", "nvml"}, "",
                                     {{"THERMOE_NVML", THERMOE_FAKE_NVML}, {"FAKE_NVML_DELAY_MS", "60000"}});
  EXPECT_EQ(hung.exit_code, 2);
  EXPECT_THAT(hung.err, HasSubstr("no answer within 6 s"));
}

TEST_F(TelemetryCliTest, ThePlantIsASourceForDoctorAndRecord) {
  EXPECT_EQ(ThermoeJson({"doctor", "--telemetry", "plant:small"})["sources"][0]["name"], "plant:small");
  const Json json = ThermoeJson({"record", "--telemetry", "plant:h100", "--seconds", "0.2", "--out", Path("p.csv")});
  EXPECT_EQ(json["source"], "plant:h100");
  ExpectRefused({"doctor", "--telemetry", "plant:nope"}, {"plant:nope", "no shipped profile", "small.toml"});
  WriteAll(Path("bad.toml"), "schema = 1\nname = 3\n");
  ExpectRefused({"record", "--out", Path("x.csv"), "--telemetry", "plant:" + Path("bad.toml")}, {"bad.toml", "name"});
}

std::vector<std::string> RunWith(const std::string& telemetry) {
  return {"run", "-p", "Once upon a time", "-n", "20", "--greedy", "--seed", "1", "--telemetry", telemetry};
}

TEST_F(TelemetryCliTest, RunUnderThePlantIsSimulatedAndReproducible) {
  Json first = ThermoeJson(RunWith("plant:small")), second = ThermoeJson(RunWith("plant:small"));
  first["timings"].erase("load_ms");
  second["timings"].erase("load_ms");
  EXPECT_EQ(first, second);
  EXPECT_EQ(first["timings"]["simulated"], true);
  EXPECT_EQ(first["energy"]["energy_source"], "simulated");
  EXPECT_GT(first["energy"]["decode_j_per_token"], 0);
  const Json plain = ThermoeJson(RunWith("none"));
  EXPECT_EQ(plain["text"], first["text"]);
  EXPECT_EQ(plain["timings"]["simulated"], false);
  EXPECT_TRUE(plain["energy"].is_null());
  const ProcessResult text = Thermoe(RunWith("plant:small"));
  EXPECT_THAT(text.err, HasSubstr("[simulated on plant:small: "));
  EXPECT_THAT(text.err, HasSubstr("mJ/token (simulated)"));
  EXPECT_THAT(Thermoe(RunWith("replay:" + PowerStep())).err, HasSubstr("replayed: of other work"));
  EXPECT_THAT(Thermoe(RunWith("none")).err, ::testing::Not(HasSubstr("mJ")));
  ExpectRefused(RunWith("gpu"), {"gpu", "plant:FILE", "none"});
}

// A GPU whose counter never moves: nothing is confirmed, so everything is an estimate and says so.
TEST_F(TelemetryCliTest, JoulesWithoutAReadingAreCalledEstimates) {
  const std::map<std::string, std::string> fake = {{"THERMOE_NVML", THERMOE_FAKE_NVML}};
  std::vector<std::string> arguments = RunWith("nvml");
  const ProcessResult text = Thermoe(arguments, "", fake);
  EXPECT_THAT(text.err, HasSubstr("about "));
  EXPECT_THAT(text.err, HasSubstr("(estimate)"));
  arguments.push_back("--json");
  const Json json = Json::parse(Thermoe(arguments, "", fake).out, nullptr, false);
  ASSERT_TRUE(json.is_object());
  EXPECT_EQ(json["energy"]["energy_source"], "estimate");
  EXPECT_EQ(json["energy"]["estimated_frac"], 1);
}

TEST_F(TelemetryCliTest, BenchUnderThePlant) {
  const std::vector<std::string> flags = {"bench", "--prefill", "32", "--decode",    "8",          "--batch",
                                          "4",     "--repeat",  "2",  "--telemetry", "plant:small"};
  const Json json = ThermoeJson(flags);
  EXPECT_EQ(json["device"]["telemetry"]["simulated"], true);
  EXPECT_TRUE(json["device"]["memory_read_gbps"].is_null());
  for (const Json& result : json["results"]) {
    EXPECT_EQ(result["energy_source"], "simulated");
    EXPECT_GT(result["joules_per_token"]["median"], 1e-5);
    EXPECT_LT(result["joules_per_token"]["median"], 1e-2);
    EXPECT_TRUE(result["bandwidth_frac"].is_null());
  }
  EXPECT_THAT(Thermoe(flags).out, HasSubstr("mJ/token (simulated)"));
  ExpectRefused({"bench", "--telemetry", "plant:small", "--vs", "true"}, {"--vs", "virtual time"});
  ExpectRefused({"bench", "--telemetry", "none", "--telemetry-cost"}, {"--telemetry-cost"});
}

}  // namespace
}  // namespace thermoe
