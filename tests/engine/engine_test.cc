// SPDX-License-Identifier: Apache-2.0
// What the engine promises whatever else is in the batch: bit-identical logits, isolation, refusals.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "support/fixtures.h"

namespace thermoe::testing {
namespace {

std::vector<TokenId> Prompt(int length, int salt = 0) {
  std::vector<TokenId> ids;
  for (int i = 0; i < length; ++i) ids.push_back(3 + (i * 7919 + salt * 104729) % 8000);
  return ids;
}

Request Keep(std::vector<TokenId> prompt, int new_tokens = 0) {
  Request request;
  request.prompt = std::move(prompt);
  request.max_new_tokens = new_tokens;
  request.keep_logits = KeepLogits::kAll;
  request.ignore_end = true;
  return request;
}

// Each model in each storage, on each backend: the promises are the same.
// "ember" is the bundled model, whose 8-bit matrices run through the integer kernels.
class Promises : public ::testing::TestWithParam<std::tuple<std::string, ExpertStorage, std::string>> {
 protected:
  std::unique_ptr<Engine> Make(int chunk = 256, int sequences = 4, int threads = 2) const {
    const auto& [path, storage, backend] = GetParam();
    EngineOptions options;
    options.prefill_chunk = chunk;
    options.max_sequences = sequences;
    options.threads = threads;
    options.backend = backend;
    return MakeEngine(OpenModel(path == "ember" ? EmberPath() : FixturePath(path), storage), options);
  }
};

TEST_P(Promises, ChunksAndThreadsDoNotChangeABit) {
  const RequestResult whole = RunRequest(Make().get(), Keep(Prompt(70), 8));
  ASSERT_EQ(whole.logits.size(), 77u * 8192u);
  for (const int chunk : {1, 7, 16, 33}) EXPECT_EQ(RunRequest(Make(chunk).get(), Keep(Prompt(70), 8)).logits, whole.logits) << chunk;
  EXPECT_EQ(RunRequest(Make(256, 1, 1).get(), Keep(Prompt(70), 8)).logits, whole.logits);
}

TEST_P(Promises, NeighboursDoNotChangeABit) {
  std::vector<RequestResult> alone;
  for (int i = 0; i < 4; ++i) alone.push_back(RunRequest(Make().get(), Keep(Prompt(20 + 13 * i, i), 10 + i)));
  const auto engine = Make(24, 3);  // one waits, prompts are cut, prefill and decode mix
  std::vector<RequestId> ids;
  for (int i = 0; i < 4; ++i) ids.push_back(engine->Submit(Keep(Prompt(20 + 13 * i, i), 10 + i)).value());
  std::vector<Event> events;
  while (engine->Step(&events).value()) {
  }
  for (int i = 0; i < 4; ++i) {
    const RequestResult together = engine->TakeResult(ids[static_cast<size_t>(i)]).value();
    EXPECT_EQ(together.generated, alone[static_cast<size_t>(i)].generated);
    EXPECT_EQ(together.logits, alone[static_cast<size_t>(i)].logits) << i;
  }
}

TEST_P(Promises, ForksAndTruncationsDoNotChangeABit) {
  const std::vector<TokenId> first = Prompt(37), second = Prompt(21, 1);
  std::vector<TokenId> both = first;
  both.insert(both.end(), second.begin(), second.end());
  const RequestResult whole = RunRequest(Make().get(), Keep(both, 5));
  const std::vector<float> tail(whole.logits.begin() + 37 * 8192, whole.logits.end());

  const auto engine = Make();
  const SessionId parent = engine->OpenSession().value();
  Request request = Keep(first);
  request.session = parent;
  RunRequest(engine.get(), request);
  const SessionId fork = engine->ForkSession(parent).value();
  for (const SessionId session : {fork, parent}) {
    Request rest = Keep(second, 5);
    rest.session = session;
    EXPECT_EQ(RunRequest(engine.get(), rest).logits, tail);
  }
  ASSERT_TRUE(engine->TruncateSession(fork, 30).ok());
  Request again = Keep(std::vector<TokenId>(both.begin() + 30, both.end()), 5);
  again.session = fork;
  const std::vector<float> from30(whole.logits.begin() + 30 * 8192, whole.logits.end());
  EXPECT_EQ(RunRequest(engine.get(), again).logits, from30);
}

TEST_P(Promises, NeutralSteeringIsThePlainModelBitForBit) {
  const auto engine = Make();
  const RequestResult plain = RunRequest(engine.get(), Keep(Prompt(50), 12));
  const ModelInfo& model = engine->model().info();
  std::vector<Steering> neutral(3);
  neutral[1].layers.resize(static_cast<size_t>(model.moe_layers));
  LayerSteering spelled;  // every knob at its neutral value, written out
  spelled.selection_bias.assign(static_cast<size_t>(model.experts), 0.0f);
  spelled.guaranteed_slots = spelled.max_slots = model.expert_slots;
  if (model.expert_storage == ExpertStorage::kNested) {
    spelled.plane_cap.assign(static_cast<size_t>(model.experts), 2);
    spelled.full_slots = model.expert_slots;
  }
  neutral[2].layers.assign(static_cast<size_t>(model.moe_layers), spelled);
  for (const Steering& steering : neutral) {
    ASSERT_TRUE(engine->SetSteering(std::make_shared<Steering>(steering)).ok());
    EXPECT_EQ(RunRequest(engine.get(), Keep(Prompt(50), 12)).logits, plain.logits);
  }
}

TEST_P(Promises, ForcedTokensScoreAsThePromptDoes) {
  const std::vector<TokenId> ids = Prompt(30);
  Request scored;
  scored.prompt = ids;
  scored.score_prompt = true;
  scored.max_new_tokens = 0;
  const auto engine = Make();
  const RequestResult prefill = RunRequest(engine.get(), scored);
  Request forced;
  forced.prompt = {ids[0]};
  forced.forced.assign(ids.begin() + 1, ids.end());
  const RequestResult decode = RunRequest(engine.get(), forced);
  EXPECT_EQ(decode.generated, forced.forced);
  EXPECT_EQ(std::vector<float>(prefill.prompt_logprobs.begin() + 1, prefill.prompt_logprobs.end()), decode.logprobs);
}

std::string PromiseName(const ::testing::TestParamInfo<Promises::ParamType>& test) {
  const std::string path = std::get<0>(test.param);
  return path.substr(0, path.find('/')) + (std::get<1>(test.param) == ExpertStorage::kNested ? "_nested_" : "_native_") +
         std::get<2>(test.param);
}

INSTANTIATE_TEST_SUITE_P(Engine, Promises,
                         ::testing::Combine(::testing::Values("qwen3moe", "olmoe", "mixtral/model-bf16.gguf", "qwen2moe"),
                                            ::testing::Values(ExpertStorage::kNative, ExpertStorage::kNested),
                                            ::testing::Values("cpu", "reference")),
                         PromiseName);
INSTANTIATE_TEST_SUITE_P(EngineEmber, Promises,
                         ::testing::Combine(::testing::Values("ember"), ::testing::Values(ExpertStorage::kNative, ExpertStorage::kNested),
                                            ::testing::Values("cpu")),
                         PromiseName);

TEST(EngineNested, BothPlanesAreTheQuantisedModelBitForBit) {
  const RequestResult native = RunRequest(MakeEngine(OpenModel(EmberPath())).get(), Keep(Prompt(40), 6));
  const RequestResult nested = RunRequest(MakeEngine(OpenModel(EmberPath(), ExpertStorage::kNested)).get(), Keep(Prompt(40), 6));
  EXPECT_EQ(native.logits, nested.logits);
}

TEST(EngineNested, FullSlotsAndPlaneCapsChangeWhatIsRead) {
  const auto engine = MakeEngine(OpenModel(EmberPath(), ExpertStorage::kNested));
  const auto run = [&](LayerSteering rules) {
    auto steering = std::make_shared<Steering>();
    steering->layers.assign(6, rules);
    EXPECT_TRUE(engine->SetSteering(steering).ok());
    RunRequest(engine.get(), Keep(Prompt(40)));
    return engine->last_step();
  };
  LayerSteering one;
  one.full_slots = 1;
  StepRecord record = run(one);
  EXPECT_EQ(record.layers[0].slots_full, 40);
  EXPECT_EQ(record.layers[0].slots_hi, 280);
  LayerSteering capped;
  capped.plane_cap.assign(64, 1);
  record = run(capped);
  EXPECT_EQ(record.layers[3].slots_full, 0);
  EXPECT_EQ(record.layers[3].distinct_full_experts, 0);
  const ModelInfo& info = engine->model().info();
  double hi_bytes = 0;
  for (const LayerRecord& layer : record.layers) hi_bytes += static_cast<double>(layer.distinct_experts) * static_cast<double>(info.expert_hi_bytes);
  EXPECT_EQ(record.expert_bytes, hi_bytes);
  EXPECT_EQ(info.expert_hi_bytes * 34, info.expert_bytes * 18);
}

TEST(EngineSteering, SampledGateLogitsAreTheDecodeRowsAndChangeNothing) {
  EngineOptions options;
  options.max_sequences = 5;
  const auto engine = MakeEngine(OpenModel(EmberPath()), options);
  const RequestResult plain = RunRequest(engine.get(), Keep(Prompt(8), 6));
  EXPECT_TRUE(engine->last_step().layers[0].gate_logits.empty());
  auto steering = std::make_shared<Steering>();
  steering->sample_gate_rows = 3;
  ASSERT_TRUE(engine->SetSteering(steering).ok());
  EXPECT_EQ(RunRequest(engine.get(), Keep(Prompt(8), 6)).logits, plain.logits);
  for (const LayerRecord& layer : engine->last_step().layers) {
    ASSERT_EQ(layer.gate_logits.size(), 64u) << "one decode row";
    // The expert with the best logit is always chosen.
    const auto best = std::max_element(layer.gate_logits.begin(), layer.gate_logits.end()) - layer.gate_logits.begin();
    EXPECT_GT(layer.expert_slots[static_cast<size_t>(best)], 0);
  }
  std::vector<RequestId> ids;
  for (int i = 0; i < 5; ++i) {
    Request request;
    request.prompt = Prompt(4 + i);
    request.max_new_tokens = 12;
    request.ignore_end = true;
    ids.push_back(*engine->Submit(request));
  }
  std::vector<Event> events;
  std::set<std::vector<float>> samples;
  while (*engine->Step(&events)) {
    const StepRecord& record = engine->last_step();
    const size_t rows = std::min(record.decode_tokens, 3);
    EXPECT_EQ(record.layers[2].gate_logits.size(), rows * 64);
    if (rows == 3) samples.insert(record.layers[2].gate_logits);
  }
  EXPECT_GT(samples.size(), 3u);
  for (const RequestId id : ids) EXPECT_TRUE(engine->TakeResult(id).ok());
}

TEST(EngineRequests, RefusesWithWhatAndRemedy) {
  const auto engine = MakeEngine(OpenModel(FixturePath("qwen3moe")), [] {
    EngineOptions options;
    options.context = 64;
    options.max_sequences = 2;
    return options;
  }());
  const auto message = [&](Request request) {
    const auto id = engine->Submit(std::move(request));
    EXPECT_FALSE(id.ok());
    return id.status().message();
  };
  EXPECT_NE(message(Keep({})).find("prompt is empty"), std::string::npos);
  EXPECT_NE(message(Keep(Prompt(65))).find("65 tokens but the context holds 64"), std::string::npos);
  EXPECT_NE(message(Keep({8192})).find("token id 8192"), std::string::npos);
  EXPECT_NE(message(Keep({-1})).find("token id -1"), std::string::npos);
  Request request = Keep({5});
  request.session = 99;
  EXPECT_NE(message(request).find("session 99"), std::string::npos);
  request = Keep({5});
  request.sampling.top_p = 2;
  EXPECT_NE(message(request).find("top-p"), std::string::npos);
  EXPECT_EQ(engine->Cancel(1234).code(), StatusCode::kNotFound);
  EXPECT_EQ(engine->TakeResult(1234).status().code(), StatusCode::kNotFound);
  EXPECT_FALSE(engine->TruncateSession(7, 0).ok());
  std::vector<Event> events;
  EXPECT_FALSE(engine->Step(&events).value());
}

TEST(EngineRequests, StopAtTheContextTheLengthAndTheStopIds) {
  EngineOptions options;
  options.context = 40;
  const auto engine = MakeEngine(OpenModel(FixturePath("qwen3moe")), options);
  RequestResult result = RunRequest(engine.get(), Keep(Prompt(30), 100));
  EXPECT_EQ(result.finish, FinishReason::kContext);
  EXPECT_EQ(result.generated.size(), 11u);  // the last needs no place in the context
  result = RunRequest(engine.get(), Keep(Prompt(30), 4));
  EXPECT_EQ(result.finish, FinishReason::kLength);
  Request request = Keep(Prompt(30), 10);
  request.ignore_end = false;
  request.stop_ids = {result.generated[2]};
  result = RunRequest(engine.get(), request);
  EXPECT_EQ(result.finish, FinishReason::kEnd);
  EXPECT_LE(result.generated.size(), 3u);
}

TEST(EngineRequests, CancelFreesThePlaceAndKeepsWhatWasWritten) {
  const auto engine = MakeEngine(OpenModel(FixturePath("qwen3moe")));
  const RequestId first = engine->Submit(Keep(Prompt(10), 50)).value();
  const RequestId second = engine->Submit(Keep(Prompt(10, 1), 3)).value();
  std::vector<Event> events;
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(engine->Step(&events).value());
  ASSERT_TRUE(engine->Cancel(first).ok());
  const RequestResult cancelled = engine->TakeResult(first).value();
  EXPECT_EQ(cancelled.finish, FinishReason::kCancelled);
  EXPECT_EQ(cancelled.generated.size(), 5u);
  while (engine->Step(&events).value()) {
  }
  EXPECT_EQ(engine->TakeResult(second).value().generated.size(), 3u);
}

TEST(EngineRequests, SessionsGoOnWhereTheyStopped) {
  const auto engine = MakeEngine(OpenModel(FixturePath("olmoe")));
  const RequestResult whole = RunRequest(engine.get(), Keep(Prompt(12), 9));
  const SessionId session = engine->OpenSession().value();
  Request request = Keep(Prompt(12), 4);
  request.session = session;
  std::vector<TokenId> generated = RunRequest(engine.get(), request).generated;
  EXPECT_EQ(engine->SessionLength(session).value(), 16);
  ASSERT_TRUE(engine->TruncateSession(session, 15).ok());
  request.prompt = {generated.back()};
  request.max_new_tokens = 5;
  const std::vector<TokenId> rest = RunRequest(engine.get(), request).generated;
  generated.insert(generated.end(), rest.begin(), rest.end());
  EXPECT_EQ(generated, whole.generated);
  EXPECT_EQ(engine->Submit(Keep(Prompt(3))).status().code(), StatusCode::kResourceExhausted);
  EXPECT_TRUE(engine->CloseSession(session).ok());
  EXPECT_TRUE(engine->Submit(Keep(Prompt(3))).ok());
}

TEST(EngineSteering, BatchAwareSelectionSharesExpertsOfDecodeRows) {
  EngineOptions options;
  options.max_sequences = 8;
  const auto engine = MakeEngine(OpenModel(EmberPath()), options);
  const auto distinct = [&](int k0) {
    auto steering = std::make_shared<Steering>();
    LayerSteering rules;
    rules.guaranteed_slots = k0;
    steering->layers.assign(6, rules);
    EXPECT_TRUE(engine->SetSteering(steering).ok());
    std::vector<RequestId> ids;
    for (int i = 0; i < 8; ++i) ids.push_back(engine->Submit(Keep(Prompt(5, i), 6)).value());
    std::vector<Event> events;
    int sum = 0, steps = 0;
    while (engine->Step(&events).value()) {
      if (engine->last_step().decode_tokens < 8) continue;
      for (const LayerRecord& layer : engine->last_step().layers) sum += layer.distinct_experts;
      ++steps;
    }
    for (const RequestId id : ids) EXPECT_TRUE(engine->TakeResult(id).ok());
    EXPECT_EQ(steps, 5);
    return sum;
  };
  const int plain = distinct(8), six = distinct(6), three = distinct(3);
  EXPECT_LT(six, plain);
  EXPECT_LT(three, six);
}

}  // namespace
}  // namespace thermoe::testing
