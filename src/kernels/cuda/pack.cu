// SPDX-License-Identifier: Apache-2.0
// A warp a tile, a thread for what a lane of the kernels will hold: it picks its weights out of the rows one by one, from caches mostly. That moves
// some hundred GB/s, several times what comes over any link.
#include <cuda_fp16.h>

#include "kernels/cuda/pack.h"
#include "kernels/cuda/tile_lane.h"
#include "kernels/cuda/warp.cuh"

namespace thermoe::cuda {
namespace {

constexpr int kThreads = kGroupTiles * 32;  // a column of a group's tiles

// What the device reads of a launch. Row 0 is the launch's first.
struct PackArgs {
  SourceRows from;
  std::byte *hi, *lo, *scales;  // from the launch's first group on
  int k_tiles;
};

// grid: column tiles, groups.
template <DType kType>
__global__ void __launch_bounds__(kThreads) PackTilesKernel(PackArgs args) {
  constexpr Packing kPacking = PackingOf(kType);
  constexpr int kRowScaleWords = ScaleTileBytes(kPacking) / kTileRows / 4;
  const int lane = static_cast<int>(threadIdx.x % 32), in_group = static_cast<int>(threadIdx.x / 32);
  const int64_t row_tile = int64_t{blockIdx.y} * kGroupTiles + in_group, k_tile = blockIdx.x;
  const int64_t tile = TileNumber(row_tile, k_tile, args.k_tiles);
  const PackedLane packed = PackLane<kType>(args.from, row_tile * kTileRows, k_tile, lane);
  const auto whole = [](const uint32_t (&words)[kTileSteps]) { return make_uint4(words[0], words[1], words[2], words[3]); };
  reinterpret_cast<uint4*>(args.hi + tile * kPlaneTileBytes)[lane] = whole(packed.hi);
  if (HasLoPlane(kPacking)) reinterpret_cast<uint4*>(args.lo + tile * kPlaneTileBytes)[lane] = whole(packed.lo);
  if (lane >= kTileRows) return;
  auto* scales = reinterpret_cast<uint32_t*>(args.scales + tile * ScaleTileBytes(kPacking)) + lane * kRowScaleWords;
  for (int w = 0; w < kRowScaleWords; ++w) scales[w] = packed.scales[w];
}

template <DType kType>
__device__ float FloatOf(const SourceRows& from, int64_t row, int64_t col) {
  const uint16_t bits = reinterpret_cast<const uint16_t*>(from.data)[row * from.cols + col];
  return kType == DType::kBF16 ? Bf16ToFloat(bits) : __half2float(__ushort_as_half(bits));
}

__device__ float PowerOfTwo(int exponent) { return __int_as_float((exponent + 127) << 23); }

// A warp a row: the power of two that brings its largest magnitude just below 2^15; 0 for a row that is filled up.
template <DType kType>
__global__ void __launch_bounds__(kThreads) RowScalesKernel(PackArgs args, int64_t rows) {
  const int64_t row = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32;
  const auto lane = static_cast<int>(threadIdx.x % 32);
  if (row >= rows) return;
  float most = 0;
  for (int64_t col = lane; row < args.from.rows && col < args.from.cols; col += 32) most = fmaxf(most, fabsf(FloatOf<kType>(args.from, row, col)));
  most = WarpMax(most);
  const int exponent = most > 0 && isfinite(most) ? min(max(ilogbf(most) - 14, -126), 126) : 0;
  if (lane == 0) reinterpret_cast<float*>(args.scales)[row] = row < args.from.rows ? PowerOfTwo(exponent) : 0.0f;
}

// After RowScalesKernel. grid: column tiles, groups.
template <DType kType>
__global__ void __launch_bounds__(kThreads) PackHalvesKernel(PackArgs args) {
  const int lane = static_cast<int>(threadIdx.x % 32), in_group = static_cast<int>(threadIdx.x / 32);
  const int64_t row_tile = int64_t{blockIdx.y} * kGroupTiles + in_group, k_tile = blockIdx.x;
  auto* to = reinterpret_cast<__half2*>(args.hi + TileNumber(row_tile, k_tile, args.k_tiles) * kHalfTileBytes);
  const auto value = [&](int step, int i) {
    const int64_t row = row_tile * kTileRows + RowOf(lane, i), col = k_tile * kTileCols + ColOf(lane, step, i);
    if (row >= args.from.rows || col >= args.from.cols) return 0.0f;
    const int exponent = ilogbf(reinterpret_cast<const float*>(args.scales)[row]);
    return FloatOf<kType>(args.from, row, col) * PowerOfTwo(-exponent);
  };
  for (int step = 0; step < kTileSteps; ++step) {
    for (int i = 0; i < 8; i += 2) to[(step * 32 + lane) * 4 + i / 2] = __floats2half2_rn(value(step, i), value(step, i + 1));
  }
}

template <DType kType>
void PackHalves(const PackArgs& args, dim3 tiles, cudaStream_t stream) {
  const int64_t rows = int64_t{tiles.y} * kGroupRows;
  RowScalesKernel<kType><<<static_cast<unsigned>(rows / (kThreads / 32)), kThreads, 0, stream>>>(args, rows);
  PackHalvesKernel<kType><<<tiles, kThreads, 0, stream>>>(args);
}

}  // namespace

cudaError_t PackRows(const PackLaunch& l, cudaStream_t stream) {
  const Packing packing = l.to.packing;
  const int64_t row_bytes = RowBytes(l.type, l.to.cols);
  auto* hi = const_cast<std::byte*>(l.to.hi);
  if (packing == Packing::kF32) {
    return cudaMemcpyAsync(hi + l.first_row * row_bytes, l.data, static_cast<size_t>(l.rows * row_bytes), cudaMemcpyDeviceToDevice, stream);
  }
  const auto bytes = [](const std::byte* at) { return reinterpret_cast<const uint8_t*>(at); };
  const int64_t first_group = l.first_row / kGroupRows, first_tile = first_group * kGroupTiles * l.to.k_tiles;
  const int64_t first_scale = packing == Packing::kHalf ? l.first_row * static_cast<int64_t>(sizeof(float)) : first_tile * ScaleTileBytes(packing);
  const PackArgs args{{bytes(l.data), bytes(l.lo), l.rows, l.to.cols, row_bytes},
                      hi + first_tile * CodeTileBytes(packing),
                      HasLoPlane(packing) ? const_cast<std::byte*>(l.to.lo) + first_tile * kPlaneTileBytes : nullptr,
                      const_cast<std::byte*>(l.to.scales) + first_scale,
                      l.to.k_tiles};
  const dim3 tiles(static_cast<unsigned>(l.to.k_tiles), static_cast<unsigned>((l.rows + kGroupRows - 1) / kGroupRows));
  if (l.type == DType::kBF16) {
    PackHalves<DType::kBF16>(args, tiles, stream);
  } else if (l.type == DType::kF16) {
    PackHalves<DType::kF16>(args, tiles, stream);
  } else {
    WithQuantisedType(l.type, [&](auto type) { PackTilesKernel<type()><<<tiles, kThreads, 0, stream>>>(args); });
  }
  return cudaGetLastError();
}

}  // namespace thermoe::cuda
