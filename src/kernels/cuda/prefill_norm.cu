// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/prefill_norm.h"

#include <algorithm>

#include "kernels/cuda/launch_early.cuh"
#include "kernels/cuda/norm_row.cuh"

namespace thermoe::cuda {
namespace {

constexpr int kHeld = 2;  // float4s of a row, a thread
constexpr int kMostColumns = 4096;
constexpr int kMostThreads = kMostColumns / 4 / kHeld;

// The threads whose sums RmsNorm adds up: float4 `at` of a row is of thread at % this.
__host__ __device__ constexpr int SumThreads(int quads) { return quads < 32 ? 32 : quads / 32 * 32; }

using Quads = float4[kHeld];

// Adds the halves of a row's slots, in slot order. By whole warps. Loads do not wait for each other, nor for which slots are filled.
__device__ void AddHalfSlots(const HalfSlots& slots, int64_t row, int count, const int (&at)[kHeld], Quads& v) {
  constexpr int kAtOnce = 8;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int32_t expert = lane < slots.count ? __ldcg(slots.expert + row * slots.count + lane) : -1;
  const auto* from = reinterpret_cast<const uint2*>(slots.slots) + row * slots.count * count;
#pragma unroll 1
  for (int first = 0; first < slots.count; first += kAtOnce) {
    uint2 given[kAtOnce][kHeld];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
#pragma unroll
      for (int i = 0; i < kHeld; ++i) given[k][i] = __ldcs(from + int64_t{min(first + k, slots.count - 1)} * count + min(at[i], count - 1));
    }
    const uint32_t filled = __ballot_sync(kAllLanes, expert >= 0) >> first;  // there are no more slots than lanes
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      if ((filled >> k & 1) == 0) continue;
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        const float2 low = __half22float2(*reinterpret_cast<const __half2*>(&given[k][i].x)), high = __half22float2(*reinterpret_cast<const __half2*>(&given[k][i].y));
        AddTo(v[i], {low.x, low.y, high.x, high.y});
      }
    }
  }
}

// The sum of a row's squares, added as RmsNorm adds them whatever this block's size: warps of it that are not there are those of quads further on.
__device__ float RowSquares(const Quads& v, int count) {
  __shared__ float sums[32], rest[32];
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x), summing = SumThreads(count);
  float squares[kHeld];
#pragma unroll
  for (int i = 0; i < kHeld; ++i) squares[i] = thread + i * threads < count ? Square(v[i]) : 0.0f;
  if (summing < count) {  // the first threads' second quads
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (const int at = thread + i * threads; at >= summing && at < count) rest[at - summing] = squares[i], squares[i] = 0;
    }
    __syncthreads();
    if (thread < count - summing) squares[0] += rest[thread];
  }
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int at = thread + i * threads;
    const float sum = WarpSum(squares[i]);
    if (thread % 32 == 0 && at < summing) sums[at / 32] = sum;
  }
  __syncthreads();
  return WarpSum(thread % 32 < summing / 32 ? sums[thread % 32] : 0.0f);
}

// The largest magnitude of a row, as bits.
__device__ uint32_t RowMost(const Quads& v) {
  __shared__ uint32_t of_warps[kMostThreads / 32];
  float most = 0;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    most = fmaxf(most, fmaxf(fmaxf(fabsf(v[i].x), fabsf(v[i].y)), fmaxf(fabsf(v[i].z), fabsf(v[i].w))));
  }
  const uint32_t of_warp = __reduce_max_sync(kAllLanes, __float_as_uint(most));
  const int lane = static_cast<int>(threadIdx.x % 32);
  if (lane == 0) of_warps[threadIdx.x / 32] = of_warp;
  __syncthreads();
  return __reduce_max_sync(kAllLanes, lane < static_cast<int>(blockDim.x / 32) ? of_warps[lane] : 0u);
}

// A block: one row, a thread's quads as many apart as there are threads. kSlots: adds slots.
template <bool kSlots>
__global__ void __launch_bounds__(kMostThreads) PrefillNormKernel(const __grid_constant__ PrefillNormLaunch l) {
  const int count = l.norm.n / 4, thread = static_cast<int>(threadIdx.x);
  const auto row = static_cast<int64_t>(blockIdx.x);
  int at[kHeld];
  Quads gain, v;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    at[i] = thread + i * static_cast<int>(blockDim.x);
    gain[i] = at[i] < count ? reinterpret_cast<const float4*>(l.norm.gain)[at[i]] : float4{};
  }
  WaitForBefore();
  LetNextStart();
  auto* x = const_cast<float4*>(reinterpret_cast<const float4*>(l.norm.x)) + row * count;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) v[i] = at[i] < count ? __ldcg(x + at[i]) : float4{};
  if constexpr (kSlots) {
    AddHalfSlots(l.slots, row, count, at, v);
  } else if (l.norm.add != nullptr) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (at[i] < count) AddTo(v[i], __ldcs(reinterpret_cast<const float4*>(l.norm.add) + row * count + at[i]));
    }
  }
  if (kSlots || l.norm.add != nullptr) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (at[i] < count) x[at[i]] = v[i];
    }
  }
  const float scale = 1.0f / sqrtf(RowSquares(v, count) / static_cast<float>(l.norm.n) + l.norm.epsilon);
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    v[i] = at[i] < count ? Times(v[i], scale, gain[i]) : float4{};
    if (at[i] < count && l.norm.out != nullptr) reinterpret_cast<float4*>(l.norm.out)[row * count + at[i]] = v[i];
  }
  if (l.halves.halves == nullptr) return;
  const float to_halves = HalfScale(__uint_as_float(RowMost(v)));
  auto* halves = reinterpret_cast<uint2*>(l.halves.halves) + row * (l.halves.stride / 4);
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    if (at[i] < l.halves.stride / 4) halves[at[i]] = {PackHalves(v[i].x * to_halves, v[i].y * to_halves), PackHalves(v[i].z * to_halves, v[i].w * to_halves)};
  }
  if (thread == 0) l.halves.unscale[row] = InverseOfPower(to_halves);
  if (row == 0 && thread < static_cast<int>(kMostTogether)) l.halves.taken[thread] = 0;
}

}  // namespace

bool NormsForPrefill(const NormLaunch& l) {
  // Of up to 256 columns RmsNorm adds the squares another way.
  return l.n > 256 && l.n <= kMostColumns && l.n % 8 == 0 && OfQuads(l.x) && OfQuads(l.gain) && OfQuads(l.out) && OfQuads(l.add);
}

void PrefillNorm(const PrefillNormLaunch& l, cudaStream_t stream) {
  if (l.norm.rows == 0) return;
  const int quads = std::max(l.norm.n, l.halves.stride) / 4, threads = ((quads + kHeld - 1) / kHeld + 31) / 32 * 32;
  const auto kernel = l.slots.slots != nullptr ? PrefillNormKernel<true> : PrefillNormKernel<false>;
  LaunchEarly(kernel, dim3(static_cast<unsigned>(l.norm.rows)), dim3(static_cast<unsigned>(threads)), 0, stream, l);
}

}  // namespace thermoe::cuda
