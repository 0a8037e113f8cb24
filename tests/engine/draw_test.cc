// SPDX-License-Identifier: Apache-2.0
// Where a backend draws tokens, requests get those that the host would have drawn: the same random numbers, windows and log-probabilities.
#include <gtest/gtest.h>

#include "engine/engine_impl.h"
#include "kernels/dispatch.h"
#include "support/fixtures.h"
#include "support/host_draw.h"
#include "support/mixed_ops.h"

namespace thermoe::testing {
namespace {

// The reference's operations, with summaries and draws by the definitions.
class DrawingOps final : public MixedOps {
 public:
  explicit DrawingOps(const kernels::Ops& ops) : MixedOps(ops, ops) {}

  bool Summarise(const kernels::SummariseArgs& args) const override {
    for (int64_t r = 0; r < args.logits.rows; ++r) {
      const std::span<const float> row(args.logits.row(r), static_cast<size_t>(args.logits.cols));
      kernels::LogitSummary& out = args.out[static_cast<size_t>(r)];
      out.log_sum_exp = LogSumExp(row), out.finite = AllFinite(row);
      out.best = static_cast<int32_t>(std::max_element(row.begin(), row.end()) - row.begin());
      out.best_logit = row[static_cast<size_t>(out.best)];
      const int32_t asked = args.asked[static_cast<size_t>(r)];
      out.asked_logit = asked >= 0 ? row[static_cast<size_t>(asked)] : 0;
    }
    return true;
  }
  bool DrawTokens(const kernels::DrawArgs& args) const override {
    for (const kernels::TokenDraw& draw : args.draws) {
      const std::vector<float> row(args.logits.row(draw.row), args.logits.row(draw.row) + args.logits.cols);
      const HostDraw host(row, draw);
      args.out[static_cast<size_t>(draw.row)] = {host.Token(), row[static_cast<size_t>(host.Token())], host.uses_uniform()};
      ++drawn;
    }
    return true;
  }

  mutable int drawn = 0;
};

std::vector<RequestResult> RunAll(Engine* engine) {
  std::vector<RequestId> ids;
  for (int i = 0; i < 8; ++i) {
    Request request;
    for (int t = 0; t < 5 + 3 * i; ++t) request.prompt.push_back(static_cast<TokenId>(7 + 31 * t + i));
    request.max_new_tokens = 12;
    request.ignore_end = true;
    request.score_prompt = i == 3;
    request.keep_logits = i == 4 ? KeepLogits::kAll : KeepLogits::kNone;
    request.sampling.seed = static_cast<uint64_t>(100 + i);
    request.sampling.temperature = i == 1 || i == 2 ? 0 : 0.9f;
    if (i != 1) request.sampling.repetition_penalty = 1.2f;  // 1: nothing to be drawn
    if (i >= 5) request.sampling.top_k = 30, request.sampling.top_p = 0.9f, request.sampling.min_p = 0.01f;
    if (i == 6) request.forced.assign(12, 5);
    if (i == 7) request.sampling.repetition_window = 0;
    const auto id = engine->Submit(request);
    EXPECT_TRUE(id.ok()) << id.status().message();
    if (id.ok()) ids.push_back(*id);
  }
  std::vector<Event> events;
  while (engine->Step(&events).value()) {}
  std::vector<RequestResult> results;
  for (const RequestId id : ids) results.push_back(engine->TakeResult(id).value());
  return results;
}

TEST(Draws, OfABackendAreTheHosts) {
  EngineOptions options;
  options.backend = "reference";
  options.max_sequences = 8;
  options.prefill_chunk = 16;
  const auto model = OpenModel(FixturePath("olmoe"));
  const auto host = MakeEngine(model, options), drawing = MakeEngine(model, options);
  const auto inner = kernels::MakeReferenceOps();
  auto ops = std::make_unique<DrawingOps>(*inner);
  const DrawingOps& counts = *ops;
  static_cast<EngineImpl&>(*drawing).SetOps(std::move(ops));
  const std::vector<RequestResult> want = RunAll(host.get()), got = RunAll(drawing.get());
  ASSERT_EQ(want.size(), got.size());
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_EQ(got[i].generated, want[i].generated) << "request " << i;
    EXPECT_EQ(got[i].logprobs, want[i].logprobs) << "request " << i;
    EXPECT_EQ(got[i].logits, want[i].logits) << "request " << i;
    EXPECT_EQ(got[i].prompt_logprobs, want[i].prompt_logprobs) << "request " << i;
  }
  EXPECT_EQ(counts.drawn, 6 * 12);  // one is greedy, one forced
}

}  // namespace
}  // namespace thermoe::testing
