// SPDX-License-Identifier: Apache-2.0
// A matrix of packed weights times many rows: activations to halves, where the norm or attention before has not left them, then one product.
#include <algorithm>

#include "kernels/cuda/prefill_kernel.cuh"
#include "kernels/cuda/unpacked.h"

namespace thermoe::cuda {
namespace {

constexpr int kItemColumns = 128, kItemRows = 256;  // activations, and rows of weights, of a block's item
constexpr int kMostPartItems = 160;                 // items of columns in parts

// out = the parts' sums and the bias. grid: columns by fours, rows.
__global__ void AddColumnPartsKernel(const float4* sums, int parts, int64_t part, const float* bias, float4* out, int quads) {
  WaitForBefore();
  LetNextStart();
  const int column = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (column >= quads) return;
  const int64_t at = int64_t{blockIdx.y} * quads + column;
  float4 of[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) of[i] = i < parts ? __ldcg(sums + i * part + at) : float4{};
  float4 sum = bias != nullptr ? reinterpret_cast<const float4*>(bias)[column] : float4{};
#pragma unroll
  for (int i = 0; i < 4; ++i) sum.x += of[i].x, sum.y += of[i].y, sum.z += of[i].z, sum.w += of[i].w;
  out[at] = sum;
}

}  // namespace

// The rows as halves, then the sums of column parts.
size_t LinearPrefillScratch(int32_t rows, int32_t in) {
  return HalfRowsBytes(rows, in) + size_t{kMostPartItems} * kItemColumns * kItemRows * sizeof(float);
}

HalfRows HalfRowsOf(const LinearLaunch& launch) { return HalfRowsAt(launch.scratch, launch.rows, launch.weight.cols); }

int PrefillColumnParts(std::span<const LinearLaunch> launches) {
  const LinearLaunch& one = launches.front();
  if (launches.size() > 1 || one.weight.rows % 4 != 0 || !OfQuads(one.out) || !OfQuads(one.bias)) return 1;
  constexpr int kLeastTiles = 4;  // of an item
  const int64_t items = int64_t{(one.rows + kItemColumns - 1) / kItemColumns} * ((one.weight.rows + kItemRows - 1) / kItemRows);
  for (const int parts : {4, 2}) {
    if (items * parts <= std::min(HopperMultiprocessors(), kMostPartItems) && one.weight.k_tiles % parts == 0 && one.weight.k_tiles / parts >= kLeastTiles) return parts;
  }
  return 1;
}

// Whether several matrices are one round of these kernels, which unpack nothing, where unpacked ones would take two: q, k and v of 512 rows are 37 us instead of 39 to 42.
bool OneRound(std::span<const LinearLaunch> launches) {
  const LinearLaunch& one = launches.front();
  int64_t items = 0;
  for (const LinearLaunch& l : launches) {
    if (l.weight.packing != one.weight.packing) return false;
    items += int64_t{(one.rows + kItemColumns - 1) / kItemColumns} * ((l.weight.rows + kItemRows - 1) / kItemRows);
  }
  return launches.size() > 1 && 2 * items > HopperMultiprocessors() && items <= HopperMultiprocessors();
}

cudaError_t LinearPrefill(std::span<const LinearLaunch> launches, cudaStream_t stream) {
  const LinearLaunch& first = launches.front();
  const HalfRows halves = HalfRowsOf(first);
  const auto* x = static_cast<const __half*>(halves.halves);
  int32_t* taken = halves.taken;
  const cudaError_t made = first.prefilled ? cudaSuccess : RowsToHalves(first.x, first.rows, first.weight.cols, halves, stream);
  if (made != cudaSuccess) return made;
  if (PrefillsUnpacked(launches) && !OneRound(launches)) return LinearUnpacked(launches, halves, stream);
  if (const int column_parts = PrefillColumnParts(launches); column_parts > 1) {
    auto* sums = reinterpret_cast<float*>(static_cast<std::byte*>(first.scratch) + HalfRowsBytes(first.rows, first.weight.cols));
    const int32_t out = first.weight.rows, each = first.weight.k_tiles / column_parts;
    const int64_t part = int64_t{first.rows} * out;
    PrefillArgs args;
    for (int i = 0; i < column_parts; ++i) args.part[args.parts++] = {first.weight, i * each, sums + i * part, nullptr};
    args.rows = first.rows, args.x = x, args.unscale = halves.unscale, args.k_tiles = each, args.row_tiles = first.weight.k_tiles, args.taken = taken;
    const cudaError_t error = StartPrefill<Epilogue::kRows>(first.weight.packing, args, HopperMultiprocessors(), stream);
    if (error != cudaSuccess) return error;
    constexpr int kThreads = 128;
    const dim3 grid(static_cast<unsigned>((out / 4 + kThreads - 1) / kThreads), static_cast<unsigned>(first.rows));
    return LaunchEarly(AddColumnPartsKernel, grid, dim3(kThreads), 0, stream, reinterpret_cast<const float4*>(sums), column_parts, part / 4, first.bias,
                       reinterpret_cast<float4*>(first.out), out / 4);
  }
  // Those of one packing together: one launch has more for all multiprocessors to do.
  for (size_t begin = 0, end = 0; begin < launches.size(); begin = end) {
    PrefillArgs args;
    const Packing packing = launches[begin].weight.packing;
    for (; end < launches.size() && launches[end].weight.packing == packing; ++end) {
      args.part[args.parts++] = {launches[end].weight, 0, launches[end].out, launches[end].bias};
    }
    args.rows = first.rows;
    args.x = x;
    args.unscale = halves.unscale;
    args.k_tiles = args.row_tiles = first.weight.k_tiles;
    args.taken = taken++;
    const cudaError_t error = StartPrefill<Epilogue::kRows>(packing, args, HopperMultiprocessors(), stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace thermoe::cuda
