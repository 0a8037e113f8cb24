// SPDX-License-Identifier: Apache-2.0
// 8 floats as two of the compiler's own 16-byte vectors: SSE2, NEON, or scalar code where a machine has neither. No
// fused multiply-add: a * b + c rounds twice.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/float16.h"
#include "kernels/cpu/kernel_table.h"
#include "model/formats.h"

namespace thermoe::kernels::cpu::portable {
namespace {

struct Isa {
  static constexpr const char* kName = "portable";
  static constexpr int kWidth = 8;
  static constexpr int kBlockVectors = 4;  // vectors of a 32-weight block
  // Register tile of the panel product: 4 x 3 pairs of 4 floats spill out of 16 registers, yet beat 4 x 1 and 4 x 2.
  static constexpr int kGemmTokens = 3;
  static constexpr int kFusedTokens = 6;    // up to here weights are decoded in registers (measured on Zen 5)
  static constexpr int kRowwiseTokens = 3;  // up to here the fused product decodes one row at a time
  static constexpr int FusedRows(int tokens) { return tokens == 1 ? 4 : 2; }

  using F4 = float __attribute__((vector_size(16)));
  using I4 = int32_t __attribute__((vector_size(16)));
  struct F {
    F4 a, b;
  };

  static F Zero() { return Set(0); }
  static F Set(float a) { return {F4{a, a, a, a}, F4{a, a, a, a}}; }
  static F Load(const void* from) {
    F f;
    std::memcpy(&f, from, sizeof(f));
    return f;
  }
  static void Store(float* to, F a) { std::memcpy(to, &a, sizeof(a)); }
  // The first n < kWidth lanes; the others are 0 and not touched in memory.
  static F LoadPart(const void* from, int64_t n) {
    float lanes[kWidth] = {};
    std::memcpy(lanes, from, static_cast<size_t>(n) * sizeof(float));
    return Load(lanes);
  }
  static void StorePart(float* to, F a, int64_t n) { std::memcpy(to, &a, static_cast<size_t>(n) * sizeof(float)); }

  static F Add(F x, F y) { return {x.a + y.a, x.b + y.b}; }
  static F Sub(F x, F y) { return {x.a - y.a, x.b - y.b}; }
  static F Mul(F x, F y) { return {x.a * y.a, x.b * y.b}; }
  static F Div(F x, F y) { return {x.a / y.a, x.b / y.b}; }
  static F Fma(F x, F y, F z) { return {x.a * y.a + z.a, x.b * y.b + z.b}; }
  static F Min(F x, F y) { return {x.a < y.a ? x.a : y.a, x.b < y.b ? x.b : y.b}; }  // y where either is NaN
  static F Max(F x, F y) { return {x.a > y.a ? x.a : y.a, x.b > y.b ? x.b : y.b}; }  // y where either is NaN
  static F Sqrt(F x) {
    for (int i = 0; i < 4; ++i) x.a[i] = __builtin_sqrtf(x.a[i]), x.b[i] = __builtin_sqrtf(x.b[i]);
    return x;
  }
  // a * 2^n, n whole in [-252, 254]: in two factors, so that the result may be subnormal or overflow.
  static F Scale2(F x, F n) { return {Scale4(x.a, n.a), Scale4(x.b, n.b)}; }
  static F4 Scale4(F4 x, F4 n) {
    // A NaN has no integer; its scale does not matter.
    const F4 safe = n == n ? n : F4{};
    const I4 whole = __builtin_convertvector(safe, I4);
    const I4 half = whole >> 1;
    return x * Power4(half) * Power4(whole - half);
  }
  static F4 Power4(I4 n) {
    const I4 bits = (n + 127) << 23;
    F4 power;
    std::memcpy(&power, &bits, sizeof(power));
    return power;
  }

  static float Sum(F x) {
    const F4 c = x.a + x.b;
    return (c[0] + c[2]) + (c[1] + c[3]);
  }
  static void StoreSum4(float* to, F a, F b, F c, F d) {
    const float sums[4] = {Sum(a), Sum(b), Sum(c), Sum(d)};
    std::memcpy(to, sums, sizeof(sums));
  }
  static float Largest(F x) {
    const F4 c = x.a > x.b ? x.a : x.b;
    float most = c[0];
    for (int i = 1; i < 4; ++i) most = c[i] > most ? c[i] : most;
    return most;
  }

  static uint16_t Word(const std::byte* from) {
    uint16_t h;
    std::memcpy(&h, from, sizeof(h));
    return h;
  }

  // The b-th 32 weights of a row, exactly as DecodeRow defines them.
  template <Packing kPacking>
  static void Block(const std::byte* row, const std::byte* lo_row, int64_t b, F* out) {
    float w[kQuantBlock];
    if constexpr (kPacking == Packing::kF32) {
      std::memcpy(w, row + b * 128, sizeof(w));
    } else if constexpr (kPacking == Packing::kF16) {
      for (int j = 0; j < kQuantBlock; ++j) w[j] = HalfToFloat(Word(row + b * 64 + 2 * j));
    } else if constexpr (kPacking == Packing::kBF16) {
      for (int j = 0; j < kQuantBlock; ++j) w[j] = Bf16ToFloat(Word(row + b * 64 + 2 * j));
    } else if constexpr (kPacking == Packing::kQ8_0) {
      BlockQ8_0 block;
      std::memcpy(&block, row + b * static_cast<int64_t>(sizeof(block)), sizeof(block));
      const float d = HalfToFloat(block.d);
      for (int j = 0; j < kQuantBlock; ++j) w[j] = d * static_cast<float>(block.codes[j]);
    } else if constexpr (kPacking == Packing::kQ4_0) {
      BlockQ4_0 block;
      std::memcpy(&block, row + b * static_cast<int64_t>(sizeof(block)), sizeof(block));
      const float d = HalfToFloat(block.d);
      for (int j = 0; j < 16; ++j) w[j] = d * static_cast<float>((block.nibbles[j] & 15) - 8);
      for (int j = 0; j < 16; ++j) w[j + 16] = d * static_cast<float>((block.nibbles[j] >> 4) - 8);
    } else {
      DecodeNested<kPacking>(row, lo_row, b, w);
    }
    for (int i = 0; i < kBlockVectors; ++i) out[i] = Load(w + kWidth * i);
  }
  template <Packing kPacking>
  static void DecodeNested(const std::byte* row, const std::byte* lo_row, int64_t b, float* w) {
    NestedHi hi;
    std::memcpy(&hi, row + b * static_cast<int64_t>(sizeof(hi)), sizeof(hi));
    const float d = HalfToFloat(hi.d);
    if constexpr (kPacking == Packing::kNestedBoth) {
      NestedLo lo;
      std::memcpy(&lo, lo_row + b * static_cast<int64_t>(sizeof(lo)), sizeof(lo));
      for (int j = 0; j < 16; ++j) {
        const int first = 16 * (hi.nibbles[j] & 15) + (lo.nibbles[j] & 15) - 128;
        const int second = 16 * (hi.nibbles[j] >> 4) + (lo.nibbles[j] >> 4) - 128;
        w[j] = d * static_cast<float>(first);
        w[j + 16] = d * static_cast<float>(second);
      }
    } else {
      for (int j = 0; j < 16; ++j) {
        w[j] = d * (static_cast<float>(16 * (hi.nibbles[j] & 15) - 128) + 7.5f);
        w[j + 16] = d * (static_cast<float>(16 * (hi.nibbles[j] >> 4) - 128) + 7.5f);
      }
    }
  }
};

}  // namespace
}  // namespace thermoe::kernels::cpu::portable
