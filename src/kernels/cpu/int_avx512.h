// SPDX-License-Identifier: Apache-2.0
// 16 rows of byte products by AVX-512 VNNI. Only for *_avx512.cc.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/kernel_table.h"

namespace thermoe::kernels::cpu::avx512 {
namespace {

struct Int {
  using I = __m512i;
  static constexpr bool kPairs = false;  // byte products are summed at once
  static constexpr int kTokens =
      8;  // 8 integer and 8 float accumulators, a weight vector and temporaries of 32 registers

  static I Load(const std::byte* from) { return _mm512_loadu_si512(from); }
  // Four codes of a token in every lane.
  static I Four(const std::byte* from) {
    int32_t four;
    std::memcpy(&four, from, 4);
    return _mm512_set1_epi32(four);
  }
  static I Fill(int32_t value) { return _mm512_set1_epi32(value); }
  // Weights are raised by 128, so sums start at -128 times the sum of the token's codes.
  static I StartFull(const std::byte* side) { return Four(side + 4); }
  template <int kBits>
  static I ShiftLeft(I a) {
    return _mm512_slli_epi32(a, kBits);
  }
  static I Add(I a, I b) { return _mm512_add_epi32(a, b); }
  static I Sub(I a, I b) { return _mm512_sub_epi32(a, b); }
  static I Multiply(I a, I b) { return _mm512_mullo_epi32(a, b); }
  // sum + the products of four weights (all of whose 256 values may occur) and four codes.
  static I DotFull(I sum, I w, I x) { return _mm512_dpbusd_epi32(sum, w, x); }
  // The same for weights of 0..63.
  static I DotSmall(I sum, I w, I x) { return _mm512_dpbusd_epi32(sum, w, x); }
  static I LowNibbles(I a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
  static I HighNibbles(I a) { return _mm512_and_si512(_mm512_srli_epi16(a, 4), _mm512_set1_epi8(15)); }
  // 16 * nibble of hi + nibble of lo, for the low and for the high halves; a ? b : c = 0xca.
  static I JoinLow(I hi, I lo) {
    return _mm512_ternarylogic_epi32(_mm512_set1_epi8(15), lo, _mm512_slli_epi16(hi, 4), 0xca);
  }
  static I JoinHigh(I hi, I lo) {
    return _mm512_ternarylogic_epi32(_mm512_set1_epi8(15), _mm512_srli_epi16(lo, 4), hi, 0xca);
  }
  static I Lookup(const uint8_t* table, I nibbles) {
    const __m128i values = _mm_load_si128(reinterpret_cast<const __m128i*>(table));
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(values), nibbles);
  }
  // Adds `value` to the bytes whose bit is set.
  static I SetBits(I a, const std::byte* bits, int value) {
    uint64_t mask;
    std::memcpy(&mask, bits, 8);
    return _mm512_mask_add_epi8(a, _cvtu64_mask64(mask), a, _mm512_set1_epi8(static_cast<char>(value)));
  }
  static __m128i Bytes16(const std::byte* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); }
  static I Bytes(const std::byte* from) { return _mm512_cvtepu8_epi32(Bytes16(from)); }
  static I SignedBytes(const std::byte* from) { return _mm512_cvtepi8_epi32(Bytes16(from)); }
  // 2^(e - 128) for a byte e in every lane; below 2^-126 floats have no exponent of their own.
  static __m512 PowerOf2(const std::byte* from) {
    const I e = Bytes(from);
    const I small = _mm512_sllv_epi32(_mm512_set1_epi32(0x00200000), e);
    const I normal = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);
    return _mm512_castsi512_ps(_mm512_mask_blend_epi32(_mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2)), normal, small));
  }
  // Of 32 floats. As integers magnitudes have their order, infinity is above them and what is not a number above that.
  static float LargestMagnitude(const float* x) {
    const I magnitude = _mm512_set1_epi32(0x7fffffff);
    const I most = _mm512_max_epi32(_mm512_and_si512(_mm512_loadu_si512(x), magnitude),
                                    _mm512_and_si512(_mm512_loadu_si512(x + 16), magnitude));
    const int32_t bits = _mm512_reduce_max_epi32(most);
    float largest;
    std::memcpy(&largest, &bits, 4);
    return largest;
  }
  static void QuantiseBlock(const float* x, float inverse, std::byte* codes, int32_t* first, int32_t* last) {
    const __m512 scale = _mm512_set1_ps(inverse);
    const __m128i a = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), scale)));
    const __m128i b = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + 16), scale)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), a);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + 16), b);
    const __m128i one = _mm_set1_epi8(1), zero = _mm_setzero_si128();
    const __m128i pairs = _mm_hadd_epi32(_mm_dpbusd_epi32(zero, one, a), _mm_dpbusd_epi32(zero, one, b));
    const __m128i sums = _mm_hadd_epi32(pairs, pairs);
    *first = _mm_extract_epi32(sums, 0);
    *last = _mm_extract_epi32(sums, 1);
  }
  // Words, for products with the transposed weight (int_transposed.h).
  static constexpr int kWordTokens = 12;  // 2 x 12 accumulators, 2 vectors of weights and 1 of codes of 32 registers
  static I SubBytes(I a, int value) { return _mm512_sub_epi8(a, _mm512_set1_epi8(static_cast<char>(value))); }
  // Sums that live through a loop have the lanes that the instruction has: where GCC 12 sees 8 lanes of 64 bits become 16 of 32
  // and back, it copies all of them in every turn and runs out of registers (half the speed).
  using WordSum = __v16si;
  static WordSum NoWords() { return WordSum{}; }
  // sum + the products of two words each.
  static WordSum DotWords(WordSum sum, I w, I x) {
    return reinterpret_cast<WordSum>(_mm512_dpwssd_epi32(reinterpret_cast<I>(sum), w, x));
  }
  static __m512 WordsToFloat(WordSum sum) { return _mm512_cvtepi32_ps(reinterpret_cast<I>(sum)); }
  // 16 floats, rounded to nearest even.
  static void StoreWords(const __m512 a, std::byte* to) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(a)));
  }
  template <int kShift, bool kOffsets>
  static void StorePairs(const I (&codes)[8], const WordScales& scales, std::byte* to) {
    const I by_pairs = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15));
    I by_columns[8];  // 8 bytes a pair of rows
    for (int q = 0; q < 8; ++q) by_columns[q] = _mm512_shuffle_epi8(codes[q], by_pairs);
#pragma GCC unroll 2
    for (int odd = 0; odd < 2; ++odd) {
      I a[4];  // lane i: columns 4 q.. and 16 + 4 q.. of pair 2 i + odd
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) {
        a[q] = odd == 0 ? _mm512_unpacklo_epi64(by_columns[q], by_columns[q + 4])
                        : _mm512_unpackhi_epi64(by_columns[q], by_columns[q + 4]);
      }
      const I ab_low = _mm512_shuffle_i64x2(a[0], a[1], 0x44), ab_high = _mm512_shuffle_i64x2(a[0], a[1], 0xee);
      const I cd_low = _mm512_shuffle_i64x2(a[2], a[3], 0x44), cd_high = _mm512_shuffle_i64x2(a[2], a[3], 0xee);
      StorePair<kShift, kOffsets>(_mm512_shuffle_i64x2(ab_low, cd_low, 0x88), scales, odd, to);
      StorePair<kShift, kOffsets>(_mm512_shuffle_i64x2(ab_low, cd_low, 0xdd), scales, 2 + odd, to);
      StorePair<kShift, kOffsets>(_mm512_shuffle_i64x2(ab_high, cd_high, 0x88), scales, 4 + odd, to);
      StorePair<kShift, kOffsets>(_mm512_shuffle_i64x2(ab_high, cd_high, 0xdd), scales, 6 + odd, to);
    }
  }
  // Lane i: columns 4 i.. and 16 + 4 i.. of a pair of rows.
  template <int kShift, bool kOffsets>
  static inline __attribute__((always_inline)) void StorePair(I bytes, const WordScales& scales, int pair, std::byte* to) {
    I low = _mm512_unpacklo_epi8(_mm512_setzero_si512(), bytes), high = _mm512_unpackhi_epi8(_mm512_setzero_si512(), bytes);
    if constexpr (kShift > 0) {
      low = _mm512_slli_epi16(low, kShift);
      high = _mm512_slli_epi16(high, kShift);
    }
    low = _mm512_mulhrs_epi16(low, Four(scales.first + 4 * pair));
    high = _mm512_mulhrs_epi16(high, Four(scales.last + 4 * pair));
    if constexpr (kOffsets) {
      low = _mm512_add_epi16(low, Four(scales.offset + 4 * pair));
      high = _mm512_add_epi16(high, Four(scales.offset + 4 * pair));
    }
    _mm512_storeu_si512(to + pair * kWordPairBytes, low);
    _mm512_storeu_si512(to + pair * kWordPairBytes + 64, high);
  }
  static __m512 ToFloat(I a) { return _mm512_cvtepi32_ps(a); }
  static __m512 Scales(const std::byte* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static __m512 BroadcastFloat(const std::byte* from) {
    float f;
    std::memcpy(&f, from, 4);
    return _mm512_set1_ps(f);
  }
};

}  // namespace
}  // namespace thermoe::kernels::cpu::avx512
