// SPDX-License-Identifier: Apache-2.0
// A warp's products in whole numbers (whole_product.cuh) beside the sums of what activations are in whole numbers, which they give but for roundings of floats.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>

#include "kernels/cuda/whole_product.cuh"
#include "kernels/on_device.h"
#include "kernels/op_table.h"

namespace thermoe::cuda {
namespace {

constexpr int kTilesThere = 4, kCols = kTilesThere * kTileCols, kBlock = 32;
constexpr int kRowBytes = kCols * static_cast<int>(sizeof(__half)) + 16;

// out[row][16] = products of kRows rows of halves, in their order (half_rows.cuh), and the first `tiles` column tiles of m's first row tile. hi: without lo planes.
template <Packing kPacking, int kRows>
__global__ void MultiplyRows(DeviceMatrix m, const __half* halves, bool hi, int tiles, float* out) {
  using R = Ring<kPacking, false>;
  constexpr int kGroup = kRows == 1 ? 2 : 1;
  __shared__ __align__(16) std::byte rows[2 * kWholeRows * kRowBytes], stage[kTilesThere * R::kTile];
  __shared__ float sums[4 * 32];
  const int lane = static_cast<int>(threadIdx.x);
  for (int k = 0; k < kTilesThere; ++k) {
    const int64_t tile = TileNumber(0, k, m.k_tiles);
    for (int i = lane; i < R::kTile; i += 32) {
      const int in_lo = i - R::kCodes, in_scales = in_lo - R::kLo;
      stage[k * R::kTile + i] = in_lo < 0 ? m.hi[tile * R::kCodes + i] : in_scales < 0 ? m.lo[tile * R::kLo + in_lo] : m.scales[tile * R::kScales + in_scales];
    }
  }
  for (int row = 0; row < kRows; ++row) {
    WholeNote note;
    std::byte* const to = rows + row * kRowBytes;
    reinterpret_cast<uint4*>(to)[lane] = WholeBytes<kPacking>(reinterpret_cast<const uint4*>(halves + row * kCols)[lane], hi, &note);
    if (lane % 4 == 0) reinterpret_cast<WholeNote*>(to + kWholeRows * kRowBytes)[lane / 4] = note;
  }
  __syncwarp();
  constexpr int kTileBytes = kTileCols * static_cast<int>(sizeof(__half));
  const LaneOffsets<kPacking> lanes(lane);
  const WholeLane whole(kRows - 1, kRowBytes, kTileBytes, R::kTile, R::kScales / kTileRows);
  float sum[2] = {};
  for (int k = 0; k < tiles; k += kGroup) {
    const std::byte* const from = stage + k * R::kTile;
    const auto multiply = [&]<bool kBoth>() {
      MultiplyWhole<kPacking, kBoth, kGroup>(from + lanes.code, from + R::kCodes + lanes.code, from + R::kCodes + R::kLo + whole.record, R::kTile, rows + k * kTileBytes + whole.x,
                                             rows + k * kNoteTileBytes + whole.note, whole, min(kGroup, tiles - k), sum);
    };
    if (kPacking == Packing::kPlanes8 && hi) multiply.template operator()<false>();
    else multiply.template operator()<HasLoPlane(kPacking)>();
  }
  PutWholeSums(kRows - 1, sum, sums);
  __syncwarp();
  for (int i = lane; i < kRows * kTileRows; i += 32) {
    const int row = i / kTileRows, of = i % kTileRows;
    out[i] = sums[(of / 8 * 2 + row) * 32 + of % 8 * 4];
  }
}

template <Packing kPacking>
void Multiply(const DeviceMatrix& m, const __half* halves, int rows, bool hi, int tiles, float* out, cudaStream_t stream) {
  if (rows == 1) MultiplyRows<kPacking, 1><<<1, 32, 0, stream>>>(m, halves, hi, tiles, out);
  else MultiplyRows<kPacking, 2><<<1, 32, 0, stream>>>(m, halves, hi, tiles, out);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

struct Case {
  const char* name;
  DType type;
  Planes planes;
  void (*multiply)(const DeviceMatrix& m, const __half* halves, int rows, bool hi, int tiles, float* out, cudaStream_t stream);
};
constexpr std::array<Case, 6> kCases = {{{"of some items that read lo planes", DType::kNested8, Planes::kBoth, Multiply<Packing::kPlanes8>},
                                         {"of some items that do not", DType::kNested8, Planes::kHi, Multiply<Packing::kPlanes8>},
                                         {"of both planes", DType::kQ8_0, Planes::kBoth, Multiply<Packing::kBothPlanes>},
                                         {"of hi planes", DType::kNested8, Planes::kHi, Multiply<Packing::kHiPlane>},
                                         {"Q4_0", DType::kQ4_0, Planes::kBoth, Multiply<Packing::kNibble>},
                                         {"Q4_K", DType::kQ4K, Planes::kBoth, Multiply<Packing::kNibbleMin>}}};

// Random; one of eight there; the greatest halves there are, and one of them among others; none but the least: subnormal ones, nothing, one subnormal one alone.
std::vector<float> RowOf(Random& random, int kind) {
  std::vector<float> row = kernels::RandomFloats(random, kCols);
  for (int c = 0; c < kCols; ++c) {
    float& value = row[static_cast<size_t>(c)];
    if (kind == 1 && random.Below(8) != 0) value = 0;
    if (kind == 2) {
      switch (c / kBlock % 3) {
        case 0: value = random.Below(2) == 0 ? 65504.0f : -65504.0f; break;
        case 1: value = c % kBlock == 7 ? -65504.0f : value; break;
        default: break;
      }
    }
    if (kind == 3) {
      switch (c / kBlock % 3) {
        case 0: value *= 0x1p-19f; break;
        case 1: value = 0; break;
        default: value = c % kBlock == 20 ? 0x1p-24f : 0; break;
      }
    }
    value = HalfToFloat(FloatToHalf(value));
  }
  return row;
}

struct Whole {
  std::vector<double> values;  // of a row
  std::vector<double> unit;    // of each 32 columns
};
Whole WholeOf(const std::vector<float>& row) {
  Whole whole;
  for (size_t begin = 0; begin < row.size(); begin += kBlock) {
    float most = 0;
    for (size_t c = begin; c < begin + kBlock; ++c) most = std::max(most, std::fabs(row[c]));
    const double unit = std::ldexp(1.0, (FloatToHalf(most) >> 10) - 28);
    whole.unit.push_back(unit);
    for (size_t c = begin; c < begin + kBlock; ++c) {
      whole.values.push_back(std::nearbyint(row[c] / unit) * unit);
      EXPECT_LT(std::fabs(whole.values.back()) / unit, 16384);
      // Those of an eighth of the greatest and more are what they were.
      if (std::fabs(row[c]) >= most / 8) EXPECT_EQ(whole.values.back(), row[c]);
    }
  }
  return whole;
}

class CudaWholeProduct : public DeviceTest {};

TEST_F(CudaWholeProduct, IsTheSumOfWholeNumbers) {
  Random random(6);
  for (const Case& c : kCases) {
    for (int turn = 0; turn < 48; ++turn) {
      if (!share_.Takes()) continue;
      const int kind = turn % 4, rows = 1 + turn / 4 % 2, tiles = kTilesThere - turn / 8 % 2;
      SCOPED_TRACE(std::string(c.name) + ", kind " + std::to_string(kind) + ", rows " + std::to_string(rows) + ", tiles " + std::to_string(tiles));
      const std::shared_ptr<kernels::Matrix> m = kernels::RandomMatrix(random, c.type, kTileRows, kCols);
      std::vector<std::byte> packed(static_cast<size_t>(PackedBytes(c.type, kTileRows, kCols)));
      Pack(m->view, packed.data());
      std::vector<float> x;
      for (int row = 0; row < rows; ++row) {
        const std::vector<float> values = RowOf(random, kind);
        x.insert(x.end(), values.begin(), values.end());
      }
      const OnDevice<std::byte> weights(packed);
      const OnDevice<uint16_t> halves(HalvesOf(x));
      const OnDevice<float> out(rows * kTileRows);
      c.multiply(View(c.type, kTileRows, kCols, weights.data()), halves.halves(), rows, c.planes == Planes::kHi, tiles, out.data(), stream_);
      const std::vector<float> got = out.Read();
      const std::vector<double>& values = m->values(c.planes);
      for (int row = 0; row < rows; ++row) {
        const Whole whole = WholeOf(std::vector<float>(x.begin() + row * kCols, x.begin() + (row + 1) * kCols));
        for (int r = 0; r < kTileRows; ++r) {
          double want = 0, most = 0, left_out = 0;
          for (int begin = 0; begin < tiles * kTileCols; begin += kBlock) {
            double least = INFINITY;
            for (int i = begin; i < begin + kBlock; ++i) {
              const double value = values[static_cast<size_t>(r * kCols + i)], by = whole.values[static_cast<size_t>(i)];
              want += value * by, most += std::fabs(value * by), least = std::min(least, std::fabs(value));
            }
            // Of hi planes half a unit times half a step of lo planes' codes, of which a hi plane's least value is 7.5 or more.
            if (c.planes == Planes::kHi) left_out += 0.5 * whole.unit[static_cast<size_t>(begin / kBlock)] * least / 7.5;
          }
          // Roundings of floats: of what a minimum comes to, too, which values do not show.
          const double bound = left_out + most * 0x1p-22 * (c.type == DType::kQ4K ? 8 : 1);
          ASSERT_LE(std::fabs(static_cast<double>(got[static_cast<size_t>(row * kTileRows + r)]) - want), bound) << "row " << row << ", of the tile " << r << ", want " << want;
        }
      }
    }
  }
}

}  // namespace
}  // namespace thermoe::cuda
