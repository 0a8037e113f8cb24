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
  if (LinearOfTf32(launch, stream) || LinearOfManyTf32(launch, stream) || LinearOfSplitColumns(launch, stream)) return cudaGetLastError();
  const dim3 tiles(Blocks(launch.rows, kTile), Blocks(weight.rows, kTile));
  ManyRows<<<tiles, 256, 0, stream>>>(weight, launch.x, launch.bias, launch.out, launch.rows);
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
