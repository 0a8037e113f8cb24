// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>

#include <filesystem>

#include "cli_test_util.h"
#include "control/cost/profile_store.h"
#include "engine/profile_target.h"

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

TEST_F(ProfileTest, ShowsWhatAGpuThatIsNotHereTook) {
  LoadOptions as_on_a_gpu;
  as_on_a_gpu.interleave = false;
  const std::shared_ptr<const Model> model = *Model::Load(TinyModel(), as_on_a_gpu);
  const auto key = [&](const std::string& gpu) { return GpuProfileKeyOf(*model, gpu, true); };
  CostPoint point;
  point.shape.family = Family::kNorm;
  point.shape.matrix.rows = 1, point.shape.matrix.cols = 64;
  point.latency_us = 2;
  const auto add = [&](const std::string& gpu) {
    const std::unique_ptr<ProfileStore> store = ProfileStore::Open(Path("profiles.sqlite")).value();
    point.latency_us += 1;
    EXPECT_TRUE(store->Add(key(gpu), point).ok());
  };
  const auto show = [&](const std::vector<std::string>& more) {
    std::vector<std::string> all = Arguments({"--show", "--backend", "cuda"});
    all.insert(all.end(), more.begin(), more.end());
    return all;
  };
  add("Nobody's GPU 1");
  for (const char* other : {"Other", "1", "GPU-8c6c"}) {
    ExpectRefused(show({"--device", other}), {"nor has", "profiles.sqlite a quick profile of this model", "it has: Nobody's GPU 1: cuda (Nobody's GPU 1), quick"});
  }
  const Json one = ThermoeJson(show({"--device", "nobody's", "--json"}));
  EXPECT_EQ(one["device"]["gpu"], "Nobody's GPU 1");
  EXPECT_EQ(one["device"]["engine"], "cuda (Nobody's GPU 1), quick");
  EXPECT_EQ(one["points"], 1);
  add("Nobody's GPU 2");
  ExpectRefused(show({"--device", "nobody"}), {"several such GPUs", "Nobody's GPU 1", "Nobody's GPU 2", "--device"});
  EXPECT_THAT(Thermoe(show({"--device", "gpu 2"})).out, HasSubstr("Nobody's GPU 2"));
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
