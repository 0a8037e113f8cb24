// SPDX-License-Identifier: Apache-2.0
// Device code that all matrix kernels share: packed codes to fragments of halves, the tensor cores' smallest product,
// and barriers in shared memory.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/cuda/shared.cuh"
#include "kernels/cuda/weight_layout.h"

namespace thermoe::cuda {

// Four registers of two halves: a0..a7 of weight_layout.h.
struct Fragment {
  uint32_t r[4];
};

__device__ inline uint32_t SubHalves(uint32_t value, uint32_t from_each) {
  const __half2 a = *reinterpret_cast<const __half2*>(&value), b = *reinterpret_cast<const __half2*>(&from_each);
  const __half2 difference = __hsub2(a, b);
  return *reinterpret_cast<const uint32_t*>(&difference);
}
__device__ inline uint32_t MulHalves(uint32_t value, uint32_t by) {
  const __half2 a = *reinterpret_cast<const __half2*>(&value), b = *reinterpret_cast<const __half2*>(&by);
  const __half2 product = __hmul2(a, b);
  return *reinterpret_cast<const uint32_t*>(&product);
}
__device__ inline uint32_t PackHalves(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ inline float HalfBits(uint32_t bits) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}

// The high nibbles of `high`'s bytes and the low ones of `low`'s, in one instruction.
__device__ inline uint32_t JoinNibbles(uint32_t high, uint32_t low) {
  uint32_t out;
  asm("lop3.b32 %0, %1, %2, %3, 0xe4;" : "=r"(out) : "r"(high), "r"(low), "n"(0xf0f0f0f0u));
  return out;
}
// Whole codes of 8 bits: a[0, 2, 1, 3] of a step, a[4, 6, 5, 7].
__device__ inline uint32_t FirstBytes(uint32_t hi, uint32_t lo) { return JoinNibbles(hi, lo); }
__device__ inline uint32_t SecondBytes(uint32_t hi, uint32_t lo) { return JoinNibbles(hi << 4, lo >> 4); }
// Codes of 8 bits minus 128, exact: 0x6400 | b is 1024 + b in binary16.
__device__ inline Fragment FromBytes(uint32_t hi, uint32_t lo) {
  const uint32_t first = FirstBytes(hi, lo), second = SecondBytes(hi, lo);
  constexpr uint32_t kMagic = 0x64646464u, kOffset = 0x64806480u;  // 1024 + 128
  return {{SubHalves(__byte_perm(first, kMagic, 0x4240), kOffset),
           SubHalves(__byte_perm(first, kMagic, 0x4341), kOffset),
           SubHalves(__byte_perm(second, kMagic, 0x4240), kOffset),
           SubHalves(__byte_perm(second, kMagic, 0x4341), kOffset)}};
}

// (value & kMask) | kBase in one instruction.
template <uint32_t kMask, uint32_t kBase>
__device__ inline uint32_t Based(uint32_t value) {
  uint32_t out;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(out) : "r"(value), "n"(kMask), "n"(kBase));
  return out;
}
// The hi plane as 512 + 16 n: 632.5 more than 16 (n - 8) + 7.5, which halves hold exactly here.
__device__ inline Fragment FromBiasedHi(uint32_t hi) {
  const auto based = [](uint32_t value) { return Based<0x01e001e0u, 0x60006000u>(value); };
  return {{based(hi << 1), based(hi >> 7), based(hi << 5), based(hi >> 3)}};
}

// Codes of 4 bits: words of rows g and g + 8 of two steps, of which what follows takes the first (0) or second.
struct RowWords {
  uint32_t g, g8;
};
// Nibbles at bits 4 to 7 of the mantissa of `base`.
template <int kOf, uint32_t kBase>
__device__ inline Fragment BasedNibbles(RowWords hi) {
  const auto first = [](uint32_t word) { return Based<0x00f000f0u, kBase>(kOf == 0 ? word : word >> 8); };
  const auto second = [](uint32_t word) { return Based<0x00f000f0u, kBase>(kOf == 0 ? word << 4 : word >> 4); };
  return {{first(hi.g), first(hi.g8), second(hi.g), second(hi.g8)}};
}
__device__ inline Fragment Less(const Fragment& from, uint32_t each) {
  return {{SubHalves(from.r[0], each), SubHalves(from.r[1], each), SubHalves(from.r[2], each), SubHalves(from.r[3], each)}};
}
// What the hi plane alone stands for, exact: 16 (n - 8) + 7.5.
__device__ inline Fragment FromHiPlane(uint32_t hi) { return Less(FromBiasedHi(hi), 0x60f160f1u); }  // 632.5
// n - 8 and n, exact.
inline constexpr uint32_t kEightOfNibbles = 0x54805480u, kZeroOfNibbles = 0x54005400u;  // 72 and 64
template <int kOf>
__device__ inline Fragment FromNibbles(RowWords hi, uint32_t than) { return Less(BasedNibbles<kOf, 0x54005400u>(hi), than); }

// Twice an E2M1: its exponent and mantissa are a binary16's, 2^14 times too small.
__device__ inline uint32_t SmallE2M1(uint32_t top) { return (top & 0x80008000u) | (top >> 3 & 0x0e000e00u); }
template <int kOf>
__device__ inline Fragment SmallE2M1(RowWords hi) {
  const auto first = [](uint32_t word) { return SmallE2M1(kOf == 0 ? word << 8 : word); };
  const auto second = [](uint32_t word) { return SmallE2M1(kOf == 0 ? word << 12 : word << 4); };
  return {{first(hi.g), first(hi.g8), second(hi.g), second(hi.g8)}};
}
template <int kOf>
__device__ inline Fragment FromE2M1(RowWords hi) {
  const Fragment small = SmallE2M1<kOf>(hi);
  constexpr uint32_t kBy = 0x78007800u;  // 2^15
  return {{MulHalves(small.r[0], kBy), MulHalves(small.r[1], kBy), MulHalves(small.r[2], kBy), MulHalves(small.r[3], kBy)}};
}

__device__ inline uint32_t Word(const uint4& vector, int i) {
  return i == 0 ? vector.x : i == 1 ? vector.y : i == 2 ? vector.z : vector.w;
}
// Of 32 columns, the first or second of a tile.
__device__ inline RowWords BlockWords(const uint4& vector, int block) { return {Word(vector, 2 * block), Word(vector, 2 * block + 1)}; }

// c += a b: a 16 by 16 row-major, b 16 by 8 column-major (two registers), c (g; 2t, 2t + 1), (g + 8; 2t, 2t + 1).
__device__ inline void Mma(float (&c)[4], const Fragment& a, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b0), "r"(b1));
}

__device__ inline float Silu(float gate) { return gate / (1.0f + __expf(-gate)); }

// The power of two that brings `most` into [1024, 2048); 1 for zero and what is not a number.
__device__ inline float HalfScale(float most) {
  if (!(most > 0.0f)) return 1.0f;
  const int exponent = static_cast<int>(__float_as_uint(most) >> 23) - 127;  // -127: subnormal
  const int shift = min(max(10 - exponent, -117), 100);
  return __uint_as_float(static_cast<uint32_t>(shift + 127) << 23);
}
__device__ inline float InverseOfPower(float power) { return __uint_as_float((254u << 23) - __float_as_uint(power)); }

// Never infinite; what is not a number becomes the least there is.
__device__ inline float WithinHalf(float value) { return fminf(fmaxf(value, -65504.0f), 65504.0f); }
__device__ inline __half SaturatedHalf(float value) { return __float2half_rn(WithinHalf(value)); }

// 16 bytes from global to shared memory, in groups that are waited for.
__device__ inline void CopyAsync(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(SharedAddress(to)), "l"(from) : "memory");
}
__device__ inline void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// At most kLeft groups are still under way.
template <int kLeft>
__device__ inline void WaitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

}  // namespace thermoe::cuda
