// SPDX-License-Identifier: Apache-2.0
// One table of operations x shapes, run on every backend. A case carries its inputs, what the plain formula gives in
// double, and how far from it a float implementation may be; the bounds are derived here and nowhere else.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/random.h"
#include "kernels/dispatch.h"
#include "kernels/ops.h"
#include "model/interleave.h"
#include "runtime/threads.h"

namespace thermoe::kernels {

// Bounds. u = 2^-24 is the unit roundoff of float. A sum of n products over lanes of at least 8 rounds a term at most
// once for its product, n / 8 times in its lane, log2(16) = 4 times between lanes, and a few times more (bias, store):
// |error| <= (n / 8 + 8) u sum |w_i x_i| to first order (Higham, Accuracy and Stability, 3.1), for any order of the
// lanes. For the sums of up to 600 random terms here that is below 1e-4 of a typical result: one wrong term shows.
inline constexpr double kUnit = 0x1p-24;
inline double SumBound(int64_t n, double magnitude) { return (static_cast<double>(n) / 8 + 8) * kUnit * magnitude; }
// The same where one factor of each product was first rounded to `rounding` (2^-11: binary16; 0: not at all).
inline constexpr double kHalfUnit = 0x1p-11;
inline double RoundedSumBound(int64_t n, double magnitude, double rounding) { return SumBound(n, magnitude) + rounding * magnitude; }
// exp is within 2 ulp <= 4 u; the other roundings of gate / (1 + exp(-gate)) * up are the sum, the quotient and the
// product. Where exp overflows or the result is subnormal the error is absolute.
inline double SwiGluBound(double want, double up) { return 8 * kUnit * std::fabs(want) + 1e-36 * (1 + std::fabs(up)); }
// The slope of silu is at most 1.1.
inline constexpr double kSiluSlope = 1.1;

inline constexpr float kPoison = std::numeric_limits<float>::quiet_NaN();

struct OpCase {
  std::string name;
  std::vector<std::pair<const char*, std::vector<float>>> inputs;  // asserted to vary
  std::function<std::vector<float>(const Ops&)> run;               // outputs are poisoned before
  std::vector<double> want;                                        // the formula in double
  std::vector<double> bound;                                       // of |got - want|
};

// Everything that can run here, with the thread team it runs on.
struct Implementation {
  std::string name;
  std::unique_ptr<ThreadPool> threads;
  std::unique_ptr<Ops> ops;
};

inline std::vector<Implementation> CpuImplementations(std::vector<int> teams) {
  std::vector<Implementation> all;
  for (const std::string& isa : SupportedIsas()) {
    for (const int team : teams) {
      auto threads = std::make_unique<ThreadPool>(team);
      Result<std::unique_ptr<Ops>> ops = MakeCpuOps(threads.get(), isa);
      EXPECT_TRUE(ops.ok()) << ops.status().message();
      std::string name = std::string(ops.value()->name()) + ", " + std::to_string(team) + " threads";
      all.push_back({std::move(name), std::move(threads), std::move(ops).value()});
    }
  }
  return all;
}

inline std::vector<Implementation> AllImplementations() {
  std::vector<Implementation> all = CpuImplementations({1, 3});
  all.push_back({"reference", nullptr, MakeReferenceOps()});
  return all;
}

inline std::vector<float> RandomFloats(Random& random, int64_t n, double scale = 1.0) {
  std::vector<float> values(static_cast<size_t>(n));
  for (float& value : values) value = static_cast<float>(random.Normal() * scale);
  return values;
}

// The least multiple of a type's block that is at least `cols`.
inline int64_t WholeBlocks(DType type, int64_t cols) {
  const int64_t block = TraitsOf(type).block_elements;
  return (cols + block - 1) / block * block;
}

// A matrix that owns its bytes. They start at an odd address, as in a mapped safetensors file, and end where the
// allocation does, so that AddressSanitizer sees a read too far.
struct Matrix {
  WeightMatrix view;
  std::vector<std::byte> data, lo;
  std::vector<double> both, hi;  // [rows, cols] as DecodeRow defines them

  const std::vector<double>& values(Planes planes) const { return planes == Planes::kBoth ? both : hi; }
};

inline std::vector<double> DecodeAll(const WeightMatrix& m, Planes planes) {
  std::vector<float> row(static_cast<size_t>(m.cols));
  std::vector<double> values;
  for (int64_t r = 0; r < m.rows; ++r) {
    DecodeRow(m, r, planes, row.data());
    values.insert(values.end(), row.begin(), row.end());
  }
  return values;
}

inline std::shared_ptr<Matrix> RandomMatrix(Random& random, DType type, int64_t rows, int64_t cols,
                                            Layout layout = Layout::kRows) {
  auto m = std::make_shared<Matrix>();
  const bool nested = type == DType::kNested8;
  const DType stored = nested ? DType::kQ8_0 : type;
  const int64_t stored_bytes = RowBytes(stored, cols);
  std::vector<std::byte> bytes(static_cast<size_t>(rows * stored_bytes));
  for (int64_t r = 0; r < rows; ++r) {
    const std::vector<float> row = RandomFloats(random, cols);
    EncodeRow(stored, row.data(), cols, bytes.data() + r * stored_bytes);
  }
  m->data.resize(static_cast<size_t>(rows * RowBytes(type, cols, layout)) + 1);
  if (layout == Layout::kInterleaved) {
    const int64_t group_bytes = InterleavedGroupBytes(type, cols), lo_bytes = kInterleave * NestedLoRowBytes(cols);
    m->lo.resize(nested ? static_cast<size_t>(rows / kInterleave * lo_bytes) + 1 : 0);
    for (int64_t g = 0; g < rows / kInterleave; ++g) {
      const std::byte* from = bytes.data() + g * kInterleave * stored_bytes;
      std::byte* to = m->data.data() + 1 + g * group_bytes;
      if (nested) {
        InterleavePlanes(from, stored_bytes, cols, to, m->lo.data() + 1 + g * lo_bytes);
      } else {
        InterleaveGroup(stored, from, stored_bytes, cols, to);
      }
    }
  } else if (nested) {
    m->lo.resize(static_cast<size_t>(rows * NestedLoRowBytes(cols)) + 1);
    const auto blocks = static_cast<size_t>(rows * cols / kQuantBlock);
    std::vector<NestedHi> hi(blocks);
    std::vector<NestedLo> lo(blocks);
    std::vector<BlockQ8_0> codes(blocks);
    std::memcpy(codes.data(), bytes.data(), bytes.size());
    SplitPlanes(codes.data(), static_cast<int64_t>(blocks), hi.data(), lo.data());
    std::memcpy(m->data.data() + 1, hi.data(), blocks * sizeof(NestedHi));
    std::memcpy(m->lo.data() + 1, lo.data(), blocks * sizeof(NestedLo));
  } else {
    std::copy(bytes.begin(), bytes.end(), m->data.begin() + 1);
  }
  m->view = {type, rows, cols, m->data.data() + 1, nested ? m->lo.data() + 1 : nullptr, layout};
  m->both = DecodeAll(m->view, Planes::kBoth);
  m->hi = nested ? DecodeAll(m->view, Planes::kHi) : m->both;
  return m;
}

// sum and sum of magnitudes of w[row] . x
struct DotSum {
  double sum = 0, magnitude = 0;
};
template <typename X>
DotSum DotInDouble(const std::vector<double>& w, int64_t row, const X* x, int64_t n) {
  DotSum dot;
  for (int64_t i = 0; i < n; ++i) {
    const double term = w[static_cast<size_t>(row * n + i)] * static_cast<double>(x[i]);
    dot.sum += term;
    dot.magnitude += std::fabs(term);
  }
  return dot;
}

inline std::vector<float> ToFloats(const std::vector<double>& values) { return {values.begin(), values.end()}; }

// Inputs of a test that are all alike prove nothing.
inline void ExpectVaries(const OpCase& c) {
  for (const auto& [what, values] : c.inputs) {
    if (values.size() < 2) continue;
    const auto [least, most] = std::minmax_element(values.begin(), values.end());
    EXPECT_LT(*least, *most) << c.name << ": input " << what << " is constant";
  }
}

inline void ExpectWithinBounds(const OpCase& c, const std::string& who, const std::vector<float>& got) {
  ASSERT_EQ(got.size(), c.want.size()) << c.name;
  for (size_t i = 0; i < got.size(); ++i) {
    // Written so that NaN fails.
    if (!(std::fabs(static_cast<double>(got[i]) - c.want[i]) <= c.bound[i])) {
      ADD_FAILURE() << c.name << " on " << who << ": element " << i << " is " << got[i] << ", want " << c.want[i]
                    << " within " << c.bound[i];
      return;
    }
  }
}

}  // namespace thermoe::kernels
