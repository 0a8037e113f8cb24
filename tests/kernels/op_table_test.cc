// SPDX-License-Identifier: Apache-2.0
// Every operation on every backend, instruction set and two thread teams, against the formula in double. The reference
// is held to the same bounds: it is the specification, and this is its test.
#include "kernels/op_table.h"

#include <cstdio>

#include "kernels/attention_cases.h"
#include "kernels/expert_cases.h"
#include "kernels/op_cases.h"

namespace thermoe::kernels {
namespace {

// Sizes around the widths, tiles and blocks that kernels have: 4, 6, 8, 16, 32.
constexpr int64_t kTokens[] = {1, 2, 3, 4, 5, 6, 7, 9, 13, 31, 70};
constexpr int64_t kRows[] = {1, 3, 4, 7, 8, 9, 15, 31, 33, 100};
constexpr int64_t kFloatCols[] = {1, 5, 16, 17, 31, 32, 33, 65, 100, 301};
constexpr int64_t kBlockCols[] = {32, 64, 96, 160, 512};

template <size_t kCount>
int64_t Pick(Random& random, const int64_t (&from)[kCount]) {
  return from[random.Below(kCount)];
}

bool HasBlocks(DType type) { return TraitsOf(type).block_elements > 1; }

int64_t PickCols(Random& random, DType type) {
  return HasBlocks(type) ? WholeBlocks(type, Pick(random, kBlockCols)) : Pick(random, kFloatCols);
}

void RunTable(const std::vector<OpCase>& cases) {
  for (const OpCase& c : cases) ExpectVaries(c);
  for (const Implementation& implementation : AllImplementations()) {
    for (const OpCase& c : cases) {
      ExpectWithinBounds(c, implementation.name, c.run(*implementation.ops));
      // Again on the same object: scratch left by other shapes must not matter.
      ExpectWithinBounds(c, implementation.name + " again", c.run(*implementation.ops));
    }
    std::printf("[          ] %zu cases on %s\n", cases.size(), implementation.name.c_str());
  }
}

TEST(OpTable, RmsNorm) {
  Random random(1);
  std::vector<OpCase> cases;
  for (const int64_t n : {1, 3, 8, 15, 16, 64, 65, 127, 128, 300, 2048}) {
    for (const int64_t rows : {1, 3, 40}) cases.push_back(RmsNormCase(random, rows, n, (n + rows) % 2 == 0));
  }
  RunTable(cases);
}

TEST(OpTable, Linear) {
  Random random(2);
  std::vector<OpCase> cases;
  for (const DType type : kAllTypes) {
    for (const int64_t tokens : kTokens) {
      for (int i = 0; i < 3; ++i) {
        cases.push_back(
            LinearCase(random, type, tokens, Pick(random, kRows), PickCols(random, type), random.Below(2) == 1));
      }
    }
    // Large enough that the work is shared between threads and cut into several tiles.
    for (const int64_t tokens : {1, 3, 8, 33}) {
      cases.push_back(LinearCase(random, type, tokens, 421, HasBlocks(type) ? 512 : 501, tokens % 2 == 1));
    }
  }
  RunTable(cases);
}

TEST(OpTable, Rope) {
  Random random(3);
  std::vector<OpCase> cases;
  for (const RopeKind kind : {RopeKind::kHalves, RopeKind::kInterleaved}) {
    for (const int32_t head_dim : {16, 24, 64, 80, 128}) {
      for (const int32_t rope_dim : {head_dim, head_dim / 2, 2}) {
        cases.push_back(RopeCase(random, kind, 1 + static_cast<int64_t>(random.Below(9)),
                                 1 + static_cast<int32_t>(random.Below(5)), head_dim, rope_dim));
      }
    }
  }
  RunTable(cases);
}

TEST(OpTable, SwiGlu) {
  Random random(4);
  std::vector<OpCase> cases;
  for (const double scale : {0.1, 1.0, 20.0, 100.0}) {
    for (const int64_t n : {1, 7, 16, 17, 100, 1023})
      cases.push_back(SwiGluCase(random, 1 + static_cast<int64_t>(random.Below(9)), n, scale));
  }
  RunTable(cases);
}

TEST(OpTable, Add) {
  Random random(5);
  std::vector<OpCase> cases;
  for (const int64_t n : {1, 7, 16, 33, 1000}) {
    for (const bool gated : {false, true})
      cases.push_back(AddCase(random, 1 + static_cast<int64_t>(random.Below(70)), n, gated));
  }
  RunTable(cases);
}

TEST(OpTable, Clamp) {
  Random random(10);
  std::vector<OpCase> cases;
  for (const float limit : {0.5f, 2.0f, 100.0f}) {
    for (const int64_t n : {1, 7, 16, 33, 1000})
      cases.push_back(ClampCase(random, 1 + static_cast<int64_t>(random.Below(9)), n, limit));
  }
  RunTable(cases);
  // What is not a number must reach the check of the logits, not become a limit.
  for (const Implementation& implementation : AllImplementations()) {
    float x[] = {kPoison, 3.0f};
    implementation.ops->Clamp({x, 1, 2}, 1.0f);
    EXPECT_TRUE(std::isnan(x[0])) << implementation.name;
    EXPECT_EQ(x[1], 1.0f) << implementation.name;
  }
}

TEST(OpTable, Embed) {
  Random random(6);
  std::vector<OpCase> cases;
  for (const DType type : kAllTypes) {
    for (const int64_t tokens : {1, 5, 70})
      cases.push_back(EmbedCase(random, type, 50, tokens == 70 ? 512 : PickCols(random, type), tokens));
  }
  RunTable(cases);
}

// Positions at both ends of blocks, one row and many, sequences side by side, groups of 1 to 40 heads.
const AttentionShape kAttentionShapes[] = {
    {1, 1, 16, {{0, 1}}},
    {2, 1, 24, {{0, 7}}},
    {4, 4, 32, {{15, 1}, {16, 1}, {17, 1}}},
    {4, 2, 40, {{31, 3}, {0, 2}, {100, 1}}},
    {8, 2, 64, {{0, 70}}},
    {6, 2, 80, {{13, 37}, {47, 1}, {48, 1}}},
    {5, 1, 17, {{3, 33}}},
    {7, 7, 96, {{63, 2}, {200, 5}}},
    {8, 1, 128, {{0, 33}, {250, 1}}},
    {40, 1, 16, {{20, 3}}},
    {16, 4, 128, {{300, 1}, {5, 1}, {0, 20}}},
};

TEST(OpTable, Attention) {
  Random random(7);
  std::vector<OpCase> cases;
  for (const AttentionShape& shape : kAttentionShapes) cases.push_back(AttentionCase(random, shape));
  RunTable(cases);
}

TEST(OpTable, StoreKv) {
  Random random(8);
  std::vector<OpCase> cases;
  for (const AttentionShape& shape : kAttentionShapes) cases.push_back(StoreKvCase(random, shape));
  RunTable(cases);
}

TEST(OpTable, ExpertFfn) {
  Random random(9);
  std::vector<OpCase> cases;
  for (const DType type : kAllTypes) {
    const int64_t odd = HasBlocks(type) ? 0 : 3;
    const auto blocks = [&](int64_t cols) { return WholeBlocks(type, cols); };
    cases.push_back(ExpertCase(random, {type, 1, blocks(64), blocks(96), 5, 1}));
    cases.push_back(ExpertCase(random, {type, 1, blocks(160) + odd, blocks(64) + odd, 12, 8}));
    cases.push_back(ExpertCase(random, {type, 2, blocks(64), blocks(32), 4, 4}));  // the second is padding
    cases.push_back(ExpertCase(random, {type, 7, blocks(96) + odd, blocks(64), 20, 3}));
    cases.push_back(ExpertCase(random, {type, 70, blocks(64), blocks(96) + odd, 6, 2}));
    cases.push_back(ExpertCase(random, {type, 19, blocks(128), blocks(160), 2, 2}));
  }
  RunTable(cases);
}

}  // namespace
}  // namespace thermoe::kernels
