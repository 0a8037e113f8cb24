// SPDX-License-Identifier: Apache-2.0
// Linears of one row. A block has some row tiles; as many warps share a row tile's columns as it has quads, a quad each.
#include <algorithm>

#include "kernels/cuda/divisor.cuh"
#include "kernels/cuda/launch_early.cuh"
#include "kernels/cuda/one_row.cuh"
#include "kernels/cuda/one_row.h"
#include "kernels/cuda/stream_rows.h"

namespace thermoe::cuda {
namespace {

using one_row::kQuad;
using one_row::kWarps;
using one_row::RowTilePlace;
constexpr int kThreads = 32 * kWarps;
constexpr int kMostColumns = kWarps * kQuad;  // column tiles
constexpr int kTiles = 2;                     // row tiles of a warp, at most

struct Args {
  DeviceMatrix weight[kMostTogether];
  const float* bias[kMostTogether];
  float* out[kMostTogether];
  int32_t first_tile[kMostTogether + 1];  // row tiles, counted through all
  bool adds;                              // to what is there
  int32_t columns, quads, sides;          // column tiles; quads of a row tile; row tiles at a time
  Divisor of_row_tile, blocks;            // by quads, by blocks
  const __half* halves;                   // the row as half_rows.cuh has it
};

[[maybe_unused]] __device__ int LinearOf(const Args& args, int row_tile) {
  int i = 0;
#pragma unroll
  for (int j = 1; j < static_cast<int>(kMostTogether); ++j) i += row_tile >= args.first_tile[j] ? 1 : 0;
  return i;
}

template <Packing kPacking>
__global__ void __launch_bounds__(kThreads, 1) LinearOfOneRowKernel(const __grid_constant__ Args args) {
#if __CUDA_ARCH__ >= 900
  __shared__ float parts[kTiles][kWarps][kTileRows];
  __shared__ __align__(16) std::byte row_room[kMostColumns * one_row::kActivationBytes];
  const int warp = WarpNumber(), lane = static_cast<int>(threadIdx.x % 32);
  const one_row::Activations row = one_row::ActivationsAt(row_room, kMostColumns);
  const uint64_t policy = one_row::ReadOncePolicy();
  const auto quotient = [](const Divisor& by, unsigned of) { return static_cast<int>(by.Quotient(of)); };
  const int side = quotient(args.of_row_tile, warp), first = (warp - side * args.quads) * kQuad;
  // The block's row tiles are a run; this warp's every one in so many as there are sides.
  const auto all = static_cast<unsigned>(args.first_tile[kMostTogether]);
  const int begin = quotient(args.blocks, all * blockIdx.x), end = quotient(args.blocks, all * (blockIdx.x + 1));
  one_row::Quad<kPacking> quads[kTiles];
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    const int tile = begin + side + i * args.sides;
    if (side >= args.sides || tile >= end) continue;
    const int which = LinearOf(args, tile);
    const RowTilePlace place = one_row::PlaceOf<kPacking>(args.weight[which], TileNumber(tile - args.first_tile[which], 0, args.columns));
    quads[i].ReadScales(place, first, policy);
#pragma unroll
    for (int j = 0; j < kQuad; ++j) quads[i].ReadCodes(place, first, j, policy);
  }
  WaitForBefore();
  LetNextStart();  // not before: attention reads early what came before the norm
  one_row::TakeRow<kMostColumns, kWarps>(args.halves, args.columns / 2, row);
  __syncthreads();
  float sums[kTiles][2] = {};
#pragma unroll
  for (int j = 0; j < kQuad; ++j) {
    const one_row::Met met(row, first + j);
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      if (side < args.sides && begin + side + i * args.sides < end) one_row::AddProduct(quads[i], j, met, sums[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    sums[i][0] *= one_row::kSumUnit<kPacking>, sums[i][1] *= one_row::kSumUnit<kPacking>;
    one_row::PutPart(parts[i][warp], sums[i]);
  }
  __syncthreads();
  // A warp a row tile.
  if (const int tile = begin + warp; tile < end) {
    const float sum = one_row::SumParts(parts[args.sides == 1 ? warp : warp / args.sides][args.sides == 1 ? 0 : warp % args.sides * args.quads], args.quads);
    const int which = LinearOf(args, tile), at = (tile - args.first_tile[which]) * kTileRows + lane;
    if (lane >= kTileRows || at >= args.weight[which].rows) return;
    const float whole = sum + (args.bias[which] != nullptr ? args.bias[which][at] : 0.0f);
    if (args.adds) atomicAdd(args.out[which] + at, whole);  // nobody else adds there: the same sum, but nothing waits for what was there
    else args.out[which][at] = whole;
  }
#endif
}

}  // namespace

bool LinearOfOneRow(std::span<const LinearLaunch> launches, cudaStream_t stream) {
  const LinearLaunch& one = launches.front();
  const int32_t cols = one.weight.cols;
  if (one.rows != 1 || !MayBeHoppers(one) || cols % (kQuad * kTileCols) != 0 || cols > kMostColumns * kTileCols || launches.size() > kMostTogether) return false;
  Args args{};
  args.columns = cols / kTileCols, args.quads = args.columns / kQuad, args.sides = kWarps / args.quads;
  args.adds = one.adds;
  size_t i = 0;
  for (; i < launches.size(); ++i) {
    const LinearLaunch& l = launches[i];
    if (l.weight.packing != one.weight.packing || l.weight.cols != cols) return false;
    args.weight[i] = l.weight, args.bias[i] = l.bias, args.out[i] = l.out;
    args.first_tile[i + 1] = args.first_tile[i] + (l.weight.rows + kTileRows - 1) / kTileRows;
  }
  for (; i < kMostTogether; ++i) args.first_tile[i + 1] = args.first_tile[i];
  const int tiles = args.first_tile[kMostTogether], blocks = std::min(Multiprocessors(), tiles);
  if ((tiles + blocks - 1) / blocks > std::min(kTiles * args.sides, one_row::kWarps)) return false;
  args.of_row_tile = Divisor(static_cast<uint32_t>(args.quads)), args.blocks = Divisor(static_cast<uint32_t>(blocks));
  return one_row::ByFourBits(one.weight.packing, [&]<Packing kPacking>() {
    args.halves = HalvesOf(one.x, one.halves, one.scratch, 1, cols, stream);
    return LaunchEarly(LinearOfOneRowKernel<kPacking>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream, args) == cudaSuccess;
  });
}

}  // namespace thermoe::cuda
