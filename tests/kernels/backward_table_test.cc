// SPDX-License-Identifier: Apache-2.0
// The backward operations on every backend, instruction set and two thread teams, against the reference; and what the
// contract promises to the bit.
#include <gtest/gtest.h>

#include <cstdio>

#include "kernels/backward_cases.h"

namespace thermoe::kernels {
namespace {

void RunTable(const std::vector<OpCase>& cases) {
  for (const OpCase& c : cases) ExpectVaries(c);
  for (const Implementation& implementation : CpuImplementations({1, 3})) {
    for (const OpCase& c : cases) {
      ExpectWithinBounds(c, implementation.name, c.run(*implementation.ops));
      // Again on the same object: scratch left by other shapes must not matter.
      ExpectWithinBounds(c, implementation.name + " again", c.run(*implementation.ops));
    }
    std::printf("[          ] %zu cases on %s\n", cases.size(), implementation.name.c_str());
  }
}

bool HasBlocks(DType type) { return TraitsOf(type).block_elements > 1; }

TEST(BackwardTable, Linear) {
  Random random(51);
  std::vector<OpCase> cases;
  for (const DType type : kAllTypes) {
    const int64_t odd = HasBlocks(type) ? 0 : 5;
    for (const int64_t tokens : {1, 2, 5, 11, 13, 26}) {
      const int64_t rows = 1 + static_cast<int64_t>(random.Below(150)),
                    cols = WholeBlocks(type, 32 + 32 * static_cast<int64_t>(random.Below(4)));
      cases.push_back(LinearBackwardCase(random, type, Layout::kRows, tokens, rows, cols + odd));
    }
    cases.push_back(LinearBackwardCase(random, type, Layout::kRows, 70, 130, WholeBlocks(type, 544) + odd));
    if (!CanInterleave(type, 16, WholeBlocks(type, 32))) continue;
    for (const int64_t tokens : {1, 2, 5, 11, 12, 13, 25}) {
      const int64_t rows = 16 * (1 + static_cast<int64_t>(random.Below(9)));
      cases.push_back(LinearBackwardCase(random, type, Layout::kInterleaved, tokens, rows,
                                         WholeBlocks(type, 32 * (1 + tokens % 4))));
    }
    cases.push_back(LinearBackwardCase(random, type, Layout::kInterleaved, 70, 208, WholeBlocks(type, 544)));
  }
  cases.push_back(
      LinearBackwardCase(random, DType::kQ8_0, Layout::kInterleaved, 300, 64, 64));  // more than one pass of tokens
  RunTable(cases);
}

TEST(BackwardTable, ExpertFfn) {
  Random random(52);
  std::vector<OpCase> cases;
  for (const DType type : kAllTypes) {
    const int64_t odd = HasBlocks(type) ? 0 : 3;
    for (const Layout layout : {Layout::kRows, Layout::kInterleaved}) {
      const auto cols = [&](int64_t n) { return WholeBlocks(type, n) + (layout == Layout::kRows ? odd : 0); };
      if (layout == Layout::kInterleaved && !CanInterleave(type, 16, WholeBlocks(type, 32))) continue;
      cases.push_back(ExpertBackwardCase(random, {type, 1, cols(64), cols(96), 5, 1, layout}));
      cases.push_back(
          ExpertBackwardCase(random, {type, 2, cols(64), cols(32), 4, 4, layout}));  // the second is padding
      cases.push_back(ExpertBackwardCase(random, {type, 40, cols(96), cols(64), 6, 2, layout}));
    }
  }
  RunTable(cases);
}

TEST(BackwardTable, RowsAndDeltas) {
  Random random(53);
  std::vector<OpCase> cases;
  for (const int64_t n : {1, 3, 8, 16, 17, 64, 127, 300, 1024}) {
    for (const int64_t rows : {1, 5, 40}) {
      cases.push_back(RmsNormBackwardCase(random, rows, n));
      if (n > 1) cases.push_back(RowDeltasCase(random, rows, n));
    }
    for (const double scale : {0.1, 1.0, 20.0, 100.0}) cases.push_back(SwiGluBackwardCase(random, 3, n, scale));
  }
  cases.push_back(LowRankCase(random, 1, 33, 17, 1, true));
  cases.push_back(LowRankCase(random, 7, 64, 100, 4, false));
  cases.push_back(LowRankCase(random, 70, 300, 515, 8, true));
  cases.push_back(LowRankCase(random, 33, 48, 40, kMaxRank, true));
  cases.push_back(LowRankCase(random, 50, 140, 1300, 24, true));  // wider than what is taken in one piece
  for (const int64_t n : {1, 7, 16, 300, 5000}) {
    for (const double damping : {0.0, 3.0}) cases.push_back(AdamCase(random, n, damping));
  }
  for (const bool normalise : {false, true}) {
    cases.push_back(SlotWeightsCase(random, 9, 8, 3, normalise));
    cases.push_back(SlotWeightsCase(random, 70, 60, 8, normalise));
  }
  RunTable(cases);
}

TEST(BackwardTable, Loss) {
  Random random(54);
  std::vector<OpCase> cases;
  for (const LossKind kind : {LossKind::kNll, LossKind::kEntropy}) {
    for (const int64_t vocab : {2, 7, 16, 33, 1000, 50000}) {
      for (const double spread : {0.5, 4.0, 40.0})
        cases.push_back(LossCase(random, kind, vocab == 50000 ? 3 : 5, vocab, spread));
    }
  }
  RunTable(cases);
}

TEST(BackwardTable, Attention) {
  Random random(55);
  std::vector<OpCase> cases;
  for (const AttentionShape& shape :
       {AttentionShape{1, 1, 16, {{0, 1}}}, AttentionShape{2, 1, 24, {{0, 7}}}, AttentionShape{4, 4, 32, {{15, 2}}},
        AttentionShape{4, 2, 40, {{31, 3}}}, AttentionShape{8, 2, 64, {{0, 70}}}, AttentionShape{6, 2, 80, {{13, 37}}},
        AttentionShape{5, 1, 17, {{3, 33}}}, AttentionShape{7, 7, 96, {{200, 17}}},
        AttentionShape{8, 1, 128, {{250, 33}}}, AttentionShape{40, 1, 16, {{18, 5}}}}) {
    cases.push_back(AttentionBackwardCase(random, shape));
  }
  RunTable(cases);
}

// Gates and ups that a forward pass keeps are those that ExpertInner computes, for the rows that were asked for.
TEST(BackwardTable, KeptInnerIsWhatExpertInnerComputes) {
  for (const DType type : {DType::kF32, DType::kQ8_0, DType::kNested8, DType::kQ4K}) {
    for (const Layout layout : {Layout::kRows, Layout::kInterleaved}) {
      if (layout == Layout::kInterleaved && type == DType::kF32) continue;
      Random random(56);
      const std::shared_ptr<ExpertFixture> f =
          MakeExperts(random, {type, 17, WholeBlocks(type, 64), WholeBlocks(type, 96), 6, 3, layout});
      const ExpertShape& s = f->shape;
      const int64_t slots = s.tokens * s.slots, first = 4, rows = 9;
      for (const Implementation& implementation : AllImplementations()) {
        std::vector<float> inner(static_cast<size_t>(slots * s.width)), slot_out(static_cast<size_t>(slots * s.hidden)),
            out = f->before;
        std::vector<float> kept_gate(static_cast<size_t>(rows * s.slots * s.width), 5.0f), kept_up(kept_gate);
        implementation.ops->ExpertFfn(
            {ViewOf(f->x, s.tokens), f->experts, &f->selection.view, ViewOf(inner, slots), ViewOf(slot_out, slots),
             ViewOf(out, s.tokens), ViewOf(kept_gate, rows * s.slots), ViewOf(kept_up, rows * s.slots), first, rows});
        EXPECT_EQ(out, RunExperts(*implementation.ops, *f)) << implementation.name;
        std::vector<float> gate(static_cast<size_t>(slots * s.width), 5.0f), up(gate);
        implementation.ops->ExpertInner(
            {ViewOf(f->x, s.tokens), f->experts, &f->selection.view, ViewOf(gate, slots), ViewOf(up, slots)});
        const auto begin = first * s.slots * s.width, end = begin + rows * s.slots * s.width;
        EXPECT_TRUE(std::equal(kept_gate.begin(), kept_gate.end(), gate.begin() + begin, gate.begin() + end))
            << implementation.name;
        EXPECT_TRUE(std::equal(kept_up.begin(), kept_up.end(), up.begin() + begin, up.begin() + end))
            << implementation.name;
      }
    }
  }
}

// A row of dx depends on its own row of dy alone, and on no team: a row alone is the row among 70, to the bit.
TEST(BackwardTable, LinearDoesNotDependOnTokensOrThreads) {
  for (const DType type : kAllTypes) {
    for (const Layout layout : {Layout::kRows, Layout::kInterleaved}) {
      const int64_t cols = WholeBlocks(type, 288), rows = 144, tokens = 70;
      if (layout == Layout::kInterleaved && !CanInterleave(type, rows, cols)) continue;
      Random random(57);
      const std::shared_ptr<Matrix> m = RandomMatrix(random, type, rows, cols, layout);
      const std::vector<float> dy = RandomFloats(random, tokens * rows);
      for (const std::string& isa : SupportedIsas()) {
        std::vector<float> together;
        for (const int team : {1, 3}) {
          ThreadPool threads(team);
          const std::unique_ptr<Ops> ops = MakeCpuOps(&threads, isa).value();
          std::vector<float> dx(static_cast<size_t>(tokens * cols), 0.0f);
          ops->LinearBackward({ViewOf(dy, tokens), m->view, ViewOf(dx, tokens)});
          if (together.empty()) together = dx;
          EXPECT_EQ(dx, together) << isa << " " << TraitsOf(type).name << ", " << team << " threads";
          for (const int64_t t : {0, 5, 69}) {
            std::vector<float> one(static_cast<size_t>(cols), 0.0f);
            ops->LinearBackward({{dy.data() + t * rows, 1, rows}, m->view, ViewOf(one, 1)});
            EXPECT_TRUE(std::equal(one.begin(), one.end(), together.begin() + t * cols))
                << isa << " " << TraitsOf(type).name << " token " << t;
          }
        }
      }
    }
  }
}

TEST(BackwardTable, ResultsDoNotDependOnThreads) {
  Random random(58);
  std::vector<OpCase> cases;
  for (const Layout layout : {Layout::kRows, Layout::kInterleaved}) {
    cases.push_back(ExpertBackwardCase(random, {DType::kNested8, 60, 128, 96, 5, 3, layout}));
  }
  cases.push_back(AttentionBackwardCase(random, {6, 3, 40, {{40, 60}}}));
  cases.push_back(LowRankCase(random, 70, 300, 515, 8, true));
  cases.push_back(LowRankCase(random, 50, 140, 1300, 24, true));
  cases.push_back(AdamCase(random, 30000, 3.0));
  cases.push_back(RowDeltasCase(random, 60, 1030));
  cases.push_back(LossCase(random, LossKind::kNll, 12, 3000, 3));
  for (const std::string& isa : SupportedIsas()) {
    ThreadPool one_thread(1), three_threads(3);
    const std::unique_ptr<Ops> one = MakeCpuOps(&one_thread, isa).value(),
                               three = MakeCpuOps(&three_threads, isa).value();
    for (const OpCase& c : cases) EXPECT_EQ(c.run(*one), c.run(*three)) << isa << " " << c.name;
  }
}

// Gradients of loss tails underflow; those of a hostile file may be anything. Neither spoils other rows.
TEST(BackwardTable, TinyAndInfiniteGradientsStayInTheirRows) {
  Random random(59);
  const std::shared_ptr<Matrix> m = RandomMatrix(random, DType::kQ8_0, 64, 64, Layout::kInterleaved);
  std::vector<float> dy = RandomFloats(random, 3 * 64);
  std::fill_n(dy.begin(), 64, 1e-42f);
  std::vector<float> infinite = dy;
  infinite[64] = std::numeric_limits<float>::infinity();
  infinite[2 * 64 - 3] = std::numeric_limits<float>::quiet_NaN();
  for (const Implementation& implementation : CpuImplementations({1})) {
    std::vector<float> dx(3 * 64, 0.0f), other(3 * 64, 0.0f);
    implementation.ops->LinearBackward({ViewOf(dy, 3), m->view, ViewOf(dx, 3)});
    implementation.ops->LinearBackward({ViewOf(infinite, 3), m->view, ViewOf(other, 3)});
    for (int i = 0; i < 64; ++i) {
      EXPECT_LT(std::fabs(dx[static_cast<size_t>(i)]), 1e-38) << implementation.name;
      EXPECT_FALSE(std::isfinite(other[static_cast<size_t>(64 + i)])) << implementation.name;
      EXPECT_EQ(dx[static_cast<size_t>(128 + i)], other[static_cast<size_t>(128 + i)]) << implementation.name;
    }
  }
}

}  // namespace
}  // namespace thermoe::kernels
