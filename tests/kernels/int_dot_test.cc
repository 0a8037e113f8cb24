// SPDX-License-Identifier: Apache-2.0
// The integer kernels: interleaved weights of every quantised type times activations quantised by blocks of 32.
#include <gtest/gtest.h>

#include <cstring>

#include "kernels/expert_cases.h"
#include "kernels/op_cases.h"

namespace thermoe::kernels {
namespace {

constexpr DType kIntTypes[] = {DType::kQ8_0, DType::kQ4_0, DType::kQ5_0,  DType::kQ5_1,  DType::kQ4K,
                               DType::kQ5K,  DType::kQ6K,  DType::kIQ4NL, DType::kMXFP4, DType::kNested8};
static_assert(std::size(kIntTypes) == kDTypes - 3);  // all but floats

std::string Name(DType type) { return std::string(TraitsOf(type).name) + " interleaved"; }

// Where a value is scale * code - minimum, what is rounded is larger than the value: codes up to 15 or 31 on a minimum of some
// standard deviations.
double MinimumFactor(DType type) { return type == DType::kQ5_1 || type == DType::kQ4K || type == DType::kQ5K ? 10 : 1; }

std::vector<float> RunLinear(const Ops& ops, const WeightMatrix& m, const float* x, int64_t tokens, const std::vector<float>& bias) {
  std::vector<float> out(static_cast<size_t>(tokens * m.rows), kPoison);
  ops.Linear({{x, tokens, m.cols}, m, bias, {out.data(), tokens, m.rows}});
  return out;
}

// The activations that the kernels work with: round(x * 127 / largest) * largest / 127, by blocks of 32.
std::vector<double> Quantised(const std::vector<float>& x) {
  std::vector<double> q(x.size());
  for (size_t at = 0; at < x.size(); at += 32) {
    float most = 0;
    for (size_t i = at; i < at + 32; ++i) most = std::max(most, std::fabs(x[i]));
    const float inverse = most > 0 ? 127.0f / most : 0.0f;
    for (size_t i = at; i < at + 32; ++i) q[i] = std::nearbyint(x[i] * inverse) * static_cast<double>(most / 127.0f);
  }
  return q;
}

TEST(IntDot, IsTheProductWithQuantisedActivations) {
  Random random(31);
  for (const DType type : kIntTypes) {
    for (const int64_t rows : {16, 48, 432}) {
      for (const int64_t least_cols : {32, 64, 96, 544}) {
        const int64_t cols = WholeBlocks(type, least_cols);
        const std::shared_ptr<Matrix> m = RandomMatrix(random, type, rows, cols, Layout::kInterleaved);
        for (const int64_t tokens : {1, 2, 3, 5, 8, 9, 17, 33}) {
          std::vector<float> x = RandomFloats(random, tokens * cols), bias = RandomFloats(random, rows);
          std::fill_n(x.begin(), 32, 0.0f);  // a block of zeros has scale 0
          const std::vector<double> q = Quantised(x);
          for (const Implementation& implementation : CpuImplementations({2})) {
            const std::vector<float> got = RunLinear(*implementation.ops, m->view, x.data(), tokens, bias);
            for (int64_t t = 0; t < tokens; ++t) {
              for (int64_t r = 0; r < rows; ++r) {
                const DotSum dot = DotInDouble(m->both, r, q.data() + t * cols, cols);
                const double b = bias[static_cast<size_t>(r)];
                // Per block: two scales, their product and two sums are rounded; blocks and the bias are added.
                const double bound = MinimumFactor(type) * (static_cast<double>(cols) / 32 + 6) * kUnit * (dot.magnitude + std::fabs(b));
                ASSERT_NEAR(got[static_cast<size_t>(t * rows + r)], dot.sum + b, bound)
                    << implementation.name << " " << Name(type) << " " << Shape({tokens, rows, cols}) << " at " << t << ", " << r;
              }
            }
          }
        }
      }
    }
  }
}

TEST(IntDot, DoesNotDependOnTokensOrThreads) {
  for (const DType type : kIntTypes) {
    Random random(32);
    const int64_t rows = 208, cols = WholeBlocks(type, 544), most = 40;
    const std::shared_ptr<Matrix> m = RandomMatrix(random, type, rows, cols, Layout::kInterleaved);
    const std::vector<float> x = RandomFloats(random, most * cols), bias = RandomFloats(random, rows);
    for (const std::string& isa : SupportedIsas()) {
      ThreadPool one_thread(1), three_threads(3);
      const std::unique_ptr<Ops> one = MakeCpuOps(&one_thread, isa).value(), three = MakeCpuOps(&three_threads, isa).value();
      std::vector<float> alone;
      for (int64_t t = 0; t < most; ++t) {
        const std::vector<float> y = RunLinear(*one, m->view, x.data() + t * cols, 1, bias);
        alone.insert(alone.end(), y.begin(), y.end());
      }
      for (const int64_t tokens : {1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 40}) {
        for (const int64_t first : {int64_t{0}, most - tokens}) {
          for (const Ops* ops : {one.get(), three.get()}) {
            const std::vector<float> got = RunLinear(*ops, m->view, x.data() + first * cols, tokens, bias);
            ASSERT_EQ(std::memcmp(got.data(), alone.data() + first * rows, got.size() * sizeof(float)), 0)
                << isa << " " << Name(type) << ": tokens " << first << " + " << tokens;
          }
        }
      }
    }
  }
}

// Every code with every scale: the planes give the bits of Q8_0.
TEST(IntDot, BothPlanesAreQ8) {
  Random random(33);
  const int64_t rows = 64, cols = 512, row_bytes = RowBytes(DType::kQ8_0, cols);
  std::vector<BlockQ8_0> blocks(static_cast<size_t>(rows * cols / 32));
  for (BlockQ8_0& block : blocks) {
    block.d = static_cast<uint16_t>(random.Below(0x3c00));
    for (int8_t& code : block.codes) code = static_cast<int8_t>(random.Next());  // -128 too, as files may have it
  }
  const int64_t q8_bytes = InterleavedGroupBytes(DType::kQ8_0, cols), hi_bytes = InterleavedGroupBytes(DType::kNested8, cols);
  std::vector<std::byte> q8(static_cast<size_t>(rows / 16 * q8_bytes)), hi(static_cast<size_t>(rows / 16 * hi_bytes));
  std::vector<std::byte> lo(static_cast<size_t>(rows * NestedLoRowBytes(cols)));
  for (int64_t g = 0; g < rows / 16; ++g) {
    const std::byte* from = reinterpret_cast<const std::byte*>(blocks.data()) + g * 16 * row_bytes;
    InterleaveGroup(DType::kQ8_0, from, row_bytes, cols, q8.data() + g * q8_bytes);
    InterleavePlanes(from, row_bytes, cols, hi.data() + g * hi_bytes, lo.data() + g * 16 * NestedLoRowBytes(cols));
  }
  const std::vector<float> x = RandomFloats(random, 9 * cols);
  for (const Implementation& implementation : CpuImplementations({2})) {
    for (const int64_t tokens : {1, 2, 4, 9}) {
      EXPECT_EQ(RunLinear(*implementation.ops, {DType::kQ8_0, rows, cols, q8.data(), nullptr, Layout::kInterleaved}, x.data(), tokens, {}),
                RunLinear(*implementation.ops, {DType::kNested8, rows, cols, hi.data(), lo.data(), Layout::kInterleaved}, x.data(), tokens, {}))
          << implementation.name << " T=" << tokens;
    }
  }
}

// Of what the experts added, in norm.
double RelativeError(const ExpertFixture& f, const std::vector<float>& got, const std::vector<float>& want) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    error += std::pow(static_cast<double>(got[i]) - want[i], 2);
    norm += std::pow(static_cast<double>(want[i]) - f.before[i], 2);
  }
  return std::sqrt(error / norm);
}

// Quantising activations errs by at most half a step, on average by 1 / (127 sqrt(12)) of a block's largest value, some 0.7 % of
// the typical one; through gate, up and down together below 2 % of the output's norm. A wrong lane or plane is 10 % or more.
TEST(IntDot, ExpertsAgreeWithTheReference) {
  Random random(34);
  const std::unique_ptr<Ops> reference = MakeReferenceOps();
  for (const DType type : kIntTypes) {
    for (ExpertShape shape : {ExpertShape{type, 1, 64, 96, 5, 1}, {type, 1, 160, 64, 12, 8}, {type, 7, 96, 64, 20, 3},
                              {type, 70, 64, 96, 6, 2}, {type, 23, 256, 160, 5, 4}}) {
      shape.hidden = WholeBlocks(type, shape.hidden);
      shape.width = WholeBlocks(type, shape.width);
      shape.layout = Layout::kInterleaved;
      const std::shared_ptr<ExpertFixture> f = MakeExperts(random, shape);
      const std::vector<float> want = RunExperts(*reference, *f);
      for (const Implementation& implementation : CpuImplementations({1, 3})) {
        const std::vector<float> got = RunExperts(*implementation.ops, *f);
        const double error = RelativeError(*f, got, want);
        EXPECT_LT(error, 0.02) << implementation.name << " " << Name(type) << " T=" << shape.tokens;
        EXPECT_GT(error, 0) << "quantised activations cannot be exact";
      }
    }
  }
}

// Experts of a layer may differ in type: each matrix meets its own kernel.
TEST(IntDot, MixedTypesInOneLayer) {
  Random random(35);
  const std::shared_ptr<ExpertFixture> f = MakeExperts(random, {DType::kF32, 9, 96, 64, 4, 2});
  const std::shared_ptr<Matrix> up = RandomMatrix(random, DType::kQ8_0, 64, 96, Layout::kInterleaved);
  const std::shared_ptr<Matrix> down = RandomMatrix(random, DType::kMXFP4, 96, 64, Layout::kInterleaved);
  f->experts[1].up = up->view;
  f->experts[2].down = down->view;
  const std::vector<float> want = RunExperts(*MakeReferenceOps(), *f);
  for (const Implementation& implementation : CpuImplementations({2})) {
    EXPECT_LT(RelativeError(*f, RunExperts(*implementation.ops, *f), want), 0.02) << implementation.name;
  }
}

}  // namespace
}  // namespace thermoe::kernels
