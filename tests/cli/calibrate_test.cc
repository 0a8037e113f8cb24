// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>

#include <algorithm>
#include <filesystem>

#include "cli_test_util.h"

namespace thermoe {
namespace {

using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

class CalibrateTest : public CliTest {
 protected:
  void SetUp() override {
    // One document of many windows of 16 ids.
    WriteAll(Path("prose.txt"), ReadAll(Fixture("texts/harbour.txt")));
  }
  std::vector<std::string> Arguments(const std::string& model = TinyModel()) const {
    return {"calibrate", model, Path("prose.txt"), "--window", "16", "--quick", "--out", Path("points.json"), "--json"};
  }
};

TEST_F(CalibrateTest, MeasuresPlotsAndResumes) {
  std::vector<std::string> arguments = Arguments();
  arguments.insert(arguments.end(), {"--text-name", "prose", "--plot", Path("front.svg")});
  const Json first = ThermoeJson(arguments);
  EXPECT_THAT(Keys(first),
              UnorderedElementsAre("schema_version", "file", "complete", "front_batch1", "front_batch16", "points"));
  ASSERT_GT(first["points"].size(), 5u);
  const Json& plain = first["points"][0];
  EXPECT_EQ(plain["batch16"]["loss_nats"], 0.0);
  EXPECT_EQ(plain["batch1"]["expert_bytes_frac"], 1.0);
  EXPECT_EQ(first["points"][1]["full_slots"], 0);
  EXPECT_NEAR(first["points"][1]["batch1"]["expert_bytes_frac"].get<double>(), 18.0 / 34, 1e-6);
  EXPECT_NEAR(first["points"][1]["batch16"]["expert_bytes_frac"].get<double>(), 18.0 / 34, 0.02)
      << "routes change a little";
  for (const Json& i : first["front_batch16"])
    EXPECT_LE(first["points"][i.get<size_t>()]["batch16"]["expert_bytes_frac"], 1.0);
  EXPECT_THAT(ReadAll(Path("front.svg")), HasSubstr("<svg"));

  // A file cut short goes on and ends the same, byte for byte.
  const std::string whole = ReadAll(Path("points.json"));
  EXPECT_THAT(whole, HasSubstr("\"name\": \"prose\""));
  const size_t fourth = whole.find("\n  {\"full_slots\"", whole.find("\"points\"") + 600);
  const size_t comma = whole.rfind(",\n", fourth);
  WriteAll(Path("points.json"), whole.substr(0, comma) + "\n ]\n}\n");
  EXPECT_EQ(ThermoeJson(arguments)["points"], first["points"]);
  EXPECT_EQ(ReadAll(Path("points.json")), whole);
}

TEST_F(CalibrateTest, RefusesWhatDoesNotFit) {
  ThermoeJson(Arguments());
  const std::string whole = ReadAll(Path("points.json"));
  const auto fails = [&](const std::vector<std::string>& arguments, const std::string& says) {
    const ProcessResult result = Thermoe(arguments);
    EXPECT_EQ(result.exit_code, 2);
    EXPECT_THAT(result.err, HasSubstr(says));
  };
  std::vector<std::string> other = Arguments();
  other[4] = "17";
  fails(other, "other texts or windows");
  std::string foreign = whole;
  foreign.replace(foreign.find("\"identity\": \"") + 13, 4, "zzzz");
  WriteAll(Path("points.json"), foreign);
  fails(Arguments(), "another model");
  WriteAll(Path("points.json"), "{}");
  fails(Arguments(), "schema_version");
  std::vector<std::string> names = Arguments();
  names.insert(names.end(), {"--text-name", "a", "--text-name", "b"});
  fails(names, "--text-name");
  std::vector<std::string> wide = Arguments();
  wide[4] = "400";
  std::filesystem::remove(Path("points.json"));
  fails(wide, "window");
  std::vector<std::string> device = Arguments();
  std::replace(device.begin(), device.end(), Path("points.json"), std::string("/dev/full"));
  fails(device, "a folder or a device");
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/full")) << "was replaced";
}

}  // namespace
}  // namespace thermoe
