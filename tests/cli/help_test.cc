// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>

#include <functional>

#include "cli_test_util.h"

namespace thermoe {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class HelpTest : public CliTest {};

TEST_F(HelpTest, EveryCommandHasAManualPage) {
  for (const char* command : {"", "run", "eval", "bench", "inspect", "synth", "demo", "report", "replay", "simulate"}) {
    std::vector<std::string> arguments = {"--help"};
    if (*command != '\0') arguments.insert(arguments.begin(), command);
    const ProcessResult result = Thermoe(arguments);
    EXPECT_EQ(result.exit_code, 0) << command;
    EXPECT_EQ(result.err, "");
    for (const char* heading : {"NAME\n", "SYNOPSIS\n", "DESCRIPTION\n", "EXAMPLES\n", "EXIT STATUS\n", "ENVIRONMENT\n",
                                "THERMOE_MODEL", "NO_COLOR"}) {
      EXPECT_THAT(result.out, HasSubstr(heading)) << command;
    }
    EXPECT_THAT(result.out, Not(HasSubstr("\x1b")));
  }
}

TEST_F(HelpTest, HelpNamesTheSteeringFlags) {
  for (const char* command : {"run", "eval", "bench"}) {
    const std::string help = Thermoe({command, "--help"}).out;
    for (const char* flag :
         {"--experts", "--full-slots", "--k0", "--k-max", "--drop-below", "--expert-bias", "--plane-cap"}) {
      EXPECT_THAT(help, HasSubstr(flag)) << command;
    }
  }
}

TEST_F(HelpTest, LinesFitEightyColumns) {
  std::stringstream lines(Thermoe({"run", "--help"}).out);
  for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), 80u) << line;
}

TEST_F(HelpTest, Version) {
  const ProcessResult result = Thermoe({"--version"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.out, ::testing::MatchesRegex("thermoe [0-9]+\\.[0-9]+\\.[0-9]+\n"));
}

TEST_F(HelpTest, EveryJsonKeyIsDocumented) {
  const std::string docs = ReadAll(std::string(THERMOE_SOURCE_DIR) + "/docs/json.md");
  const std::function<void(const Json&)> check = [&](const Json& json) {
    if (json.is_object()) {
      for (const auto& [key, value] : json.items()) {
        EXPECT_THAT(docs, HasSubstr("`" + key + "`"));
        check(value);
      }
    } else if (json.is_array()) {
      for (const Json& value : json) check(value);
    }
  };
  check(ThermoeJson({"run", TinyModel(), "-p", "The sea", "-n", "3"}));
  check(ThermoeJson({"eval", TinyModel(), Fixture("texts/harbour.txt"), "--window", "32", "--max-tokens", "65",
                     "--batch", "2", "--baseline"}));
  check(ThermoeJson({"bench", TinyModel(), "--prefill", "16", "--decode", "4", "--batch", "2", "--repeat", "1"}));
  check(ThermoeJson({"inspect", TinyModel()}));
}

}  // namespace
}  // namespace thermoe
