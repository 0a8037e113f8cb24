// SPDX-License-Identifier: Apache-2.0
// The GPU's layout of weights, read back by its description in weight_layout.h, against the definition of each type.
#include "kernels/cuda/weight_layout.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "base/float16.h"

namespace thermoe::cuda {
namespace {

struct Matrix {
  std::vector<std::byte> data, lo;
  WeightMatrix view;
};

Matrix RandomMatrix(DType type, int64_t rows, int64_t cols) {
  std::mt19937 random(static_cast<unsigned>(rows * 1000 + cols));
  std::normal_distribution<float> normal(0.0f, 0.3f);
  const DType stored = type == DType::kNested8 ? DType::kQ8_0 : type;
  Matrix out;
  out.data.resize(static_cast<size_t>(rows * RowBytes(stored, cols)));
  std::vector<float> values(static_cast<size_t>(cols));
  for (int64_t r = 0; r < rows; ++r) {
    for (float& value : values) value = normal(random);
    EncodeRow(stored, values.data(), cols, out.data.data() + r * RowBytes(stored, cols));
  }
  if (type == DType::kNested8) {
    const int64_t blocks = rows * cols / kQuantBlock;
    std::vector<std::byte> hi(static_cast<size_t>(blocks) * sizeof(NestedHi));
    out.lo.resize(static_cast<size_t>(blocks) * sizeof(NestedLo));
    SplitPlanes(reinterpret_cast<const BlockQ8_0*>(out.data.data()), blocks, reinterpret_cast<NestedHi*>(hi.data()),
                reinterpret_cast<NestedLo*>(out.lo.data()));
    out.data = std::move(hi);
  }
  out.view = {type, rows, cols, out.data.data(), out.lo.empty() ? nullptr : out.lo.data(), Layout::kRows};
  return out;
}

template <typename T>
T At(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

// Where weight (row, col) of a tile is: lane, step and number in its eight values.
struct Place {
  int lane, step, i;
};
Place PlaceOf(int row, int col) {
  const int in_step = col % 16;
  return {row % 8 * 4 + in_step % 8 / 2, col / 16, in_step % 2 + row / 8 * 2 + in_step / 8 * 4};
}

class Reader {
 public:
  Reader(const DeviceMatrix& m, bool hi_only) : m_(m), hi_only_(hi_only) {}

  float operator()(int64_t row, int64_t col) const {
    const int64_t row_tile = row / kTileRows, k = col / kTileCols;
    const int64_t tile = (row_tile / kGroupTiles * m_.k_tiles + k) * kGroupTiles + row_tile % kGroupTiles;
    const Place place = PlaceOf(static_cast<int>(row % kTileRows), static_cast<int>(col % kTileCols));
    const int block = static_cast<int>(col % kTileCols / 32);
    const std::byte* record =
        m_.scales + tile * ScaleTileBytes(m_.packing) + row % kTileRows * (ScaleTileBytes(m_.packing) / kTileRows);
    const auto half = [&](int at) { return HalfToFloat(At<uint16_t>(record + at)); };
    switch (m_.packing) {
      case Packing::kHalf: {
        const std::byte* at = m_.hi + tile * kHalfTileBytes + (place.step * 32 + place.lane) * 16 + place.i * 2;
        return HalfToFloat(At<uint16_t>(at)) * At<float>(m_.scales + row * 4);
      }
      case Packing::kPlanes8:
        return half(block * 2) * (hi_only_ ? 16.0f * static_cast<float>(Nibble(m_.hi, tile, place, true) - 8) + 7.5f
                                           : static_cast<float>(Byte(tile, place)));
      case Packing::kNibble: return half(block * 2) * static_cast<float>(Nibble(m_.hi, tile, place, true) - 8);
      case Packing::kNibbleMin: {
        const float scale = half(0) * static_cast<float>(At<uint8_t>(record + 4 + block * 2));
        const float min = half(2) * static_cast<float>(At<uint8_t>(record + 5 + block * 2));
        return scale * static_cast<float>(Nibble(m_.hi, tile, place, true)) - min;
      }
      case Packing::kByteMin:
        return At<float>(record + block * 8) * static_cast<float>(Byte(tile, place)) -
               At<float>(record + block * 8 + 4);
      case Packing::kByte16:
        return half(0) * static_cast<float>(At<int8_t>(record + 4 + col % kTileCols / 16)) *
               static_cast<float>(Byte(tile, place));
      case Packing::kMxfp4: {
        constexpr float kValues[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
        const auto bits = static_cast<uint32_t>(At<uint16_t>(record + block * 2)) << 16;
        float scale;
        std::memcpy(&scale, &bits, sizeof(scale));
        return scale * kValues[Nibble(m_.hi, tile, place, true)];
      }
      case Packing::kF32: return At<float>(m_.hi + (row * m_.cols + col) * 4);
      case Packing::kHiPlane:
      case Packing::kBothPlanes: break;  // no type has them
    }
    return NAN;
  }

 private:
  // hi: first four values in high halves; lo: in low halves. Of 4 bits two words have two steps, of row g and of row g + 8, and every second byte is of one step.
  int Nibble(const std::byte* plane, int64_t tile, const Place& place, bool first_high) const {
    const bool planes = HasLoPlane(m_.packing);
    const int in_four = place.i % 4, word = planes ? place.step : place.step / 2 * 2 + in_four / 2, of_word = in_four % 2 * 2 + (planes ? in_four / 2 : place.step % 2);
    const int byte = static_cast<int>(plane[tile * kPlaneTileBytes + (place.lane * 4 + word) * 4 + of_word]);
    return (place.i < 4) == first_high ? byte >> 4 : byte & 15;
  }
  int Byte(int64_t tile, const Place& place) const {
    return Nibble(m_.hi, tile, place, true) * 16 + Nibble(m_.lo, tile, place, false) - 128;
  }

  const DeviceMatrix& m_;
  bool hi_only_;
};

void ExpectExact(DType type, int64_t rows, int64_t cols, Planes planes) {
  const Matrix matrix = RandomMatrix(type, rows, cols);
  std::vector<std::byte> packed(static_cast<size_t>(PackedBytes(type, rows, cols)), std::byte{0xa5});
  Pack(matrix.view, packed.data());
  const DeviceMatrix view = View(type, rows, cols, packed.data());
  const Reader reader(view, planes == Planes::kHi);
  std::vector<float> row(static_cast<size_t>(cols));
  for (int64_t r = 0; r < rows; ++r) {
    DecodeRow(matrix.view, r, planes, row.data());
    for (int64_t c = 0; c < cols; ++c) {
      ASSERT_EQ(reader(r, c), row[static_cast<size_t>(c)])
          << TraitsOf(type).name << " " << rows << " x " << cols << " at " << r << ", " << c;
    }
  }
  if (view.packing == Packing::kF32) return;
  // What was filled up is zero.
  for (int64_t c = cols; c < int64_t{view.k_tiles} * kTileCols; ++c)
    ASSERT_EQ(reader(0, c), 0.0f) << TraitsOf(type).name << " column " << c;
  if (rows % kGroupRows != 0) {
    ASSERT_EQ(reader(rows, cols - 1), 0.0f) << TraitsOf(type).name;
  }
}

TEST(WeightLayout, EveryTypeIsReadBackExactly) {
  for (int i = 0; i < kDTypes; ++i) {
    const auto type = static_cast<DType>(i);
    const int64_t block = TraitsOf(type).block_elements;
    ExpectExact(type, 130, block == 256 ? 512 : 160, Planes::kBoth);
    ExpectExact(type, 16, block == 1 ? 37 : block == 256 ? 256 : 32, Planes::kBoth);
  }
  ExpectExact(DType::kNested8, 150, 224, Planes::kHi);
}

// bfloat16 reaches further than binary16: rows of any size keep their values.
TEST(WeightLayout, BrainFloatsOfAnySizeAreKept) {
  constexpr int64_t kCols = 64;
  for (const float size : {1e-30f, 1e-6f, 1e30f}) {
    std::vector<float> values(kCols);
    for (int64_t c = 0; c < kCols; ++c)
      values[static_cast<size_t>(c)] =
          size * std::ldexp(1.0f + static_cast<float>(c) / 64.0f, -static_cast<int>(c % 20));
    std::vector<std::byte> row(static_cast<size_t>(RowBytes(DType::kBF16, kCols)));
    EncodeRow(DType::kBF16, values.data(), kCols, row.data());
    const WeightMatrix matrix{DType::kBF16, 1, kCols, row.data(), nullptr, Layout::kRows};
    std::vector<std::byte> packed(static_cast<size_t>(PackedBytes(DType::kBF16, 1, kCols)));
    Pack(matrix, packed.data());
    const DeviceMatrix view = View(DType::kBF16, 1, kCols, packed.data());
    DecodeRow(matrix, 0, Planes::kBoth, values.data());
    for (int64_t c = 0; c < kCols; ++c)
      EXPECT_EQ(Reader(view, false)(0, c), values[static_cast<size_t>(c)]) << size << " column " << c;
  }
}

TEST(WeightLayout, BytesReadAreThoseOfThePlanes) {
  EXPECT_EQ(ReadBytes(DType::kNested8, 1024, 2048, Planes::kBoth), int64_t{1024} * 2048 / 32 * 34);
  EXPECT_EQ(ReadBytes(DType::kNested8, 1024, 2048, Planes::kHi), int64_t{1024} * 2048 / 32 * 18);
  EXPECT_EQ(ReadBytes(DType::kQ4_0, 1024, 2048, Planes::kBoth), int64_t{1024} * 2048 / 32 * 18);
  EXPECT_EQ(ReadBytes(DType::kBF16, 1024, 2048, Planes::kBoth), int64_t{1024} * 2048 * 2);
}

}  // namespace
}  // namespace thermoe::cuda
