// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>

#include "cli_test_util.h"

namespace thermoe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::UnorderedElementsAre;

class RunTest : public CliTest {};

TEST_F(RunTest, JsonKeys) {
  const Json json = ThermoeJson({"run", TinyModel(), "-p", "The sea was", "-n", "6", "--seed", "5"});
  EXPECT_THAT(Keys(json), UnorderedElementsAre("schema_version", "model", "prompt_ids", "generated_ids", "text",
                                               "finish", "seed", "timings", "energy", "control", "ttt"));
  EXPECT_THAT(Keys(json["timings"]),
              UnorderedElementsAre("load_ms", "prompt_tokens", "generated_tokens", "queue_ms", "prefill_ms",
                                   "decode_ms", "prefill_tokens_per_s", "decode_tokens_per_s", "simulated"));
  EXPECT_EQ(json["seed"], 5);
  EXPECT_EQ(json["generated_ids"].size(), json["timings"]["generated_tokens"].get<size_t>());
}

TEST_F(RunTest, PipesGetTheGeneratedTextAlone) {
  const std::vector<std::string> arguments = {"run", "-p", "It was a dark and stormy night", "-n", "12", "--greedy"};
  const ProcessResult result = Thermoe(arguments);
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.out, ThermoeJson(arguments)["text"].get<std::string>());
  EXPECT_THAT(result.out + result.err, Not(HasSubstr("\x1b")));
  EXPECT_THAT(result.err, HasSubstr("seed"));
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1);
  std::vector<std::string> quiet = arguments;
  quiet.push_back("--quiet");
  EXPECT_EQ(Thermoe(quiet).err, "");
}

TEST_F(RunTest, PromptSourcesAgree) {
  WriteAll(Path("p.txt"), "The sea was calm.\n");
  const Json from_flag = ThermoeJson({"run", TinyModel(), "-p", "The sea was calm.", "-n", "0"});
  const Json from_file = ThermoeJson({"run", TinyModel(), "-f", Path("p.txt"), "-n", "0"});
  const Json from_pipe = ThermoeJson({"run", TinyModel(), "-n", "0"}, "The sea was calm.\n");
  EXPECT_EQ(from_flag["prompt_ids"], from_file["prompt_ids"]);
  EXPECT_EQ(from_flag["prompt_ids"], from_pipe["prompt_ids"]);
  EXPECT_TRUE(from_flag["generated_ids"].empty());
  // Prompts that look like the command line's own syntax are text all the same.
  for (const char* odd : {"{}", "[a,b]", "--help", "-x", "a,b", "\"\""}) {
    EXPECT_FALSE(ThermoeJson({"run", TinyModel(), "-n", "0", "-p", odd})["prompt_ids"].empty()) << odd;
  }
}

TEST_F(RunTest, SameSeedSameText) {
  const std::vector<std::string> arguments = {"run", "-p", "The old man", "-n", "12", "--temp", "1.2", "--seed"};
  const auto with_seed = [&](const std::string& seed) {
    std::vector<std::string> all = arguments;
    all.push_back(seed);
    return ThermoeJson(all)["generated_ids"];
  };
  EXPECT_EQ(with_seed("7"), with_seed("7"));
  EXPECT_NE(with_seed("7"), with_seed("8"));
}

TEST_F(RunTest, GreedyIsTemperatureZero) {
  const Json greedy = ThermoeJson({"run", "-p", "The old man", "-n", "12", "--greedy"});
  EXPECT_EQ(greedy["generated_ids"],
            ThermoeJson({"run", "-p", "The old man", "-n", "12", "--temp", "0"})["generated_ids"]);
  EXPECT_EQ(greedy["generated_ids"], ThermoeJson({"run", "-p", "The old man", "-n", "12", "--greedy", "--threads", "1",
                                                  "--prefill-chunk", "2"})["generated_ids"]);
}

TEST_F(RunTest, NeutralSteeringChangesNothing) {
  const std::vector<std::string> plain = {"run", "-p", "The old man", "-n", "12", "--greedy"};
  std::vector<std::string> neutral = plain;
  for (const char* word :
       {"--experts", "nested", "--full-slots", "8", "--k0", "8", "--k-max", "8", "--drop-below", "0"}) {
    neutral.push_back(word);
  }
  EXPECT_EQ(ThermoeJson(plain)["generated_ids"], ThermoeJson(neutral)["generated_ids"]);
}

TEST_F(RunTest, SteeringFilesSteer) {
  // A large bias against experts 0 to 3 of the tiny model's first layer, hi planes only in its second.
  WriteAll(Path("bias.json"), "{\"schema_version\": 1, \"layers\": [[-9,-9,-9,-9,0,0,0,0], null]}");
  WriteAll(Path("cap.json"), "{\"schema_version\": 1, \"layers\": [null, [1,1,1,1,1,1,1,1]]}");
  const std::string text = Fixture("texts/harbour.txt");
  const std::vector<std::string> base = {"eval",         TinyModel(), text,        "--window", "64",
                                         "--max-tokens", "65",        "--experts", "nested"};
  const auto nll = [&](const std::vector<std::string>& more) {
    std::vector<std::string> all = base;
    all.insert(all.end(), more.begin(), more.end());
    return ThermoeJson(all)["files"][0]["mean_nll"].get<double>();
  };
  EXPECT_NE(nll({}), nll({"--expert-bias", Path("bias.json")}));
  EXPECT_NE(nll({}), nll({"--plane-cap", Path("cap.json")}));
}

TEST_F(RunTest, PromptFileKeepsOrderAndSettings) {
  WriteAll(Path("p.jsonl"),
           "{\"prompt\": \"The sea was\", \"n\": 20, \"greedy\": true, \"id\": \"first\"}\n\n"
           "{\"prompt\": \"The old man\", \"n\": 3, \"temp\": 0}\n"
           "{\"prompt\": \"A letter\", \"n\": 5, \"seed\": 11}\n");
  const ProcessResult result = Thermoe({"run", "--prompts", Path("p.jsonl"), "--parallel", "2", "--seed", "1"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  std::vector<Json> lines;
  std::stringstream stream(result.out);
  for (std::string line; std::getline(stream, line);) lines.push_back(Json::parse(line));
  ASSERT_EQ(lines.size(), 3u);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(lines[i]["index"], i);
  EXPECT_EQ(lines[0]["id"], "first");
  EXPECT_FALSE(lines[1].contains("id"));
  EXPECT_EQ(lines[1]["seed"], 2);  // --seed plus the index
  EXPECT_EQ(lines[2]["seed"], 11);
  EXPECT_EQ(lines[1]["generated_ids"].size(), 3u);
  // Alone or in a batch: the same text.
  EXPECT_EQ(lines[0]["generated_ids"],
            ThermoeJson({"run", "-p", "The sea was", "-n", "20", "--greedy"})["generated_ids"]);
  EXPECT_EQ(lines[2]["generated_ids"],
            ThermoeJson({"run", "-p", "A letter", "-n", "5", "--seed", "11"})["generated_ids"]);
}

TEST_F(RunTest, ContextEndsTheText) {
  const Json json = ThermoeJson({"run", TinyModel(), "-p", "The sea was", "--ctx", "16", "-n", "100", "--ignore-end"});
  EXPECT_EQ(json["finish"], "context");
}

TEST_F(RunTest, EnvironmentChoosesTheModel) {
  const ProcessResult result = Thermoe({"inspect", "--json"}, "", {{"THERMOE_MODEL", TinyModel()}});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(Json::parse(result.out)["model"]["path"], TinyModel());
  const ProcessResult missing = Thermoe({"inspect"}, "", {{"THERMOE_MODEL", "/nonexistent"}});
  EXPECT_EQ(missing.exit_code, 2);
  EXPECT_THAT(missing.err, HasSubstr("THERMOE_MODEL"));
}

}  // namespace
}  // namespace thermoe
