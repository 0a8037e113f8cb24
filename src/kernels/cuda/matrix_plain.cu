// SPDX-License-Identifier: Apache-2.0
// Matrices of floats, in float arithmetic: the router's gate, and models small enough to be kept in F32.
#include "kernels/cuda/fragments.cuh"
#include "kernels/cuda/launches.h"
#include "kernels/cuda/warp.cuh"

namespace thermoe::cuda {
namespace {

constexpr int kWarps = 8;       // of a block
constexpr int kRowsAtOnce = 4;  // activations that share a read of a weight
constexpr int kFewRows = 32;    // up to here a warp takes a weight row; beyond, tiles
constexpr unsigned kManyBlocks = 264;  // two for each multiprocessor of a large device

__device__ float DotOfWarp(const float* a, const float* b, int32_t n, int lane) {
  float sum = 0;
  for (int32_t i = lane; i < n; i += 32) sum += a[i] * b[i];
  return WarpSum(sum);
}

// A warp: one weight row, kRowsAtOnce activations.
__global__ void FewRows(DeviceMatrix weight, const float* x, const float* bias, float* out, int32_t rows) {
  const int32_t r = static_cast<int32_t>(blockIdx.x) * kWarps + static_cast<int32_t>(threadIdx.x / 32);
  const int lane = threadIdx.x % 32;
  const int32_t first = static_cast<int32_t>(blockIdx.y) * kRowsAtOnce, n = weight.cols;
  if (r >= weight.rows) return;
  const float* w = reinterpret_cast<const float*>(weight.hi) + int64_t{r} * n;
  float sums[kRowsAtOnce] = {};
#pragma unroll 4
  for (int32_t i = lane; i < n; i += 32) {
    const float value = w[i];
#pragma unroll
    for (int t = 0; t < kRowsAtOnce; ++t) {
      if (first + t < rows) sums[t] += value * x[int64_t{first + t} * n + i];
    }
  }
#pragma unroll
  for (int t = 0; t < kRowsAtOnce; ++t) {
    const float sum = WarpSum(sums[t]);
    if (lane == 0 && first + t < rows)
      out[int64_t{first + t} * weight.rows + r] = sum + (bias != nullptr ? bias[r] : 0.0f);
  }
}

// A block of 256 threads: 64 activations by 64 weight rows, 4 by 4 a thread, 16 columns at a time.
constexpr int kTile = 64, kDepth = 16;
__global__ void __launch_bounds__(256)
    ManyRows(DeviceMatrix weight, const float* x, const float* bias, float* out, int32_t rows) {
  __shared__ float xs[kDepth][kTile + 4], ws[kDepth][kTile + 4];
  const int32_t t0 = static_cast<int32_t>(blockIdx.x) * kTile, r0 = static_cast<int32_t>(blockIdx.y) * kTile,
                n = weight.cols;
  const auto* w = reinterpret_cast<const float*>(weight.hi);
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  float sums[4][4] = {};
  for (int32_t k0 = 0; k0 < n; k0 += kDepth) {
    for (int i = threadIdx.x; i < kTile * kDepth; i += 256) {
      const int row = i / kDepth, k = i % kDepth;
      xs[k][row] = t0 + row < rows && k0 + k < n ? x[int64_t{t0 + row} * n + k0 + k] : 0.0f;
      ws[k][row] = r0 + row < weight.rows && k0 + k < n ? w[int64_t{r0 + row} * n + k0 + k] : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      const float4 a = *reinterpret_cast<const float4*>(&xs[k][ty * 4]),
                   b = *reinterpret_cast<const float4*>(&ws[k][tx * 4]);
      const float as[4] = {a.x, a.y, a.z, a.w}, bs[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] += as[i] * bs[j];
      }
    }
    __syncthreads();
  }
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) {
      const int32_t t = t0 + ty * 4 + i, r = r0 + tx * 4 + j;
      if (t < rows && r < weight.rows)
        out[int64_t{t} * weight.rows + r] = sums[i][j] + (bias != nullptr ? bias[r] : 0.0f);
    }
  }
}

// Few blocks of the above would be under way, each a long row of waits: here the warps of a block share the columns, sixteen at a time in turn, and
// add up at the end. 16 activations by 64 weight rows, 4 by 8 a lane, or, where that leaves multiprocessors idle, by 16, 2 by 4 a lane; the sums are the same. A
// turn's floats are on their way while the one before is multiplied.
constexpr int kSplitWarps = 16, kSplitRows = 16, kSplitDepth = 16, kMostSplitWeights = 64, kLeastSplitWeights = 16;
template <int kWeights>
struct alignas(16) SplitTile {
  float x[kSplitDepth][kSplitRows + 4], w[kSplitDepth][kWeights + 4];
};
template <int kWeights>
constexpr int kSplitBytes = sizeof(SplitTile<kWeights>) * kSplitWarps;

// A lane's float4s of kRows rows from `first` on, columns k0 to k0 + kSplitDepth; rows that there are not are zero.
template <int kRows>
struct SplitPiece {
  static constexpr int kLoads = kRows * kSplitDepth / 4 / 32;
  float4 v[kLoads];

  __device__ static int Row(int i) { return (static_cast<int>(threadIdx.x % 32) + 32 * i) / (kSplitDepth / 4); }
  __device__ static int Column() { return static_cast<int>(threadIdx.x % (kSplitDepth / 4)) * 4; }
  __device__ void Load(const float* from, int32_t first, int32_t rows, int32_t n, int32_t k0) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int32_t row = first + Row(i);
      v[i] = row < rows ? *reinterpret_cast<const float4*>(from + int64_t{row} * n + k0 + Column()) : float4{};
    }
  }
  template <int kWidth>
  __device__ void Store(float (*to)[kWidth]) const {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int row = Row(i), k = Column();
      to[k][row] = v[i].x, to[k + 1][row] = v[i].y, to[k + 2][row] = v[i].z, to[k + 3][row] = v[i].w;
    }
  }
};

template <int kWeights>
__global__ void __launch_bounds__(32 * kSplitWarps) SplitColumns(DeviceMatrix weight, const float* x, const float* bias, float* out, int32_t rows) {
  constexpr int kAcross = kWeights == kMostSplitWeights ? 8 : 4;  // lanes
  constexpr int kOfLane = kWeights / kAcross, kRowsOfLane = kSplitRows / (32 / kAcross);
  static_assert(kSplitRows * kWeights * sizeof(float) <= sizeof(SplitTile<kWeights>));
  extern __shared__ __align__(16) std::byte split_shared[];
  auto* tiles = reinterpret_cast<SplitTile<kWeights>*>(split_shared);
  const int32_t t0 = static_cast<int32_t>(blockIdx.x) * kSplitRows, r0 = static_cast<int32_t>(blockIdx.y) * kWeights, n = weight.cols;
  const auto* w = reinterpret_cast<const float*>(weight.hi);
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32), tx = lane % kAcross, ty = lane / kAcross;
  SplitTile<kWeights>& tile = tiles[warp];
  float sums[kRowsOfLane][kOfLane] = {};
  SplitPiece<kSplitRows> next_x;
  SplitPiece<kWeights> next_w;
  const auto load = [&](int32_t k0) {
    if (k0 < n) next_x.Load(x, t0, rows, n, k0), next_w.Load(w, r0, weight.rows, n, k0);
  };
  load(warp * kSplitDepth);
  for (int32_t k0 = warp * kSplitDepth; k0 < n; k0 += kSplitWarps * kSplitDepth) {
    next_x.Store(tile.x), next_w.Store(tile.w);
    __syncwarp();
    load(k0 + kSplitWarps * kSplitDepth);
#pragma unroll
    for (int k = 0; k < kSplitDepth; ++k) {
      float as[kRowsOfLane], bs[kOfLane];
#pragma unroll
      for (int i = 0; i < kRowsOfLane; ++i) as[i] = tile.x[k][ty * kRowsOfLane + i];
#pragma unroll
      for (int j = 0; j < kOfLane; j += 4) {
        const float4 b = *reinterpret_cast<const float4*>(&tile.w[k][j * kAcross + tx * 4]);
        bs[j] = b.x, bs[j + 1] = b.y, bs[j + 2] = b.z, bs[j + 3] = b.w;
      }
#pragma unroll
      for (int i = 0; i < kRowsOfLane; ++i) {
#pragma unroll
        for (int j = 0; j < kOfLane; ++j) sums[i][j] += as[i] * bs[j];
      }
    }
    __syncwarp();
  }
  // The warp's own tile holds its sums now: [row, weight].
  auto* own = reinterpret_cast<float*>(&tile);
#pragma unroll
  for (int i = 0; i < kRowsOfLane; ++i) {
#pragma unroll
    for (int j = 0; j < kOfLane; ++j) own[(ty * kRowsOfLane + i) * kWeights + j / 4 * 4 * kAcross + tx * 4 + j % 4] = sums[i][j];
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kSplitRows * kWeights; i += 32 * kSplitWarps) {
    const int32_t t = t0 + i / kWeights, r = r0 + i % kWeights;
    if (t >= rows || r >= weight.rows) continue;
    float sum = bias != nullptr ? bias[r] : 0.0f;
    for (int part = 0; part < kSplitWarps; ++part) sum += reinterpret_cast<const float*>(&tiles[part])[i];
    out[int64_t{t} * weight.rows + r] = sum;
  }
}

// A warp: one inner activation of one slot. inner: [T * K, F].
__global__ void ExpertInner(ExpertFfnLaunch args, float* inner) {
  const int32_t slot = static_cast<int32_t>(blockIdx.x), expert = args.expert[slot];
  const int32_t f = static_cast<int32_t>(blockIdx.y) * kWarps + static_cast<int32_t>(threadIdx.x / 32);
  const int lane = threadIdx.x % 32;
  if (expert < 0 || f >= args.width) return;
  const float* x = args.x + int64_t{slot / args.slots} * args.hidden;
  const int64_t at = int64_t{f} * args.hidden;
  const float gate = DotOfWarp(reinterpret_cast<const float*>(args.gate[expert].hi) + at, x, args.hidden, lane);
  const float up = DotOfWarp(reinterpret_cast<const float*>(args.up[expert].hi) + at, x, args.hidden, lane);
  if (lane == 0) inner[int64_t{slot} * args.width + f] = gate / (1.0f + expf(-gate)) * up;
}
// A warp: one output of one token, its slots in order.
__global__ void ExpertDown(ExpertFfnLaunch args, const float* inner) {
  const int64_t t = blockIdx.x;
  const int32_t d = static_cast<int32_t>(blockIdx.y) * kWarps + static_cast<int32_t>(threadIdx.x / 32);
  const int lane = threadIdx.x % 32;
  if (d >= args.hidden) return;
  float sum = args.out[t * args.hidden + d];
  for (int32_t k = 0; k < args.slots && args.expert[t * args.slots + k] >= 0; ++k) {
    const int64_t slot = t * args.slots + k;
    const float* w = reinterpret_cast<const float*>(args.down[args.expert[slot]].hi) + int64_t{d} * args.width;
    sum += args.weight[slot] * DotOfWarp(w, inner + slot * args.width, args.width, lane);
  }
  if (lane == 0) args.out[t * args.hidden + d] = sum;
}

unsigned Blocks(int32_t count, int32_t each) { return static_cast<unsigned>((count + each - 1) / each); }

}  // namespace

cudaError_t LinearPlain(const LinearLaunch& launch, cudaStream_t stream) {
  const DeviceMatrix& weight = launch.weight;
  if (launch.rows <= kFewRows) {
    const dim3 grid(Blocks(weight.rows, kWarps), Blocks(launch.rows, kRowsAtOnce));
    FewRows<<<grid, kWarps * 32, 0, stream>>>(weight, launch.x, launch.bias, launch.out, launch.rows);
    return cudaGetLastError();
  }
  const dim3 tiles(Blocks(launch.rows, kTile), Blocks(weight.rows, kTile));
  const bool quads = weight.cols % kSplitDepth == 0 && reinterpret_cast<uintptr_t>(launch.x) % sizeof(float4) == 0;
  // False: the device has not the shared memory.
  const auto split = [&]<int kWeights>() {
    if (cudaFuncSetAttribute(SplitColumns<kWeights>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSplitBytes<kWeights>) != cudaSuccess) {
      cudaGetLastError();
      return false;
    }
    const dim3 grid(Blocks(launch.rows, kSplitRows), Blocks(weight.rows, kWeights));
    SplitColumns<kWeights><<<grid, kSplitWarps * 32, kSplitBytes<kWeights>, stream>>>(weight, launch.x, launch.bias, launch.out, launch.rows);
    return true;
  };
  const bool small = Blocks(launch.rows, kSplitRows) * Blocks(weight.rows, kLeastSplitWeights) <= kManyBlocks;
  const bool done = quads && tiles.x * tiles.y < kManyBlocks && (small ? split.template operator()<kLeastSplitWeights>() : split.template operator()<kMostSplitWeights>());
  if (!done) ManyRows<<<tiles, 256, 0, stream>>>(weight, launch.x, launch.bias, launch.out, launch.rows);
  return cudaGetLastError();
}

size_t ExpertPlainScratch(int32_t width, int32_t slots, int32_t rows) {
  return sizeof(float) * static_cast<size_t>(rows) * static_cast<size_t>(slots) * static_cast<size_t>(width);
}

cudaError_t ExpertPlain(const ExpertFfnLaunch& launch, cudaStream_t stream) {
  auto* inner = static_cast<float*>(launch.scratch);
  ExpertInner<<<dim3(static_cast<unsigned>(launch.rows * launch.slots), Blocks(launch.width, kWarps)), kWarps * 32, 0,
                stream>>>(launch, inner);
  ExpertDown<<<dim3(static_cast<unsigned>(launch.rows), Blocks(launch.hidden, kWarps)), kWarps * 32, 0, stream>>>(
      launch, inner);
  return cudaGetLastError();
}

}  // namespace thermoe::cuda
