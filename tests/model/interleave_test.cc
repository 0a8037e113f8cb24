// SPDX-License-Identifier: Apache-2.0
#include "model/interleave.h"

#include <gtest/gtest.h>

#include <vector>

#include "base/random.h"

namespace thermoe {
namespace {

// Random bytes: every code, every scale; only halves are kept finite.
std::vector<std::byte> RandomBlocks(DType type, int64_t rows, int64_t cols) {
  Random random(static_cast<uint64_t>(cols) + 7);
  std::vector<std::byte> bytes(static_cast<size_t>(rows * RowBytes(type, cols)));
  for (std::byte& b : bytes) b = static_cast<std::byte>(random.Next());
  const auto block_bytes = static_cast<size_t>(TraitsOf(type).block_bytes);
  for (size_t at = 0; at < bytes.size(); at += block_bytes) {
    const auto finite = [&](size_t half_at) {
      bytes[at + half_at + 1] = static_cast<std::byte>(static_cast<int>(bytes[at + half_at + 1]) & 0xbb);
    };
    if (type == DType::kMXFP4) continue;
    finite(type == DType::kQ6K ? block_bytes - 2 : 0);
    if (type == DType::kQ5_1 || type == DType::kQ4K || type == DType::kQ5K) finite(2);
  }
  return bytes;
}

std::vector<float> Decode(const WeightMatrix& matrix, int64_t row, Planes planes = Planes::kBoth) {
  std::vector<float> values(static_cast<size_t>(matrix.cols));
  DecodeRow(matrix, row, planes, values.data());
  return values;
}

TEST(Interleave, KeepsEveryValue) {
  for (const DType type : {DType::kQ8_0, DType::kQ4_0, DType::kQ5_0, DType::kQ5_1, DType::kQ4K, DType::kQ5K, DType::kQ6K,
                           DType::kIQ4NL, DType::kMXFP4}) {
    for (const int64_t blocks : {1, 3, 8}) {
      const int64_t rows = 48, cols = blocks * TraitsOf(type).block_elements, group_bytes = InterleavedGroupBytes(type, cols);
      const std::vector<std::byte> bytes = RandomBlocks(type, rows, cols);
      const WeightMatrix plain{type, rows, cols, bytes.data(), nullptr};
      std::vector<std::byte> packed(static_cast<size_t>(rows / 16 * group_bytes));
      for (int64_t g = 0; g < rows / 16; ++g) {
        InterleaveGroup(type, plain.row(g * 16), plain.row_bytes(), cols, packed.data() + g * group_bytes);
      }
      const WeightMatrix interleaved{type, rows, cols, packed.data(), nullptr, Layout::kInterleaved};
      EXPECT_EQ(interleaved.bytes(), static_cast<int64_t>(packed.size()));
      EXPECT_LE(interleaved.bytes(), plain.bytes() * 103 / 100 + rows / 16 * 64) << TraitsOf(type).name;
      for (int64_t r = 0; r < rows; ++r) ASSERT_EQ(Decode(interleaved, r), Decode(plain, r)) << TraitsOf(type).name << " " << r;
    }
  }
}

TEST(Interleave, PlanesAreTheRowMajorPlanes) {
  for (const int64_t cols : {32, 160}) {
    const int64_t rows = 32, blocks = cols / kQuantBlock;
    const std::vector<std::byte> bytes = RandomBlocks(DType::kQ8_0, rows, cols);
    std::vector<NestedHi> hi(static_cast<size_t>(rows * blocks));
    std::vector<NestedLo> lo(hi.size());
    SplitPlanes(reinterpret_cast<const BlockQ8_0*>(bytes.data()), rows * blocks, hi.data(), lo.data());
    const WeightMatrix plain{DType::kNested8, rows, cols, reinterpret_cast<const std::byte*>(hi.data()), reinterpret_cast<const std::byte*>(lo.data())};
    const int64_t hi_bytes = InterleavedGroupBytes(DType::kNested8, cols), lo_bytes = 16 * NestedLoRowBytes(cols);
    std::vector<std::byte> packed_hi(static_cast<size_t>(rows / 16 * hi_bytes)), packed_lo(static_cast<size_t>(rows / 16 * lo_bytes));
    for (int64_t g = 0; g < rows / 16; ++g) {
      InterleavePlanes(bytes.data() + g * 16 * RowBytes(DType::kQ8_0, cols), RowBytes(DType::kQ8_0, cols), cols, packed_hi.data() + g * hi_bytes,
                       packed_lo.data() + g * lo_bytes);
    }
    const WeightMatrix interleaved{DType::kNested8, rows, cols, packed_hi.data(), packed_lo.data(), Layout::kInterleaved};
    for (const Planes planes : {Planes::kHi, Planes::kBoth}) {
      for (int64_t r = 0; r < rows; ++r) ASSERT_EQ(Decode(interleaved, r, planes), Decode(plain, r, planes)) << r;
    }
  }
}

}  // namespace
}  // namespace thermoe
