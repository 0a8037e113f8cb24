// SPDX-License-Identifier: Apache-2.0
// What the contract promises to the bit: a row's result does not depend on the rows, tokens, tiles, threads or batch it
// is computed with; and both planes of a nested expert are its 8-bit original.
#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

#include "kernels/attention_cases.h"
#include "kernels/expert_cases.h"
#include "kernels/op_cases.h"
#include "kernels/op_table.h"

namespace thermoe::kernels {
namespace {

bool SameBits(const float* a, const float* b, int64_t n) {
  return std::memcmp(a, b, static_cast<size_t>(n) * sizeof(float)) == 0;
}

std::vector<float> RunLinear(const Ops& ops, const WeightMatrix& weight, const float* x, int64_t tokens,
                             std::span<const float> bias) {
  std::vector<float> out(static_cast<size_t>(tokens * weight.rows), kPoison);
  ops.Linear({{x, tokens, weight.cols}, weight, bias, {out.data(), tokens, weight.rows}});
  return out;
}

// Rows [first, first + rows) as a matrix of their own.
WeightMatrix Slice(const WeightMatrix& m, int64_t first, int64_t rows) {
  return {m.type, rows, m.cols, m.row(first), m.lo == nullptr ? nullptr : m.lo_row(first)};
}

constexpr int64_t kMostTokens = 70, kMatrixRows = 197;

int64_t ColsFor(DType type) { return TraitsOf(type).block_elements > 1 ? WholeBlocks(type, 544) : 549; }

TEST(FixedOrder, LinearDoesNotDependOnTokensOrThreads) {
  for (const DType type : kAllTypes) {
    Random random(11);
    const int64_t cols = ColsFor(type);
    const std::shared_ptr<Matrix> m = RandomMatrix(random, type, kMatrixRows, cols);
    const std::vector<float> x = RandomFloats(random, kMostTokens * cols), bias = RandomFloats(random, kMatrixRows);
    for (const std::string& isa : SupportedIsas()) {
      std::vector<float> alone;  // [tokens, rows], each token computed by itself
      for (const int team : {1, 3}) {
        ThreadPool threads(team);
        const std::unique_ptr<Ops> ops = MakeCpuOps(&threads, isa).value();
        if (alone.empty()) {
          for (int64_t t = 0; t < kMostTokens; ++t) {
            const std::vector<float> one = RunLinear(*ops, m->view, x.data() + t * cols, 1, bias);
            alone.insert(alone.end(), one.begin(), one.end());
          }
        }
        for (const int64_t tokens : {1, 2, 3, 4, 5, 6, 7, 8, 11, 64, 70}) {
          for (const int64_t first : {int64_t{0}, kMostTokens - tokens}) {
            const std::vector<float> got = RunLinear(*ops, m->view, x.data() + first * cols, tokens, bias);
            EXPECT_TRUE(SameBits(got.data(), alone.data() + first * kMatrixRows, tokens * kMatrixRows))
                << isa << " " << TraitsOf(type).name << ": tokens " << first << " + " << tokens << ", " << team
                << " threads";
          }
        }
      }
    }
  }
}

TEST(FixedOrder, LinearDoesNotDependOnThePlaceInATile) {
  for (const DType type : kAllTypes) {
    Random random(12);
    const int64_t cols = ColsFor(type);
    const std::shared_ptr<Matrix> m = RandomMatrix(random, type, kMatrixRows, cols);
    const std::vector<float> x = RandomFloats(random, 9 * cols);
    for (const Implementation& implementation : CpuImplementations({2})) {
      for (const int64_t tokens : {1, 2, 4, 9}) {
        const std::vector<float> whole = RunLinear(*implementation.ops, m->view, x.data(), tokens, {});
        for (const int64_t first : {1, 2, 3, 5, 100}) {
          for (const int64_t rows : {1, 2, 7, 97}) {
            const std::vector<float> part =
                RunLinear(*implementation.ops, Slice(m->view, first, rows), x.data(), tokens, {});
            for (int64_t t = 0; t < tokens; ++t) {
              ASSERT_TRUE(SameBits(part.data() + t * rows, whole.data() + t * kMatrixRows + first, rows))
                  << implementation.name << " " << TraitsOf(type).name << ": rows " << first << " + " << rows
                  << ", T=" << tokens;
            }
          }
        }
      }
    }
  }
}

// Decoding in registers is DecodeRow to the bit: the product with decoded float weights is the same.
TEST(FixedOrder, DecodedWeightsAreThoseOfDecodeRow) {
  for (const DType type : kAllTypes) {
    Random random(13);
    const int64_t cols = ColsFor(type);
    const std::shared_ptr<Matrix> m = RandomMatrix(random, type, 37, cols);
    const std::vector<float> decoded = ToFloats(m->both), x = RandomFloats(random, 9 * cols);
    const WeightMatrix as_floats{DType::kF32, 37, cols, reinterpret_cast<const std::byte*>(decoded.data()), nullptr};
    for (const Implementation& implementation : CpuImplementations({1})) {
      for (const int64_t tokens : {1, 2, 3, 4, 9}) {
        EXPECT_EQ(RunLinear(*implementation.ops, m->view, x.data(), tokens, {}),
                  RunLinear(*implementation.ops, as_floats, x.data(), tokens, {}))
            << implementation.name << " " << TraitsOf(type).name << " T=" << tokens;
      }
    }
  }
}

// Random codes, the scale's extremes included; q8 and nested hold the same.
struct Pair {
  Matrix q8, nested;
};
Pair SameCodes(Random& random, int64_t rows, int64_t cols) {
  Pair pair;
  const int64_t blocks = rows * cols / kQuantBlock;
  std::vector<BlockQ8_0> codes(static_cast<size_t>(blocks));
  for (BlockQ8_0& block : codes) {
    block.d = static_cast<uint16_t>(random.Below(0x3c00));  // below 1, subnormals included
    for (int8_t& code : block.codes) code = static_cast<int8_t>(static_cast<int>(random.Below(255)) - 127);
  }
  std::vector<NestedHi> hi(codes.size());
  std::vector<NestedLo> lo(codes.size());
  SplitPlanes(codes.data(), blocks, hi.data(), lo.data());
  const auto bytes = [](const auto& values) {
    std::vector<std::byte> copy(values.size() * sizeof(values[0]));
    std::memcpy(copy.data(), values.data(), copy.size());
    return copy;
  };
  pair.q8.data = bytes(codes);
  pair.nested.data = bytes(hi);
  pair.nested.lo = bytes(lo);
  pair.q8.view = {DType::kQ8_0, rows, cols, pair.q8.data.data(), nullptr};
  pair.nested.view = {DType::kNested8, rows, cols, pair.nested.data.data(), pair.nested.lo.data()};
  return pair;
}

TEST(FixedOrder, BothPlanesAreQ8) {
  Random random(14);
  const Pair pair = SameCodes(random, 67, 512);
  const std::vector<float> x = RandomFloats(random, 9 * 512);
  for (const Implementation& implementation : AllImplementations()) {
    for (const int64_t tokens : {1, 2, 3, 4, 5, 9}) {
      const std::vector<float> q8 = RunLinear(*implementation.ops, pair.q8.view, x.data(), tokens, {});
      const std::vector<float> nested = RunLinear(*implementation.ops, pair.nested.view, x.data(), tokens, {});
      EXPECT_TRUE(SameBits(q8.data(), nested.data(), tokens * 67)) << implementation.name << " T=" << tokens;
    }
  }
}

// One token of a fixture with its own slots, as a step of its own.
std::shared_ptr<ExpertFixture> OnlyToken(const ExpertFixture& f, size_t t) {
  auto one = std::make_shared<ExpertFixture>();
  one->shape = f.shape;
  one->shape.tokens = 1;
  one->experts = f.experts;
  const auto hidden = static_cast<size_t>(f.shape.hidden), slots = static_cast<size_t>(f.shape.slots);
  one->x.assign(f.x.begin() + static_cast<int64_t>(t * hidden), f.x.begin() + static_cast<int64_t>((t + 1) * hidden));
  one->before.assign(f.before.begin() + static_cast<int64_t>(t * hidden),
                     f.before.begin() + static_cast<int64_t>((t + 1) * hidden));
  for (size_t at = t * slots; at < (t + 1) * slots; ++at) {
    one->selection.expert.push_back(f.selection.expert[at]);
    one->selection.weight.push_back(f.selection.weight[at]);
    one->selection.planes.push_back(f.selection.planes[at]);
  }
  one->selection.Group(1, f.shape.slots);
  return one;
}

TEST(FixedOrder, ExpertsDoNotDependOnOtherTokens) {
  for (const DType type : kAllTypes) {
    Random random(15);
    const std::shared_ptr<ExpertFixture> f = MakeExperts(random, {type, 23, WholeBlocks(type, 96), WholeBlocks(type, 160), 5, 4});
    for (const std::string& isa : SupportedIsas()) {
      ThreadPool one_thread(1), three_threads(3);
      const std::unique_ptr<Ops> one = MakeCpuOps(&one_thread, isa).value(),
                                 three = MakeCpuOps(&three_threads, isa).value();
      const std::vector<float> together = RunExperts(*three, *f);
      EXPECT_EQ(together, RunExperts(*one, *f)) << isa << " " << TraitsOf(type).name;
      for (size_t t = 0; t < 23; ++t) {
        const std::vector<float> alone = RunExperts(*three, *OnlyToken(*f, t));
        EXPECT_TRUE(SameBits(alone.data(), together.data() + static_cast<int64_t>(t) * f->shape.hidden, f->shape.hidden))
            << isa << " " << TraitsOf(type).name << " token " << t;
      }
    }
  }
}

TEST(FixedOrder, ExpertsOfBothPlanesAreQ8) {
  Random random(16);
  std::vector<Pair> matrices;
  for (int i = 0; i < 12; ++i) matrices.push_back(SameCodes(random, i % 3 == 2 ? 64 : 96, i % 3 == 2 ? 96 : 64));
  const std::shared_ptr<ExpertFixture> f = MakeExperts(random, {DType::kF32, 9, 64, 96, 4, 3});
  ExpertFixture nested = *f;
  nested.selection.Group(0, 3);  // views of the copy's own storage
  nested.selection = OwnedSelection();
  nested.selection.expert = f->selection.expert;
  nested.selection.weight = f->selection.weight;
  nested.selection.planes = f->selection.planes;
  nested.selection.Group(9, 3);
  for (size_t e = 0; e < 4; ++e) {
    f->experts[e] = {matrices[3 * e].q8.view, matrices[3 * e + 1].q8.view, matrices[3 * e + 2].q8.view};
    nested.experts[e] = {matrices[3 * e].nested.view, matrices[3 * e + 1].nested.view, matrices[3 * e + 2].nested.view};
  }
  for (const Implementation& implementation : AllImplementations()) {
    const std::vector<float> q8 = RunExperts(*implementation.ops, *f), both = RunExperts(*implementation.ops, nested);
    EXPECT_TRUE(SameBits(q8.data(), both.data(), static_cast<int64_t>(q8.size()))) << implementation.name;
  }
}

TEST(FixedOrder, AttentionDoesNotDependOnChunkingOrNeighbours) {
  for (const auto& [heads, kv_heads, dim] : {std::array{4, 4, 64}, std::array{8, 2, 40}, std::array{8, 1, 128}}) {
    Random random(17);
    const std::shared_ptr<AttentionFixture> f =
        MakeAttention(random, {heads, kv_heads, dim, {{5, 70}, {33, 1}, {0, 18}, {160, 2}}});
    for (const std::string& isa : SupportedIsas()) {
      ThreadPool one_thread(1), three_threads(3);
      const std::unique_ptr<Ops> one = MakeCpuOps(&one_thread, isa).value(),
                                 three = MakeCpuOps(&three_threads, isa).value();
      const std::vector<float> together = RunAttention(*three, *f);
      EXPECT_EQ(together, RunAttention(*one, *f)) << isa;
      AttentionFixture part = *f;
      for (const size_t step : {size_t{1}, size_t{3}, size_t{17}}) {
        for (size_t first = 0; first < f->rows.size(); first += step) {
          const size_t last = std::min(first + step, f->rows.size());
          const auto cols = static_cast<size_t>(f->q_cols());
          part.rows.assign(f->rows.begin() + static_cast<int64_t>(first), f->rows.begin() + static_cast<int64_t>(last));
          part.q.assign(f->q.begin() + static_cast<int64_t>(first * cols),
                        f->q.begin() + static_cast<int64_t>(last * cols));
          const std::vector<float> got = RunAttention(*three, part);
          ASSERT_TRUE(SameBits(got.data(), together.data() + first * cols, static_cast<int64_t>(got.size())))
              << isa << " rows from " << first << " by " << step;
        }
      }
    }
  }
}

TEST(FixedOrder, RowOperationsDoNotDependOnOtherRows) {
  Random random(18);
  constexpr int64_t kWide = 517;
  const std::vector<float> x = RandomFloats(random, 70 * kWide), gain = RandomFloats(random, kWide),
                           up = RandomFloats(random, 70 * kWide);
  for (const Implementation& implementation : CpuImplementations({1, 3})) {
    std::vector<float> norm(x.size(), kPoison), swiglu(x.size(), kPoison);
    implementation.ops->RmsNorm({{x.data(), 70, kWide}, gain, 1e-6f, {norm.data(), 70, kWide}});
    implementation.ops->SwiGlu({{x.data(), 70, kWide}, {up.data(), 70, kWide}, {swiglu.data(), 70, kWide}});
    for (int64_t t = 0; t < 70; ++t) {
      std::vector<float> one(kWide, kPoison);
      implementation.ops->RmsNorm({{x.data() + t * kWide, 1, kWide}, gain, 1e-6f, {one.data(), 1, kWide}});
      EXPECT_TRUE(SameBits(one.data(), norm.data() + t * kWide, kWide)) << implementation.name;
      implementation.ops->SwiGlu(
          {{x.data() + t * kWide, 1, kWide}, {up.data() + t * kWide, 1, kWide}, {one.data(), 1, kWide}});
      EXPECT_TRUE(SameBits(one.data(), swiglu.data() + t * kWide, kWide)) << implementation.name;
    }
    // A lane's place in a vector does not matter either.
    std::vector<float> shifted(kWide - 3, kPoison);
    implementation.ops->SwiGlu(
        {{x.data() + 3, 1, kWide - 3}, {up.data() + 3, 1, kWide - 3}, {shifted.data(), 1, kWide - 3}});
    EXPECT_TRUE(SameBits(shifted.data(), swiglu.data() + 3, kWide - 3)) << implementation.name;
  }
}

}  // namespace
}  // namespace thermoe::kernels
