// SPDX-License-Identifier: Apache-2.0
// 8 rows of byte products in plain C++.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/float16.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/vec_portable.h"

namespace thermoe::kernels::cpu::portable {
namespace {

struct Int {
  // 8 lanes: a sum each, or four bytes each.
  struct I {
    uint32_t lanes[8];
  };
  static constexpr bool kPairs = false;  // byte products are summed at once
  static constexpr int kTokens = 2;

  static I Load(const std::byte* from) {
    I a;
    std::memcpy(&a, from, sizeof(a));
    return a;
  }
  static I Fill(uint32_t value) { return {{value, value, value, value, value, value, value, value}}; }
  static I StartFull(const std::byte*) { return Fill(0); }  // DotFull takes 128 off
  template <int kBits>
  static I ShiftLeft(I a) {
    return Map(a, a, [](uint32_t v, uint32_t) { return v << kBits; });
  }
  static I Add(I a, I b) {
    return Map(a, b, [](uint32_t v, uint32_t w) { return v + w; });
  }
  static I Sub(I a, I b) {
    return Map(a, b, [](uint32_t v, uint32_t w) { return v - w; });
  }
  static I Multiply(I a, I b) {
    return Map(a, b, [](uint32_t v, uint32_t w) { return v * w; });
  }
  static I Lookup(const uint8_t* table, I nibbles) {
    I out = Fill(0);
    for (int l = 0; l < 8; ++l) {
      for (int i = 0; i < 4; ++i) out.lanes[l] |= uint32_t{table[Byte(nibbles.lanes[l], i)]} << (8 * i);
    }
    return out;
  }
  // Adds `value` to the bytes whose bit is set.
  static I SetBits(I a, const std::byte* bits, int value) {
    uint32_t mask;
    std::memcpy(&mask, bits, 4);
    for (int l = 0; l < 8; ++l) {
      for (int i = 0; i < 4; ++i) a.lanes[l] += ((mask >> (4 * l + i)) & 1u) * static_cast<uint32_t>(value) << (8 * i);
    }
    return a;
  }
  static I Bytes(const std::byte* from) {
    I out;
    for (int l = 0; l < 8; ++l) out.lanes[l] = static_cast<uint8_t>(from[l]);
    return out;
  }
  static I SignedBytes(const std::byte* from) {
    I out;
    for (int l = 0; l < 8; ++l) out.lanes[l] = static_cast<uint32_t>(static_cast<int8_t>(from[l]));
    return out;
  }
  // 2^(e - 128) for a byte e in every lane; below 2^-126 floats have no exponent of their own.
  static Isa::F PowerOf2(const std::byte* from) {
    float lanes[8];
    for (int l = 0; l < 8; ++l) {
      const uint32_t e = static_cast<uint8_t>(from[l]), bits = e < 2 ? 0x00200000u << e : (e - 1) << 23;
      std::memcpy(&lanes[l], &bits, 4);
    }
    return Isa::Load(lanes);
  }
  static I Four(const std::byte* from) {
    uint32_t four;
    std::memcpy(&four, from, 4);
    return Fill(four);
  }
  static int32_t Byte(uint32_t four, int i) { return static_cast<int32_t>((four >> (8 * i)) & 255u); }
  static int32_t SignedByte(uint32_t four, int i) { return static_cast<int8_t>((four >> (8 * i)) & 255u); }
  static I Dot(I sum, I w, I x, int32_t zero) {
    for (int l = 0; l < 8; ++l) {
      int32_t total = 0;
      for (int i = 0; i < 4; ++i) total += (Byte(w.lanes[l], i) - zero) * SignedByte(x.lanes[l], i);
      sum.lanes[l] += static_cast<uint32_t>(total);
    }
    return sum;
  }
  static I DotFull(I sum, I w, I x) { return Dot(sum, w, x, 128); }
  static I DotSmall(I sum, I w, I x) { return Dot(sum, w, x, 0); }
  template <typename Function>
  static I Map(I a, I b, const Function& function) {
    for (int l = 0; l < 8; ++l) a.lanes[l] = function(a.lanes[l], b.lanes[l]);
    return a;
  }
  static constexpr uint32_t kLow = 0x0f0f0f0fu;
  static I LowNibbles(I a) {
    return Map(a, a, [](uint32_t v, uint32_t) { return v & kLow; });
  }
  static I HighNibbles(I a) {
    return Map(a, a, [](uint32_t v, uint32_t) { return (v >> 4) & kLow; });
  }
  static I JoinLow(I hi, I lo) {
    return Map(hi, lo, [](uint32_t h, uint32_t l) { return ((h & kLow) << 4) | (l & kLow); });
  }
  static I JoinHigh(I hi, I lo) {
    return Map(hi, lo, [](uint32_t h, uint32_t l) { return (h & ~kLow) | ((l >> 4) & kLow); });
  }
  static float LargestMagnitude(const float* x) {
    float most = 0;
    for (int i = 0; i < 32; ++i) {
      const float magnitude = x[i] < 0 ? -x[i] : x[i];
      most = magnitude > most || magnitude != magnitude ? magnitude : most;
      if (most != most) return most;
    }
    return most;
  }
  static void QuantiseBlock(const float* x, float inverse, std::byte* codes, int32_t* first, int32_t* last) {
    *first = *last = 0;
    for (int i = 0; i < 32; ++i) {
      // Adding 1.5 * 2^23 leaves the rounded integer in the low bits.
      const float shifted = x[i] * inverse + 12582912.0f;
      int32_t bits;
      std::memcpy(&bits, &shifted, 4);
      codes[i] = static_cast<std::byte>(bits & 0xff);
      (i < 16 ? *first : *last) += static_cast<int8_t>(bits & 0xff);
    }
  }
  // Words, for products with the transposed weight (int_transposed.h).
  static constexpr int kWordTokens = 2;
  static I SubBytes(I a, int value) {
    for (uint32_t& four : a.lanes) {
      uint32_t less = 0;
      for (int i = 0; i < 4; ++i) less |= static_cast<uint32_t>((Byte(four, i) - value) & 255) << (8 * i);
      four = less;
    }
    return a;
  }
  static int32_t Word(uint32_t two, int i) { return static_cast<int16_t>((two >> (16 * i)) & 65535u); }
  static int32_t Word(const std::byte* from) {
    int16_t word;
    std::memcpy(&word, from, 2);
    return word;
  }
  using WordSum = I;
  static WordSum NoWords() { return Fill(0); }
  static Isa::F WordsToFloat(WordSum sum) { return ToFloat(sum); }
  // sum + the products of two words each.
  static WordSum DotWords(WordSum sum, I w, I x) {
    for (int l = 0; l < 8; ++l) {
      const int32_t products = Word(w.lanes[l], 0) * Word(x.lanes[l], 0) + Word(w.lanes[l], 1) * Word(x.lanes[l], 1);
      sum.lanes[l] += static_cast<uint32_t>(products);
    }
    return sum;
  }
  // 8 floats, rounded to nearest even.
  static void StoreWords(Isa::F a, std::byte* to) {
    float lanes[8];
    Isa::Store(lanes, a);
    for (int l = 0; l < 8; ++l) {
      const float shifted = lanes[l] + 12582912.0f;  // leaves the rounded integer in the low bits
      std::memcpy(to + 2 * l, &shifted, 2);
    }
  }
  template <int kShift, bool kOffsets>
  static void StorePairs(const I (&codes)[8], const WordScales& scales, std::byte* to) {
    for (int row = 0; row < 8; ++row) {
      for (int column = 0; column < 32; ++column) {
        const int32_t code = SignedByte(codes[column / 4].lanes[row], column % 4) * (256 << kShift);
        const int32_t ratio = Word((column < 16 ? scales.first : scales.last) + 2 * row);
        const int32_t offset = kOffsets ? Word(scales.offset + 2 * row) : 0;
        const auto word = static_cast<int16_t>(((code * ratio + (1 << 14)) >> 15) + offset);
        std::memcpy(to + row / 2 * kWordPairBytes + column * 4 + row % 2 * 2, &word, 2);
      }
    }
  }
  static Isa::F ToFloat(I a) {
    float lanes[8];
    for (int l = 0; l < 8; ++l) lanes[l] = static_cast<float>(static_cast<int32_t>(a.lanes[l]));
    return Isa::Load(lanes);
  }
  static Isa::F Scales(const std::byte* from) {
    float lanes[8];
    for (int l = 0; l < 8; ++l) {
      uint16_t h;
      std::memcpy(&h, from + 2 * l, 2);
      lanes[l] = HalfToFloat(h);
    }
    return Isa::Load(lanes);
  }
  static Isa::F BroadcastFloat(const std::byte* from) {
    float f;
    std::memcpy(&f, from, 4);
    return Isa::Set(f);
  }
};

}  // namespace
}  // namespace thermoe::kernels::cpu::portable
