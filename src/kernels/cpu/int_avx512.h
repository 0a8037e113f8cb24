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
  static constexpr int kTokens =
      8;  // 8 integer and 8 float accumulators, a weight vector and temporaries of 32 registers

  static I Load(const std::byte* from) { return _mm512_loadu_si512(from); }
  // Four codes of a token in every lane.
  static I Four(const std::byte* from) {
    int32_t four;
    std::memcpy(&four, from, 4);
    return _mm512_set1_epi32(four);
  }
  // Weights are unsigned (code + 128, or nibbles), so sums start at -128 or -8 times the sum of the token's codes.
  static I Start(const std::byte* side, bool small) { return Four(side + (small ? 8 : 4)); }
  // sum + the products of four weights (all of whose 256 values may occur) and four codes.
  static I DotFull(I sum, I w, I x) { return _mm512_dpbusd_epi32(sum, w, x); }
  // The same for weights of 0..15.
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
  static I Eights() { return _mm512_set1_epi8(8); }         // a lo plane of 8s, low halves
  static I HighEights() { return _mm512_set1_epi8(-128); }  // and high halves
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
