// SPDX-License-Identifier: Apache-2.0
// 8 floats with FMA and F16C, and how each weight format becomes floats in registers. Only for *_avx2.cc; in an unnamed
// namespace as vec_avx512.h explains.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/kernel_table.h"
#include "model/formats.h"

namespace thermoe::kernels::cpu::avx2 {
namespace {

struct Isa {
  static constexpr const char* kName = "avx2";
  static constexpr int kWidth = 8;
  static constexpr int kBlockVectors = 4;  // vectors of a 32-weight block
  // Register tile of the panel product: 4 x 3 accumulators, 3 x vectors and 1 of weights are the 16 registers.
  static constexpr int kGemmTokens = 3;
  static constexpr int kFusedTokens = 5;    // up to here weights are decoded in registers (measured on Zen 5)
  static constexpr int kRowwiseTokens = 2;  // up to here the fused product decodes one row at a time
  // Weight rows at once in the fused product, by tokens (16 registers hold accumulators and one decoded block).
  static constexpr int FusedRows(int tokens) { return tokens == 1 ? 8 : tokens == 2 ? 4 : 2; }
  using F = __m256;

  static F Zero() { return _mm256_setzero_ps(); }
  static F Set(float a) { return _mm256_set1_ps(a); }
  static F Load(const void* from) { return _mm256_loadu_ps(static_cast<const float*>(from)); }
  static void Store(float* to, F a) { _mm256_storeu_ps(to, a); }
  static __m256i First(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  // The first n < kWidth lanes; the others are 0 and not touched in memory.
  static F LoadPart(const void* from, int64_t n) {
    return _mm256_maskload_ps(static_cast<const float*>(from), First(n));
  }
  static void StorePart(float* to, F a, int64_t n) { _mm256_maskstore_ps(to, First(n), a); }

  static F Add(F a, F b) { return _mm256_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F Div(F a, F b) { return _mm256_div_ps(a, b); }
  static F Fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }  // a * b + c
  static F Min(F a, F b) { return _mm256_min_ps(a, b); }            // b where either is NaN
  static F Max(F a, F b) { return _mm256_max_ps(a, b); }            // b where either is NaN
  static F Sqrt(F a) { return _mm256_sqrt_ps(a); }
  // a * 2^n, n whole in [-252, 254]: in two factors, so that the result may be subnormal or overflow.
  static F Scale2(F a, F n) {
    const __m256i whole = _mm256_cvtps_epi32(n);
    const __m256i half = _mm256_srai_epi32(whole, 1);
    return Mul(Mul(a, Power2(half)), Power2(_mm256_sub_epi32(whole, half)));
  }
  static F Power2(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
  }

  static float Sum(F a) {
    const __m128 c = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
  }
  // Sum of each, by the same tree.
  static void StoreSum4(float* to, F a, F b, F c, F d) {
    const F ab = Add(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
    const F cd = Add(_mm256_permute2f128_ps(c, d, 0x20), _mm256_permute2f128_ps(c, d, 0x31));
    const F pairs = Add(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));  // a a c c | b b d d
    const F sums = Add(pairs, _mm256_permute_ps(pairs, 0xb1));
    _mm_storeu_ps(to, _mm_blend_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1), 0b1010));
  }
  static float Largest(F a) {
    const __m128 c = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 d = _mm_max_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_max_ss(d, _mm_movehdup_ps(d)));
  }

  // A binary16 scale in every lane: a broadcast load and one conversion.
  static F Scale(const std::byte* from) {
    int16_t h;
    std::memcpy(&h, from, sizeof(h));
    return _mm256_cvtph_ps(_mm_set1_epi16(h));
  }
  static __m128i Bytes16(const std::byte* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); }
  // d times 16 signed bytes, as two vectors.
  static void FromInt8(F d, __m128i codes, F* out) {
    out[0] = Mul(d, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)));
    out[1] = Mul(d, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(codes, codes))));
  }
  static F FromBf16(__m128i h) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16)); }

  // The b-th 32 weights of a row, exactly as DecodeRow defines them.
  template <Packing kPacking>
  static void Block(const std::byte* row, const std::byte* lo_row, int64_t b, F* out) {
    const __m128i low = _mm_set1_epi8(15);
    if constexpr (kPacking == Packing::kF32) {
      for (int i = 0; i < 4; ++i) out[i] = Load(row + b * 128 + 32 * i);
    } else if constexpr (kPacking == Packing::kF16) {
      for (int i = 0; i < 4; ++i) out[i] = _mm256_cvtph_ps(Bytes16(row + b * 64 + 16 * i));
    } else if constexpr (kPacking == Packing::kBF16) {
      for (int i = 0; i < 4; ++i) out[i] = FromBf16(Bytes16(row + b * 64 + 16 * i));
    } else if constexpr (kPacking == Packing::kQ8_0) {
      const std::byte* block = row + b * static_cast<int64_t>(sizeof(BlockQ8_0));
      const F d = Scale(block);
      FromInt8(d, Bytes16(block + 2), out);
      FromInt8(d, Bytes16(block + 18), out + 2);
    } else if constexpr (kPacking == Packing::kQ4_0) {
      const std::byte* block = row + b * static_cast<int64_t>(sizeof(BlockQ4_0));
      const F d = Scale(block);
      const __m128i packed = Bytes16(block + 2), eight = _mm_set1_epi8(8);
      FromInt8(d, _mm_sub_epi8(_mm_and_si128(packed, low), eight), out);
      FromInt8(d, _mm_sub_epi8(_mm_and_si128(_mm_srli_epi16(packed, 4), low), eight), out + 2);
    } else {
      const std::byte* block = row + b * static_cast<int64_t>(sizeof(NestedHi));
      const F d = Scale(block);
      // hi + 8 becomes hi in two's complement, then 16 hi.
      const __m128i hi = _mm_xor_si128(Bytes16(block + 2), _mm_set1_epi8(-0x78));
      const __m128i first = _mm_slli_epi16(_mm_and_si128(hi, low), 4);
      const __m128i second = _mm_andnot_si128(low, hi);
      if constexpr (kPacking == Packing::kNestedBoth) {
        const __m128i lo = Bytes16(lo_row + b * static_cast<int64_t>(sizeof(NestedLo)));
        FromInt8(d, _mm_or_si128(first, _mm_and_si128(lo, low)), out);
        FromInt8(d, _mm_or_si128(second, _mm_and_si128(_mm_srli_epi16(lo, 4), low)), out + 2);
      } else {
        FromHi(d, first, out);
        FromHi(d, second, out + 2);
      }
    }
  }
  // d * (16 hi + 7.5); 16 hi + 7.5 is exact, so the product is rounded once.
  static void FromHi(F d, __m128i sixteen_hi, F* out) {
    const F middle = Set(7.5f);
    out[0] = Mul(d, Add(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(sixteen_hi)), middle));
    out[1] = Mul(d, Add(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(sixteen_hi, sixteen_hi))), middle));
  }
};

}  // namespace
}  // namespace thermoe::kernels::cpu::avx2
