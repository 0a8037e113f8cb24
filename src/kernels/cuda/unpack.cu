// SPDX-License-Identifier: Apache-2.0
// Packed weights to halves in memory.
#include <algorithm>

#include "kernels/cuda/launch_early.cuh"
#include "kernels/cuda/prefill_weights.cuh"
#include "kernels/cuda/unpacked.h"
#include "kernels/cuda/warp.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace thermoe::cuda {
namespace {

struct UnpackArgs {
  UnpackedPart part[kMostTogether];
  int32_t k_tiles = 0;
  std::byte* to = nullptr;
  bool waits = false;
};

// A block: 128 rows by 64 columns, a tile a warp. grid: column tiles, groups of all parts.
template <Packing kPacking>
__global__ void __launch_bounds__(32 * kGroupTiles) UnpackKernel(const __grid_constant__ UnpackArgs args) {
#if __CUDA_ARCH__ >= 900
  constexpr int kRowBytes = kTileCols * static_cast<int>(sizeof(__half));
  __shared__ alignas(1024) std::byte staging[kGroupTiles][kTileRows * kRowBytes];
  const auto k = static_cast<int32_t>(blockIdx.x);
  int32_t group = static_cast<int32_t>(blockIdx.y), p = 0;
  for (; group >= args.part[p].groups; ++p) group -= args.part[p].groups;
  const UnpackedPart& part = args.part[p];
  const int warp = WarpNumber(), lane = static_cast<int>(threadIdx.x % 32);
  TileWords<kPacking> words;
  words.LoadTile(part.weight, (int64_t{part.first_group + group} * args.k_tiles + k) * kGroupTiles + warp, lane);
  std::byte* tile = staging[warp];
  const auto step = [&]<int kStep>() {
    const int row = lane % 16, piece = 2 * kStep + lane / 16;
    StoreMatrices(tile + row * kRowBytes + (piece ^ row % 8) * 16, words.template Step<kStep, false>().r);
  };
  step.template operator()<0>();
  step.template operator()<1>();
  step.template operator()<2>();
  step.template operator()<3>();
  __syncwarp();
  if (args.waits) WaitForBefore();
  auto* to = reinterpret_cast<uint4*>(args.to + (int64_t{part.at + group} * args.k_tiles + k) * kUnpackedTileBytes + warp * kTileRows * kRowBytes);
#pragma unroll
  for (int i = 0; i < kTileRows * kRowBytes / 512; ++i) to[32 * i + lane] = reinterpret_cast<const uint4*>(tile)[32 * i + lane];
  WaitForBefore();  // whoever waits for this launch waits for those before it, too
  LetNextStart();
#endif
}

template <Packing kPacking>
cudaError_t Start(const UnpackArgs& args, int32_t groups, cudaStream_t stream) {
  return LaunchEarly(UnpackKernel<kPacking>, dim3(static_cast<unsigned>(args.k_tiles), static_cast<unsigned>(groups)), dim3(32 * kGroupTiles), 0, stream, args);
}

}  // namespace

cudaError_t Unpack(std::span<const UnpackedPart> parts, std::byte* to, bool waits, cudaStream_t stream) {
  UnpackArgs args;
  int32_t groups = 0;
  for (size_t p = 0; p < parts.size(); ++p) args.part[p] = parts[p], groups += parts[p].groups;
  args.k_tiles = parts.front().weight.k_tiles, args.to = to, args.waits = waits;
  switch (parts.front().weight.packing) {
    case Packing::kPlanes8: return Start<Packing::kPlanes8>(args, groups, stream);
    case Packing::kNibble: return Start<Packing::kNibble>(args, groups, stream);
    case Packing::kNibbleMin: return Start<Packing::kNibbleMin>(args, groups, stream);
    case Packing::kByteMin: return Start<Packing::kByteMin>(args, groups, stream);
    case Packing::kByte16: return Start<Packing::kByte16>(args, groups, stream);
    case Packing::kMxfp4: return Start<Packing::kMxfp4>(args, groups, stream);
    case Packing::kHalf: return Start<Packing::kHalf>(args, groups, stream);
    case Packing::kF32:
    case Packing::kHiPlane:
    case Packing::kBothPlanes: break;
  }
  return cudaErrorNotSupported;
}

}  // namespace thermoe::cuda
