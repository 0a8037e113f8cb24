// SPDX-License-Identifier: Apache-2.0
// 8 rows of byte products by AVX2. Only for *_avx2.cc.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/kernel_table.h"

namespace thermoe::kernels::cpu::avx2 {
namespace {

struct Int {
  using I = __m256i;
  static constexpr int kTokens = 4;  // 4 integer and 4 float accumulators, weights and temporaries of 16 registers

  static I Load(const std::byte* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
  static I Four(const std::byte* from) {
    int32_t four;
    std::memcpy(&four, from, 4);
    return _mm256_set1_epi32(four);
  }
  static I Fill(int32_t value) { return _mm256_set1_epi32(value); }
  static I StartFull(const std::byte*) { return _mm256_setzero_si256(); }  // DotFull makes weights signed
  template <int kBits>
  static I ShiftLeft(I a) {
    return _mm256_slli_epi32(a, kBits);
  }
  static I Add(I a, I b) { return _mm256_add_epi32(a, b); }
  static I Sub(I a, I b) { return _mm256_sub_epi32(a, b); }
  static I Multiply(I a, I b) { return _mm256_mullo_epi32(a, b); }
  static I AddPairs(I sum, I pairs) { return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))); }
  // maddubs saturates at 16 bits: |w| <= 128 and |x| <= 127 stay below, w as it comes (up to 255) would not.
  static I DotFull(I sum, I w, I x) {
    const I s = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
    return AddPairs(sum, _mm256_maddubs_epi16(_mm256_abs_epi8(s), _mm256_sign_epi8(x, s)));
  }
  // For weights of 0..63, whose products may be added as pairs of 16 bits for a while.
  static constexpr bool kPairs = true;
  static I Pairs(I w, I x) { return _mm256_maddubs_epi16(w, x); }
  static I AddHalves(I a, I b) { return _mm256_add_epi16(a, b); }
  static I LowNibbles(I a) { return _mm256_and_si256(a, _mm256_set1_epi8(15)); }
  static I HighNibbles(I a) { return _mm256_and_si256(_mm256_srli_epi16(a, 4), _mm256_set1_epi8(15)); }
  static I JoinLow(I hi, I lo) { return _mm256_or_si256(_mm256_slli_epi16(LowNibbles(hi), 4), LowNibbles(lo)); }
  static I JoinHigh(I hi, I lo) {
    return _mm256_or_si256(_mm256_andnot_si256(_mm256_set1_epi8(15), hi), HighNibbles(lo));
  }
  static I Lookup(const uint8_t* table, I nibbles) {
    const __m128i values = _mm_load_si128(reinterpret_cast<const __m128i*>(table));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(values), nibbles);
  }
  // Adds `value` to the bytes whose bit is set: the byte with a lane's bits goes to its 8 places, each asks for its bit.
  static I SetBits(I a, const std::byte* bits, int value) {
    const I spread = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const I each = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201u));
    const I found = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(Four(bits), spread), each), each);
    return _mm256_or_si256(a, _mm256_and_si256(found, _mm256_set1_epi8(static_cast<char>(value))));
  }
  static __m128i Bytes8(const std::byte* from) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)); }
  static I Bytes(const std::byte* from) { return _mm256_cvtepu8_epi32(Bytes8(from)); }
  static I SignedBytes(const std::byte* from) { return _mm256_cvtepi8_epi32(Bytes8(from)); }
  // 2^(e - 128) for a byte e in every lane; below 2^-126 floats have no exponent of their own.
  static __m256 PowerOf2(const std::byte* from) {
    const I e = Bytes(from);
    const I small = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
    const I normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
    const I is_normal = _mm256_cmpgt_epi32(e, _mm256_set1_epi32(1));
    return _mm256_castsi256_ps(_mm256_blendv_epi8(small, normal, is_normal));
  }
  // Of 32 floats. As integers magnitudes have their order, infinity is above them and what is not a number above that.
  static float LargestMagnitude(const float* x) {
    const I magnitude = _mm256_set1_epi32(0x7fffffff);
    I most = _mm256_setzero_si256();
    for (int i = 0; i < 32; i += 8) {
      most = _mm256_max_epi32(most, _mm256_and_si256(Load(reinterpret_cast<const std::byte*>(x + i)), magnitude));
    }
    __m128i half = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
    half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0xb1));
    const int32_t bits = _mm_cvtsi128_si32(half);
    float largest;
    std::memcpy(&largest, &bits, 4);
    return largest;
  }
  static void QuantiseBlock(const float* x, float inverse, std::byte* codes, int32_t* first, int32_t* last) {
    const __m256 scale = _mm256_set1_ps(inverse);
    I whole[4];
    for (int i = 0; i < 4; ++i) whole[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), scale));
    // Packing works on halves: fours of columns 0, 8, 16, 24 | 4, 12, 20, 28 come back in order.
    const I packed = _mm256_packs_epi16(_mm256_packs_epi32(whole[0], whole[1]), _mm256_packs_epi32(whole[2], whole[3]));
    const I ordered = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes), ordered);
    const I pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), ordered);
    const I fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    const __m128i twos = _mm_hadd_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1));
    const __m128i sums = _mm_hadd_epi32(twos, twos);
    *first = _mm_extract_epi32(sums, 0);
    *last = _mm_extract_epi32(sums, 1);
  }
  // Words, for products with the transposed weight (int_transposed.h).
  static constexpr int kWordTokens = 5;  // 2 x 5 accumulators, 2 vectors of weights, codes and a product of 16 registers
  static I SubBytes(I a, int value) { return _mm256_sub_epi8(a, _mm256_set1_epi8(static_cast<char>(value))); }
  using WordSum = __v8su;  // as in int_avx512.h
  static WordSum NoWords() { return WordSum{}; }
  // sum + the products of two words each.
  static WordSum DotWords(WordSum sum, I w, I x) { return sum + reinterpret_cast<WordSum>(_mm256_madd_epi16(w, x)); }
  static __m256 WordsToFloat(WordSum sum) { return _mm256_cvtepi32_ps(reinterpret_cast<I>(sum)); }
  // 8 floats, rounded to nearest even.
  static void StoreWords(const __m256 a, std::byte* to) {
    const I whole = _mm256_cvtps_epi32(a);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), words);
  }
  template <int kShift, bool kOffsets>
  static void StorePairs(const I (&codes)[8], const WordScales& scales, std::byte* to) {
    const I by_pairs =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15));
    for (int q = 0; q < 4; ++q) {
      const I first = _mm256_shuffle_epi8(codes[q], by_pairs), last = _mm256_shuffle_epi8(codes[q + 4], by_pairs);
      // Lane i: columns 4 q.. and 16 + 4 q.. of pair 2 i, and of pair 2 i + 1.
      const I even = _mm256_unpacklo_epi64(first, last), odd = _mm256_unpackhi_epi64(first, last);
      StorePair<kShift, kOffsets>(_mm256_castsi256_si128(even), scales, 0, q, to);
      StorePair<kShift, kOffsets>(_mm256_castsi256_si128(odd), scales, 1, q, to);
      StorePair<kShift, kOffsets>(_mm256_extracti128_si256(even, 1), scales, 2, q, to);
      StorePair<kShift, kOffsets>(_mm256_extracti128_si256(odd, 1), scales, 3, q, to);
    }
  }
  template <int kShift, bool kOffsets>
  static inline __attribute__((always_inline)) void StorePair(__m128i bytes, const WordScales& scales, int pair, int q,
                                                              std::byte* to) {
    I words = _mm256_slli_epi16(_mm256_cvtepi8_epi16(bytes), 8 + kShift);
    words = _mm256_mulhrs_epi16(words, Halves(scales.first + 4 * pair, scales.last + 4 * pair));
    if constexpr (kOffsets) words = _mm256_add_epi16(words, Four(scales.offset + 4 * pair));
    std::byte* at = to + pair * kWordPairBytes + q * 16;
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm256_castsi256_si128(words));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at + 64), _mm256_extracti128_si256(words, 1));
  }
  static I Halves(const std::byte* low, const std::byte* high) {
    return _mm256_blend_epi32(Four(low), Four(high), 0xf0);
  }
  static __m256 ToFloat(I a) { return _mm256_cvtepi32_ps(a); }
  static __m256 Scales(const std::byte* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static __m256 BroadcastFloat(const std::byte* from) {
    float f;
    std::memcpy(&f, from, 4);
    return _mm256_set1_ps(f);
  }
};

}  // namespace
}  // namespace thermoe::kernels::cpu::avx2
