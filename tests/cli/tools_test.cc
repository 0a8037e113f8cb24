// SPDX-License-Identifier: Apache-2.0
// bench, inspect and synth.
#include <gmock/gmock.h>

#include <cmath>

#include "cli_test_util.h"

namespace thermoe {
namespace {

using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

class ToolsTest : public CliTest {};

TEST_F(ToolsTest, BenchKeys) {
  const Json json =
      ThermoeJson({"bench", TinyModel(), "--prefill", "16,32", "--decode", "4", "--batch", "3", "--repeat", "2"});
  EXPECT_THAT(Keys(json), UnorderedElementsAre("schema_version", "model", "device", "steering", "control", "repeat",
                                               "seed", "vs", "results"));
  EXPECT_GT(json["device"]["memory_read_gbps"], 0.1);
  std::vector<std::string> names;
  for (const Json& result : json["results"]) {
    EXPECT_THAT(Keys(result),
                UnorderedElementsAre("name", "tokens", "batch", "tokens_per_s", "bytes_per_token", "bandwidth_frac",
                                     "expert_bytes_per_token", "stage_us_per_token", "vs_tokens_per_s", "ratio",
                                     "plain_tokens_per_s", "gain", "experts_gain", "joules_per_token", "energy_source",
                                     "energy_estimated_frac", "telemetry_cost_frac"));
    EXPECT_GT(result["stage_us_per_token"]["experts"], 0);
    EXPECT_LT(result["expert_bytes_per_token"], result["bytes_per_token"]);
    EXPECT_TRUE(result["ratio"].is_null());
    EXPECT_LE(result["tokens_per_s"]["min"], result["tokens_per_s"]["median"]);
    EXPECT_LE(result["tokens_per_s"]["median"], result["tokens_per_s"]["max"]);
    EXPECT_GT(result["bytes_per_token"], 0);
    names.push_back(result["name"]);
  }
  EXPECT_THAT(names, ::testing::ElementsAre("prefill 16", "prefill 32", "decode", "decode x3"));
}

TEST_F(ToolsTest, BenchAgainstNoSteering) {
  const Json json = ThermoeJson({"bench", TinyModel(), "--prefill", "0", "--decode", "60", "--batch", "0", "--repeat",
                                 "5", "--k-max", "1", "--baseline"});
  const Json& decode = json["results"][0];
  EXPECT_GT(decode["plain_tokens_per_s"]["median"], 0);
  EXPECT_GT(decode["gain"]["median"], 0.2);
  EXPECT_GT(decode["experts_gain"]["median"], 0.2);
  ExpectRefused({"bench", TinyModel(), "--baseline"}, {"--baseline", "steering flag"});
}

TEST_F(ToolsTest, BenchAgainstACommand) {
  const std::vector<std::string> bench = {"bench",   TinyModel(), "--prefill", "16", "--decode", "4",
                                          "--batch", "0",         "--repeat",  "3",  "--vs"};
  const auto with = [&](const std::string& command) {
    std::vector<std::string> all = bench;
    all.push_back(command);
    return all;
  };
  for (const std::string command :
       {"echo loading; echo 100; echo ' 2.5e1 '", "echo '[{\"avg_ts\": 100}, {\"avg_ts\": 25}]'"}) {
    const Json json = ThermoeJson(with(command));
    EXPECT_EQ(json["vs"], command);
    EXPECT_EQ(json["results"][0]["vs_tokens_per_s"]["median"], 100);
    EXPECT_EQ(json["results"][1]["vs_tokens_per_s"]["median"], 25);
    const Json& decode = json["results"][1];
    EXPECT_NEAR(decode["ratio"]["max"].get<double>(), decode["tokens_per_s"]["max"].get<double>() / 25, 1e-9);
  }
  // The program itself is a peer too.
  const Json same = ThermoeJson(with(std::string(THERMOE_APP) + " bench " + TinyModel() +
                                     " --prefill 16 --decode 4 --batch 0 --repeat 1 --json"));
  EXPECT_GT(same["results"][0]["ratio"]["median"], 0.01);
  ExpectRefused(with("echo 5"), {"--vs", "1 rates", "2 tests"});
  ExpectRefused(with("echo 5; echo 0"), {"--vs", "rate of 0"});
  ExpectRefused(with("exit 7"), {"--vs", "exit code 7"});
  ExpectRefused(with("kill -9 $$"), {"--vs", "signal 9"});
  ExpectRefused(with("exec 2>/dev/null; no-such-command-here"), {"--vs", "found no such command"});
  ExpectRefused(with("cat"), {"--vs", "0 rates"});  // its input is empty, not ours
  for (const std::string command : {"sleep 60", "sleep 60 & echo 5; echo 6", "exec >&-; sleep 60"}) {
    std::vector<std::string> hangs = with(command);
    hangs.insert(hangs.end(), {"--vs-limit", "1"});
    ExpectRefused(hangs, {"--vs", "after 1 s", "--vs-limit"});
  }
}

// File, keys and values, and 64 MiB for all the rest.
TEST_F(ToolsTest, PeakMemoryOfARun) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer needs memory of its own";
#endif
  const auto check = [&](const std::string& model, int context, const std::string& experts) {
    std::string prompt;  // of more tokens than a chunk of the prompt has, so that all that a step needs is in use
    while (prompt.size() < 300) prompt += "It was a dark and stormy night, ";
    std::vector<std::string> run = {"run", "-p", prompt, "-n", "32", "--experts", experts, "--ignore-end", "--ctx", std::to_string(context)};
    std::vector<std::string> inspect = {"inspect"};
    for (auto* args : {&run, &inspect}) {
      if (!model.empty()) args->insert(args->begin() + 1, model);
    }
    const Json info = ThermoeJson(inspect);
    const auto number = [&](const char* key) { return info[key].get<int64_t>(); };
    const int64_t kv_bytes = 2 * 4 * number("layers") * number("kv_heads") * number("head_dim") * context;
    const ProcessResult result = Thermoe(run);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_GT(result.peak_bytes, number("file_bytes") / 2) << "not measured";
    EXPECT_LE(result.peak_bytes, number("file_bytes") + kv_bytes + (int64_t{64} << 20)) << model << " " << experts;
  };
  check("", 1024, "native");
  check("", 1024, "nested");
  // Of real size, so that a second copy of anything shows; rewritten at load as the file has it and as planes.
  const std::string large = Path("large.gguf");
  for (const auto& [type, experts] : {std::pair{"q8_0", "nested"}, {"q8_0", "native"}, {"q4_k", "native"}}) {
    ASSERT_EQ(Thermoe({"synth", "--arch", "olmoe", "--layers", "1", "--type", type, "--force", large}).exit_code, 0);
    check(large, 384, experts);
  }
}

TEST_F(ToolsTest, FewerSlotsMoveFewerBytes) {
  const auto bytes = [&](const std::vector<std::string>& more) {
    std::vector<std::string> all = {"bench", "--prefill", "0", "--decode", "4", "--batch", "0", "--repeat", "1"};
    all.insert(all.end(), more.begin(), more.end());
    return ThermoeJson(all)["results"][0]["bytes_per_token"].get<double>();
  };
  EXPECT_LT(bytes({"--k-max", "4"}), bytes({}));
  EXPECT_LT(bytes({"--experts", "nested", "--full-slots", "0"}), bytes({"--experts", "nested"}));
}

TEST_F(ToolsTest, InspectDescribesTheBundledModel) {
  const Json json = ThermoeJson({"inspect"});
  EXPECT_EQ(json["model"]["architecture"], "qwen3moe");
  EXPECT_EQ(json["experts"], 64);
  EXPECT_EQ(json["expert_slots"], 8);
  EXPECT_EQ(json["expert_bytes"], 3 * 256 * 64 / 32 * 34);
  ASSERT_EQ(json["batches"].size(), 4u);
  EXPECT_NEAR(json["batches"][1]["distinct_experts"].get<double>(), 64 * (1 - std::pow(1 - 8 / 64.0, 8)), 1e-9);
  int64_t bytes = 0;
  for (const Json& tensor : json["tensors"]) bytes += tensor["bytes"].get<int64_t>();
  EXPECT_LT(bytes, json["file_bytes"].get<int64_t>());
  EXPECT_GT(bytes, json["file_bytes"].get<int64_t>() * 9 / 10);
  const Json nested = ThermoeJson({"inspect", "--experts", "nested"});
  EXPECT_EQ(nested["expert_bytes"], json["expert_bytes"]);
  EXPECT_EQ(nested["expert_hi_bytes"], 3 * 256 * 64 / 32 * 18);
}

TEST_F(ToolsTest, InspectGroupsTensors) {
  const std::string grouped = Thermoe({"inspect", TinyModel()}).out;
  EXPECT_THAT(grouped, HasSubstr("blk.*.attn_q.weight"));
  EXPECT_THAT(Thermoe({"inspect", TinyModel(), "--tensors"}).out, HasSubstr("blk.1.attn_q.weight"));
  EXPECT_THAT(Thermoe({"inspect", Fixture("olmoe")}).out, HasSubstr("model.layers.*.mlp.experts.*.up_proj.weight"));
}

TEST_F(ToolsTest, InspectEscapesWhatAFileSays) {
  // A model may not steer the reader's terminal: on a pipe the name is plain data, in JSON it is escaped.
  std::string bytes = ReadAll(TinyModel());
  const std::string key = "general.name";
  const size_t value = bytes.find(key) + key.size() + 4 + 8;
  ASSERT_LT(value, bytes.size());
  bytes[value] = '\x1b';
  WriteAll(Path("escape.gguf"), bytes);
  const ProcessResult result = Thermoe({"inspect", Path("escape.gguf"), "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, ::testing::Not(HasSubstr("\x1b")));
}

TEST_F(ToolsTest, SynthWritesAModelThatRuns) {
  const Json json = ThermoeJson({"synth", "--arch", "olmoe", "--layers", "1", "--type", "q4_0", Path("o.gguf")});
  EXPECT_THAT(Keys(json),
              UnorderedElementsAre("schema_version", "file", "arch", "layers", "type", "seed", "bytes", "seconds"));
  EXPECT_EQ(json["bytes"], std::filesystem::file_size(Path("o.gguf")));
  EXPECT_FALSE(std::filesystem::exists(Path("o.gguf.partial")));
  const Json model = ThermoeJson({"inspect", Path("o.gguf")});
  EXPECT_EQ(model["model"]["architecture"], "olmoe");
  EXPECT_EQ(model["layers"], 1);
  EXPECT_EQ(model["hidden"], 2048);
  ASSERT_EQ(Thermoe({"synth", "--arch", "olmoe", "--layers", "1", "--type", "q4_k_m", Path("m.gguf")}).exit_code, 0);
  const ProcessResult mixed = Thermoe({"inspect", Path("m.gguf")});
  ASSERT_EQ(mixed.exit_code, 0) << mixed.err;
  EXPECT_THAT(mixed.out, ::testing::AllOf(HasSubstr("q4_k"), HasSubstr("q6_k")));
}

}  // namespace
}  // namespace thermoe
