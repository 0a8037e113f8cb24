// SPDX-License-Identifier: Apache-2.0
// Flags of the control loop, and the same from a TOML file: what is wrong, where, and what to do.
#include <gmock/gmock.h>

#include "cli_test_util.h"

namespace thermoe {
namespace {

using ::testing::HasSubstr;

class ControlFlagsTest : public CliTest {
 protected:
  // `flags` on a run under the simulated device.
  static std::vector<std::string> Run(const std::vector<std::string>& flags) {
    std::vector<std::string> all = {"run", TinyModel(), "-p", "x",           "-n",
                                    "3",   "--seed",    "1",  "--telemetry", "plant:small"};
    all.insert(all.end(), flags.begin(), flags.end());
    return all;
  }
  void TomlRefused(const std::string& text, const std::vector<std::string>& parts) {
    WriteAll(Path("c.toml"), text);
    ExpectRefused(Run({"--control", Path("c.toml")}), parts);
  }
};

TEST_F(ControlFlagsTest, NumbersNameFlagRangeAndValue) {
  for (const char* flag : {"--power-limit", "--temp-limit", "--latency-target", "--quality-floor", "--quality-budget"}) {
    for (const char* value : {"-1", "nan", "inf", "350W", "", "1e9", "0x10", "two"}) {
      ExpectRefused(Run({flag, value}), {flag, std::string("but is '") + value + "'"});
    }
  }
  for (const char* flag : {"--power-limit", "--temp-limit", "--latency-target", "--quality-budget"})
    ExpectRefused(Run({flag, "0"}), {flag, "above 0"});
  ExpectRefused(Run({"--power-limit"}), {"--power-limit needs a value"});
  ExpectRefused(Run({"--power-limit", "2", "--power-limit", "3"}), {"--power-limit", "given once"});
  ExpectRefused(Run({"--router", "clever"}), {"--router", "plain, static, adaptive", "'clever'"});
  ExpectRefused(Run({"--prefer", "speed"}), {"--prefer", "throughput, quality", "'speed'"});
  ExpectRefused(Run({"--live=film"}), {"--live", "view, log", "'film'"});
}

TEST_F(ControlFlagsTest, LimitsThatTheDeviceCannotKeep) {
  const std::vector<std::vector<std::string>> commands = {
      {"run", TinyModel(), "-p", "x", "-n", "3"},
      {"eval", TinyModel(), Fixture("texts/harbour.txt"), "--window", "32", "--max-tokens", "65"},
      {"bench", TinyModel(), "--prefill", "16", "--decode", "4", "--repeat", "1"}};
  for (std::vector<std::string> command : commands) {
    command.insert(command.end(), {"--telemetry", "plant:small"});
    const auto refused = [&](const char* flag, const char* value, const std::vector<std::string>& parts) {
      std::vector<std::string> all = command;
      all.insert(all.end(), {flag, value});
      ExpectRefused(all, parts);
    };
    refused("--power-limit", "6", {"power limit: 6 W", "device's own limit of 5 W", "choose a lower one"});
    refused("--temp-limit", "81", {"temperature limit: 81 C", "device's own limit of 80 C"});
    refused("--power-limit", "1.1", {"power limit: 1.1 W", "draws idle", "choose a higher one"});
  }
}

TEST_F(ControlFlagsTest, TelemetryThatIsNotThere) {
  const auto with = [](const std::string& telemetry) {
    return std::vector<std::string>{"run", TinyModel(),     "-p", "x",           "-n",
                                    "3",   "--power-limit", "2",  "--telemetry", telemetry};
  };
  ExpectRefused(with("gpu"), {"\"gpu\"", "auto, nvml, nvml:N, linux, replay:FILE or plant:FILE"});
  ExpectRefused(with("plant:"), {"\"plant:\"", "plant:FILE"});
  ExpectRefused(with("plant:" + Path("none.toml")), {"none.toml", "no such file"});
  ExpectRefused(with("replay:" + Path("none.csv")), {"none.csv", "no such file"});
  ExpectRefused(with("none"), {"power limit", "\"none\" shows no power", "thermoe doctor"});
}

TEST_F(ControlFlagsTest, FlagsThatContradictEachOther) {
  ExpectRefused(Run({"--router", "static", "--power-limit", "2"}), {"--router static", "--k-max"});
  ExpectRefused(Run({"--power-limit", "2", "--k-max", "2"}), {"--router adaptive chooses", "--router static"});
  ExpectRefused(Run({"--router", "plain", "--k-max", "2"}), {"--router plain runs the plain model", "--router static"});
  ExpectRefused(Run({"--router", "static", "--full-slots", "1"}), {"--full-slots", "--experts nested"});
  for (const char* router : {"plain", "static"}) {
    const auto without_effect = [&](const std::string& flag, const std::string& value) {
      std::vector<std::string> flags = {"--router", router, flag, value};
      if (router == std::string("static")) flags.insert(flags.end(), {"--k-max", "2"});
      ExpectRefused(Run(flags), {flag, "is for the adaptive router", std::string("--router ") + router});
    };
    without_effect("--points", Path("p.json"));
    without_effect("--quality-floor", "0.01");
    without_effect("--quality-budget", "0.01");
    without_effect("--prefer", "quality");
    without_effect("--gather", "on");
    without_effect("--ttha", "on");
  }
  ExpectRefused(Run({"--quality-budget", "0.01"}), {"--quality-budget needs --prefer energy"});
  ExpectRefused(Run({"--quality-budget", "0.03", "--prefer", "energy", "--quality-floor", "0.02"}), {"quality budget", "above the floor"});
  ExpectRefused(Run({"--gather", "on", "--prefer", "energy"}), {"--gather on needs", "--latency-target"});
  ExpectRefused(Run({"--points", Path("none.json")}), {"none.json", "thermoe calibrate"});
  ExpectRefused(Run({"--points", std::string(THERMOE_MODELS_DIR) + "/ember-22m-points.json"}),
                {"measured on another model", "calibrate this model"});
  ExpectRefused(Run({"--points", ""}), {"--points", "empty"});
  ExpectRefused(Run({"--decision-log", ""}), {"--decision-log", "empty"});
  ExpectRefused(Run({"--decision-log", Path("no/such.jsonl")}), {"no/such.jsonl", "cannot be written"});
}

TEST_F(ControlFlagsTest, TomlFilesNameTheLine) {
  TomlRefused("power-limt = 2\n", {"c.toml: line 1", "power-limt is no key"});
  TomlRefused("\npower-limit = \"350W\"\n", {"c.toml: line 2", "power-limit is a text", "a number"});
  TomlRefused("power-limit = nan\n", {"line 1", "power-limit is nan"});
  TomlRefused("power-limit = -1\n", {"line 1", "power-limit is -1"});
  TomlRefused("power-limit = 0\n", {"line 1", "power-limit", "above 0"});
  TomlRefused("power-limit = 6\n", {"6 W", "device's own limit"});
  TomlRefused("temp-limit = true\n", {"line 1", "temp-limit is a boolean"});
  TomlRefused("quality-floor = 99\n", {"line 1", "quality-floor is 99"});
  TomlRefused("quality-budget = 0\n", {"line 1", "quality-budget", "above 0"});
  TomlRefused("quality-budget = 0.01\n", {"--quality-budget needs --prefer energy"});
  TomlRefused("gather = \"perhaps\"\n", {"c.toml", "gather", "\"perhaps\""});
  TomlRefused("router = \"plain\"\nquality-floor = 0.01\n", {"--quality-floor", "--router plain"});
  TomlRefused("[power]\nlimit = 2\n", {"line 2", "power.limit is no key"});
  TomlRefused("router = 3\n", {"line 1", "router is a number"});
  TomlRefused("router = \"clever\"\n", {"c.toml", "\"clever\"", "plain, static or adaptive"});
  TomlRefused("prefer = \"speed\"\n", {"c.toml", "\"speed\"", "throughput, quality or energy"});
  TomlRefused("power-limit = 2\npower-limit = 3\n", {"line 2", "power-limit"});
  TomlRefused("power-limit 2", {"line 1"});
  TomlRefused("decision-log = \"\"\n", {"--decision-log", "empty"});
  TomlRefused("", {"c.toml", "no key"});
  ExpectRefused(Run({"--control", Path("none.toml")}), {"none.toml", "no such file"});
  ExpectRefused(Run({"--control", Path("")}), {"folder"});
  ExpectRefused(Run({"--control", ""}), {"--control", "empty"});
}

TEST_F(ControlFlagsTest, FlagsWinOverTheFile) {
  WriteAll(Path("c.toml"), "telemetry = \"plant:small\"\npower-limit = 2\nrouter = \"plain\"\nlatency-target = 50\n");
  Json json = ThermoeJson({"run", TinyModel(), "-p", "x", "-n", "3", "--control", Path("c.toml")});
  EXPECT_EQ(json["energy"]["telemetry"], "plant:small");
  EXPECT_EQ(json["control"]["power_limit_w"], 2);
  EXPECT_EQ(json["control"]["router"], "plain");
  json = ThermoeJson({"run", TinyModel(), "-p", "x", "-n", "3", "--control", Path("c.toml"), "--power-limit", "3",
                      "--router", "adaptive"});
  EXPECT_EQ(json["control"]["power_limit_w"], 3);
  EXPECT_EQ(json["control"]["router"], "adaptive");
  EXPECT_EQ(json["control"]["latency_target_ms"], 50);
  ExpectRefused({"run", TinyModel(), "-p", "x", "-n", "3", "--control", Path("c.toml"), "--telemetry", "none"},
                {"\"none\" shows no power"});
}

// With a budget a step may lose twice the mean, unless a floor says otherwise; both go into the log.
TEST_F(ControlFlagsTest, ABudgetBringsItsFloor) {
  const auto header = [&](const std::vector<std::string>& flags) {
    std::vector<std::string> all = {"--prefer", "energy", "--quality-budget", "0.015", "--decision-log", Path("log.jsonl")};
    all.insert(all.end(), flags.begin(), flags.end());
    ThermoeJson(Run(all));
    const std::string log = ReadAll(Path("log.jsonl"));
    return Json::parse(log.substr(0, log.find('\n')))["config"];
  };
  Json config = header({});
  EXPECT_EQ(config["quality_budget_nats"], 0.015);
  EXPECT_EQ(config["quality_floor_nats"], 0.03);
  EXPECT_EQ(config["gather"], true);
  config = header({"--quality-floor", "0.02", "--gather", "off"});
  EXPECT_EQ(config["quality_floor_nats"], 0.02);
  EXPECT_EQ(config["gather"], false);
}

// The die of this device comes to 38.8 C at rest, in a room of 25 C: after some seconds that is said.
TEST_F(ControlFlagsTest, LimitsThatLeaveNoRoomAreNamedOnce) {
  const Json json = ThermoeJson({"run", "-p", "The old lighthouse keeper", "-n", "500", "--ignore-end", "--seed", "7", "--telemetry",
                                 "plant:small", "--power-limit", "1.8", "--temp-limit", "38.5", "--latency-target", "6"});
  EXPECT_THAT(json["control"]["unmet"].get<std::string>(), HasSubstr("temperature limit of 38.5 C leaves no room"));
  EXPECT_TRUE(ThermoeJson(Run({"--power-limit", "2"}))["control"]["unmet"].is_null());
}

}  // namespace
}  // namespace thermoe
