// SPDX-License-Identifier: Apache-2.0
// Test-time training that the engine decides on, on the bundled model: what it gains for its joules, its budget, its
// guard, and what it puts off on a hot device.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <numeric>
#include <sstream>

#include "control/router/decision_log.h"
#include "engine/engine_impl.h"
#include "support/fixtures.h"

namespace thermoe::testing {
namespace {

using ::testing::HasSubstr;

std::unique_ptr<Engine> Make(const std::string& telemetry = "none", const ControlOptions& control = {}) {
  EngineOptions options;
  options.context = 512;
  options.prefill_chunk = 64;
  options.max_sequences = 3;
  options.threads = 2;
  options.telemetry = telemetry;
  options.control = control;
  return MakeEngine(OpenModel(EmberPath()), options);
}

std::vector<TokenId> Text(size_t length, size_t from = 0) {
  static const std::vector<TokenId> ids = [] {
    std::ifstream file(FixturePath("texts/documents.txt"));
    std::stringstream text;
    text << file.rdbuf();
    return OpenModel(EmberPath())->tokenizer().Encode(text.str()).value();
  }();
  std::vector<TokenId> text;
  for (size_t i = 0; i < length; ++i) text.push_back(ids[(from + i) % ids.size()]);
  return text;
}

TttOptions Auto() {
  TttOptions options = TttTier("auto").value();
  options.keep = 128;
  return options;
}

TttOptions Plain(const TttOptions& like) {
  TttOptions options = like;
  options.groups.clear();
  options.automatic = false;
  return options;
}

RequestResult Read(Engine* engine, const TttOptions& options, const std::vector<TokenId>& text) {
  Request request;
  request.prompt = text;
  request.max_new_tokens = 0;
  request.score_prompt = true;
  request.ttt = std::make_shared<TttOptions>(options);
  Result<RequestResult> result = engine->Run(request);
  EXPECT_TRUE(result.ok()) << result.status().message();
  return std::move(result).value();
}

double MeanNll(const RequestResult& result) {
  const double sum = std::accumulate(result.prompt_logprobs.begin() + 1, result.prompt_logprobs.end(), 0.0);
  return -sum / static_cast<double>(result.prompt_logprobs.size() - 1);
}

TEST(TttAuto, GainsMostOfWhatAlwaysLearningDoesForHalfItsJoules) {
  const auto engine = Make();
  const std::vector<TokenId> text = Text(1500);
  TttOptions always = TttTier("combined").value();
  always.keep = 128;
  const double plain = MeanNll(Read(engine.get(), Plain(always), text));
  const RequestResult fixed = Read(engine.get(), always, text), decided = Read(engine.get(), Auto(), text);
  EXPECT_LT(MeanNll(fixed), plain - 0.05);
  EXPECT_LT(MeanNll(decided) - plain, 0.75 * (MeanNll(fixed) - plain));
  EXPECT_TRUE(decided.ttt.joules_estimated);
  EXPECT_LT(decided.ttt.adapt_joules, 0.7 * fixed.ttt.adapt_joules);
  EXPECT_GT(decided.ttt.left_out_tokens, 0);
  EXPECT_GE(decided.ttt.guard_passes, 1);
  EXPECT_EQ(decided.ttt.reverted, 0);
  EXPECT_GT(decided.ttt.gain_nats, 0);
  EXPECT_EQ(std::accumulate(decided.ttt.choices.begin(), decided.ttt.choices.end(), int64_t{0}), decided.ttt.segments);
  // The same again, to the bit: without limits nothing that was timed decides.
  const RequestResult again = Read(engine.get(), Auto(), text);
  EXPECT_EQ(again.prompt_logprobs, decided.prompt_logprobs);
  EXPECT_EQ(again.ttt.choices, decided.ttt.choices);
}

TEST(TttAuto, ABudgetIsNeverPassed) {
  const auto engine = Make();
  const std::vector<TokenId> text = Text(800);
  const double all_j = Read(engine.get(), Auto(), text).ttt.adapt_joules;
  TttOptions frugal = Auto();
  frugal.budget_joules = 0.4 * all_j;
  const RequestResult result = Read(engine.get(), frugal, text);
  EXPECT_GT(result.ttt.updates, 0);
  EXPECT_LT(result.ttt.adapt_joules, 0.5 * all_j);
  frugal.budget_joules = 1e-9;
  EXPECT_EQ(Read(engine.get(), frugal, text).ttt.updates, 0);
}

TEST(TttAuto, HarmIsFoundAndTheDeltasAreReset) {
  const auto engine = Make();
  const std::vector<TokenId> text = Text(1200);
  TttOptions wild = Auto();
  for (DeltaGroupOptions& group : wild.groups) group.learning_rate *= 12;
  wild.scale_rate = 0;  // which would tame it
  const double plain = MeanNll(Read(engine.get(), Plain(wild), text));
  const RequestResult guarded = Read(engine.get(), wild, text);
  EXPECT_GE(guarded.ttt.reverted, 1);
  TttOptions unguarded = wild;
  unguarded.automatic = false;
  unguarded.surprise = 0;
  const double harm = MeanNll(Read(engine.get(), unguarded, text)) - plain;
  EXPECT_GT(harm, 0.5) << "what it would have come to";
  EXPECT_LT(MeanNll(guarded) - plain, 0.3 * harm);
  TttOptions tamed = unguarded;
  tamed.scale_rate = 0.15f;
  EXPECT_LT(MeanNll(Read(engine.get(), tamed, text)) - plain, 0.8 * harm) << "deltas learn their size";
}

TEST(TttAuto, RepeatsAndNoiseDoNoHarm) {
  const auto engine = Make();
  std::vector<TokenId> one(900, 300), noise;
  for (int i = 0; i < 900; ++i) noise.push_back(3 + (i * 7919 + i * i * 31) % 8000);
  for (const auto& text : {one, noise}) {
    const double plain = MeanNll(Read(engine.get(), Plain(Auto()), text));
    EXPECT_LE(MeanNll(Read(engine.get(), Auto(), text)), plain + 0.02);
  }
}

TEST(TttAuto, WaitsWhileTheDeviceIsHotAndCatchesUpAndReplays) {
  const std::string profile = "plant:" + std::string(THERMOE_SOURCE_DIR) + "/data/profiles/small.toml";
  const std::string log =
      (std::filesystem::path(::testing::TempDir()) / fmt::format("ttt_auto_{}.jsonl", ::getpid())).string();
  ControlOptions control;
  control.router = "plain";
  control.log_path = log;
  int64_t lines = 0;
  {
    const auto probe = Make(profile);
    const double room_c = probe->control_view().temp_c;
    control.temp_limit_c = room_c + 0.5;
  }
  {
    const auto engine = Make(profile, control);
    const RequestResult hot = Read(engine.get(), Auto(), Text(200));
    EXPECT_GT(hot.ttt.deferred, 0);
    EXPECT_EQ(hot.ttt.updates, 0) << "no headroom at the horizon";
    const SessionId session = engine->OpenSession().value();
    TttOptions eager = Auto();
    eager.price_nats = 0.005f;
    ASSERT_TRUE(engine->SetTtt(session, eager).ok());
    Request request;
    request.prompt = Text(250);
    request.session = session;
    request.max_new_tokens = 0;
    ASSERT_TRUE(engine->Run(request).ok());
    const int64_t put_off = engine->SessionTtt(session)->deferred;
    EXPECT_GT(put_off, 0);
    ASSERT_TRUE(static_cast<EngineImpl*>(engine.get())->control_loop()->SetLimits({0, 70, 0}).ok());
    request.prompt = Text(150, 250);
    request.max_new_tokens = 100;
    request.ignore_end = true;
    ASSERT_TRUE(engine->Run(request).ok());
    const TttStats cool = engine->SessionTtt(session).value();
    EXPECT_GT(cool.caught_up, 0);
    EXPECT_GT(cool.updates, cool.caught_up);
    ASSERT_TRUE(engine->SaveControl().ok());
    lines = hot.ttt.segments + cool.segments;
  }
  const Result<ReplayReport> report = Replay(log);
  ASSERT_TRUE(report.ok()) << report.status().message();
  EXPECT_EQ(report->difference, "");
  EXPECT_GE(report->adaptations, lines);
  std::filesystem::remove(log);
}

TEST(TttAuto, OptionsThatDoNotGoTogetherAreRefused) {
  TttOptions options = Auto();
  options.objective = TttObjective::kEntropy;
  EXPECT_THAT(CheckTttOptions(options).message(), HasSubstr("automatic tier learns the next token"));
  options = Auto();
  options.steps = 2;
  EXPECT_THAT(CheckTttOptions(options).message(), HasSubstr("automatic tier learns the next token"));
  options = Auto();
  options.price_nats = -1;
  EXPECT_THAT(CheckTttOptions(options).message(), HasSubstr("price_nats"));
}

}  // namespace
}  // namespace thermoe::testing
