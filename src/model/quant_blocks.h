// SPDX-License-Identifier: Apache-2.0
// The blocks of the quantised types, as GGUF files hold them, and what they mean. All are little-endian and packed.
// Source: ggml's block definitions and reference dequantisers; MXFP4: OCP Microscaling Formats 1.0.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "model/formats.h"

namespace thermoe {

struct BlockQ5_0 {
  uint16_t d;           // binary16 scale
  uint8_t high[4];      // bit j: the fifth bit of weight j
  uint8_t nibbles[16];  // as in BlockQ4_0
};
static_assert(sizeof(BlockQ5_0) == 22);

struct BlockQ5_1 {
  uint16_t d, m;  // binary16 scale and minimum
  uint8_t high[4];
  uint8_t nibbles[16];
};
static_assert(sizeof(BlockQ5_1) == 24);

// Weights 64 i + j, j < 32: the low half of byte 32 i + j; 64 i + 32 + j: its high half.
struct BlockQ4K {
  uint16_t d, dmin;     // binary16, of the scales and of the minimums
  uint8_t scales[12];   // 8 scales and 8 minimums of 6 bits: KScales unpacks them
  uint8_t nibbles[128];
};
static_assert(sizeof(BlockQ4K) == 144);

struct BlockQ5K {
  uint16_t d, dmin;
  uint8_t scales[12];
  uint8_t high[32];  // bit s of byte j: the fifth bit of weight 32 s + j
  uint8_t nibbles[128];
};
static_assert(sizeof(BlockQ5K) == 176);

// Each 128 weights h (0 or 1) have 64 bytes of low and 32 of high bits. Weight 128 h + 32 q + j, j < 32: the low half (q < 2)
// or high half of low[64 h + 32 (q % 2) + j], and bits 2 q and 2 q + 1 of high[32 h + j].
struct BlockQ6K {
  uint8_t low[128];
  uint8_t high[64];
  int8_t scales[16];
  uint16_t d;  // binary16
};
static_assert(sizeof(BlockQ6K) == 210);

struct BlockMXFP4 {
  uint8_t e;            // scale 2^(e - 128) of the doubled values in kMXFP4Values
  uint8_t nibbles[16];  // as in BlockQ4_0
};
static_assert(sizeof(BlockMXFP4) == 17);

inline constexpr int8_t kIQ4NLValues[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
inline constexpr int8_t kMXFP4Values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};  // twice E2M1
// 2^(e - 128). e = 255 would be "not a number" in the standard; as ggml has it, it is a power like the others.
constexpr float E8M0Half(uint8_t e) { return std::bit_cast<float>(e < 2 ? 0x00200000u << e : (e - 1u) << 23); }

// The scale and the minimum of 32 weights s (0..7) in the 12 bytes of Q4_K and Q5_K.
struct KScale {
  uint8_t scale, min;
};
constexpr KScale UnpackKScale(const uint8_t* scales, int s) {
  const auto byte = [](int value) { return static_cast<uint8_t>(value); };
  if (s < 4) return {byte(scales[s] & 63), byte(scales[s + 4] & 63)};
  return {byte((scales[s + 4] & 15) | scales[s - 4] >> 6 << 4), byte(scales[s + 4] >> 4 | scales[s] >> 6 << 4)};
}

// The nibble of weight j in a packed block of 32.
constexpr int NibbleAt(const uint8_t* nibbles, int j) { return j < 16 ? nibbles[j] & 15 : nibbles[j - 16] >> 4; }

// The code of weight j of the s-th 32 weights of a block, of any type whose codes are below 64 (all here but kQ8_0 and kNested8).
template <DType kType>
constexpr int CodeAt(const uint8_t* block, int s, int j) {
  const auto fifth = [block, j](size_t high) { return (block[high + static_cast<size_t>(j / 8)] >> (j % 8) & 1) << 4; };
  // K blocks: byte j holds weights j and j + 32 of each 64.
  const auto k_nibble = [=](size_t nibbles) {
    const int byte = block[nibbles + static_cast<size_t>(s / 2 * 32 + j)];
    return s % 2 == 0 ? byte & 15 : byte >> 4;
  };
  if constexpr (kType == DType::kMXFP4) return NibbleAt(block + offsetof(BlockMXFP4, nibbles), j);
  if constexpr (kType == DType::kQ5_0) return NibbleAt(block + offsetof(BlockQ5_0, nibbles), j) | fifth(offsetof(BlockQ5_0, high));
  if constexpr (kType == DType::kQ5_1) return NibbleAt(block + offsetof(BlockQ5_1, nibbles), j) | fifth(offsetof(BlockQ5_1, high));
  if constexpr (kType == DType::kQ4K) return k_nibble(offsetof(BlockQ4K, nibbles));
  if constexpr (kType == DType::kQ5K) {
    return k_nibble(offsetof(BlockQ5K, nibbles)) | (block[offsetof(BlockQ5K, high) + static_cast<size_t>(j)] >> s & 1) << 4;
  }
  if constexpr (kType == DType::kQ6K) {
    const int half = s / 4, quarter = s % 4;
    const int low = block[offsetof(BlockQ6K, low) + static_cast<size_t>(half * 64 + quarter % 2 * 32 + j)];
    const int high = block[offsetof(BlockQ6K, high) + static_cast<size_t>(half * 32 + j)] >> (2 * quarter) & 3;
    return (quarter < 2 ? low & 15 : low >> 4) | high << 4;
  }
  if constexpr (kType == DType::kQ4_0 || kType == DType::kIQ4NL) return NibbleAt(block + offsetof(BlockQ4_0, nibbles), j);
}

// All 32 of them.
void UnpackCodes(DType type, const std::byte* block, int s, uint8_t (&codes)[32]);

// One block to and from block_elements floats, for every type whose block_elements is not 1. Not for kNested8.
void DecodeBlock(DType type, const std::byte* block, float* out);
// Encoding rounds as ggml's reference quantisers do for Q8_0 (d = largest magnitude / 127), Q4_0 and Q5_0 (d = the value of
// largest magnitude / -8, -16) and Q5_1 (least to greatest value). The others take scales from the extremes of their weights, without
// ggml's search for better ones: enough for synthetic models, and larger errors than a careful quantiser makes.
void EncodeBlock(DType type, const float* x, std::byte* block);

}  // namespace thermoe
