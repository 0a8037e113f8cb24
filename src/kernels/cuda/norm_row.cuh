// SPDX-License-Identifier: Apache-2.0
// A row's norm, with what is added to the row first (NormLaunch).
#pragma once

#include "kernels/cuda/half_rows.cuh"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/warp.cuh"

namespace thermoe::cuda {

// Four columns, or one.
template <typename V>
inline constexpr int kColumns = sizeof(V) / sizeof(float);
__device__ inline void AddTo(float& to, float value) { to += value; }
__device__ inline void AddTo(float4& to, const float4& value) { to.x += value.x, to.y += value.y, to.z += value.z, to.w += value.w; }
__device__ inline float Times(float value, float by) { return value * by; }
__device__ inline float4 Times(const float4& value, float by) { return {value.x * by, value.y * by, value.z * by, value.w * by}; }
__device__ inline float Times(float value, float by, float gain) { return value * by * gain; }
__device__ inline float4 Times(const float4& value, float by, const float4& gain) {
  return {value.x * by * gain.x, value.y * by * gain.y, value.z * by * gain.z, value.w * by * gain.w};
}
__device__ inline float Square(float value) { return value * value; }
__device__ inline float Square(const float4& value) { return value.x * value.x + value.y * value.y + (value.z * value.z + value.w * value.w); }
__device__ inline void StoreHalves(__half* row, int column, float value) { StoreHalf(row, column, value); }
__device__ inline void StoreHalves(__half* row, int column, const float4& value) {
  *reinterpret_cast<__half2*>(row + HalfPlace(column)) = __halves2half2(SaturatedHalf(value.x), SaturatedHalf(value.y));
  *reinterpret_cast<__half2*>(row + HalfPlace(column + 2)) = __halves2half2(SaturatedHalf(value.z), SaturatedHalf(value.w));
}

// The weights of a row's slots, slot l's in lane l: a warp asks for them once. (All threads asking for all of them is thousands of requests for the same
// two lines, which one slice of the L2 cache answers one after the other: 4 us of 8 rows.)
struct SlotWeights {
  float weight = 0;
  int32_t expert = -1;

  __device__ SlotWeights(const SlotSums& slots, int64_t row) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    if (slots.slot_out == nullptr || lane >= slots.slots) return;
    weight = __ldcg(slots.weight + row * slots.slots + lane), expert = __ldcg(slots.expert + row * slots.slots + lane);
  }
};

// Adds what the slots of a row gave: `at` counts Vs of a row's `count`. By whole warps. Loads do not wait for each other: those of empty slots, which come to
// nothing, are not left out.
template <typename V>
__device__ void AddFromSlots(const SlotSums& slots, const SlotWeights& weights, int64_t row, int count, int at, V* to) {
  constexpr int kAtOnce = 8;
  V sum{};
#pragma unroll 1
  for (int first = 0; first < slots.slots; first += kAtOnce) {
    V given[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      given[i] = __ldcg(reinterpret_cast<const V*>(slots.slot_out) + (row * slots.slots + min(first + i, slots.slots - 1)) * count + at);
    }
    const uint32_t filled = __ballot_sync(kAllLanes, weights.expert >= 0) >> first;  // there are no more slots than lanes
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const float weight = __shfl_sync(kAllLanes, weights.weight, first + i);
      AddTo(sum, filled >> i & 1 ? Times(given[i], weight) : V{});
    }
  }
  AddTo(*to, sum);
}

// The gains of a thread's first columns: weights, which may be read before the kernel before has ended.
template <typename V>
__device__ V ReadGain(const NormLaunch& l) {
  const int at = static_cast<int>(threadIdx.x);
  return at < l.n / kColumns<V> ? reinterpret_cast<const V*>(l.gain)[at] : V{};
}

// By all threads of a block. V: float4 where columns are a multiple of four, or float. dry: for nothing but the code, which comes meanwhile: it reads
// little, as often as it likes, and writes nothing.
template <typename V>
__device__ void NormRow(const NormLaunch& l, int64_t row, const V& gain, bool dry) {
  const int count = l.n / kColumns<V>, thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const bool adds = l.add != nullptr || l.slots.slot_out != nullptr;
  const V* x = reinterpret_cast<const V*>(l.x) + row * count;
  const SlotWeights weights(l.slots, row);
  const auto load = [&](int at) {
    V value = __ldcg(x + at);
    if (l.add != nullptr) AddTo(value, __ldcg(reinterpret_cast<const V*>(l.add) + row * count + at));
    if (l.slots.slot_out != nullptr) AddFromSlots(l.slots, weights, row, count, at, &value);
    return value;
  };
  V first{};
  float squares = 0;
  // Warps go together, those lanes that have no column by the last one.
#pragma unroll 1
  for (int at = thread; at - thread % 32 < count; at += threads) {
    const V value = load(dry ? 0 : min(at, count - 1));
    if (at >= count) continue;
    if (adds && !dry) const_cast<V*>(x)[at] = value;
    if (at == thread) first = value;
    squares += Square(value);
  }
  const float scale = 1.0f / sqrtf(BlockSum(squares) / static_cast<float>(l.n) + l.epsilon);
#pragma unroll 1
  for (int at = thread; at < count; at += threads) {
    const V value = Times(at == thread ? first : __ldcg(x + at), scale, at == thread ? gain : reinterpret_cast<const V*>(l.gain)[at]);
    if (dry) continue;
    reinterpret_cast<V*>(l.out)[row * count + at] = value;
    if (l.halves != nullptr) StoreHalves(l.halves + row * l.n, at * kColumns<V>, value);
  }
}

}  // namespace thermoe::cuda
