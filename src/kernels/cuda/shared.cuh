// SPDX-License-Identifier: Apache-2.0
// Addresses of shared memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace thermoe::cuda {

// Where places begin whose 16-byte pieces are exchanged (128-byte swizzle of wgmma and tensor maps); so many bytes more are asked for.
inline constexpr int kSwizzleAlign = 1024;

__device__ inline uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// The first such place of a block's shared memory.
__device__ inline std::byte* SwizzleAligned(std::byte* shared) {
  return shared + (kSwizzleAlign - SharedAddress(shared) % kSwizzleAlign) % kSwizzleAlign;
}

// The same address, held in a register. Otherwise the compiler for Hopper works a shared variable's out anew wherever it is used, in inner loops too, from the
// number of the block in its cluster: a special register, which comes some 30 cycles later. What a shuffle gave it cannot work out. By whole warps.
template <typename T>
__device__ inline T* Held(T* shared) {
  return static_cast<T*>(__cvta_shared_to_generic(__shfl_sync(0xffffffffu, SharedAddress(shared), 0)));
}

}  // namespace thermoe::cuda
