// SPDX-License-Identifier: Apache-2.0
// 16 floats, and how each weight format becomes floats in registers. Only for *_avx512.cc. Everything is in an
// unnamed namespace: templates over Isa then have internal linkage too (see kernel_table.h).
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/kernel_table.h"
#include "model/formats.h"

namespace thermoe::kernels::cpu::avx512 {
namespace {

struct Isa {
  static constexpr const char* kName = "avx512";
  static constexpr int kWidth = 16;
  static constexpr int kBlockVectors = 2;  // vectors of a 32-weight block
  // Register tile of the panel product: 4 x 6 accumulators, 6 x vectors and 1 of weights are 31 of 32 registers.
  static constexpr int kGemmTokens = 6;
  static constexpr int kFusedTokens = 6;    // up to here weights are decoded in registers (measured on Zen 5)
  static constexpr int kRowwiseTokens = 0;  // up to here the fused product decodes one row at a time
  // Weight rows at once in the fused product, by tokens: enough independent chains to hide the FMA's 4 cycles, and with
  // two vectors of each row at most 32 registers (6 tokens spill one or two).
  static constexpr int FusedRows(int tokens) { return tokens == 1 ? 8 : 4; }
  using F = __m512;

  static F Zero() { return _mm512_setzero_ps(); }
  static F Set(float a) { return _mm512_set1_ps(a); }
  static F Load(const void* from) { return _mm512_loadu_ps(from); }
  static void Store(float* to, F a) { _mm512_storeu_ps(to, a); }
  static __mmask16 First(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
  // The first n < kWidth lanes; the others are 0 and not touched in memory.
  static F LoadPart(const void* from, int64_t n) { return _mm512_maskz_loadu_ps(First(n), from); }
  static void StorePart(float* to, F a, int64_t n) { _mm512_mask_storeu_ps(to, First(n), a); }

  static F Add(F a, F b) { return _mm512_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F Div(F a, F b) { return _mm512_div_ps(a, b); }
  static F Fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }  // a * b + c
  static F Min(F a, F b) { return _mm512_min_ps(a, b); }            // b where either is NaN
  static F Max(F a, F b) { return _mm512_max_ps(a, b); }            // b where either is NaN
  static F Sqrt(F a) { return _mm512_sqrt_ps(a); }
  static F Scale2(F a, F n) { return _mm512_scalef_ps(a, n); }      // a * 2^n, n whole

  static float Sum(F a) {
    const __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    const __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
  }
  // Sum of each, by the same tree.
  static __m128 Sum4(F a, F b, F c, F d) {
    const F ab = Add(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    const F cd = Add(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
    const F abcd = Add(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    const F pairs = Add(abcd, _mm512_permute_ps(abcd, 0x4e));
    const F sums = Add(pairs, _mm512_permute_ps(pairs, 0xb1));
    const __m512i pick = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    return _mm512_castps512_ps128(_mm512_permutexvar_ps(pick, sums));
  }
  static void StoreSum4(float* to, F a, F b, F c, F d) { _mm_storeu_ps(to, Sum4(a, b, c, d)); }
  static float Largest(F a) { return _mm512_reduce_max_ps(a); }

  // A binary16 scale in every lane: a broadcast load and one conversion.
  static F Scale(const std::byte* from) {
    int16_t h;
    std::memcpy(&h, from, sizeof(h));
    return _mm512_cvtph_ps(_mm256_set1_epi16(h));
  }
  static __m128i Bytes16(const std::byte* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); }
  static F FromInt8(__m128i codes) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)); }
  static F FromBf16(__m256i h) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16)); }
  // values[nibble] of both halves of 16 packed bytes; the permutation looks at the low four bits of an index only.
  static void Lookup(__m128i packed, F values, F* out) {
    const __m512i bytes = _mm512_cvtepu8_epi32(packed);
    out[0] = _mm512_permutexvar_ps(bytes, values);
    out[1] = _mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), values);
  }

  // The b-th 32 weights of a row, exactly as DecodeRow defines them.
  template <Packing kPacking>
  static void Block(const std::byte* row, const std::byte* lo_row, int64_t b, F* out) {
    if constexpr (kPacking == Packing::kF32) {
      out[0] = Load(row + b * 128);
      out[1] = Load(row + b * 128 + 64);
    } else if constexpr (kPacking == Packing::kF16) {
      const __m512i both = _mm512_loadu_si512(row + b * 64);
      out[0] = _mm512_cvtph_ps(_mm512_castsi512_si256(both));
      out[1] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(both, 1));
    } else if constexpr (kPacking == Packing::kBF16) {
      const __m512i both = _mm512_loadu_si512(row + b * 64);
      out[0] = FromBf16(_mm512_castsi512_si256(both));
      out[1] = FromBf16(_mm512_extracti64x4_epi64(both, 1));
    } else if constexpr (kPacking == Packing::kQ8_0) {
      const std::byte* block = row + b * static_cast<int64_t>(sizeof(BlockQ8_0));
      const F d = Scale(block);
      out[0] = Mul(d, FromInt8(Bytes16(block + 2)));
      out[1] = Mul(d, FromInt8(Bytes16(block + 18)));
    } else if constexpr (kPacking == Packing::kQ4_0) {
      const std::byte* block = row + b * static_cast<int64_t>(sizeof(BlockQ4_0));
      const F steps = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
      Lookup(Bytes16(block + 2), Mul(Scale(block), steps), out);
    } else if constexpr (kPacking == Packing::kNestedHi) {
      const std::byte* block = row + b * static_cast<int64_t>(sizeof(NestedHi));
      const F steps = _mm512_setr_ps(-120.5f, -104.5f, -88.5f, -72.5f, -56.5f, -40.5f, -24.5f, -8.5f, 7.5f, 23.5f,
                                     39.5f, 55.5f, 71.5f, 87.5f, 103.5f, 119.5f);
      Lookup(Bytes16(block + 2), Mul(Scale(block), steps), out);
    } else {
      const std::byte* block = row + b * static_cast<int64_t>(sizeof(NestedHi));
      const F d = Scale(block);
      // hi + 8 becomes hi in two's complement; bits 0..3 of a code come from lo, the others from hi: a ? b : c = 0xca.
      const __m128i hi = _mm_xor_si128(Bytes16(block + 2), _mm_set1_epi8(-0x78));
      const __m128i lo = Bytes16(lo_row + b * static_cast<int64_t>(sizeof(NestedLo)));
      const __m128i low = _mm_set1_epi8(15);
      out[0] = Mul(d, FromInt8(_mm_ternarylogic_epi32(low, lo, _mm_slli_epi16(hi, 4), 0xca)));
      out[1] = Mul(d, FromInt8(_mm_ternarylogic_epi32(low, _mm_srli_epi16(lo, 4), hi, 0xca)));
    }
  }
};

}  // namespace
}  // namespace thermoe::kernels::cpu::avx512
