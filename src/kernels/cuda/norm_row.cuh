// SPDX-License-Identifier: Apache-2.0
// A row's norm, with what is added to the row first (NormLaunch).
#pragma once

#include <type_traits>

#include "kernels/cuda/half_rows.cuh"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/warp.cuh"

namespace thermoe::cuda {

inline constexpr int kNormThreads = 512;

// Sums over all these threads. sums: [kNormThreads / 32] in shared memory, whose last readers need not have met (BlockSum's must).
__device__ inline float SumOfThreads(float value, float* sums) {
  value = WarpSum(value);
  __syncthreads();
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
  __syncthreads();
  return WarpSum(threadIdx.x % 32 < kNormThreads / 32 ? sums[threadIdx.x % 32] : 0.0f);
}

inline constexpr int kNormKept = 4;  // columns that a thread keeps in registers

// The gains of a thread's columns: weights, which may be read before the kernel before has ended.
struct NormGains {
  float of[kNormKept];
};
__device__ inline NormGains ReadGains(const NormLaunch& l) {
  NormGains gains;
#pragma unroll
  for (int k = 0; k < kNormKept; ++k) {
    const int i = static_cast<int>(threadIdx.x) + k * kNormThreads;
    gains.of[k] = i < l.n ? l.gain[i] : 0.0f;
  }
  return gains;
}

// Adds what the slots of a row gave columns first, first + step, ... Loads do not wait for each other: those of empty slots, which come to nothing, are
// not left out.
template <int kCount>
__device__ void AddFromSlots(const SlotSums& slots, int64_t row, int n, int first, int step, float (&to)[kCount]) {
  const int64_t slot = row * slots.slots;
  float sums[kCount] = {};
#pragma unroll 8
  for (int s = 0; s < slots.slots; ++s) {
    const float weight = __ldcg(slots.weight + slot + s);
    const bool empty = __ldcg(slots.expert + slot + s) < 0;
    const float* gave = slots.slot_out + (slot + s) * n;
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const int i = first + k * step;
      const float given = i < n ? __ldcg(gave + i) : 0.0f;
      sums[k] += empty ? 0.0f : weight * given;
    }
  }
#pragma unroll
  for (int k = 0; k < kCount; ++k) to[k] += sums[k];
}

// sums: as SumOfThreads has them.
__device__ inline void NormRow(const NormLaunch& l, int64_t row, const NormGains& gains, float* sums) {
  const int64_t at = row * l.n;
  const int thread = static_cast<int>(threadIdx.x);
  const bool adds = l.add != nullptr || l.slots.slot_out != nullptr;
  float* x = const_cast<float*>(l.x);
  // All loads before the first store: they do not wait for each other.
  const auto load = [&](int first, auto& values) {
    constexpr int kCount = static_cast<int>(std::extent_v<std::remove_reference_t<decltype(values)>>);
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const int i = first + k * kNormThreads;
      values[k] = i < l.n ? __ldcg(l.x + at + i) : 0.0f;
      if (l.add != nullptr && i < l.n) values[k] += __ldcg(l.add + at + i);
    }
    if (l.slots.slot_out != nullptr) AddFromSlots(l.slots, row, l.n, first, kNormThreads, values);
  };
  float kept[kNormKept], squares = 0;
  load(thread, kept);
#pragma unroll
  for (int k = 0; k < kNormKept; ++k) squares += kept[k] * kept[k];
#pragma unroll
  for (int k = 0; k < kNormKept; ++k) {
    const int i = thread + k * kNormThreads;
    if (adds && i < l.n) x[at + i] = kept[k];
  }
  for (int i = thread + kNormKept * kNormThreads; i < l.n; i += kNormThreads) {
    float value[1];
    load(i, value);
    if (adds) x[at + i] = value[0];
    squares += value[0] * value[0];
  }
  const float scale = 1.0f / sqrtf(SumOfThreads(squares, sums) / static_cast<float>(l.n) + l.epsilon);
#pragma unroll
  for (int k = 0; k < kNormKept; ++k) {
    const int i = thread + k * kNormThreads;
    if (i >= l.n) continue;
    const float value = kept[k] * scale * gains.of[k];
    l.out[at + i] = value;
    if (l.halves != nullptr) StoreHalf(l.halves + at, i, value);
  }
  for (int i = thread + kNormKept * kNormThreads; i < l.n; i += kNormThreads) {
    const float value = x[at + i] * scale * l.gain[i];
    l.out[at + i] = value;
    if (l.halves != nullptr) StoreHalf(l.halves + at, i, value);
  }
}

}  // namespace thermoe::cuda
