// SPDX-License-Identifier: Apache-2.0
// Where a backend lets a step begin before the one before it is finished, requests get what they get where none does.
#include <gtest/gtest.h>

#include <new>
#include <numeric>

#include "engine/engine_impl.h"
#include "kernels/dispatch.h"
#include "support/fixtures.h"
#include "support/host_draw.h"
#include "support/mixed_ops.h"

namespace thermoe::testing {
namespace {

// The reference's operations, done at once; summaries of the older of two steps come first.
class OverlappingOps final : public MixedOps {
 public:
  explicit OverlappingOps(const kernels::Ops& ops) : MixedOps(ops, ops) {}

  bool overlaps_steps() const override { return true; }
  bool SummariesAreThere() const override { return there; }
  void BeginStep(uint64_t, bool ahead) const override {
    if (ahead && throws_at == begun_ahead + 1 && !std::exchange(threw, true)) throw std::bad_alloc();
    EXPECT_TRUE(!ahead || steps_.size() == 1);
    if (!ahead) steps_.clear();
    steps_.emplace_back();
    begun_ahead += ahead ? 1 : 0;
  }
  void Embed(const WeightMatrix& table, std::span<const int32_t> ids, MutRows out) const override {
    std::vector<int32_t> known(ids.begin(), ids.end());
    for (size_t row = 0; row < known.size(); ++row) {
      if (known[row] == kernels::kLargestBefore) known[row] = largest_.at(row);
    }
    MixedOps::Embed(table, known, out);
  }
  bool Summarise(const kernels::SummariseArgs& args) const override {
    Step& step = steps_.back();
    step.out = args.out;
    largest_.clear();
    for (int64_t r = 0; r < args.logits.rows; ++r) {
      const std::span<const float> row(args.logits.row(r), static_cast<size_t>(args.logits.cols));
      const auto best = std::max_element(row.begin(), row.end());
      const int32_t asked = args.asked[static_cast<size_t>(r)];
      largest_.push_back(static_cast<int32_t>(best - row.begin()));
      step.summaries.push_back({LogSumExp(row), largest_.back(), *best, asked >= 0 ? row[static_cast<size_t>(asked)] : 0, AllFinite(row)});
    }
    return true;
  }
  bool DrawTokens(const kernels::DrawArgs& args) const override {
    Step& step = steps_.back();
    step.drawn_out = args.out;
    for (const kernels::TokenDraw& draw : args.draws) {
      if (!draws) return false;
      const std::vector<float> row(args.logits.row(draw.row), args.logits.row(draw.row) + args.logits.cols);
      const HostDraw host(row, draw);
      const bool uses = host.uses_uniform() && host.Token() % 5 != 0;  // some draws say that they needed no random number
      ++drawn;
      step.drawn.push_back({draw.row, {uses ? host.Token() : largest_.at(static_cast<size_t>(draw.row)), 0, uses}});
      step.drawn.back().second.logit = row[static_cast<size_t>(step.drawn.back().second.token)];
      largest_[static_cast<size_t>(draw.row)] = step.drawn.back().second.token;
    }
    return true;
  }
  void FinishSummaries() const override {
    if (throws_at < 0 && begun_ahead == -throws_at && !std::exchange(threw, true)) throw std::bad_alloc();
    std::copy(steps_[0].summaries.begin(), steps_[0].summaries.end(), steps_[0].out.begin());
    for (const auto& [row, token] : steps_[0].drawn) steps_[0].drawn_out[static_cast<size_t>(row)] = token;
  }
  void FinishRecords() const override {
    if (steps_.size() == 2) steps_.erase(steps_.begin());
  }

  mutable int begun_ahead = 0, drawn = 0;
  bool there = false, draws = true;
  int throws_at = 0;  // where the step with this number is begun ahead, or, below 0, where the one before it is waited for
  mutable bool threw = false;

 private:
  struct Step {
    std::span<kernels::LogitSummary> out;
    std::vector<kernels::LogitSummary> summaries;
    std::span<kernels::DrawnToken> drawn_out;
    std::vector<std::pair<int64_t, kernels::DrawnToken>> drawn;
  };
  mutable std::vector<Step> steps_;
  mutable std::vector<int32_t> largest_;
};

class StepAhead : public ::testing::Test {
 protected:
  std::unique_ptr<Engine> Plain() { return MakeEngine(model_, options_); }
  std::unique_ptr<Engine> Overlapping() {
    auto engine = MakeEngine(model_, options_);
    auto ops = std::make_unique<OverlappingOps>(*inner_);
    ops_ = ops.get();
    static_cast<EngineImpl&>(*engine).SetOps(std::move(ops));
    return engine;
  }
  static Request Greedy(int prompt, int tokens) {
    Request request;
    for (int t = 0; t < prompt; ++t) request.prompt.push_back(static_cast<TokenId>(7 + 31 * t + prompt));
    request.max_new_tokens = tokens;
    request.ignore_end = true;
    return request;
  }

  EngineOptions options_ = [] {
    EngineOptions options;
    options.backend = "reference";
    options.max_sequences = 4;
    options.prefill_chunk = 16;
    options.context = 64;
    return options;
  }();
  std::shared_ptr<const Model> model_ = OpenModel(FixturePath("olmoe"));
  std::unique_ptr<kernels::Ops> inner_ = kernels::MakeReferenceOps();
  OverlappingOps* ops_ = nullptr;
};

// What requests get, in order of submission, and the records of all steps; `between` is called before each step.
struct Outcome {
  std::vector<RequestResult> results;
  std::vector<int32_t> decode_tokens;  // of steps
};
template <typename Between>
Outcome RunAll(Engine* engine, const std::vector<Request>& requests, const Between& between) {
  Outcome outcome;
  std::vector<RequestId> ids;
  for (const Request& request : requests) ids.push_back(engine->Submit(request).value());
  std::vector<Event> events;
  const uint64_t before = engine->last_step().step;
  uint64_t steps = 0;
  for (between(engine, ids, steps); engine->Step(&events).value(); between(engine, ids, steps)) {
    EXPECT_EQ(engine->last_step().step, before + ++steps);
    for (const LayerRecord& layer : engine->last_step().layers) EXPECT_GT(layer.distinct_experts, 0);
    outcome.decode_tokens.push_back(engine->last_step().decode_tokens);
  }
  for (const RequestId id : ids) outcome.results.push_back(engine->TakeResult(id).value());
  return outcome;
}
void Nothing(Engine*, const std::vector<RequestId>&, uint64_t) {}

void ExpectTheSame(const Outcome& got, const Outcome& want) {
  ASSERT_EQ(got.results.size(), want.results.size());
  for (size_t i = 0; i < want.results.size(); ++i) {
    EXPECT_EQ(got.results[i].generated, want.results[i].generated) << "request " << i;
    EXPECT_EQ(got.results[i].logprobs, want.results[i].logprobs) << "request " << i;
    EXPECT_EQ(got.results[i].logits, want.results[i].logits) << "request " << i;
    EXPECT_EQ(got.results[i].finish, want.results[i].finish) << "request " << i;
  }
}

TEST_F(StepAhead, GivesTheSameTokens) {
  std::vector<Request> requests = {Greedy(5, 12), Greedy(6, 20), Greedy(3, 16)};
  requests[2].forced.assign(16, 5);
  const auto plain = Plain(), overlapping = Overlapping();
  const Outcome want = RunAll(plain.get(), requests, Nothing), got = RunAll(overlapping.get(), requests, Nothing);
  ExpectTheSame(got, want);
  EXPECT_EQ(got.decode_tokens, want.decode_tokens);
  // 19 decode steps, but those that lose a row by length are begun as they come: the first, and those after 11 and 15 tokens.
  EXPECT_EQ(ops_->begun_ahead, 16);
  // Callers that come late for it get the same.
  const auto late = Overlapping();
  ops_->there = true;
  ExpectTheSame(RunAll(late.get(), requests, Nothing), want);
}

// What was begun is nobody's after an error; the step that failed is done again.
TEST_F(StepAhead, ErrorsHalfWay) {
  std::vector<Request> requests = {Greedy(5, 20), Greedy(4, 20)};
  requests[1].sampling.temperature = 0.9f;
  const auto never = Overlapping();
  const Outcome want = RunAll(never.get(), requests, Nothing);
  for (const int at : {3, -3}) {
    SCOPED_TRACE(at);
    const auto engine = Overlapping();
    ops_->throws_at = at;
    std::vector<RequestId> ids;
    for (const Request& request : requests) ids.push_back(engine->Submit(request).value());
    std::vector<Event> events;
    int errors = 0;
    for (Result<bool> more = engine->Step(&events); !more.ok() || *more; more = engine->Step(&events)) errors += more.ok() ? 0 : 1;
    EXPECT_EQ(errors, 1);
    for (size_t i = 0; i < ids.size(); ++i) EXPECT_EQ(engine->TakeResult(ids[i]).value().generated, want.results[i].generated) << i;
  }
}

TEST_F(StepAhead, OnlyWhereTheDeviceKnowsTheNextToken) {
  for (int which = 0; which < 4; ++which) {
    SCOPED_TRACE(which);
    std::vector<Request> requests = {Greedy(5, 8), Greedy(6, 8)};
    if (which == 0) requests[1].sampling.temperature = 0.7f;  // and the host draws
    if (which == 1) requests[1].sampling.repetition_penalty = 1.3f;
    if (which == 2) requests[1].keep_logits = KeepLogits::kAll;
    if (which == 3) options_.overlap_steps = false;
    const auto plain = Plain(), overlapping = Overlapping();
    ops_->draws = false;
    ExpectTheSame(RunAll(overlapping.get(), requests, Nothing), RunAll(plain.get(), requests, Nothing));
    EXPECT_EQ(ops_->begun_ahead, 0);
  }
}

// Random numbers are taken in turn, also where a draw turns out to have needed none after the next one was begun.
TEST_F(StepAhead, DrawsTheSameTokens) {
  std::vector<Request> requests = {Greedy(5, 30), Greedy(4, 30), Greedy(3, 30), Greedy(2, 30)};
  for (size_t i = 1; i < 4; ++i) requests[i].sampling.temperature = 0.6f * static_cast<float>(i), requests[i].sampling.seed = i;
  requests[2].sampling.top_k = 20;
  const auto overlapping = Overlapping();
  const OverlappingOps* ahead = ops_;
  options_.overlap_steps = false;
  const auto plain = Overlapping();
  const Outcome want = RunAll(plain.get(), requests, Nothing), got = RunAll(overlapping.get(), requests, Nothing);
  ExpectTheSame(got, want);
  EXPECT_EQ(ops_->begun_ahead, 0);
  EXPECT_GT(ahead->begun_ahead, 20);
  EXPECT_GT(ahead->drawn, ops_->drawn);  // some were dropped
}

// A request that ends by a token leaves a row behind in the step that was begun; others go on, and those that wait are admitted.
TEST_F(StepAhead, RequestsEndUnforeseen) {
  options_.max_sequences = 3;
  std::vector<Request> requests = {Greedy(5, 20), Greedy(9, 20), Greedy(3, 20), Greedy(4, 10)};
  const auto plain = Plain(), overlapping = Overlapping();
  const Outcome all = RunAll(Plain().get(), requests, Nothing);
  for (size_t i = 0; i < 3; ++i) {
    requests[i].ignore_end = false;
    requests[i].stop_ids = {all.results[i].generated[4 + 3 * i]};
  }
  const Outcome want = RunAll(plain.get(), requests, Nothing), got = RunAll(overlapping.get(), requests, Nothing);
  ExpectTheSame(got, want);
  EXPECT_EQ(want.results[0].finish, FinishReason::kEnd);
  EXPECT_GT(ops_->begun_ahead, 5);
  // Rows of some that ended were computed for nobody.
  const auto sum = [](const std::vector<int32_t>& of) { return std::accumulate(of.begin(), of.end(), 0); };
  EXPECT_GE(sum(got.decode_tokens) - sum(want.decode_tokens), 1);
  EXPECT_LE(sum(got.decode_tokens) - sum(want.decode_tokens), 3);
  // The only one ends: nobody waits for what was begun, and the next request begins anew.
  for (int again = 0; again < 2; ++again) {
    EXPECT_EQ(RunAll(overlapping.get(), {requests[0]}, Nothing).results[0].generated, want.results[0].generated);
  }
}

TEST_F(StepAhead, CancelAndSteeringTakeEffectAtOnce) {
  const std::vector<Request> requests = {Greedy(5, 20), Greedy(9, 20), Greedy(3, 20)};
  auto steering = std::make_shared<Steering>();
  steering->version = 7;
  steering->layers.resize(static_cast<size_t>(model_->info().layers));
  for (LayerSteering& layer : steering->layers) layer.max_slots = 1;
  std::vector<uint64_t> versions;
  const auto between = [&](Engine* engine, const std::vector<RequestId>& ids, uint64_t steps) {
    if (steps > 0) versions.push_back(engine->last_step().steering_version);
    Status status = Status::Ok();
    if (steps == 5) status = engine->Cancel(ids[1]);
    if (steps == 8) status = engine->SetSteering(steering);
    if (steps == 12) status = engine->SetSteering(nullptr);
    EXPECT_TRUE(status.ok()) << status.message();
  };
  const auto plain = Plain(), overlapping = Overlapping();
  const Outcome want = RunAll(plain.get(), requests, between);
  const std::vector<uint64_t> want_versions = std::exchange(versions, {});
  const Outcome got = RunAll(overlapping.get(), requests, between);
  ExpectTheSame(got, want);
  EXPECT_EQ(versions, want_versions);
  EXPECT_GT(ops_->begun_ahead, 10);
}

// A row that nobody reads would guarantee experts to others.
TEST_F(StepAhead, NotWhereRowsDependOnEachOther) {
  auto steering = std::make_shared<Steering>();
  steering->version = 3;
  steering->layers.resize(static_cast<size_t>(model_->info().layers));
  for (const bool soft : {false, true}) {
    for (LayerSteering& layer : steering->layers) layer.guaranteed_slots = soft ? kAllSlots : 1, layer.soft_batch = soft ? 0.3f : 0.0f;
    const auto between = [&](Engine* engine, const std::vector<RequestId>& ids, uint64_t steps) {
      const Status status = steps == 0 ? engine->SetSteering(steering) : steps == 7 ? engine->Cancel(ids[1]) : Status::Ok();
      EXPECT_TRUE(status.ok()) << status.message();
    };
    const auto plain = Plain(), overlapping = Overlapping();
    const std::vector<Request> requests = {Greedy(5, 20), Greedy(9, 20), Greedy(3, 20)};
    ExpectTheSame(RunAll(overlapping.get(), requests, between), RunAll(plain.get(), requests, between));
    EXPECT_EQ(ops_->begun_ahead, 0);
  }
}

// A session's keys and values are those of its tokens, whatever was begun beyond them; the context's end is known ahead.
TEST_F(StepAhead, SessionsGoOn) {
  const auto plain = Plain(), overlapping = Overlapping();
  std::vector<std::vector<TokenId>> generated[2];
  int side = 0;
  for (Engine* engine : {plain.get(), overlapping.get()}) {
    SessionId session = engine->OpenSession().value();
    for (int turn = 0; turn < 3; ++turn) {
      Request request = Greedy(7, turn == 2 ? 100 : 13);
      request.session = session;
      if (turn == 1) request.ignore_end = false, request.stop_ids = {generated[0].empty() ? 0 : generated[0][0][5]};
      const RequestResult result = engine->Run(request).value();
      generated[side].push_back(result.generated);
      if (turn == 0) session = engine->ForkSession(session).value();
      EXPECT_EQ(result.finish == FinishReason::kContext, turn == 2);
    }
    ++side;
  }
  EXPECT_EQ(generated[1], generated[0]);
  EXPECT_GT(ops_->begun_ahead, 20);
}

}  // namespace
}  // namespace thermoe::testing
