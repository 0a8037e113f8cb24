// SPDX-License-Identifier: Apache-2.0
// What tests of Hopper's kernels of many rows share: matrices of a few rows that come again and again, whose products are cheap to know.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/cuda/weight_layout.h"
#include "kernels/on_device.h"
#include "kernels/op_cases.h"

namespace thermoe::cuda {

class HopperTest : public DeviceTest {
 protected:
  void SetUp() override {
    DeviceTest::SetUp();
    if (!IsSkipped() && !IsHopper()) GTEST_SKIP() << "these kernels are Hopper's alone";
  }
};

struct RepeatedRows {
  // A prime, so that no tile's rows are another's; of seven magnitudes, so that no row's scale is its neighbour's.
  static constexpr int32_t kDistinct = 97;

  RepeatedRows(Random& random, DType of_type, int32_t of_cols) : type(of_type), cols(of_cols) {
    const bool nested = type == DType::kNested8;
    const DType stored = nested ? DType::kQ8_0 : type;
    const int64_t row_bytes = RowBytes(stored, cols), blocks = int64_t{kDistinct} * cols / kQuantBlock;
    codes.resize(static_cast<size_t>(kDistinct * row_bytes));
    for (int r = 0; r < kDistinct; ++r) {
      EncodeRow(stored, kernels::RandomFloats(random, cols, std::ldexp(1.0, r % 7 - 3)).data(), cols, codes.data() + r * row_bytes);
    }
    if (nested) {
      std::vector<std::byte> hi(static_cast<size_t>(blocks) * sizeof(NestedHi));
      lo.resize(static_cast<size_t>(blocks) * sizeof(NestedLo));
      SplitPlanes(reinterpret_cast<const BlockQ8_0*>(codes.data()), blocks, reinterpret_cast<NestedHi*>(hi.data()), reinterpret_cast<NestedLo*>(lo.data()));
      codes = hi;
    }
    exact = kernels::DecodeAll({type, kDistinct, cols, codes.data(), nested ? lo.data() : nullptr, Layout::kRows}, Planes::kBoth);
  }

  // `rows` of them, from the first-th on.
  std::vector<std::byte> Packed(int32_t rows, int32_t first) const {
    const auto repeat = [&](const std::vector<std::byte>& from) {
      std::vector<std::byte> to;
      const auto each = static_cast<ptrdiff_t>(from.size() / kDistinct);
      for (int32_t r = 0; r < rows; ++r) to.insert(to.end(), from.begin() + (first + r) % kDistinct * each, from.begin() + ((first + r) % kDistinct + 1) * each);
      return to;
    };
    const std::vector<std::byte> all = repeat(codes), all_lo = repeat(lo);
    std::vector<std::byte> packed(static_cast<size_t>(PackedBytes(type, rows, cols)));
    Pack({type, rows, cols, all.data(), all_lo.empty() ? nullptr : all_lo.data(), Layout::kRows}, packed.data());
    return packed;
  }

  DType type;
  int32_t cols;
  std::vector<std::byte> codes, lo;  // of kDistinct rows
  std::vector<double> exact;         // [kDistinct, cols]
};

}  // namespace thermoe::cuda
