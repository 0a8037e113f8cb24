// SPDX-License-Identifier: Apache-2.0
// Tokens that pass again: those that a segment looks back to, those that a restart keeps, and segments of further
// steps.
#include <cmath>

#include "support/ttt_harness.h"

namespace thermoe::testing {
namespace {

// What a step of gradient descent gains is the squared length of the gradient, to first order, where the gradient is
// that of the whole window: with keys and values of earlier tokens held constant it is another one.
TEST(TttAgain, LookingBackTakesTheGradientOfTheWholeWindow) {
  const TempFolder folder;
  const auto model =
      OpenModel(FixturePath("qwen3moe"));  // exact arithmetic: codes of activations would hide so small a gain
  const auto gain_over_prediction = [&](int look_back) {
    const ModelConfig& config = model->impl().config();
    constexpr float kRate = 0.001f;
    EngineOptions options;
    options.backend = "reference";
    options.max_sequences = 3;
    const auto engine = MakeEngine(model, options);
    TttOptions tier = Tier({DeltaGroup::kAttentionGain, DeltaGroup::kExpertGain}, kRate);
    tier.optimizer = TttOptimizer::kSgd;
    tier.beta1 = 0;
    tier.look_back = look_back;
    const SessionId session = Open(engine.get(), Off());
    RunRequest(engine.get(), Keep(Text(47), session));
    EXPECT_TRUE(engine->SetTtt(session, tier).ok());
    // Row 46, computed again to score token 47, to row 61: a segment.
    const RequestResult learnt = RunRequest(engine.get(), Keep(Text(15, 47), session));
    EXPECT_EQ(learnt.ttt.updates, 1);
    EXPECT_EQ(learnt.ttt.adapted_tokens, 16);
    const RequestResult plain = RunRequest(engine.get(), Keep(Text(62)));
    EXPECT_TRUE(std::equal(learnt.logits.begin(), learnt.logits.end(),
                           plain.logits.end() - 15 * static_cast<long>(config.vocab)));
    EXPECT_TRUE(engine->SaveDeltas(session, folder / "deltas").ok());
    Adaptation deltas(config, tier, nullptr);
    EXPECT_TRUE(ReadDeltas(folder / "deltas", model->info().identity, &deltas).ok());
    double squares = 0;
    for (const float value : deltas.deltas()->values) squares += static_cast<double>(value) * value;
    // The window again, with those deltas all along.
    for (DeltaGroupOptions& group : tier.groups) group.learning_rate = 0;
    const SessionId again = Open(engine.get(), tier);
    EXPECT_TRUE(engine->LoadDeltas(again, folder / "deltas").ok());
    const RequestResult adapted = RunRequest(engine.get(), Keep(Text(62), again));
    return (MeanNll(plain, 47) - MeanNll(adapted, 47)) / (squares / kRate);
  };
  EXPECT_NEAR(gain_over_prediction(48), 1, 0.005);
  EXPECT_GT(std::fabs(gain_over_prediction(0) - 1), 0.03);
}

TEST(TttAgain, LookingBackPassesTheSameTokensAgain) {
  const auto engine = Make();
  const RequestResult plain = RunRequest(engine.get(), Keep(Text(150), Open(engine.get(), Off(16, 64, 32))));
  TttOptions tier = Tier({}, 0);
  tier.window = 64, tier.keep = 32, tier.look_back = 24;
  const RequestResult same = RunRequest(engine.get(), Keep(Text(150), Open(engine.get(), tier)));
  EXPECT_TRUE(same.logits == plain.logits);
  EXPECT_EQ(same.prompt_logprobs, plain.prompt_logprobs);
  EXPECT_EQ(same.ttt.restarts, 3);
  // Segments begin at 0, 16, 32, 48, a restart, 32, 48, a restart, and so on: 16, 24 and 24 before the first restart,
  // 24 more in each of the two after.
  EXPECT_EQ(same.ttt.recomputed_tokens, plain.ttt.recomputed_tokens + 16 + 24 + 24 + 3 * 24);
  EXPECT_EQ(same.ttt.adapted_tokens, 144);
}

// A window of 64 that keeps 32 of which a share have their experts computed.
TttOptions Sparse(float share) {
  TttOptions tier = Tier({DeltaGroup::kExpertGain, DeltaGroup::kLowRankV}, 0.005f);
  tier.window = 64, tier.keep = 32, tier.recompute_share = share;
  return tier;
}

TEST(TttAgain, RowsThatPassAgainKeepWhatTheirExpertsGaveWhereTheyChangedLeast) {
  const auto engine = Make();
  const auto slots_of_restarts = [&](const TttOptions& tier) {
    const SessionId session = Open(engine.get(), tier);
    EXPECT_TRUE(engine->Submit(Keep(Text(150), session)).ok());
    std::vector<Event> events;
    std::vector<int> slots;
    int64_t restarts = 0;
    while (*engine->Step(&events)) {
      const int64_t now = engine->SessionTtt(session)->restarts;
      if (now > restarts) {
        for (const LayerRecord& layer : engine->last_step().layers) slots.push_back(layer.slots_full);
      }
      restarts = now;
    }
    EXPECT_EQ(restarts, 3);
    EXPECT_TRUE(engine->CloseSession(session).ok());
    return slots;
  };
  const ModelConfig& config = Ember()->impl().config();
  const auto all_are = [&](int rows) {
    return std::vector<int>(static_cast<size_t>(3 * config.layers), rows * config.slots);
  };
  EXPECT_EQ(slots_of_restarts(Sparse(1)), all_are(32));
  EXPECT_EQ(slots_of_restarts(Sparse(0.4f)), all_are(13));
  EXPECT_EQ(slots_of_restarts(Sparse(0)), all_are(0));
}

// Mean distance of what the tokens' log-probabilities are.
double Distance(const RequestResult& a, const RequestResult& b) {
  double sum = 0;
  for (size_t i = 1; i < a.prompt_logprobs.size(); ++i) {
    sum += std::fabs(static_cast<double>(a.prompt_logprobs[i]) - b.prompt_logprobs[i]);
  }
  return sum / static_cast<double>(a.prompt_logprobs.size() - 1);
}

TEST(TttAgain, SparsePassesStayCloseToDenseOnes) {
  const auto engine = Make();
  const auto read = [&](const TttOptions& tier) {
    RequestResult result = RunRequest(engine.get(), Keep(Text(200), Open(engine.get(), tier)));
    return result;
  };
  const RequestResult dense = read(Sparse(1)), whole = read(Sparse(0.99f)), sparse = read(Sparse(0.4f)),
                      none = read(Sparse(0));
  EXPECT_TRUE(whole.logits == dense.logits) << "0.99 of 32 rows is 32 rows";
  EXPECT_EQ(dense.ttt.recall_bytes, 0);
  EXPECT_GT(sparse.ttt.recall_bytes, 0);
  EXPECT_LT(sparse.ttt.flops, 0.97 * dense.ttt.flops);
  EXPECT_GT(dense.ttt.recompute_expert_seconds, 0);
  EXPECT_NEAR(sparse.ttt.recompute_expert_flops / dense.ttt.recompute_expert_flops, 13.0 / 32, 1e-9);
  EXPECT_FALSE(sparse.logits == dense.logits);
  EXPECT_LT(Distance(sparse, dense), 0.1);
  EXPECT_LT(Distance(sparse, dense), 0.7 * Distance(none, dense)) << "the rows that changed most are computed";
}

// Further steps leave out the layers below the lowest adapted one. A group that stands still there makes them pass.
TEST(TttAgain, LayersBelowTheLowestAdaptedOnePassOnce) {
  const auto engine = Make();
  TttOptions last = Tier({DeltaGroup::kResidualBias, DeltaGroup::kOutputBias}, 0.01f);
  last.groups[0].last_layers = 1;
  last.steps = 3;
  TttOptions all = last;
  all.groups.push_back({DeltaGroup::kExpertGain, 0});
  const RequestResult short_way = RunRequest(engine.get(), Keep(Text(80), Open(engine.get(), last)));
  const RequestResult long_way = RunRequest(engine.get(), Keep(Text(80), Open(engine.get(), all)));
  EXPECT_TRUE(short_way.logits == long_way.logits);
  EXPECT_LT(short_way.ttt.flops, 0.6 * long_way.ttt.flops);
  TttOptions output = Tier({DeltaGroup::kOutputBias}, 0.01f);
  output.steps = 2;
  all = output;
  all.groups.push_back({DeltaGroup::kExpertGain, 0});
  EXPECT_TRUE(RunRequest(engine.get(), Keep(Text(80), Open(engine.get(), output))).logits ==
              RunRequest(engine.get(), Keep(Text(80), Open(engine.get(), all))).logits);
}

TEST(TttAgain, SparseFurtherStepsLearnToo) {
  const auto engine = Make();
  const auto read = [&](float share) {
    TttOptions tier = Tier({DeltaGroup::kExpertGain, DeltaGroup::kAttentionGain}, 0.005f);
    tier.steps = 3;
    tier.recompute_share = share;
    return RunRequest(engine.get(), Keep(Text(200), Open(engine.get(), tier)));
  };
  const RequestResult dense = read(1), sparse = read(0.4f), none = read(0);
  EXPECT_LT(sparse.ttt.flops, 0.98 * dense.ttt.flops);
  EXPECT_LT(Distance(sparse, dense), 0.1);
  EXPECT_LT(Distance(sparse, dense), 0.9 * Distance(none, dense));
  EXPECT_NEAR(MeanNll(sparse), MeanNll(dense), 0.03);
}

}  // namespace
}  // namespace thermoe::testing
