// SPDX-License-Identifier: Apache-2.0
// Test-time training in the engine: what a session learns is its own, and everything else stays as it was, to the bit.
#include <gmock/gmock.h>

#include <cmath>
#include <numeric>

#include "engine/features.h"
#include "support/ttt_harness.h"

namespace thermoe::testing {
namespace {

using ::testing::HasSubstr;

TEST(Ttt, DeltasOfZeroAreThePlainModelBitForBit) {
  for (const ExpertStorage storage : {ExpertStorage::kNative, ExpertStorage::kNested}) {
    EngineOptions options;
    options.context = 256;
    options.max_sequences = 3;
    options.threads = 2;
    const auto engine = MakeEngine(OpenModel(EmberPath(), storage), options);
    const RequestResult plain = RunRequest(engine.get(), Keep(Text(70), kNoSession, 6));
    // They stay zero without a learning rate; and the first segment is read before there is anything to learn from.
    const SessionId still = Open(engine.get(), Tier({}, 0));
    const RequestResult same = RunRequest(engine.get(), Keep(Text(70), still, 6));
    EXPECT_TRUE(same.logits == plain.logits);
    EXPECT_EQ(same.logprobs, plain.logprobs);
    EXPECT_EQ(same.prompt_logprobs, plain.prompt_logprobs);
    EXPECT_EQ(same.ttt.updates, 4);  // the rest of 6 tokens teaches nothing
    const SessionId moving = Open(engine.get(), Tier());
    const RequestResult adapted = RunRequest(engine.get(), Keep(Text(70), moving, 6));
    EXPECT_TRUE(std::equal(adapted.logits.begin(), adapted.logits.begin() + 16 * kVocab, plain.logits.begin()));
    EXPECT_FALSE(std::equal(adapted.logits.begin() + 16 * kVocab, adapted.logits.begin() + 17 * kVocab,
                            plain.logits.begin() + 16 * kVocab));
    // The base weights are nobody's.
    EXPECT_TRUE(RunRequest(engine.get(), Keep(Text(70), kNoSession, 6)).logits == plain.logits);
  }
}

TEST(Ttt, ReadingInSegmentsIsReading) {
  const auto engine = Make();
  const RequestResult plain = RunRequest(engine.get(), Keep(Text(100), kNoSession, 4));
  const RequestResult read = RunRequest(engine.get(), Keep(Text(100), Open(engine.get(), Off()), 4));
  EXPECT_TRUE(read.logits == plain.logits);
  EXPECT_EQ(read.ttt.segments, 7);
  EXPECT_EQ(read.ttt.updates, 0);
  EXPECT_EQ(read.ttt.restarts, 0);
  EXPECT_GT(read.ttt.flops, 0);
}

// A window of 64 that keeps 32: after 64 tokens the context begins at token 32, after 96 at 64, after 128 at 96.
void ExpectRestartedRows(Engine* engine, const RequestResult& read) {
  for (const size_t from : {0, 32, 64, 96}) {
    const size_t begin = from == 0 ? 0 : from + 32, end = std::min<size_t>(from + 64, 150);
    const RequestResult plain = RunRequest(engine, Keep(Text(end - from, from)));
    const auto expected = plain.logits.begin() + static_cast<long>((begin - from) * kVocab);
    EXPECT_TRUE(std::equal(expected, plain.logits.end(), read.logits.begin() + static_cast<long>(begin * kVocab)))
        << "tokens from " << begin;
    for (size_t i = begin + 1; i < end; ++i) EXPECT_EQ(read.prompt_logprobs[i], plain.prompt_logprobs[i - from]) << i;
  }
}

TEST(Ttt, ContextRestartsWhereAWindowEnds) {
  for (const int chunk : {64, 16}) {  // a restart computes its 32 tokens in one step or in two
    const auto engine = Make(chunk);
    const RequestResult read = RunRequest(engine.get(), Keep(Text(150), Open(engine.get(), Off(16, 64, 32))));
    EXPECT_EQ(read.ttt.segments, 10);
    EXPECT_EQ(read.ttt.restarts, 3);
    EXPECT_EQ(read.ttt.recomputed_tokens, 96);
    ASSERT_EQ(read.logits.size(), 150 * kVocab);
    ExpectRestartedRows(engine.get(), read);
  }
  // Two requests, the border inside a segment: the second begins at 56, restarts at once and keeps 32 of those.
  const auto engine = Make();
  const SessionId session = Open(engine.get(), Off(16, 64, 32));
  RunRequest(engine.get(), Keep(Text(56), session));
  const RequestResult rest = RunRequest(engine.get(), Keep(Text(30, 56), session));
  EXPECT_EQ(rest.ttt.restarts, 1);
  const RequestResult plain =
      RunRequest(engine.get(), Keep(Text(63, 23)));  // the last computed token is computed again to score
  EXPECT_TRUE(std::equal(rest.logits.begin(), rest.logits.end(), plain.logits.end() - 30 * static_cast<long>(kVocab)));
  EXPECT_EQ(rest.prompt_logprobs[0], plain.prompt_logprobs[33]);
  EXPECT_NE(rest.prompt_logprobs[0], 0);
}

TEST(Ttt, TruncatingGoesOnInTheContextThatIsLeft) {
  const auto engine = Make();
  const TttOptions options = Off(16, 64, 32);
  const SessionId session = Open(engine.get(), options);
  RunRequest(engine.get(), Keep(Text(150), session));  // the context begins at token 96
  ASSERT_TRUE(engine->TruncateSession(session, 140).ok());
  RequestResult rest = RunRequest(engine.get(), Keep(Text(10, 140), session));
  RequestResult plain = RunRequest(engine.get(), Keep(Text(54, 96)));
  EXPECT_TRUE(std::equal(rest.logits.begin(), rest.logits.end(), plain.logits.end() - 10 * static_cast<long>(kVocab)));
  // What a restart let go of is gone: the newest 32 of the first 40 are read again.
  ASSERT_TRUE(engine->TruncateSession(session, 40).ok());
  EXPECT_EQ(engine->SessionLength(session).value(), 40);
  rest = RunRequest(engine.get(), Keep(Text(12, 40), session));
  plain = RunRequest(engine.get(), Keep(Text(44, 8)));
  EXPECT_TRUE(std::equal(rest.logits.begin(), rest.logits.end(), plain.logits.end() - 12 * static_cast<long>(kVocab)));
  EXPECT_EQ(rest.prompt_logprobs[0], plain.prompt_logprobs[32]);
  ASSERT_TRUE(engine->TruncateSession(session, 0).ok());
  EXPECT_TRUE(RunRequest(engine.get(), Keep(Text(20), session)).logits ==
              RunRequest(engine.get(), Keep(Text(20))).logits);
  // A tier set after a restart goes on in the same context, which begins at token 51: 19 (the last is computed again to
  // score), 35, 51, restart, 67, 83, restart.
  RunRequest(engine.get(), Keep(Text(76, 20), session));
  ASSERT_TRUE(engine->SetTtt(session, Off(16, 128, 32)).ok());
  rest = RunRequest(engine.get(), Keep(Text(8, 96), session));
  plain = RunRequest(engine.get(), Keep(Text(53, 51)));
  EXPECT_TRUE(std::equal(rest.logits.begin(), rest.logits.end(), plain.logits.end() - 8 * static_cast<long>(kVocab)));
}

// Tokens that are read twice, out of each other's context, are likelier the second time only for who has learnt.
TEST(Ttt, WhatIsReadIsLearnt) {
  const auto engine = Make();
  const auto second_reading = [&](TttOptions options) {
    options.window = 48;
    options.keep = 32;
    std::vector<TokenId> twice = Text(128);
    twice.insert(twice.end(), twice.begin(), twice.end());
    const SessionId session = Open(engine.get(), options);
    const RequestResult result = RunRequest(engine.get(), Keep(twice, session));
    EXPECT_TRUE(engine->CloseSession(session).ok());
    EXPECT_EQ(result.ttt.updates, options.adapts() ? 16 * options.steps : 0);
    EXPECT_EQ(result.ttt.adapted_tokens, options.adapts() ? 256 * options.steps : 0);
    EXPECT_EQ(result.ttt.adapt_seconds > 0, options.adapts());
    EXPECT_EQ(result.ttt.delta_bytes > 0, options.adapts());
    return std::pair(MeanNll(result, 128), result.ttt.flops);
  };
  const auto [plain, plain_flops] = second_reading(Off());
  std::vector<TttOptions> tiers = {
      Tier({DeltaGroup::kExpertGain, DeltaGroup::kAttentionGain, DeltaGroup::kOutputBias}, 0.02f),
      Tier({DeltaGroup::kLowRankQ, DeltaGroup::kLowRankV, DeltaGroup::kLowRankO}, 0.01f),
      Tier({DeltaGroup::kLowRankV, DeltaGroup::kLowRankO}, 0.01f), Tier({DeltaGroup::kExpertGain}, 1.0f)};
  tiers[2].optimizer = TttOptimizer::kMuon;
  tiers[3].optimizer = TttOptimizer::kSgd;
  for (const TttOptions& tier : tiers) {
    const auto [adapted, flops] = second_reading(tier);
    EXPECT_LT(adapted, plain - 0.05) << DeltaGroupName(tier.groups[0].group) << " by "
                                     << TttOptimizerName(tier.optimizer);
    EXPECT_GT(flops, 1.3 * plain_flops);
    EXPECT_LT(flops, 2.6 * plain_flops);
  }
  TttOptions again = tiers[0];
  again.steps = 2;
  const auto [adapted, flops] = second_reading(again);
  EXPECT_LT(adapted, plain - 0.05);
  EXPECT_GT(flops, 2.2 * plain_flops);
}

TEST(Ttt, OrthonormalStartsAreOrthonormalInEachBlock) {
  TttOptions options = Tier({DeltaGroup::kLowRankQ, DeltaGroup::kLowRankOutput});
  options.rank = 40;
  options.start = TttStart::kOrthonormal;
  ModelConfig config = Ember()->impl().config();
  config.hidden = 32;  // a block of 32 rows, and 8 more
  const Adaptation adaptation(config, options, nullptr);
  int matrices = 0;
  for (const DeltaTensor& tensor : adaptation.layout().tensors()) {
    if (tensor.part != DeltaPart::kA) continue;
    ++matrices;
    const ConstRows a = adaptation.deltas()->matrix(tensor);
    for (int64_t r = 0; r < a.rows; ++r) {
      for (int64_t s = r / a.cols * a.cols; s <= r; ++s) {
        EXPECT_NEAR(std::inner_product(a.row(r), a.row(r) + a.cols, a.row(s), 0.0), r == s ? 1 : 0, 1e-5);
      }
    }
  }
  EXPECT_EQ(matrices, config.layers + 1);
  const Adaptation normal(config, Tier({DeltaGroup::kLowRankQ, DeltaGroup::kLowRankOutput}), nullptr);
  EXPECT_NE(normal.deltas()->values, adaptation.deltas()->values);
}

// With a bias on the logits alone every later row differs from the plain one by that bias, generated ones too.
TEST(Ttt, GeneratedTokensUseTheDeltas) {
  const auto engine = Make();
  Request request = Keep(Text(48), kNoSession);
  request.forced = Text(6, 48);
  const RequestResult plain = RunRequest(engine.get(), request);
  request.ttt = std::make_shared<TttOptions>(Tier({DeltaGroup::kOutputBias}, 0.05f));
  const RequestResult adapted = RunRequest(engine.get(), request);
  EXPECT_EQ(adapted.ttt.updates, 3);
  const auto bias = [&](size_t row, size_t i) {
    return adapted.logits[row * kVocab + i] - plain.logits[row * kVocab + i];
  };
  double largest = 0;
  for (size_t i = 0; i < kVocab; ++i) {
    largest = std::max(largest, std::fabs(static_cast<double>(bias(52, i))));
    EXPECT_NEAR(bias(49, i), bias(52, i), 1e-5);
  }
  EXPECT_GT(largest, 0.05);
  EXPECT_NE(adapted.logprobs.back(), plain.logprobs.back());
}

TEST(Ttt, ARequestOfItsOwnIsASessionOfItsOwn) {
  const auto engine = Make();
  const RequestResult session = RunRequest(engine.get(), Keep(Text(90), Open(engine.get(), Tier()), 5));
  Request request = Keep(Text(90), kNoSession, 5);
  request.ttt = std::make_shared<TttOptions>(Tier());
  const RequestResult alone = RunRequest(engine.get(), request);
  EXPECT_TRUE(alone.logits == session.logits);
  EXPECT_EQ(alone.generated, session.generated);
  EXPECT_EQ(alone.ttt.updates, 6);
  EXPECT_EQ(alone.ttt.flops, session.ttt.flops);
  EXPECT_GT(alone.ttt.adapt_joules, 0);
  EXPECT_TRUE(alone.ttt.joules_estimated) << "nothing is measured";
}

// Tiers that have nothing in common, at once and alone, beside requests that learn nothing.
TEST(Ttt, NeighboursDoNotChangeABit) {
  std::vector<TttOptions> tiers = {Tier({}, 0.01f, 24), Tier({}, 0.02f, 16),
                                   Tier({DeltaGroup::kOutputBias, DeltaGroup::kLowRankOutput}, 0.03f, 40),
                                   Off(8, 64, 32)};
  tiers[0].steps = 2;
  tiers[1].optimizer = TttOptimizer::kMuon;
  tiers[1].objective = TttObjective::kEntropy;
  tiers[1].window = 80;
  tiers[1].keep = 32;
  tiers[1].look_back = 20;
  tiers[0].recompute_share = 0.5f;
  tiers[0].keep = 24;
  tiers[1].recompute_share = 0.4f;
  struct Outcome {
    RequestResult result;
    std::string deltas;
  };
  const auto ask = [&](Engine* engine, size_t i) { return Keep(Text(100 + 17 * i, 3 * i), Open(engine, tiers[i]), 5); };
  const auto outcome_of = [&](Engine* engine, size_t i, SessionId session, RequestResult result) {
    return Outcome{std::move(result), tiers[i].adapts() ? DeltasOf(engine, session) : ""};
  };
  std::vector<Outcome> alone;
  for (size_t i = 0; i < tiers.size(); ++i) {
    const auto engine = Make(40, 1, 1);
    const Request request = ask(engine.get(), i);
    RequestResult result = RunRequest(engine.get(), request);
    alone.push_back(outcome_of(engine.get(), i, request.session, std::move(result)));
  }
  for (const int threads : {1, 2}) {
    const auto engine = Make(40, 6, threads);
    std::vector<Event> events;
    Request beside;
    beside.prompt = Text(30, 50);
    beside.max_new_tokens = 60;
    beside.ignore_end = true;
    const RequestId decoding = engine->Submit(beside).value();
    for (int step = 0; step < 3; ++step) EXPECT_TRUE(*engine->Step(&events));
    std::vector<Request> requests;
    std::vector<RequestId> ids;
    for (size_t i = 0; i < tiers.size(); ++i) {
      requests.push_back(ask(engine.get(), i));
      ids.push_back(engine->Submit(requests.back()).value());
    }
    while (*engine->Step(&events)) {
    }
    for (size_t i = 0; i < tiers.size(); ++i) {
      const Outcome together = outcome_of(engine.get(), i, requests[i].session, engine->TakeResult(ids[i]).value());
      EXPECT_TRUE(together.result.logits == alone[i].result.logits) << "tier " << i << ", " << threads << " threads";
      EXPECT_EQ(together.result.prompt_logprobs, alone[i].result.prompt_logprobs);
      EXPECT_EQ(together.result.generated, alone[i].result.generated);
      EXPECT_TRUE(together.deltas == alone[i].deltas) << "tier " << i << ", " << threads << " threads";
      EXPECT_EQ(together.result.ttt.updates, alone[i].result.ttt.updates);
    }
    const RequestResult other = engine->TakeResult(decoding).value();
    const auto quiet = Make(40, 1, 1);
    EXPECT_EQ(other.generated, RunRequest(quiet.get(), beside).generated);
    EXPECT_EQ(other.logprobs, RunRequest(quiet.get(), beside).logprobs);
  }
}

// Sums over a segment begin with it. On the reference, which rounds once a tile of the output matrix, another tile
// shows.
TEST(Ttt, RowsBeforeASegmentDoNotChangeItsSums) {
  std::string deltas[2];
  for (const bool beside : {false, true}) {
    EngineOptions options;
    options.backend = "reference";
    options.max_sequences = 2;
    const auto engine = MakeEngine(OpenModel(FixturePath("qwen3moe")), options);
    std::vector<Event> events;
    if (beside) {
      Request decoding;
      decoding.prompt = Text(4);
      decoding.max_new_tokens = 100;
      decoding.ignore_end = true;
      ASSERT_TRUE(engine->Submit(decoding).ok());
      ASSERT_TRUE(*engine->Step(&events));
    }
    const SessionId session = Open(
        engine.get(), Tier({DeltaGroup::kOutputBias, DeltaGroup::kHiddenBias, DeltaGroup::kLowRankOutput}, 0.01f, 40));
    ASSERT_TRUE(engine->Submit(Keep(Text(81), session)).ok());
    while (engine->SessionTtt(session)->updates < 2) ASSERT_TRUE(*engine->Step(&events));
    EXPECT_EQ(engine->last_step().decode_tokens, beside ? 1 : 0);
    deltas[beside] = DeltasOf(engine.get(), session);
  }
  EXPECT_TRUE(deltas[0] == deltas[1]);
}

// What the sampler does to the last row's logits is none of the objective's business.
TEST(Ttt, SamplingDoesNotChangeWhatIsLearnt) {
  for (const TttObjective objective : {TttObjective::kNll, TttObjective::kEntropy, TttObjective::kPseudoLabels}) {
    TttOptions tier = Tier();
    tier.objective = objective;
    tier.confidence = 0.1f;
    std::string deltas[2];
    for (const bool sampled : {false, true}) {
      const auto engine = Make();
      Request request = Keep(Text(32), Open(engine.get(), tier), sampled ? 3 : 0);
      request.sampling.temperature = 0.3f;
      request.sampling.top_k = 3;
      request.sampling.repetition_penalty = 1.8f;
      const RequestResult result = RunRequest(engine.get(), request);
      EXPECT_EQ(result.ttt.updates, 2) << TttObjectiveName(objective);
      deltas[sampled] = DeltasOf(engine.get(), request.session);
    }
    EXPECT_TRUE(deltas[0] == deltas[1]) << TttObjectiveName(objective);
  }
}

TEST(Ttt, FeaturesAreAlignedToStatisticsOfTheModel) {
  const TempFolder folder;
  const FeatureStatistics features = MeasureFeatures(*Ember(), {Text(100)}, 2, nullptr).value();
  ASSERT_TRUE(WriteFeatures(folder / "features.json", Ember()->info().identity, features).ok());
  const auto engine = Make();
  TttOptions tier = Tier({DeltaGroup::kResidualBias, DeltaGroup::kExpertGain});
  tier.objective = TttObjective::kFeatureAlignment;
  Request request = Keep(Text(64, 100));
  request.ttt = std::make_shared<TttOptions>(tier);
  EXPECT_EQ(engine->Submit(request).status().code(), StatusCode::kInvalidArgument);
  tier.features_path = folder / "none.json";
  request.ttt = std::make_shared<TttOptions>(tier);
  EXPECT_EQ(engine->Submit(request).status().code(), StatusCode::kNotFound);
  tier.features_path = folder / "features.json";
  request.ttt = std::make_shared<TttOptions>(tier);
  const RequestResult adapted = RunRequest(engine.get(), request),
                      plain = RunRequest(engine.get(), Keep(Text(64, 100)));
  EXPECT_EQ(adapted.ttt.updates, 4);
  EXPECT_TRUE(std::equal(adapted.logits.begin(), adapted.logits.begin() + 16 * kVocab, plain.logits.begin()));
  EXPECT_FALSE(adapted.logits == plain.logits);
}

TEST(Ttt, ForksTakeTheDeltasAlong) {
  const auto engine = Make();
  const SessionId parent = Open(engine.get(), Tier());
  RunRequest(engine.get(), Keep(Text(64), parent));
  const SessionId child = engine->ForkSession(parent).value(), untouched = engine->ForkSession(parent).value();
  const std::string before = DeltasOf(engine.get(), parent);
  EXPECT_TRUE(DeltasOf(engine.get(), child) == before);
  EXPECT_EQ(engine->SessionTtt(child)->updates, 0);
  EXPECT_GT(engine->SessionTtt(child)->delta_bytes, 0);
  const RequestResult a = RunRequest(engine.get(), Keep(Text(40, 64), parent)),
                      b = RunRequest(engine.get(), Keep(Text(40, 64), child));
  EXPECT_TRUE(a.logits == b.logits);
  EXPECT_EQ(b.ttt.updates, 3);
  EXPECT_TRUE(DeltasOf(engine.get(), parent) == DeltasOf(engine.get(), child));
  EXPECT_FALSE(DeltasOf(engine.get(), parent) == before);
  EXPECT_TRUE(DeltasOf(engine.get(), untouched) == before);
}

TEST(Ttt, CancellingAmidASegmentLeavesASessionThatGoesOn) {
  const auto engine = Make(16);
  const SessionId session = Open(engine.get(), [] {
    TttOptions tier = Tier();
    tier.window = 64;
    tier.keep = 32;
    return tier;
  }());
  const RequestResult plain = RunRequest(engine.get(), Keep(Text(20)));
  for (int steps = 1; steps < 8; steps += 2) {  // the fifth step is half of a restart
    const RequestId request = engine->Submit(Keep(Text(120), session)).value();
    std::vector<Event> events;
    for (int step = 0; step < steps; ++step) ASSERT_TRUE(engine->Step(&events).ok());
    ASSERT_TRUE(engine->Cancel(request).ok());
    EXPECT_EQ(engine->TakeResult(request)->finish, FinishReason::kCancelled);
    EXPECT_TRUE(RunRequest(engine.get(), Keep(Text(20))).logits == plain.logits);
  }
  const RequestResult rest = RunRequest(engine.get(), Keep(Text(20), session));
  EXPECT_EQ(rest.finish, FinishReason::kLength);
  EXPECT_EQ(engine->SessionLength(session).value(), 500);
  EXPECT_TRUE(
      std::all_of(rest.prompt_logprobs.begin(), rest.prompt_logprobs.end(), [](float value) { return value < 0; }));
}

TEST(Ttt, ActivationsStayInsideTheirBound) {
  const auto engine = Make();
  const ModelConfig& config = Ember()->impl().config();
  TttOptions tier = Tier();
  const RequestResult kept = RunRequest(engine.get(), Keep(Text(64), Open(engine.get(), tier)));
  tier.activation_bytes = LearningBytes(config, 0, tier.segment, false);
  EXPECT_LT(tier.activation_bytes, LearningBytes(config, 0, tier.segment, true));
  const SessionId tight = Open(engine.get(), tier);
  EXPECT_TRUE(RunRequest(engine.get(), Keep(Text(64), tight)).logits == kept.logits);
  --tier.activation_bytes;
  const Status refused = engine->SetTtt(tight, tier);
  EXPECT_EQ(refused.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(refused.message(), HasSubstr("shorten the segment or adapt fewer layers"));
  for (DeltaGroupOptions& group : tier.groups) group.last_layers = 2;
  EXPECT_TRUE(engine->SetTtt(tight, tier).ok());
  tier.recompute_share = 0.5f;  // 64 tokens and a segment, in each layer what they gave the experts and got
  tier.activation_bytes = 2 * 4 * config.layers * config.hidden * (64 + 15) - 1;
  const Status recall = engine->SetTtt(tight, tier);
  EXPECT_EQ(recall.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(recall.message(), HasSubstr("keep fewer tokens or set recompute_share to 1"));
}

TEST(Ttt, RefusalsSayWhatToDo) {
  const auto engine = Make();
  const SessionId session = engine->OpenSession().value();
  const auto refuses = [&](auto change, const std::string& says) {
    TttOptions options = Tier();
    change(&options);
    const Status status = engine->SetTtt(session, options);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(status.message(), HasSubstr(says));
    Request request = Keep(Text(10));
    request.ttt = std::make_shared<TttOptions>(options);
    EXPECT_EQ(engine->Submit(request).status().message(), status.message());
  };
  refuses([](TttOptions* o) { o->segment = 65; },
          "a segment has 65 tokens with those that it looks back to, but a step takes 64");
  refuses([](TttOptions* o) { o->look_back = 50; }, "a segment has 66 tokens");
  refuses([](TttOptions* o) { o->look_back = -1; }, "look_back is -1");
  refuses([](TttOptions* o) { o->window = 257; }, "the window of 257 tokens passes the context of 256");
  refuses([](TttOptions* o) { o->window = o->segment + 1, o->keep = 56; },
          "keeps 16 tokens, which leaves no room for a segment of 16 in a window of 17");
  refuses([](TttOptions* o) { o->recompute_share = 1.5f; }, "recompute_share is 1.5; give 0 to 1");
  refuses([](TttOptions* o) { o->recompute_share = 0.5f, o->keep = 80; },
          "keeps 80 tokens, which pass again in one step");
  refuses([](TttOptions* o) { o->segment = 0; }, "segment is 0; give 1 to 8192");
  refuses([](TttOptions* o) { o->rank = 65; }, "rank is 65");
  refuses([](TttOptions* o) { o->beta1 = std::nanf(""); }, "beta1");
  refuses([](TttOptions* o) { o->groups.push_back(o->groups[0]); }, "given twice");
  refuses([](TttOptions* o) { o->groups[0].learning_rate = -1; }, "learning rate of output_bias");
  EXPECT_THAT(engine->SetTtt(999, Tier()).message(), HasSubstr("session 999 is not open"));
  EXPECT_THAT(engine->SessionTtt(999).status().message(), HasSubstr("session 999 is not open"));
  EXPECT_THAT(engine->SaveDeltas(session, "/dev/null").message(), HasSubstr("adapts nothing"));
  EXPECT_THAT(engine->LoadDeltas(session, "/dev/null").message(), HasSubstr("adapts nothing"));
  const RequestId running = engine->Submit(Keep(Text(10), session)).value();
  EXPECT_THAT(engine->SetTtt(session, Tier()).message(), HasSubstr("runs a request"));
  EXPECT_THAT(engine->LoadDeltas(session, "/dev/null").message(), HasSubstr("runs a request"));
  ASSERT_TRUE(engine->Cancel(running).ok());
  Request both = Keep(Text(10), session);
  both.ttt = std::make_shared<TttOptions>(Tier());
  EXPECT_THAT(engine->Submit(both).status().message(), HasSubstr("use SetTtt on the session"));
  // Without restarts a text must fit.
  ASSERT_TRUE(engine->TruncateSession(session, 0).ok());
  ASSERT_TRUE(engine->SetTtt(session, Off(16, 64, 0)).ok());
  EXPECT_THAT(engine->Submit(Keep(Text(65), session)).status().message(),
              HasSubstr("the prompt has 65 tokens but the window holds 64"));
  EXPECT_TRUE(engine->Submit(Keep(Text(64), session)).ok());
}

TEST(Ttt, JoulesOfLearningArePartOfAPromptsUnderThePlant) {
  const std::string plant = "plant:" + std::string(THERMOE_SOURCE_DIR) + "/data/profiles/small.toml";
  double joules[2];
  for (int run = 0; run < 2; ++run) {
    const auto engine = Make(64, 5, 1 + run, plant);
    Request request = Keep(Text(96), kNoSession, 20);
    request.ttt = std::make_shared<TttOptions>(Tier());
    const RequestResult adapted = RunRequest(engine.get(), request);
    request.ttt = std::make_shared<TttOptions>(Off());
    const RequestResult plain = RunRequest(engine.get(), request);
    joules[run] = adapted.ttt.adapt_joules;
    EXPECT_GT(adapted.ttt.adapt_joules, 0.2 * adapted.energy.prefill_j);
    EXPECT_LT(adapted.ttt.adapt_joules, 0.8 * adapted.energy.prefill_j);
    EXPECT_GT(adapted.energy.prefill_j, 1.2 * plain.energy.prefill_j);
    EXPECT_GT(adapted.ttt.adapt_seconds, 0);
    EXPECT_LT(adapted.ttt.adapt_seconds, 1e-3 * adapted.timings.prefill_ms);
    EXPECT_EQ(plain.ttt.adapt_joules, 0);
    EXPECT_EQ(plain.ttt.adapt_seconds, 0);
  }
  EXPECT_EQ(joules[0], joules[1]);
}

TEST(Ttt, DeltasThatGrowWithoutBoundAreNotBlamedOnTheModel) {
  const auto engine = Make();
  TttOptions wild = Tier({DeltaGroup::kExpertScale, DeltaGroup::kExpertGain}, 100);
  wild.optimizer = TttOptimizer::kSgd;
  wild.beta1 = 0.99f;
  wild.window = 64;
  wild.keep = 16;
  Request request = Keep(Text(192));
  request.ttt = std::make_shared<TttOptions>(wild);
  const Status status = engine->Run(request).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("lower the learning rates of its tier"));
}

// Who learns pays for it: a request that decodes beside takes what it takes beside one that only reads, and what the
// device draws idle in steps that are longer (a quarter more here; twice as much where it shares what is learnt).
TEST(Ttt, JoulesOfLearningAreTheLearners) {
  const std::string plant = "plant:" + std::string(THERMOE_SOURCE_DIR) + "/data/profiles/small.toml";
  double beside_j[2], reader_j[2];
  for (const bool learns : {false, true}) {
    const auto engine = Make(64, 5, 2, plant);
    Request decoding;
    decoding.prompt = Text(8);
    decoding.max_new_tokens = 9;
    decoding.ignore_end = true;
    const RequestId beside = engine->Submit(decoding).value();
    std::vector<Event> events;
    ASSERT_TRUE(*engine->Step(&events));
    Request request = Keep(Text(128));
    request.ttt = std::make_shared<TttOptions>(learns ? Tier() : Off());
    const RequestId reader = engine->Submit(request).value();
    while (*engine->Step(&events)) {
    }
    beside_j[learns] = engine->TakeResult(beside)->energy.decode_j;
    reader_j[learns] = engine->TakeResult(reader)->energy.prefill_j;
  }
  EXPECT_NEAR(beside_j[1], beside_j[0], 0.5 * beside_j[0]);
  EXPECT_GT(reader_j[1], 1.4 * reader_j[0]);
}

}  // namespace
}  // namespace thermoe::testing
