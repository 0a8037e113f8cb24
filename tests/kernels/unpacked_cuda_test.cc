// SPDX-License-Identifier: Apache-2.0
// Products of many rows with weights that are unpacked first (Hopper): against double arithmetic, to the bit against those that unpack for themselves, and
// to the bit the same whatever other rows there are.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "kernels/cuda/prefill.h"
#include "kernels/cuda/unpacked.h"
#include "kernels/on_device.h"
#include "kernels/op_cases.h"
#include "kernels/repeated_rows.h"

namespace thermoe::cuda {
namespace {

using kernels::RandomFloats;

class CudaUnpacked : public HopperTest {};

// A packed matrix of such rows.
struct Repeated {
  Repeated(Random& random, DType type, int32_t of_rows, int32_t of_cols, bool with_bias)
      : rows(of_rows), cols(of_cols), bias(RandomFloats(random, with_bias ? rows : 0)), weights(random, type, cols), on_bias(bias), packed(weights.Packed(rows, 0)) {}

  int32_t rows, cols;
  std::vector<float> bias;
  RepeatedRows weights;
  OnDevice<float> on_bias;
  OnDevice<std::byte> packed;
};

using Outs = std::vector<std::vector<float>>;

// Of rows of x from first on; one more row behind each output stays as it is. unpacked: by way of scratch, else each block for itself.
Outs Products(const std::vector<const Repeated*>& matrices, const OnDevice<float>& x, int32_t first, int32_t rows, bool unpacked, cudaStream_t stream) {
  const int32_t cols = matrices.front()->cols;
  const OnDevice<std::byte> scratch(static_cast<int64_t>(LinearPrefillScratch(rows, cols))), weights(static_cast<int64_t>(kUnpackedBytes));
  std::vector<OnDevice<float>> outs;
  std::vector<LinearLaunch> launches;
  for (const Repeated* m : matrices) {
    outs.emplace_back(int64_t{rows + 1} * m->rows);
    LinearLaunch l;
    l.weight = View(m->weights.type, m->rows, cols, m->packed.data());
    l.x = x.data() + int64_t{first} * cols, l.out = outs.back().data(), l.rows = rows, l.scratch = scratch.data();
    if (unpacked) l.unpacked = weights.data();
    l.bias = m->bias.empty() ? nullptr : m->on_bias.data();
    launches.push_back(l);
  }
  if (unpacked) {
    const HalfRows halves = HalfRowsOf(launches.front());
    EXPECT_EQ(RowsToHalves(launches.front().x, rows, cols, halves, stream), cudaSuccess);
    EXPECT_EQ(LinearUnpacked(launches, halves, stream), cudaSuccess);
  } else {
    EXPECT_EQ(LinearPrefill(launches, stream), cudaSuccess);
  }
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  Outs read;
  for (size_t i = 0; i < outs.size(); ++i) {
    read.push_back(outs[i].Read());
    for (size_t end = read[i].size(), at = end - static_cast<size_t>(matrices[i]->rows); at < end; ++at) EXPECT_TRUE(std::isnan(read[i][at])) << "behind the last row, " << at;
    read[i].resize(read[i].size() - static_cast<size_t>(matrices[i]->rows));
  }
  return read;
}

// Both factors are rounded to halves: as parts of what norms make likely at most 1e-3 of a row (bench/gpu_matrix_check.cu), 5e-3 of an output.
void ExpectProducts(const Repeated& m, const std::vector<float>& x, const std::vector<float>& out) {
  const auto norm = [&](const auto* of) {
    double squares = 0;
    for (int32_t c = 0; c < m.cols; ++c) squares += static_cast<double>(of[c]) * static_cast<double>(of[c]);
    return std::sqrt(squares);
  };
  const auto rows = static_cast<int32_t>(out.size() / static_cast<size_t>(m.rows));
  for (int32_t t = 0; t < rows; t += 1 + t % 23) {
    const float* row = x.data() + int64_t{t} * m.cols;
    double squares = 0;
    int32_t count = 0;
    for (int32_t r = t % 11; r < m.rows; r += 11, ++count) {
      const int32_t of = r % RepeatedRows::kDistinct;
      const kernels::DotSum dot = kernels::DotInDouble(m.weights.exact, of, row, m.cols);
      const double bias = m.bias.empty() ? 0.0 : static_cast<double>(m.bias[static_cast<size_t>(r)]);
      const double error = static_cast<double>(out[static_cast<size_t>(int64_t{t} * m.rows + r)]) - (dot.sum + bias);
      const double likely = norm(m.weights.exact.data() + int64_t{of} * m.cols) * norm(row) / std::sqrt(m.cols);
      ASSERT_LE(std::fabs(error), 5e-3 * likely + kernels::SumBound(m.cols, dot.magnitude + std::fabs(bias))) << "row " << t << ", output " << r;
      squares += error / likely * (error / likely);
    }
    ASSERT_LE(std::sqrt(squares / count), 1e-3) << "row " << t;
  }
}

void ExpectSameBits(const std::vector<float>& a, const std::vector<float>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) ASSERT_EQ(std::memcmp(&a[i], &b[i], sizeof(float)), 0) << i << ": " << a[i] << ", " << b[i];
}

TEST_F(CudaUnpacked, ProductsOfEveryType) {
  Random random(1);
  for (const DType type : {DType::kQ8_0, DType::kQ4_0, DType::kQ5_0, DType::kQ5_1, DType::kQ4K, DType::kQ5K, DType::kQ6K, DType::kIQ4NL, DType::kMXFP4, DType::kBF16, DType::kF16,
                           DType::kNested8}) {
    const int32_t cols = TraitsOf(type).block_elements == 256 ? 768 : TraitsOf(type).block_elements == 1 ? 552 : 544;
    const Repeated q(random, type, 300, cols, false), k(random, type, 68, cols, true), v(random, type, 128, cols, false);
    for (const int32_t rows : {33, 200, 257}) {
      if (!share_.Takes()) continue;
      SCOPED_TRACE(std::string(TraitsOf(type).name) + ", " + std::to_string(rows) + " rows");
      const std::vector<float> x = RandomFloats(random, int64_t{rows} * cols, 3);
      const OnDevice<float> on_x(x);
      const std::vector<const Repeated*> matrices = {&q, &k, &v};
      const Outs outs = Products(matrices, on_x, 0, rows, true, stream_), own = Products(matrices, on_x, 0, rows, false, stream_);
      for (size_t i = 0; i < matrices.size(); ++i) ExpectProducts(*matrices[i], x, outs[i]), ExpectSameBits(outs[i], own[i]);
    }
  }
}

// Of several packings, and of more than is unpacked at once: a piece ends inside the first matrix and inside the second.
TEST_F(CudaUnpacked, ProductsInPieces) {
  if (!share_.Takes()) return;
  Random random(2);
  const Repeated first(random, DType::kQ4_0, 2000, 8192, true), second(random, DType::kQ8_0, 1700, 8192, false), third(random, DType::kQ8_0, 60, 8192, true);
  const std::vector<float> x = RandomFloats(random, int64_t{300} * 8192, 3);
  const OnDevice<float> on_x(x);
  const std::vector<const Repeated*> matrices = {&first, &second, &third};
  const Outs outs = Products(matrices, on_x, 0, 300, true, stream_), own = Products(matrices, on_x, 0, 300, false, stream_);
  for (size_t i = 0; i < matrices.size(); ++i) ExpectProducts(*matrices[i], x, outs[i]), ExpectSameBits(outs[i], own[i]);
}

// Items of 128 and of 256 rows of weights, wherever a row stands.
TEST_F(CudaUnpacked, RowsDoNotDependOnOthers) {
  Random random(3);
  constexpr int32_t kCols = 640, kRows = 4096;
  const Repeated q(random, DType::kQ8_0, 2048, kCols, false), k(random, DType::kQ8_0, 512, kCols, true);
  const std::vector<float> x = RandomFloats(random, int64_t{kRows} * kCols, 3);
  const OnDevice<float> on_x(x);
  for (const std::vector<const Repeated*>& matrices : {std::vector<const Repeated*>{&q}, {&q, &k}}) {
    if (!share_.Takes()) continue;
    const Outs all = Products(matrices, on_x, 0, kRows, true, stream_);
    ExpectProducts(q, x, all[0]);
    for (const auto& [first, rows] : {std::pair<int32_t, int32_t>{0, 200}, {3001, 200}, {77, 512}, {1000, 2049}, {kRows - 33, 33}}) {
      SCOPED_TRACE(std::to_string(rows) + " rows from " + std::to_string(first));
      const Outs some = Products(matrices, on_x, first, rows, true, stream_);
      for (size_t i = 0; i < matrices.size(); ++i) {
        const auto begin = all[i].begin() + int64_t{first} * matrices[i]->rows;
        ExpectSameBits(some[i], {begin, begin + int64_t{rows} * matrices[i]->rows});
      }
    }
  }
}

}  // namespace
}  // namespace thermoe::cuda
