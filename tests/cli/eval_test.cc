// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>

#include <cmath>

#include "cli_test_util.h"

namespace thermoe {
namespace {

using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

class EvalTest : public CliTest {
 protected:
  // The only file's object.
  Json Eval(std::vector<std::string> arguments, const std::string& model = TinyModel()) {
    arguments.insert(arguments.begin(), {"eval", model});
    Json json = ThermoeJson(arguments);
    EXPECT_EQ(json["files"].size(), 1u);
    return json["files"][0];
  }

  const std::string harbour_ = Fixture("texts/harbour.txt");
  const std::string documents_ = Fixture("texts/documents.txt");
};

TEST_F(EvalTest, JsonKeys) {
  const Json json = ThermoeJson({"eval", TinyModel(), harbour_, documents_, "--window", "64", "--baseline"});
  EXPECT_THAT(Keys(json), UnorderedElementsAre("schema_version", "model", "engine", "protocol", "steering", "telemetry",
                                               "control", "files"));
  ASSERT_EQ(json["files"].size(), 2u);
  EXPECT_THAT(Keys(json["files"][0]), UnorderedElementsAre("file", "tokens", "mean_nll", "perplexity", "windows",
                                                           "window_nll", "distinct_experts", "experts_read",
                                                           "slots_per_token", "gate_mass_lost_frac", "baseline"));
  const Json& baseline = json["files"][0]["baseline"];
  EXPECT_EQ(baseline["change_nats"], 0.0);
  EXPECT_EQ(baseline["change_error_nats"], 0.0);
  EXPECT_EQ(json["files"][0]["slots_per_token"], 3.0);
}

TEST_F(EvalTest, BundledModelReadsEnglish) {
  const Json file = Eval({harbour_}, Bundled());
  // English prose: far better than chance (ln 8192 = 9.0), and as the float32 model has it on prose of this kind.
  EXPECT_GT(file["mean_nll"], 2.0);
  EXPECT_LT(file["mean_nll"], 4.5);
  EXPECT_NEAR(file["perplexity"].get<double>(), std::exp(file["mean_nll"].get<double>()), 1e-6);
}

TEST_F(EvalTest, EveryIdButTheFirstCountsOnce) {
  const Json ids = ThermoeJson({"run", TinyModel(), "-n", "0", "-p", ReadAll(harbour_)})["prompt_ids"];
  const auto all = static_cast<int>(ids.size()) - 1;
  for (const auto& [window, stride] : {std::pair("32", "32"), {"32", "8"}, {"50", "17"}, {"512", "512"}}) {
    EXPECT_EQ(Eval({harbour_, "--window", window, "--stride", stride})["tokens"], all) << window << " " << stride;
  }
  EXPECT_EQ(Eval({harbour_, "--window", "32", "--max-tokens", "129"})["tokens"], 128);
  EXPECT_EQ(Eval({harbour_, "--window", "32", "--max-tokens", "129"})["windows"], 4);
}

TEST_F(EvalTest, MoreContextHelps) {
  const double blocks = Eval({harbour_, "--window", "32"}, Bundled())["mean_nll"];
  const double sliding = Eval({harbour_, "--window", "32", "--stride", "8"}, Bundled())["mean_nll"];
  EXPECT_LT(sliding, blocks - 0.05);
}

TEST_F(EvalTest, BatchesChangeNothing) {
  const std::vector<std::string> base = {harbour_, "--window", "24", "--max-tokens", "145"};
  const Json alone = Eval(base);
  for (const char* batch : {"1", "3", "6"}) {
    std::vector<std::string> arguments = base;
    arguments.insert(arguments.end(), {"--batch", batch});
    const Json together = Eval(arguments);
    EXPECT_EQ(alone["window_nll"], together["window_nll"]) << batch;
    EXPECT_TRUE(together["distinct_experts"].is_number());
  }
  EXPECT_TRUE(alone["distinct_experts"].is_null());
}

TEST_F(EvalTest, SplitWindowsStayInsideDocuments) {
  const Json file = Eval({documents_, "--documents", "split", "--window", "16"});
  EXPECT_EQ(file["tokens"], 15 * file["windows"].get<int>());
  // The third document is too short for a window; alone the others give as many.
  const std::string text = ReadAll(documents_);
  const size_t first = text.find('\0'), second = text.find('\0', first + 1);
  WriteAll(Path("one.txt"), text.substr(0, first));
  WriteAll(Path("two.txt"), text.substr(first + 1, second - first - 1));
  const Json one = Eval({Path("one.txt"), "--documents", "split", "--window", "16"});
  const Json two = Eval({Path("two.txt"), "--documents", "split", "--window", "16"});
  EXPECT_EQ(file["windows"].get<int>(), one["windows"].get<int>() + two["windows"].get<int>());
  Json joined = one["window_nll"];
  for (const Json& value : two["window_nll"]) joined.push_back(value);
  EXPECT_EQ(file["window_nll"], joined);

  const Json sample = Eval({documents_, "--documents", "split", "--window", "16", "--sample", "2"});
  ASSERT_EQ(sample["windows"], 2);
  EXPECT_EQ(sample["window_nll"][0], file["window_nll"][0]);
  EXPECT_EQ(sample["window_nll"][1], file["window_nll"][file["windows"].get<size_t>() / 2]);
}

TEST_F(EvalTest, JoinReadsNulAndCarriageReturnAsNewline) {
  WriteAll(Path("nul.txt"), std::string("one two three\0four five six\n", 28));
  WriteAll(Path("lf.txt"), "one two three\nfour five six\n");
  WriteAll(Path("crlf.txt"), "one two three\r\nfour five six\r\n");
  const Json lf = Eval({Path("lf.txt")});
  EXPECT_EQ(Eval({Path("nul.txt")})["mean_nll"], lf["mean_nll"]);
  EXPECT_EQ(Eval({Path("crlf.txt")})["mean_nll"], lf["mean_nll"]);
  EXPECT_NE(Eval({Path("crlf.txt"), "--newlines", "keep"})["mean_nll"], lf["mean_nll"]);
}

TEST_F(EvalTest, MaxCharsCountsCharacters) {
  WriteAll(Path("long.txt"), "caf\xc3\xa9 na\xc3\xafve and so on");
  WriteAll(Path("short.txt"), "caf\xc3\xa9 na\xc3\xafve");
  EXPECT_EQ(Eval({Path("long.txt"), "--max-chars", "10"})["mean_nll"], Eval({Path("short.txt")})["mean_nll"]);
}

TEST_F(EvalTest, SteeringMeasures) {
  const std::vector<std::string> base = {harbour_, "--window",  "64",     "--max-tokens",
                                         "129",    "--experts", "nested", "--baseline"};
  const auto with = [&](const std::vector<std::string>& more) {
    std::vector<std::string> all = base;
    all.insert(all.end(), more.begin(), more.end());
    return Eval(all, Bundled());
  };
  const Json two = with({"--full-slots", "2"});
  EXPECT_NEAR(two["experts_read"].get<double>(), 2 + 6 * 18.0 / 34, 1e-9);
  EXPECT_NEAR(two["baseline"]["experts_read"].get<double>(), 8, 1e-9);
  EXPECT_NEAR(two["baseline"]["change_nats"].get<double>(),
              two["mean_nll"].get<double>() - two["baseline"]["mean_nll"].get<double>(), 1e-12);
  const Json six = with({"--k-max", "6"});
  EXPECT_NEAR(six["slots_per_token"].get<double>(), 6, 1e-9);
  EXPECT_GT(six["gate_mass_lost_frac"], 0.0);
  const Json aware = with({"--batch", "2", "--k0", "3"});
  EXPECT_LT(aware["distinct_experts"], aware["baseline"]["distinct_experts"]);
}

TEST_F(EvalTest, TableForPeople) {
  const ProcessResult result = Thermoe({"eval", TinyModel(), harbour_, "--window", "64"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.out, HasSubstr("harbour.txt"));
  EXPECT_THAT(result.out, HasSubstr("perplexity"));
  EXPECT_EQ(result.err, "");
}

}  // namespace
}  // namespace thermoe
