// SPDX-License-Identifier: Apache-2.0
// Tokens drawn on the device: Sampler's, but where the uniform number lies within 1e-6 of where the next token begins.
#include <gtest/gtest.h>

#include <cstring>
#include <limits>

#include "forward/sample.h"
#include "kernels/cuda/sample.h"
#include "kernels/dispatch.h"
#include "kernels/on_device.h"
#include "runtime/threads.h"
#include "support/host_draw.h"

namespace thermoe::cuda {
namespace {

using kernels::DrawnToken;
using kernels::TokenDraw;
using testing::HostDraw;

constexpr float kInfinity = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();
constexpr double kNear = 1e-6;

enum RowKind { kFlat, kNormal, kWide, kPeaked, kTied, kEqual, kZeros, kNotNumbers, kInfinite, kNothing, kKinds };

std::vector<float> LogitsOf(RowKind kind, int64_t vocab, Random* random) {
  std::vector<float> logits(static_cast<size_t>(vocab));
  const double scale = kind == kFlat ? 0.1 : kind == kWide ? 8 : 2.5;
  for (float& logit : logits) {
    const auto normal = static_cast<float>(random->Normal() * scale);
    const bool odd = random->Below(2) == 0;
    switch (kind) {
      case kTied: logit = std::round(normal); break;
      case kEqual: logit = 1.5f; break;
      case kZeros: logit = odd ? 0.0f : -0.0f; break;
      case kNotNumbers:
      case kInfinite: logit = random->Below(3) == 0 ? -kInfinity : random->Below(5) == 0 ? kNan : normal; break;
      case kNothing: logit = odd ? -kInfinity : kNan; break;
      default: logit = normal;
    }
  }
  const auto anywhere = [&]() -> float& { return logits[random->Below(logits.size())]; };
  if (kind == kPeaked) anywhere() = 30, anywhere() = 28, anywhere() = 27;
  if (kind == kInfinite) anywhere() = kInfinity;
  return logits;
}

std::vector<SamplingOptions> AllOptions(int64_t vocab) {
  const auto with = [](auto change) {
    SamplingOptions options;
    options.temperature = 0.8f;
    change(&options);
    return options;
  };
  std::vector<SamplingOptions> all;
  for (const float t : {0.8f, 1.0f, 1e-3f, 3.0f}) all.push_back(with([t](auto* o) { o->temperature = t; }));
  for (const int k : {1, 2, 40, 1500, static_cast<int>(vocab) - 1, static_cast<int>(vocab) + 5}) all.push_back(with([k](auto* o) { o->top_k = std::max(0, k); }));
  for (const float p : {1e-3f, 0.5f, 0.95f, 0.9999f}) all.push_back(with([p](auto* o) { o->top_p = p; }));
  for (const float p : {1e-3f, 0.1f, 1.0f}) all.push_back(with([p](auto* o) { o->min_p = p; }));
  for (const float p : {0.7f, 1.3f}) all.push_back(with([p](auto* o) { o->repetition_penalty = p; }));
  all.push_back(with([](auto* o) { o->temperature = 0, o->repetition_penalty = 1.5f; }));
  all.push_back(with([](auto* o) { o->top_k = 40, o->top_p = 0.9f, o->min_p = 0.02f, o->repetition_penalty = 1.2f; }));
  all.push_back(with([](auto* o) { o->top_k = 9000, o->top_p = 0.9f, o->repetition_penalty = 1.2f; }));
  return all;
}

class CudaDraws : public DeviceTest {
 protected:
  // Draws in one launch.
  std::vector<DrawnToken> Run(const OnDevice<float>& logits, int64_t vocab, const std::vector<TokenDraw>& draws) {
    const auto count = static_cast<int64_t>(draws.size());
    int64_t recent = 0;
    for (const TokenDraw& draw : draws) recent += static_cast<int64_t>(draw.recent.size());
    const PinnedMemory rows = Pinned(count * static_cast<int64_t>(sizeof(DrawRow))), ids = Pinned(4 * recent + 4), told = Pinned(4);
    const PinnedMemory out = Pinned(count * static_cast<int64_t>(sizeof(DrawnToken)));
    const OnDevice<SeenLogit> seen(recent);
    recent = 0;
    for (size_t i = 0; i < draws.size(); ++i) {
      rows.as<DrawRow>()[i] = MakeDraw(draws[i], recent);
      std::copy(draws[i].recent.begin(), draws[i].recent.end(), ids.as<int32_t>() + recent);
      recent += static_cast<int64_t>(draws[i].recent.size());
    }
    Draw({logits.data(), vocab, rows.as<DrawRow>(), ids.as<int32_t>(), seen.data(), static_cast<int32_t>(count), out.as<DrawnToken>(), done_->data(),
          told.as<uint32_t>(), ++number_, largest_->data()},
         stream_);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    EXPECT_EQ(*told.as<uint32_t>(), number_);
    // The row's newest token is one that was drawn of it (where several were, any).
    const std::vector<int32_t> largest = largest_->Read();
    for (const TokenDraw& draw : draws) {
      if (draw.row >= kernels::kMostAhead) continue;
      bool drawn = false;
      for (size_t i = 0; i < draws.size(); ++i) drawn = drawn || (draws[i].row == draw.row && out.as<DrawnToken>()[i].token == largest[static_cast<size_t>(draw.row)]);
      EXPECT_TRUE(drawn) << "row " << draw.row;
    }
    return {out.as<DrawnToken>(), out.as<DrawnToken>() + count};
  }
  void SetUp() override {
    DeviceTest::SetUp();
    if (IsSkipped()) return;
    done_ = std::make_unique<OnDevice<uint32_t>>(std::vector<uint32_t>(1, 0));
    largest_ = std::make_unique<OnDevice<int32_t>>(kernels::kMostAhead);
  }

  std::unique_ptr<OnDevice<uint32_t>> done_;
  std::unique_ptr<OnDevice<int32_t>> largest_;
  uint32_t number_ = 0;
};

// All kinds of rows in a launch, each by options of its own in turn.
TEST_F(CudaDraws, AreTheSamplers) {
  Random random(3);
  int64_t drawn = 0, others = 0;
  std::vector<int64_t> vocabs = {255, 1000, 1024, 4097, 50257, 50304, 151936};
  for (int64_t vocab = 1; vocab <= 40; ++vocab) vocabs.push_back(vocab);
  for (const int64_t vocab : vocabs) {
    std::vector<std::vector<float>> rows;
    std::vector<float> all;
    for (int kind = 0; kind < kKinds; ++kind) {
      rows.push_back(LogitsOf(static_cast<RowKind>(kind), vocab, &random));
      all.insert(all.end(), rows.back().begin(), rows.back().end());
    }
    const OnDevice<float> logits(all);
    Sampler sampler(static_cast<int32_t>(vocab));
    const std::vector<SamplingOptions> options = AllOptions(vocab);
    for (size_t turn = 0; turn < options.size(); ++turn) {
      if (!share_.Takes()) continue;
      std::vector<std::vector<int32_t>> recent(rows.size());
      std::vector<uint64_t> seeds(rows.size());
      std::vector<TokenDraw> draws;
      for (size_t r = 0; r < rows.size(); ++r) {
        const SamplingOptions& o = options[(turn + r) % options.size()];
        for (int i = 0; i < 70; ++i) recent[r].push_back(static_cast<int32_t>(random.Below(std::min<uint64_t>(60, rows[r].size()))));
        recent[r].push_back(static_cast<int32_t>(std::max_element(rows[r].begin(), rows[r].end()) - rows[r].begin()));
        recent[r].push_back(recent[r].back());
        seeds[r] = random.Next();
        draws.push_back({static_cast<int64_t>(r), o.temperature, o.top_k, o.top_p, o.min_p, o.repetition_penalty, recent[r], Random(seeds[r]).Uniform()});
      }
      const std::vector<DrawnToken> got = Run(logits, vocab, draws), again = Run(logits, vocab, draws);
      for (size_t r = 0; r < rows.size(); ++r) {
        SCOPED_TRACE("V " + std::to_string(vocab) + ", kind " + std::to_string(r) + ", options " + std::to_string((turn + r) % options.size()));
        std::vector<float> copy = rows[r];
        Random used(seeds[r]), unused(seeds[r]);
        const TokenId want = sampler.Sample(copy, options[(turn + r) % options.size()], recent[r], &used);
        ASSERT_GE(got[r].token, 0);
        ASSERT_LT(got[r].token, vocab);
        ASSERT_EQ(got[r].used_uniform, used.Next() != unused.Next());
        ASSERT_EQ(got[r].token, again[r].token);
        const float before = rows[r][static_cast<size_t>(got[r].token)];
        ASSERT_EQ(std::memcmp(&got[r].logit, &before, sizeof(float)), 0);
        ++drawn;
        if (got[r].token == want) continue;
        ++others;
        ASSERT_LE(HostDraw(rows[r], draws[r]).Off(got[r].token), kNear) << got[r].token << ", the host draws " << want;
      }
    }
    const std::vector<float> after = logits.Read();
    ASSERT_EQ(std::memcmp(after.data(), all.data(), all.size() * sizeof(float)), 0) << "V " << vocab << ": logits have changed";
  }
  std::printf("%lld of %lld tokens are others than the host's, within %g of a border\n", static_cast<long long>(others), static_cast<long long>(drawn), kNear);
  EXPECT_LE(others, 10);
}

TEST_F(CudaDraws, ReachTheFirstAndTheLast) {
  Random random(4);
  for (const int64_t vocab : {7, 4096, 50257}) {
    for (const RowKind kind : {kFlat, kNormal, kTied, kPeaked}) {
      if (!share_.Takes()) continue;
      const std::vector<float> row = LogitsOf(kind, vocab, &random);
      const OnDevice<float> logits(row);
      std::vector<TokenDraw> draws;
      for (const double uniform : {0.0, 1e-9, 0.5, 1 - 1e-9, 1 - 0x1p-53}) {
        for (const int32_t top_k : {0, 5}) draws.push_back({0, 1.0f, top_k, 1, 0, 1, {}, uniform});
        draws.push_back({0, 1.0f, 0, 0.9f, 0, 1, {}, uniform});
      }
      const std::vector<DrawnToken> got = Run(logits, vocab, draws);
      for (size_t i = 0; i < draws.size(); ++i) {
        ASSERT_LE(HostDraw(row, draws[i]).Off(got[i].token), kNear) << "V " << vocab << ", kind " << kind << ", draw " << i;
        ASSERT_GT(HostDraw(row, draws[i]).Probability(got[i].token), 0);
      }
    }
  }
}

// By a grid of uniform numbers each token comes as often as its probability says, within one.
TEST_F(CudaDraws, FrequenciesAreProbabilities) {
  constexpr int64_t kVocab = 1003;
  const int grid = share_.all() ? 8192 : 512;
  Random random(5);
  const std::vector<float> row = LogitsOf(kNormal, kVocab, &random);
  const OnDevice<float> logits(row);
  for (const TokenDraw& draw : std::initializer_list<TokenDraw>{{0, 1.0f, 0, 1, 0, 1, {}, 0}, {0, 0.6f, 100, 1, 0, 1, {}, 0}, {0, 1.5f, 0, 0.9f, 0, 1, {}, 0},
                                                                {0, 1.0f, 0, 1, 0.05f, 1, {}, 0}, {0, 0.9f, 300, 0.8f, 0.01f, 1, {}, 0}}) {
    if (!share_.Takes()) continue;
    std::vector<TokenDraw> draws(grid, draw);
    for (int i = 0; i < grid; ++i) draws[static_cast<size_t>(i)].uniform = (i + 0.5) / grid;
    std::vector<int> counts(kVocab);
    for (const DrawnToken& drawn : Run(logits, kVocab, draws)) ++counts[static_cast<size_t>(drawn.token)];
    const HostDraw host(row, draw);
    for (int32_t id = 0; id < kVocab; ++id) {
      ASSERT_NEAR(counts[static_cast<size_t>(id)], host.Probability(id) * grid, 1 + 2 * kNear * grid) << "token " << id << ", top-k " << draw.top_k;
    }
  }
}

// Through the backend: of some rows of a tile, told together with its summaries.
TEST_F(CudaDraws, ComeWithTheSummaries) {
  if (!share_.Takes()) return;
  constexpr int64_t kRows = 5, kVocab = 3001;
  ThreadPool threads(1);
  const auto ops = kernels::MakeCudaOps(&threads);
  ASSERT_TRUE(ops.ok());
  Random random(6);
  std::vector<float> logits;
  for (int64_t r = 0; r < kRows; ++r) {
    const std::vector<float> row = LogitsOf(kNormal, kVocab, &random);
    logits.insert(logits.end(), row.begin(), row.end());
  }
  const std::vector<float> before = logits;
  const kernels::DrawArgs unknown{{logits.data(), kRows, kVocab}, std::vector<TokenDraw>(1), {}};
  EXPECT_FALSE((*ops)->DrawTokens(unknown)) << "logits that are not on the device";
  std::vector<int32_t> asked(kRows, -1);
  (*ops)->Adopt(std::as_writable_bytes(std::span(logits)));
  (*ops)->Adopt(std::as_writable_bytes(std::span(asked)));
  for (int turn = 0; turn < 3; ++turn) {
    (*ops)->Publish(std::as_bytes(std::span(logits)));
    (*ops)->Publish(std::as_bytes(std::span(asked)));
    std::vector<kernels::LogitSummary> summaries(kRows);
    std::vector<DrawnToken> drawn(kRows);
    ASSERT_TRUE((*ops)->Summarise({{logits.data(), kRows, kVocab}, asked, summaries}));
    const std::vector<int32_t> recent(static_cast<size_t>(40 * turn), 9);  // a window that outgrows what there was room for
    const std::vector<TokenDraw> draws = {{1, 0.7f, 40, 0.95f, 0, 1.1f, recent, 0.3}, {4, 1.0f, 0, 1, 0, 1, {}, 0.9}};
    ASSERT_TRUE((*ops)->DrawTokens({{logits.data(), kRows, kVocab}, draws, drawn}));
    (*ops)->FinishSummaries();
    for (const TokenDraw& draw : draws) {
      const std::vector<float> row(before.begin() + draw.row * kVocab, before.begin() + (draw.row + 1) * kVocab);
      const DrawnToken& got = drawn[static_cast<size_t>(draw.row)];
      ASSERT_GE(got.token, 0);
      EXPECT_LE(HostDraw(row, draw).Off(got.token), kNear);
      EXPECT_EQ(got.logit, row[static_cast<size_t>(got.token)]);
      EXPECT_TRUE(got.used_uniform);
    }
    for (const size_t other : {0, 2, 3}) EXPECT_EQ(drawn[other].token, -1);
    for (size_t r = 0; r < kRows; ++r) EXPECT_EQ(summaries[r].best_logit, before[r * kVocab + static_cast<size_t>(summaries[r].best)]);
    (*ops)->Fetch(std::as_writable_bytes(std::span(logits)));
    EXPECT_EQ(logits, before);
    ASSERT_TRUE((*ops)->Health().ok());
  }
}

}  // namespace
}  // namespace thermoe::cuda
