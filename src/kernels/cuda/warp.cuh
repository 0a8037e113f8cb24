// SPDX-License-Identifier: Apache-2.0
// Sums and maxima over a warp and a block; programmatic launches.
#pragma once

namespace thermoe::cuda {

inline constexpr unsigned kAllLanes = 0xffffffffu;

// Programmatic launches (sm_90): a kernel that was launched early waits here for the one before it; and lets the next begin.
__device__ inline void WaitForBefore() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ inline void LetNextStart() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Counts a block that has come to some point, by one thread after the block has met: how many had come before. What they wrote before that is
// seen by this block once it meets again.
__device__ inline uint32_t CountBlock(uint32_t* counter) {
  uint32_t before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
  return before;
}

// A word that passes from one block to another by itself: nothing else that the one wrote is thereby seen by the other.
__device__ inline void PutWord(uint64_t* to, uint64_t bits) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(bits) : "memory");
}
__device__ inline void PutWord(uint32_t* to, uint32_t bits) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(bits) : "memory");
}
__device__ inline uint32_t TakeWord(const uint32_t* from) {
  uint32_t bits;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(bits) : "l"(from) : "memory");
  return bits;
}

__device__ inline uint64_t TakeWord(const uint64_t* from) {
  uint64_t bits;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(bits) : "l"(from) : "memory");
  return bits;
}

// Words that carry the number of the launch they are of above their bits, so that whoever reads one knows whether it is there.
inline constexpr int kNumberShift = 16;
inline constexpr uint64_t kNoPick = 0xffff;  // of a slot that is empty; others: 2 expert + (1: the hi plane alone)

// The number of a thread's warp in its block, as one that the compiler knows to be the same in all lanes: where only some warps go they then go together, and
// no code is there for lanes that have parted.
__device__ inline int WarpNumber() { return __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x / 32), 0); }

__device__ inline float WarpSum(float value) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}

__device__ inline float WarpMax(float value) {
  for (int offset = 16; offset > 0; offset /= 2) value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, offset));
  return value;
}

// Adds kCount values, a power of two, over the lanes; value i is in the lanes from 32 / kCount * i on. (By recursion: of a loop whose step halves the compiler
// leaves the values in local memory.)
template <int kCount, int kMask = 16>
__device__ float SumOfSeveral(const float (&v)[kCount]) {
  if constexpr (kCount == 1) {
    float sum = v[0];
#pragma unroll
    for (int mask = kMask; mask > 0; mask /= 2) sum += __shfl_xor_sync(kAllLanes, sum, mask);
    return sum;
  } else {
    constexpr int kHalf = kCount / 2;
    const bool upper = (static_cast<int>(threadIdx.x % 32) & kMask) != 0;
    float left[kHalf];
#pragma unroll
    for (int i = 0; i < kHalf; ++i) left[i] = (upper ? v[i + kHalf] : v[i]) + __shfl_xor_sync(kAllLanes, upper ? v[i] : v[i + kHalf], kMask);
    return SumOfSeveral<kHalf, kMask / 2>(left);
  }
}

// The sum over the lanes below and this one.
template <typename T>
__device__ T SumUpTo(int lane, T value) {
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const T lower = __shfl_up_sync(kAllLanes, value, offset);
    if (lane >= offset) value += lower;
  }
  return value;
}

// The sum over the threads of a block (whole warps, at most 32), in every thread. May be called again before all have gone on.
__device__ inline float BlockSum(float value) {
  __shared__ float sums[32];
  value = WarpSum(value);
  __syncthreads();
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
  __syncthreads();
  const unsigned warps = blockDim.x / 32;
  return WarpSum(threadIdx.x % 32 < warps ? sums[threadIdx.x % 32] : 0.0f);
}

}  // namespace thermoe::cuda
