// SPDX-License-Identifier: Apache-2.0
// Scenario files: what ships, and what is refused.
#include <gmock/gmock.h>

#include <filesystem>

#include "control/simulate/sim_routers.h"
#include "control/simulate/sim_scenario.h"
#include "model/synth.h"
#include "support/plant_util.h"

namespace thermoe {
namespace {

using ::testing::HasSubstr;

const char kWhole[] =
    "schema = 1\nduration_s = 10\n[model]\narch = \"olmoe\"\n[load]\nbatch = 16\n[limits]\npower_w = [[0, 0], [2, 350]]\n";

TEST(SimScenarioTest, ShippedScenariosLoadAndSayWhatTheyAsk) {
  int found = 0;
  for (const auto& entry : std::filesystem::directory_iterator(std::string(THERMOE_SOURCE_DIR) + "/scenarios")) {
    const Result<SimScenario> scenario = LoadSimScenario(entry.path().string());
    ASSERT_TRUE(scenario.ok()) << scenario.status().message();
    EXPECT_FALSE(scenario->routers.empty());
    EXPECT_EQ(scenario->name, entry.path().stem().string());
    std::ifstream file(entry.path());
    std::string licence, question;
    std::getline(file, licence);
    std::getline(file, question);
    EXPECT_TRUE(question.starts_with("# ")) << entry.path();
    ++found;
  }
  EXPECT_GE(found, 6);
}

TEST(SimScenarioTest, ReadsLimitsOverTimeAndDefaults) {
  const TempFile file(kWhole);
  const Result<SimScenario> scenario = LoadSimScenario(file.path());
  ASSERT_TRUE(scenario.ok()) << scenario.status().message();
  EXPECT_EQ(scenario->LimitsAt(1).power_w, 0);
  EXPECT_EQ(scenario->LimitsAt(2).power_w, 350);
  EXPECT_EQ(scenario->load.max_batch, 16);
  EXPECT_EQ(scenario->quality_floor_nats, 0.02);
  EXPECT_TRUE(scenario->model.nested);
  EXPECT_EQ(scenario->routers.size(), 4u);
}

TEST(SimScenarioTest, SequencesOverTimeNameTheMost) {
  const TempFile file("schema = 1\nduration_s = 10\n[load]\nsequences = [[0, 1], [4, 16], [8, 2]]\n[limits]\nprefer = \"energy\"\n");
  const Result<SimScenario> scenario = LoadSimScenario(file.path());
  ASSERT_TRUE(scenario.ok()) << scenario.status().message();
  EXPECT_EQ(scenario->load.batch, 16);
  EXPECT_EQ(scenario->load.max_batch, 16);
  EXPECT_EQ(scenario->load.sequences->At(5), 16);
  EXPECT_EQ(scenario->prefer, "energy");
  EXPECT_FALSE(scenario->ttha);
}

TEST(SimScenarioTest, ABudgetBringsItsFloor) {
  const std::string start = "schema = 1\nduration_s = 10\n[load]\nbatch = 4\n[limits]\nprefer = \"energy\"\nquality_budget_nats = 0.015\n";
  TempFile file(start);
  const Result<SimScenario> a = LoadSimScenario(file.path());
  file.Write(start + "quality_floor_nats = 0.02\ngather = \"off\"\n");
  const Result<SimScenario> b = LoadSimScenario(file.path());
  ASSERT_TRUE(a.ok() && b.ok()) << a.status().message() << b.status().message();
  EXPECT_EQ(a->quality_budget_nats, 0.015);
  EXPECT_EQ(a->quality_floor_nats, 0.03);
  EXPECT_TRUE(a->gather);
  EXPECT_EQ(b->quality_floor_nats, 0.02);
  EXPECT_FALSE(b->gather);
}

// Of points that lose no more; a mix of two may lie between them.
TEST(SimRoutersTest, StaticsAreComparedAtNoMoreLoss) {
  std::vector<SimRun> statics(3);
  const double losses[] = {0, 0.01, 0.03}, joules[] = {10, 8, 6};
  for (size_t i = 0; i < 3; ++i) {
    statics[i].loss_nats = losses[i];
    statics[i].energy_j = joules[i];
    statics[i].decoded_tokens = 1;
  }
  EXPECT_EQ(BestStatic(statics, 0.02), &statics[1]);
  EXPECT_EQ(BestStatic(statics, 0.03), &statics[2]);
  EXPECT_EQ(BestStatic(statics, -0.01), nullptr);
  EXPECT_NEAR(1 / StaticTokensPerJoule(statics, 0.02), 7, 1e-9);
}

TEST(SimScenarioTest, RefusesHostileFilesInOneSentence) {
  const struct {
    std::string text, says;
  } kCases[] = {
      {"", "schema is missing"},
      {"schema = 2\n", "schema is 2"},
      {"schema = 1\nduration_s = 0\n", "duration_s"},
      {"schema = 1\nduration_s = nan\n", "duration_s"},
      {"schema = 1\nduration_s = 1e99\n", "duration_s"},
      {"schema = 1\nduration_s = \"long\"\n", "a text"},
      {"schema = [[[[", "line 1"},
      {"schema = 1\n[\x0fmodel]\n", "line 2: there is a control character"},
      {"schema = 1\nduration_s = 5\n[model]\narch = \"gpt-9\"\n", "no synthetic model"},
      {"schema = 1\nduration_s = 5\n[model]\nlayers = 17\n", "16 layers"},
      {"schema = 1\nduration_s = 5\n[model]\nlayers = 1.5\n", "whole number"},
      {"schema = 1\nduration_s = 5\n[model]\ntype = \"q9\"\n", "q8_0"},
      {"schema = 1\nduration_s = 5\n[model]\ntype = \"q4_0\"\nexperts = \"nested\"\n", "4-bit"},
      {"schema = 1\nduration_s = 5\n[load]\n", "either load.batch"},
      {"schema = 1\nduration_s = 5\n[load]\nbatch = 4\narrivals_per_s = [[0, 1]]\n", "not both"},
      {"schema = 1\nduration_s = 5\n[load]\nbatch = 100000\n", "load.batch"},
      {"schema = 1\nduration_s = 5\n[load]\nbatch = 4\nsequences = [[0, 1]]\n", "not both"},
      {"schema = 1\nduration_s = 5\n[load]\nsequences = [[0, 0]]\n", "load.sequences"},
      {"schema = 1\nduration_s = 5\n[load]\nbatch = 4\n[limits]\nquality_budget_nats = 0.01\n", "prefer"},
      {"schema = 1\nduration_s = 5\n[load]\nbatch = 4\n[limits]\nquality_budget_nats = 0.03\nquality_floor_nats = 0.02\nprefer = \"energy\"\n",
       "above limits.quality_floor_nats"},
      {"schema = 1\nduration_s = 5\n[load]\nbatch = 4\n[limits]\ngather = \"maybe\"\n", "\"on\" or \"off\""},
      {"schema = 1\nduration_s = 5\n[load]\nsequences = [[0, 1], [2, 4]]\nsequences_shape = \"linear\"\n", "in steps"},
      {"schema = 1\nduration_s = 5\n[load]\nbatch = 4\n[limits]\nttha = \"maybe\"\n", "make it \"on\" or \"off\""},
      {"schema = 1\nduration_s = 5\n[load]\nbatch = 4\nburst_tokens = 100\n", "belong together"},
      {"schema = 1\nduration_s = 5\n[load]\narrivals_per_s = [[5, 1], [2, 1]]\n", "make times rise"},
      {"schema = 1\nduration_s = 5\n[load]\narrivals_per_s = [[0, -1]]\n", "arrivals_per_s"},
      {"schema = 1\nduration_s = 5\nrouters = \"plain; clever\"\n", "no router \"clever\""},
      {"schema = 1\nduration_s = 5\nrouters = \"plain;;plain\"\n", "no router \"\""},
      {"schema = 1\nduration_s = 5\n[load]\nbatch = 4\n[limits]\nprefer = \"both\"\n", "throughput"},
      {"schema = 1\nduration_s = 5\n[load]\nbatch = 4\n[limits]\npower_w_shape = \"linear\"\npower_w = [[0, 300], [9, 200]]\n", "in steps"},
      {"schema = 1\nduration_s = 5\n[load]\nbatch = 4\n[limits]\npower_wat = 5\n", "no key of this kind"},
  };
  TempFile file("");
  for (const auto& [text, says] : kCases) {
    file.Write(text);
    const Result<SimScenario> scenario = LoadSimScenario(file.path());
    ASSERT_FALSE(scenario.ok()) << text;
    EXPECT_THAT(scenario.status().message(), HasSubstr(says)) << text;
    EXPECT_THAT(scenario.status().message(), HasSubstr(file.path())) << text;
    EXPECT_THAT(scenario.status().message(), ::testing::Not(HasSubstr("\n"))) << text;
  }
  EXPECT_FALSE(LoadSimScenario("/nowhere.toml").ok());
}

TEST(SimScenarioTest, RandomBytesNeverCrash) {
  Random random(7);
  TempFile file("");
  for (int i = 0; i < 300; ++i) {
    std::string text = kWhole;
    for (int change = 0; change < 3; ++change) text[random.Below(text.size())] = static_cast<char>(random.Next());
    file.Write(text);
    const Result<SimScenario> scenario = LoadSimScenario(file.path());
    EXPECT_TRUE(scenario.ok() || !scenario.status().message().empty());
  }
}

// The shape without weights against what the config says: an expert of three q8_0 matrices, a layer.
TEST(SimScenarioTest, ShapesFollowTheConfig) {
  for (const char* arch : {"olmoe", "qwen3moe", "qwen2moe", "mixtral"}) {
    SimModel model;
    model.arch = arch;
    model.nested = false;
    const Result<ModelShape> shape = SimModelShape(model);
    const Result<ModelConfig> config = SynthConfig(arch);
    ASSERT_TRUE(shape.ok() && config.ok());
    ASSERT_EQ(shape->layers.size(), static_cast<size_t>(config->layers));
    const LayerShape& layer = shape->layers.front();
    const double expert = 3.0 * static_cast<double>(config->hidden) * config->expert_width * 34 / 32;
    StepShape step;
    step.decode_tokens = 1;
    step.layers.assign(shape->layers.size(), LayerUse{1, 1, 0, 1, 0});
    double experts = 0;
    for (const PlannedOperation& operation : OperationsOfStep(*shape, step)) {
      if (IsExpert(operation.shape.family)) experts += CostOf(operation.shape).weight_bytes;
    }
    EXPECT_NEAR(experts, expert * config->layers, 1) << arch;
    EXPECT_EQ(layer.q.rows, int64_t{config->heads} * config->head_dim);
    EXPECT_EQ(layer.gate.rows, config->experts);
    EXPECT_EQ(layer.shared_up.rows, config->shared_width);
  }
}

}  // namespace
}  // namespace thermoe
