// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>

#include <filesystem>

#include "cli_test_util.h"

namespace thermoe {
namespace {

using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

class ProfileTest : public CliTest {
 protected:
  std::vector<std::string> Arguments(const std::vector<std::string>& more = {}) const {
    std::vector<std::string> all = {
        "profile", TinyModel(), "--quick", "--threads", "1", "--store", Path("profiles.sqlite")};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
};

TEST_F(ProfileTest, MeasuresKeepsShowsAndPlots) {
  const Json first = ThermoeJson(Arguments({"--json", "--plot", Path("errors.svg")}));
  EXPECT_THAT(Keys(first), UnorderedElementsAre("schema_version", "model", "device", "store", "measured", "points",
                                                "peak_gbps", "peak_gflops", "energy_source", "points_with_energy",
                                                "held_out", "held_out_energy", "families"));
  EXPECT_GT(first["measured"], first["points"]) << "held-out points are measured, not learnt from";
  EXPECT_GT(first["held_out"]["points"], 10);
  EXPECT_THAT(ReadAll(Path("errors.svg")), HasSubstr("held-out operations"));
  const std::string source = first["energy_source"];
  EXPECT_EQ(source, first["points_with_energy"] == 0 ? "estimate" : "counter");

  const Json again = ThermoeJson(Arguments({"--json", "--export", Path("costs.csv")}));
  EXPECT_THAT(ReadAll(Path("costs.csv")), HasSubstr("# thermoe costs 1\n# device: "));
  EXPECT_EQ(again["measured"], 0) << "a complete profile is only read";
  EXPECT_EQ(again["held_out"], first["held_out"]);

  ExpectRefused({"profile", TinyModel(), "--threads", "2", "--store", Path("profiles.sqlite"), "--show"},
                {"no profile of this model", "with cpu/", "it has", "1 thread, quick", "without --show"});

  const ProcessResult shown = Thermoe(Arguments({"--show"}));
  EXPECT_EQ(shown.exit_code, 0) << shown.err;
  EXPECT_THAT(shown.out, HasSubstr("attention decode"));
  EXPECT_THAT(shown.out, HasSubstr(source == "estimate" ? "estimates" : "measured by a counter"));
}

TEST_F(ProfileTest, RefusesWhatItCannotUse) {
  ExpectRefused(Arguments({"--show"}), {"profiles.sqlite", "no such file", "thermoe profile"});
  EXPECT_FALSE(std::filesystem::exists(Path("profiles.sqlite"))) << "--show makes nothing";
  ExpectRefused(Arguments({"--device", "0"}), {"--device 0", "add --backend cuda"});
  if (ThermoeJson({"doctor"})["gpus"].empty()) {
    ExpectRefused(Arguments({"--backend", "cuda"}), {"CUDA", "use --backend cpu"});
    EXPECT_EQ(Thermoe({"inspect", TinyModel()}, "", {{"THERMOE_BACKEND", "cuda"}}).exit_code, 0) << "it computes nothing";
  }
  EXPECT_FALSE(std::filesystem::exists(Path("profiles.sqlite"))) << "nor does what is refused";
  WriteAll(Path("profiles.sqlite"),
           "this is no database, whatever its name says, and it is long enough to be looked at");
  ExpectRefused(Arguments(), {"profiles.sqlite"});
}

}  // namespace
}  // namespace thermoe
