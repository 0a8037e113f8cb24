// SPDX-License-Identifier: Apache-2.0
// The operation table on a CUDA device, where there is one. Products round their activations to binary16 (matrix_kernels.h), attention
// its queries, keys, values and weights: the bounds are those of the table with that rounding.
#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <memory>

#include "kernels/attention_cases.h"
#include "kernels/case_share.h"
#include "kernels/expert_cases.h"
#include "kernels/op_cases.h"
#include "kernels/select.h"

namespace thermoe::kernels {
namespace {

class Cuda : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    Result<std::unique_ptr<Ops>> ops = MakeCudaOps(&threads_, GetParam());
    if (!ops.ok()) GTEST_SKIP() << ops.status().message();
    ops_ = std::move(ops).value();
  }

  void Run(const std::vector<OpCase>& cases) {
    for (const OpCase& c : cases) ExpectVaries(c);
    for (const OpCase& c : cases) {
      ExpectWithinBounds(c, "cuda", c.run(*ops_));
      ASSERT_TRUE(ops_->Health().ok()) << c.name << ": " << ops_->Health().message();
    }
    std::printf("[          ] %zu cases on %s\n", cases.size(), std::string(ops_->name()).c_str());
  }

  ThreadPool threads_{2};
  std::unique_ptr<Ops> ops_;
  CaseShare share_;
};

bool HasBlocks(DType type) { return TraitsOf(type).block_elements > 1; }

TEST_P(Cuda, RowOperations) {
  Random random(1);
  std::vector<OpCase> cases;
  for (const int64_t n : {1, 8, 64, 127, 300, 2048, 5000}) {
    if (!share_.Takes()) continue;
    for (const int64_t rows : {1, 3, 40}) cases.push_back(RmsNormCase(random, rows, n, (n + rows) % 2 == 0));
    for (const bool gated : {false, true}) cases.push_back(AddCase(random, 9, n, gated));
    cases.push_back(ClampCase(random, 5, n, 0.7f));
    for (const double scale : {0.1, 20.0, 100.0}) cases.push_back(SwiGluCase(random, 4, n, scale));
  }
  for (const RopeKind kind : {RopeKind::kHalves, RopeKind::kInterleaved}) {
    for (const int32_t head_dim : {16, 80, 128}) {
      if (!share_.Takes()) continue;
      for (const int32_t rope_dim : {head_dim, head_dim / 2, 2}) cases.push_back(RopeCase(random, kind, 7, 5, head_dim, rope_dim));
    }
  }
  Run(cases);
}

TEST_P(Cuda, ReadsItsMemory) {
  if (!share_.all()) GTEST_SKIP() << "a time, of cases in shares";
  const double first = ops_->MeasureReadSpeed(), second = ops_->MeasureReadSpeed();
  EXPECT_GT(first, 50e9);  // any device's with these kernels
  EXPECT_LT(first, 20e12);
  EXPECT_NEAR(second / first, 1, 0.3);
  EXPECT_TRUE(ops_->Health().ok());
}

TEST_P(Cuda, EmbedOfEveryType) {
  Random random(2);
  std::vector<OpCase> cases;
  for (const DType type : kAllTypes) {
    if (type == DType::kNested8 || !share_.Takes()) continue;  // embeddings are as the file has them
    for (const int64_t tokens : {1, 70}) cases.push_back(EmbedCase(random, type, 50, 512, tokens));
  }
  Run(cases);
}

TEST_P(Cuda, LinearOfEveryType) {
  Random random(3);
  std::vector<OpCase> cases;
  for (const DType type : kAllTypes) {
    const int64_t odd = HasBlocks(type) ? 0 : 3;
    for (const int64_t tokens : {1, 2, 5, 8, 9, 17, 33, 64, 65, 130, 300}) {
      if (!share_.Takes()) continue;
      cases.push_back(LinearCase(random, type, tokens, 64, WholeBlocks(type, 64), false, kHalfUnit));
      cases.push_back(LinearCase(random, type, tokens, 100 + odd, WholeBlocks(type, 160) + odd, true, kHalfUnit));
      cases.push_back(LinearCase(random, type, tokens, 421, 512, tokens % 2 == 1, kHalfUnit));
      if (tokens > 64) cases.push_back(LinearCase(random, type, tokens, 420, 1024, tokens % 2 == 1, kHalfUnit));  // columns in parts
    }
  }
  Run(cases);
}

TEST_P(Cuda, ExpertsOfEveryType) {
  Random random(4);
  std::vector<OpCase> cases;
  for (const DType type : kAllTypes) {
    const auto blocks = [&](int64_t cols) { return WholeBlocks(type, cols); };
    const auto add = [&](int64_t tokens, int64_t hidden, int64_t width, int32_t experts, int32_t slots) {
      if (!share_.Takes()) return;
      cases.push_back(ExpertCase(random, {type, tokens, blocks(hidden), blocks(width), experts, slots, Layout::kRows, kHalfUnit}));
    };
    add(1, 64, 96, 5, 1);
    add(1, 160, 64, 12, 8);
    add(2, 64, 32, 4, 4);  // the second is padding
    add(7, 96, 64, 20, 3);
    add(7, 128, 192, 20, 3);  // whole tiles of columns
    add(1, 128, 192, 20, 8);  // inner values by words; an item a slot, as is guessed
    add(3, 128, 192, 4, 4);   // fewer items than slots
    add(19, 128, 160, 2, 2);
    add(70, 64, 96, 6, 2);
    add(300, 128, 192, 7, 2);
    add(500, 192, 320, 3, 2);
  }
  Run(cases);
}

// Stages of a tile a warp, whose pieces are fewer for gate and up than for down: one of the warps that copy has nothing to do for more than two rounds of the
// ring, and must not copy too early afterwards.
TEST_P(Cuda, ExpertsWhoseFirstProductHasFewPieces) {
  if (!share_.Takes()) return;
  Random random(14);
  Run({ExpertCase(random, {DType::kBF16, 4, 896, 1280, 12, 4, Layout::kRows, kHalfUnit})});
}

// Rows of many columns, of which prefill's kernels take over earlier where weights are of two planes or 16 bits.
TEST_P(Cuda, ExpertsOfManyColumns) {
  Random random(18);
  std::vector<OpCase> cases;
  for (const DType type : {DType::kQ8_0, DType::kQ6K, DType::kBF16, DType::kQ4_0, DType::kNested8}) {
    for (const int64_t tokens : {33, 52, 60}) {
      if (share_.Takes()) cases.push_back(ExpertCase(random, {type, tokens, 2304, 256, 8, 2, Layout::kRows, kHalfUnit}));
    }
  }
  Run(cases);
}

// More than two rounds of the places for units that a block has claimed: some 35 each on 132 multiprocessors.
TEST_P(Cuda, ExpertsOfManyUnits) {
  if (!share_.Takes()) return;
  Random random(15);
  Run({ExpertCase(random, {DType::kBF16, 64, 64, 2048, 256, 8, Layout::kRows, kHalfUnit})});
}

TEST_P(Cuda, AttentionAndItsCache) {
  Random random(5);
  std::vector<OpCase> cases;
  const AttentionShape shapes[] = {
      {1, 1, 16, {{0, 1}}},
      {2, 1, 24, {{0, 7}}},
      {4, 4, 32, {{15, 1}, {16, 1}, {17, 1}}},
      {4, 2, 40, {{31, 3}, {0, 2}, {100, 1}}},
      {8, 2, 64, {{0, 70}}},
      {8, 2, 64, {{700, 1}, {3, 1}, {0, 1}, {63, 1}}},
      {6, 2, 96, {{13, 37}, {47, 1}, {48, 1}}},
      {7, 7, 96, {{63, 1}, {200, 5}}},
      {8, 1, 128, {{250, 1}, {0, 33}}},
      {32, 4, 128, {{1000, 1}}},
      {40, 1, 16, {{20, 3}}},
      {16, 4, 128, {{300, 1}, {5, 1}, {0, 20}, {40, 130}}},
      // Many rows: whole tiles of 128 positions and rows, one more and one less, several sequences to a tile, beside decoding.
      {2, 2, 64, {{0, 257}}},
      {4, 1, 64, {{128, 128}, {127, 2}, {0, 65}}},
      {8, 1, 128, {{0, 127}}},
      {4, 1, 128, {{1, 384}}},
      {3, 3, 128, {{600, 1}, {0, 1}, {0, 129}, {255, 2}, {500, 190}}},
      {8, 2, 128, {{3, 2}, {20, 17}, {0, 3}, {128, 2}, {126, 2}, {40, 9}, {0, 2}, {300, 11}, {0, 64}, {90, 31}}},
  };
  for (AttentionShape shape : shapes) {
    if (!share_.Takes()) continue;
    shape.rounding = kHalfUnit;
    cases.push_back(AttentionCase(random, shape));
    OpCase store = StoreKvCase(random, shape);
    for (size_t i = 0; i < store.bound.size(); ++i) store.bound[i] = kHalfUnit * std::fabs(store.want[i]) + 0x1p-25;  // the least halves
    cases.push_back(store);
  }
  Run(cases);
}

// Random shapes: a step's rows are of up to a dozen sequences.
TEST_P(Cuda, AttentionOfRandomSteps) {
  Random random(16);
  std::vector<OpCase> cases;
  for (int i = 0; i < 12; ++i) {
    AttentionShape shape;
    const auto below = [&random](int n) { return static_cast<int32_t>(random.Below(static_cast<uint64_t>(n))); };
    shape.kv_heads = 1 + below(2), shape.heads = shape.kv_heads << 2 * below(2), shape.head_dim = 64 << below(2), shape.rounding = kHalfUnit;
    for (int32_t s = below(3); s > 0; --s) shape.sequences.push_back({below(400), 1});
    for (int32_t s = 1 + below(9); s > 0; --s) shape.sequences.push_back({below(2) * below(300), 1 + below(s % 3 == 0 ? 260 : 20)});
    if (share_.Takes()) cases.push_back(AttentionCase(random, shape));
  }
  Run(cases);
}

// A row of several gives the same whatever the rows beside it, and wherever a chunk begins.
TEST_P(Cuda, AttentionOfManyRowsDoesNotDependOnChunkingOrNeighbours) {
  for (const auto& [heads, kv_heads, dim] : {std::array{2, 2, 64}, std::array{4, 1, 128}, std::array{1, 1, 96}}) {
    if (!share_.Takes()) continue;
    Random random(17);
    const std::shared_ptr<AttentionFixture> f = MakeAttention(random, {heads, kv_heads, dim, {{0, 1100}, {200, 7}, {33, 130}}});
    const std::vector<float> together = RunAttention(*ops_, *f);
    const auto cols = static_cast<size_t>(f->q_cols());
    AttentionFixture part = *f;
    for (const size_t step : {size_t{16}, size_t{100}, size_t{128}, size_t{512}, size_t{700}}) {
      for (size_t first = 0; first + 1 < f->rows.size(); first += step) {
        const size_t last = std::min(first + step, f->rows.size());
        part.rows.assign(f->rows.begin() + static_cast<int64_t>(first), f->rows.begin() + static_cast<int64_t>(last));
        part.q.assign(f->q.begin() + static_cast<int64_t>(first * cols), f->q.begin() + static_cast<int64_t>(last * cols));
        const std::vector<float> got = RunAttention(*ops_, part);
        size_t other = 0;
        // A row that is alone of its sequence at a step's beginning is of decoding, which adds in an order of its own.
        const bool alone = part.rows[0].blocks != part.rows[1].blocks;
        for (size_t i = alone ? cols : 0; i < got.size(); ++i) other += got[i] != together[first * cols + i];
        ASSERT_EQ(other, 0u) << heads << " heads of " << dim << ", rows from " << first << " by " << step;
      }
    }
  }
}

// One step's logits and knobs, run by the host's selection and the device's.
struct SelectStep {
  std::vector<float> logits;
  std::vector<RowKind> kinds;
  int64_t tokens = 0, experts = 0;
  int32_t slots = 0;
  bool normalise = true, nested = false;
  LayerSteering steering;
};

struct SelectResult {
  std::vector<int32_t> expert, order;
  std::vector<float> weight, scores;
  std::vector<Planes> planes;
  std::vector<Selection::Job> jobs;
  LayerRecord record;
  int32_t job_count = 0;
};

SelectResult SelectBy(const Ops* ops, const SelectStep& s) {
  SelectResult r;
  const auto slots = static_cast<size_t>(s.tokens * s.slots);
  r.expert.assign(slots, 12345), r.order.assign(slots, -1), r.weight.assign(slots, kPoison);
  r.scores.assign(static_cast<size_t>(s.tokens * s.experts), kPoison);
  r.planes.assign(slots, Planes::kHi);
  r.jobs.assign(static_cast<size_t>(2 * s.experts), {-7, Planes::kHi, -7, -7});
  Selection view;
  view.slots = s.slots;
  view.scores = {r.scores.data(), s.tokens, s.experts};
  view.expert = {r.expert.data(), s.tokens, s.slots};
  view.weight = {r.weight.data(), s.tokens, s.slots};
  view.planes = {r.planes.data(), s.tokens, s.slots};
  view.jobs = r.jobs, view.order = r.order, view.record = &r.record;
  SelectArgs args{{s.logits.data(), s.tokens, s.experts}, {Scoring::kSoftmax, s.normalise}, s.slots, s.nested, &s.steering, s.kinds, &view};
  if (ops == nullptr) SelectExperts(args);
  else ops->Select(args);
  r.job_count = view.job_count;
  return r;
}

void ExpectSame(const SelectResult& host, const SelectResult& device, const std::string& what) {
  SCOPED_TRACE(what);
  ASSERT_EQ(host.expert, device.expert);
  ASSERT_EQ(host.planes, device.planes);
  for (size_t i = 0; i < host.weight.size(); ++i) ASSERT_NEAR(host.weight[i], device.weight[i], 3e-6f + 1e-5f * std::fabs(host.weight[i])) << i;
  for (size_t i = 0; i < host.scores.size(); ++i) {
    if (!std::isnan(host.scores[i])) {  // of padding
      ASSERT_NEAR(host.scores[i], device.scores[i], 1e-6f + 1e-5f * host.scores[i]) << i;
    }
  }
  ASSERT_EQ(host.job_count, device.job_count);
  int32_t kept = 0;
  for (int32_t j = 0; j < host.job_count; ++j) {
    const Selection::Job &a = host.jobs[static_cast<size_t>(j)], &b = device.jobs[static_cast<size_t>(j)];
    ASSERT_TRUE(a.expert == b.expert && a.planes == b.planes && a.first == b.first && a.count == b.count) << "job " << j;
    kept += a.count;
  }
  for (int32_t i = 0; i < kept; ++i) ASSERT_EQ(host.order[static_cast<size_t>(i)], device.order[static_cast<size_t>(i)]) << i;
  EXPECT_EQ(host.record.expert_slots, device.record.expert_slots);
  EXPECT_EQ(host.record.distinct_experts, device.record.distinct_experts);
  EXPECT_EQ(host.record.distinct_full_experts, device.record.distinct_full_experts);
  EXPECT_EQ(host.record.distinct_hi_experts, device.record.distinct_hi_experts);
  EXPECT_EQ(host.record.slots_full, device.record.slots_full);
  EXPECT_EQ(host.record.slots_hi, device.record.slots_hi);
  EXPECT_EQ(host.record.slots_dropped, device.record.slots_dropped);
  EXPECT_NEAR(host.record.gate_mass_lost, device.record.gate_mass_lost, 1e-4 + 1e-5 * host.record.gate_mass_lost);
}

TEST_P(Cuda, SelectionIsTheHosts) {
  Random random(6);
  int steps = 0;
  for (const int64_t experts : {4, 8, 32, 60, 64, 68, 70, 100, 127, 128, 200, 512}) {
    for (const int64_t tokens : {1, 2, 16, 33, 256, 257, 1000}) {
      for (int round = 0; round < 4; ++round) {
        if (!share_.Takes()) continue;
        SelectStep s;
        s.tokens = tokens, s.experts = experts;
        s.slots = static_cast<int32_t>(1 + random.Below(static_cast<uint64_t>(std::min<int64_t>(experts, 8))));
        s.logits = RandomFloats(random, tokens * experts, 1.5);
        s.normalise = random.Below(2) == 0, s.nested = random.Below(2) == 0;
        for (int64_t t = 0; t < tokens; ++t) {
          s.kinds.push_back(t % 11 == 10 || (tokens == 1 && round == 3) ? RowKind::kPadding : tokens > 300 && t > 40 ? RowKind::kPrefill : RowKind::kDecode);
        }
        if (round > 0) {
          if (random.Below(2) == 0) s.steering.selection_bias = RandomFloats(random, experts, 0.01);
          if (random.Below(2) == 0) {
            for (int64_t e = 0; e < experts; ++e) s.steering.plane_cap.push_back(static_cast<uint8_t>(1 + random.Below(2)));
          }
          s.steering.full_slots = static_cast<int>(random.Below(static_cast<uint64_t>(s.slots) + 1));
          s.steering.guaranteed_slots = static_cast<int>(1 + random.Below(static_cast<uint64_t>(s.slots)));
          s.steering.max_slots = static_cast<int>(1 + random.Below(static_cast<uint64_t>(s.slots)));
          s.steering.drop_below_frac = random.Below(2) == 0 ? 0.0f : 0.3f;
          s.steering.soft_batch = round == 2 ? 0.3f : 0.0f;
        }
        ExpectSame(SelectBy(nullptr, s), SelectBy(ops_.get(), s),
                   std::to_string(experts) + " experts, " + std::to_string(tokens) + " tokens, round " + std::to_string(round));
        if (HasFatalFailure()) return;
        ++steps;
      }
    }
  }
  std::printf("[          ] %d steps\n", steps);
}

// So many that blocks have several rows of a warp, several turns, and as many blocks as there can be; launches of other sizes and steering in between.
TEST_P(Cuda, SelectionOfManyRowsIsTheHosts) {
  Random random(11);
  for (const int64_t tokens : {2200, 700, 4096, 4300, 1300, 9000}) {
    for (const int64_t experts : {31, 64, 128, 200, 300}) {
      for (int round = 0; round < 3; ++round) {
        if (!share_.Takes()) continue;
        SelectStep s;
        s.tokens = tokens, s.experts = experts, s.slots = 1 + static_cast<int32_t>(random.Below(tokens == 1300 ? 31 : 8));
        s.logits = RandomFloats(random, tokens * experts, 1.5);
        s.normalise = random.Below(2) == 0, s.nested = true;
        for (int64_t t = 0; t < tokens; ++t) s.kinds.push_back(t % 11 == 10 ? RowKind::kPadding : t < 40 ? RowKind::kDecode : RowKind::kPrefill);
        if (round == 1) s.steering.full_slots = s.slots / 2, s.steering.selection_bias = RandomFloats(random, experts, 0.01);
        if (round == 2) s.steering.guaranteed_slots = (s.slots + 1) / 2, s.steering.drop_below_frac = 0.3f, s.steering.soft_batch = 0.2f;
        ExpectSame(SelectBy(nullptr, s), SelectBy(ops_.get(), s),
                   std::to_string(experts) + " experts, " + std::to_string(tokens) + " tokens, round " + std::to_string(round));
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Of a row with a score that is not a number all are none: it gets the first experts, as on the host, and others what they would.
TEST_P(Cuda, SelectionOfWhatIsNoNumberIsTheHosts) {
  Random random(9);
  for (const int64_t experts : {8, 64, 70, 128, 200}) {
    for (const int64_t tokens : {1, 16, 300, 3000}) {
      if (!share_.Takes()) continue;
      SelectStep s;
      s.tokens = tokens, s.experts = experts, s.slots = 4;
      s.logits = RandomFloats(random, tokens * experts, 1.5);
      s.kinds.assign(static_cast<size_t>(tokens), RowKind::kDecode);
      for (int64_t t = 0; t < tokens; t += 3) s.logits[static_cast<size_t>(t * experts + t % experts)] = t % 2 == 0 ? NAN : INFINITY;
      const SelectResult host = SelectBy(nullptr, s), device = SelectBy(ops_.get(), s);
      ASSERT_EQ(host.expert, device.expert) << experts << " experts, " << tokens << " tokens";
      ASSERT_EQ(host.job_count, device.job_count);
      ASSERT_EQ(std::isnan(host.record.gate_mass_lost), std::isnan(device.record.gate_mass_lost));
      for (size_t i = 0; i < host.weight.size(); ++i) {
        ASSERT_EQ(std::isnan(host.weight[i]), std::isnan(device.weight[i])) << i;
        if (!std::isnan(host.weight[i])) {
          ASSERT_NEAR(host.weight[i], device.weight[i], 1e-5f) << i;
        }
      }
    }
  }
}

// Ties go to the lower expert, at every number of slots and of rows to a warp.
TEST_P(Cuda, SelectionAmongEqualScoresIsTheHosts) {
  Random random(8);
  for (const int64_t experts : {8, 60, 128, 256, 300}) {
    for (const int64_t tokens : {1, 16, 40, 700, 5000}) {
      if (experts * tokens > 700 * 256) continue;
      for (const bool steered : {false, true}) {
        if (!share_.Takes()) continue;
        SelectStep s;
        s.tokens = tokens, s.experts = experts, s.nested = true;
        s.slots = static_cast<int32_t>(std::min<int64_t>(experts, 32));
        for (int64_t i = 0; i < tokens * experts; ++i) s.logits.push_back(static_cast<float>(random.Below(3)));
        s.kinds.assign(static_cast<size_t>(tokens), RowKind::kDecode);
        s.kinds.back() = RowKind::kPrefill;
        s.steering.full_slots = 3;
        if (steered) s.steering.guaranteed_slots = 1 + s.slots / 2, s.steering.soft_batch = tokens == 40 ? 0.2f : 0.0f;
        ExpectSame(SelectBy(nullptr, s), SelectBy(ops_.get(), s),
                   std::to_string(experts) + " experts, " + std::to_string(tokens) + " tokens, steered " + std::to_string(steered));
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Scores that differ by so little that keys of their upper bits do not tell them apart: many rows get what they get where few are chosen for, to the bit.
TEST_P(Cuda, SelectionAmongNearlyEqualScoresIsThatOfFewRows) {
  Random random(10);
  for (const int64_t experts : {30, 64, 128, 200}) {
    for (const float step : {0x1p-20f, 0x1p-22f, 0x1p-23f}) {
      if (!share_.Takes()) continue;
      SelectStep s;
      s.tokens = 700, s.experts = experts, s.slots = 1 + static_cast<int32_t>(random.Below(8));
      for (int64_t i = 0; i < s.tokens * experts; ++i) s.logits.push_back(static_cast<float>(random.Below(16)) * step);
      s.kinds.assign(static_cast<size_t>(s.tokens), RowKind::kPrefill);
      const SelectResult all = SelectBy(ops_.get(), s);
      for (int64_t first = 0; first < s.tokens; first += 28) {
        SelectStep few = s;
        few.tokens = std::min<int64_t>(28, s.tokens - first);
        few.logits.assign(s.logits.begin() + first * experts, s.logits.begin() + (first + few.tokens) * experts);
        few.kinds.resize(static_cast<size_t>(few.tokens));
        const SelectResult part = SelectBy(ops_.get(), few);
        for (size_t i = 0; i < part.expert.size(); ++i) {
          const size_t at = static_cast<size_t>(first * s.slots) + i;
          ASSERT_EQ(all.expert[at], part.expert[i]) << experts << " experts, step " << step << ", slot " << at;
          ASSERT_EQ(all.weight[at], part.weight[i]) << experts << " experts, step " << step << ", slot " << at;
        }
      }
    }
  }
}

TEST_P(Cuda, SummariesOfLogits) {
  if (!share_.Takes()) return;
  Random random(7);
  const int64_t rows = 5, vocab = 50001;
  // Of other numbers of rows before: what they leave in scratch is not taken for anything.
  for (const int64_t before : {40, 1, 3, 32}) {
    const std::vector<float> one = RandomFloats(random, before * 999, 3);
    const std::vector<int32_t> none(static_cast<size_t>(before), -1);
    std::vector<LogitSummary> out(static_cast<size_t>(before));
    ASSERT_TRUE(ops_->Summarise({{one.data(), before, 999}, none, out}));
    ops_->FinishSummaries();
    for (int64_t r = 0; r < before; ++r) {
      const float* row = one.data() + r * 999;
      EXPECT_EQ(out[static_cast<size_t>(r)].best, std::max_element(row, row + 999) - row);
    }
  }
  std::vector<float> logits = RandomFloats(random, rows * vocab, 3);
  logits[static_cast<size_t>(2 * vocab + 77)] = 40;
  logits[static_cast<size_t>(2 * vocab + 99)] = 40;  // the first of equals
  logits[static_cast<size_t>(3 * vocab + 5)] = kPoison;
  logits[static_cast<size_t>(4 * vocab)] = std::numeric_limits<float>::infinity();
  const std::vector<int32_t> asked = {3, -1, 50000, 0, 1};
  std::vector<LogitSummary> out(static_cast<size_t>(rows));
  ASSERT_TRUE(ops_->Summarise({{logits.data(), rows, vocab}, asked, out}));
  ops_->FinishSummaries();
  for (size_t r = 0; r < 3; ++r) {
    const float* row = logits.data() + r * static_cast<size_t>(vocab);
    double sum = 0;
    for (int64_t i = 0; i < vocab; ++i) sum += std::exp(static_cast<double>(row[i]));
    EXPECT_NEAR(out[r].log_sum_exp, std::log(sum), 1e-5);
    const int64_t best = std::max_element(row, row + vocab) - row;
    EXPECT_EQ(out[r].best, best);
    EXPECT_EQ(out[r].best_logit, row[best]);
    if (asked[r] >= 0) {
      EXPECT_EQ(out[r].asked_logit, row[asked[r]]);
    }
    EXPECT_TRUE(out[r].finite);
  }
  EXPECT_FALSE(out[3].finite);
  EXPECT_FALSE(out[4].finite);
}

INSTANTIATE_TEST_SUITE_P(Isa, Cuda, testing::Values("mma", "wgmma"), [](const auto& test) { return std::string(test.param); });

}  // namespace
}  // namespace thermoe::kernels
