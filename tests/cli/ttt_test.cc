// SPDX-License-Identifier: Apache-2.0
// Test-time training on the command line: what eval and run show, deltas on disk, and flags that do not fit.
#include <gmock/gmock.h>

#include <filesystem>

#include "cli_test_util.h"

namespace thermoe {
namespace {

using ::testing::UnorderedElementsAre;

class TttCliTest : public CliTest {
 protected:
  const std::string harbour_ = Fixture("texts/harbour.txt");
};

TEST_F(TttCliTest, EvalShowsPlainAndAdapted) {
  const Json json = ThermoeJson({"eval", Bundled(), harbour_, "--ttt", "combined"});
  EXPECT_THAT(Keys(json), UnorderedElementsAre("schema_version", "model", "engine", "steering", "telemetry", "control", "ttt", "adapt_cost", "files"));
  const Json& file = json["files"][0];
  for (const char* key : {"plain_nll", "adapted_nll", "tiers", "reverted", "deferred", "adapt_joules", "adapt_seconds"}) {
    EXPECT_TRUE(file.contains(key)) << key;
  }
  EXPECT_LT(file["adapted_nll"], file["plain_nll"]);
  EXPECT_GT(file["updates"], 3);
  EXPECT_GT(file["passes_per_token"], 1.5);
  EXPECT_LT(file["passes_per_token"], 2.5);
  // Not learning is the plain model.
  WriteAll(Path("still.toml"), "segment = 64\n[groups.output_bias]\nlearning_rate = 0\n");
  const Json still = ThermoeJson({"eval", Bundled(), harbour_, "--ttt", Path("still.toml")})["files"][0];
  EXPECT_EQ(still["adapted_nll"], still["plain_nll"]);
}

TEST_F(TttCliTest, AutoSaysWhatItChoseWithinItsBudgetAndReplays) {
  const Json json = ThermoeJson({"eval", Bundled(), harbour_, "--ttt", "auto", "--ttt-budget-joules", "0.5"});
  EXPECT_TRUE(json["ttt"]["automatic"].get<bool>());
  EXPECT_EQ(json["ttt"]["budget_joules"], 0.5);
  const Json& file = json["files"][0];
  for (const char* tier : {"skip", "output", "last", "gains", "low-rank", "combined"}) EXPECT_TRUE(file["tiers"].contains(tier)) << tier;
  EXPECT_GT(file["updates"], 0);
  EXPECT_GT(file["adapt_joules"], 0);
  EXPECT_LE(file["adapt_joules"], 0.55);
  EXPECT_FALSE(json["adapt_cost"].empty());
  const std::string log = Path("auto.jsonl");
  const Json run = ThermoeJson({"run", Bundled(), "-f", harbour_, "-n", "4", "--greedy", "--ttt", "auto", "--telemetry", "plant:small", "--power-limit", "2", "--decision-log", log});
  EXPECT_TRUE(run["ttt"]["tiers"].contains("skip"));
  EXPECT_TRUE(ThermoeJson({"replay", log})["difference"].is_null());
  EXPECT_GT(ThermoeJson({"report", log, "--out", Path("auto.svg")})["adaptation"]["segments"], 0);
  ExpectRefused({"run", Bundled(), "-p", "x", "-n", "1", "--ttt", "combined", "--ttt-budget-joules", "1"}, {"--ttt auto"});
}

TEST_F(TttCliTest, DeltasAreSavedAndLoaded) {
  const std::string deltas = Path("voice.deltas");
  const Json learnt = ThermoeJson({"run", Bundled(), "-f", harbour_, "-n", "2", "--greedy", "--ttt", "gains", "--ttt-save", deltas});
  EXPECT_GT(learnt["ttt"]["updates"], 0);
  ASSERT_TRUE(std::filesystem::exists(deltas));
  EXPECT_GE(std::filesystem::file_size(deltas), learnt["ttt"]["delta_bytes"].get<uintmax_t>());
  EXPECT_TRUE(ThermoeJson({"run", Bundled(), "-p", "The boats", "-n", "2", "--greedy", "--ttt", "gains", "--ttt-load", deltas})["ttt"].is_object());
  ExpectRefused({"run", Bundled(), "-p", "x", "-n", "1", "--ttt", "low-rank", "--ttt-load", deltas}, {deltas, "low_rank_q"});
  ExpectRefused({"run", TinyModel(), "-p", "x", "-n", "1", "--ttt", "gains", "--ttt-load", deltas}, {deltas, "model"});
}

TEST_F(TttCliTest, WhatDoesNotFitIsRefused) {
  ExpectRefused({"run", TinyModel(), "-p", "x", "--ttt", "most"}, {"most", "combined"});
  ExpectRefused({"run", TinyModel(), "-p", "x", "--ttt-save", Path("d")}, {"--ttt-save", "--ttt TIER"});
  ExpectRefused({"run", TinyModel(), "-p", "x", "--ttt", "gains", "--ttt-save", "/no/such/folder/d"}, {"/no/such/folder/d"});
  ExpectRefused({"run", TinyModel(), "-p", "x", "--ttt", "gains", "--ttt-objective", "luck"}, {"luck", "entropy"});
  ExpectRefused({"eval", TinyModel(), harbour_, "--ttt", "gains", "--batch", "2"}, {"--batch"});
  ExpectRefused({"run", TinyModel(), "-p", "x", "--ttt", "gains", "--ttt-features", "no.json"}, {"--ttt-features", "--ttt-objective features"});
  WriteAll(Path("each2.toml"), "base = \"auto\"\nevery = 2\n");
  ExpectRefused({"run", TinyModel(), "-p", "x", "--ttt", Path("each2.toml")}, {"automatic", "every"});
  WriteAll(Path("budget.toml"), "base = \"gains\"\nbudget_joules = 2\n");
  ExpectRefused({"run", TinyModel(), "-p", "x", "--ttt", Path("budget.toml")}, {"budget_joules", "automatic"});
  // Before a GPU is looked for.
  ExpectRefused({"run", TinyModel(), "-p", "x", "--ttt", "gains", "--backend", "cuda"}, {"--ttt gains", "cpu backend"});
  ExpectRefused({"eval", TinyModel(), harbour_, "--ttt", "gains", "--backend", "cuda"}, {"--ttt gains", "cpu backend"});
  ExpectRefused({"calibrate", Bundled(), harbour_, "--features", Path("f.json"), "--backend", "cuda"}, {"--features", "cpu backend"});
  ExpectRefused({"run", TinyModel(), "-p", "x", "--device", "0"}, {"--device 0", "--backend cuda"});
  WriteAll(Path("odd.toml"), "segment = 0\n");
  ExpectRefused({"run", TinyModel(), "-p", "x", "--ttt", Path("odd.toml")}, {"line 1", "segment"});
}

TEST_F(TttCliTest, StatisticsOfActivationsServeFeatureAlignment) {
  const std::string features = Path("features.json");
  EXPECT_GT(ThermoeJson({"calibrate", Bundled(), harbour_, "--features", features, "--window", "128"})["tokens"], 100);
  const Json file = ThermoeJson({"eval", Bundled(), harbour_, "--ttt", "gains", "--ttt-objective", "features", "--ttt-features", features})["files"][0];
  EXPECT_GT(file["updates"], 0);
  EXPECT_NE(file["adapted_nll"], file["plain_nll"]);
}

}  // namespace
}  // namespace thermoe
