// SPDX-License-Identifier: Apache-2.0
#include "model/interleave.h"

#include <gtest/gtest.h>

#include <vector>

#include "base/random.h"

namespace thermoe {
namespace {

std::vector<std::byte> RandomBlocks(DType type, int64_t rows, int64_t cols) {
  Random random(static_cast<uint64_t>(cols) + 7);
  std::vector<std::byte> bytes(static_cast<size_t>(rows * RowBytes(type, cols)));
  for (std::byte& b : bytes) b = static_cast<std::byte>(random.Next());
  for (size_t at = 0; at < bytes.size(); at += static_cast<size_t>(TraitsOf(type).block_bytes)) {
    bytes[at + 1] = static_cast<std::byte>(static_cast<int>(bytes[at + 1]) & 0x3b);  // a finite scale
  }
  return bytes;
}

std::vector<float> Decode(const WeightMatrix& matrix, int64_t row, Planes planes = Planes::kBoth) {
  std::vector<float> values(static_cast<size_t>(matrix.cols));
  DecodeRow(matrix, row, planes, values.data());
  return values;
}

TEST(Interleave, KeepsEveryValue) {
  for (const auto& [from, to] : {std::pair{DType::kQ8_0, DType::kQ8_0x16}, std::pair{DType::kQ4_0, DType::kQ4_0x16}}) {
    for (const int64_t cols : {32, 96, 256}) {
      const int64_t rows = 48, group_bytes = InterleavedGroupBytes(to, cols);
      const std::vector<std::byte> bytes = RandomBlocks(from, rows, cols);
      const WeightMatrix plain{from, rows, cols, bytes.data(), nullptr};
      std::vector<std::byte> packed(static_cast<size_t>(rows / 16 * group_bytes));
      for (int64_t g = 0; g < rows / 16; ++g) InterleaveGroup(from, plain.row(g * 16), RowBytes(from, cols), cols, packed.data() + g * group_bytes);
      const WeightMatrix interleaved{to, rows, cols, packed.data(), nullptr};
      EXPECT_EQ(interleaved.bytes(), static_cast<int64_t>(packed.size()));
      for (int64_t r = 0; r < rows; ++r) ASSERT_EQ(Decode(interleaved, r), Decode(plain, r)) << r;
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
    const int64_t hi_bytes = InterleavedGroupBytes(DType::kNested8x16, cols), lo_bytes = 16 * NestedLoRowBytes(cols);
    std::vector<std::byte> packed_hi(static_cast<size_t>(rows / 16 * hi_bytes)), packed_lo(static_cast<size_t>(rows / 16 * lo_bytes));
    for (int64_t g = 0; g < rows / 16; ++g) {
      InterleavePlanes(bytes.data() + g * 16 * RowBytes(DType::kQ8_0, cols), RowBytes(DType::kQ8_0, cols), cols, packed_hi.data() + g * hi_bytes,
                       packed_lo.data() + g * lo_bytes);
    }
    const WeightMatrix interleaved{DType::kNested8x16, rows, cols, packed_hi.data(), packed_lo.data()};
    for (const Planes planes : {Planes::kHi, Planes::kBoth}) {
      for (int64_t r = 0; r < rows; ++r) ASSERT_EQ(Decode(interleaved, r, planes), Decode(plain, r, planes)) << r;
    }
  }
}

}  // namespace
}  // namespace thermoe
