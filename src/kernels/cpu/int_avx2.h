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
  // Full-range weights are made signed in DotFull; nibbles are unsigned and start at -8 times the sum of the codes.
  static I Start(const std::byte* side, bool small) { return small ? Four(side + 8) : _mm256_setzero_si256(); }
  static I AddPairs(I sum, I pairs) { return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))); }
  // maddubs saturates at 16 bits: |w| <= 128 and |x| <= 127 stay below, w as it comes (up to 255) would not.
  static I DotFull(I sum, I w, I x) {
    const I s = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
    return AddPairs(sum, _mm256_maddubs_epi16(_mm256_abs_epi8(s), _mm256_sign_epi8(x, s)));
  }
  static I DotSmall(I sum, I w, I x) { return AddPairs(sum, _mm256_maddubs_epi16(w, x)); }
  static I LowNibbles(I a) { return _mm256_and_si256(a, _mm256_set1_epi8(15)); }
  static I HighNibbles(I a) { return _mm256_and_si256(_mm256_srli_epi16(a, 4), _mm256_set1_epi8(15)); }
  static I JoinLow(I hi, I lo) { return _mm256_or_si256(_mm256_slli_epi16(LowNibbles(hi), 4), LowNibbles(lo)); }
  static I JoinHigh(I hi, I lo) {
    return _mm256_or_si256(_mm256_andnot_si256(_mm256_set1_epi8(15), hi), HighNibbles(lo));
  }
  static I Eights() { return _mm256_set1_epi8(8); }
  static I HighEights() { return _mm256_set1_epi8(-128); }
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
