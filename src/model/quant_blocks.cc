// SPDX-License-Identifier: Apache-2.0
#include "model/quant_blocks.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "base/float16.h"

namespace thermoe {
namespace {

constexpr int kSuperBlocks = 8;  // runs of 32 weights in a block of 256

template <typename Block>
Block Load(const std::byte* from) {
  Block block;
  std::memcpy(&block, from, sizeof(block));
  return block;
}

void SetNibble(uint8_t* nibbles, int j, int value) {
  nibbles[j & 15] = static_cast<uint8_t>(nibbles[j & 15] | (j < 16 ? value : value << 4));
}
// In K blocks byte j holds weights j and j + 32 of each 64.
void SetKNibble(uint8_t* nibbles, int s, int j, int value) {
  uint8_t& byte = nibbles[s / 2 * 32 + j];
  byte = static_cast<uint8_t>(byte | (s % 2 == 0 ? value : value << 4));
}

// A whole number in [least, most] for any input: not a number becomes `least`.
int ToCode(float value, int least, int most) {
  const float rounded = std::round(value);
  if (!(rounded > static_cast<float>(least))) return least;
  return rounded > static_cast<float>(most) ? most : static_cast<int>(rounded);
}
float Inverse(float d) { return d != 0 ? 1.0f / d : 0.0f; }

// The value of largest magnitude.
float SignedMost(const float* x, int count) {
  float most = 0, signed_most = 0;
  for (int j = 0; j < count; ++j) {
    if (std::fabs(x[j]) > most) {
      most = std::fabs(x[j]);
      signed_most = x[j];
    }
  }
  return signed_most;
}

int NearestOf(const int8_t (&values)[16], float value) {
  int best = 0;
  for (int i = 1; i < 16; ++i) {
    if (std::fabs(value - values[i]) < std::fabs(value - values[best])) best = i;
  }
  return best;
}

void PackKScale(uint8_t (&scales)[12], int s, int scale, int min) {
  const auto or_in = [&](int at, int bits) { scales[at] = static_cast<uint8_t>(scales[at] | bits); };
  if (s < 4) {
    or_in(s, scale);
    or_in(s + 4, min);
  } else {
    or_in(s + 4, (scale & 15) | (min & 15) << 4);
    or_in(s - 4, scale >> 4 << 6);
    or_in(s, min >> 4 << 6);
  }
}

template <typename Block>
void DecodeK(DType type, const std::byte* from, float* out) {
  const auto block = Load<Block>(from);
  const float d = HalfToFloat(block.d), dmin = HalfToFloat(block.dmin);
  for (int s = 0; s < kSuperBlocks; ++s) {
    const KScale k = UnpackKScale(block.scales, s);
    const float scale = d * static_cast<float>(k.scale), min = dmin * static_cast<float>(k.min);
    uint8_t codes[32];
    UnpackCodes(type, from, s, codes);
    for (int j = 0; j < 32; ++j) out[s * 32 + j] = scale * static_cast<float>(codes[j]) - min;
  }
}

// Scales run from the least (at most 0) to the greatest value of 32 weights.
template <typename Block>
Block EncodeK(const float* x, int most_code) {
  float scales[kSuperBlocks], mins[kSuperBlocks];
  for (int s = 0; s < kSuperBlocks; ++s) {
    float least = 0, greatest = 0;
    for (int j = 0; j < 32; ++j) {
      least = std::min(least, x[s * 32 + j]);
      greatest = std::max(greatest, x[s * 32 + j]);
    }
    scales[s] = (greatest - least) / static_cast<float>(most_code);
    mins[s] = -least;
  }
  Block block{};
  block.d = FloatToHalf(*std::max_element(scales, scales + kSuperBlocks) / 63.0f);
  block.dmin = FloatToHalf(*std::max_element(mins, mins + kSuperBlocks) / 63.0f);
  const float d = HalfToFloat(block.d), dmin = HalfToFloat(block.dmin);
  for (int s = 0; s < kSuperBlocks; ++s) {
    const int scale = ToCode(scales[s] * Inverse(d), 0, 63), min = ToCode(mins[s] * Inverse(dmin), 0, 63);
    PackKScale(block.scales, s, scale, min);
    const float inverse = Inverse(d * static_cast<float>(scale)), offset = dmin * static_cast<float>(min);
    for (int j = 0; j < 32; ++j) {
      const int code = ToCode((x[s * 32 + j] + offset) * inverse, 0, most_code);
      SetKNibble(block.nibbles, s, j, code & 15);
      if constexpr (requires { block.high; }) block.high[j] = static_cast<uint8_t>(block.high[j] | (code >> 4) << s);
    }
  }
  return block;
}

BlockQ8_0 EncodeQ8_0(const float* x) {
  const float d = std::fabs(SignedMost(x, 32)) / 127.0f;
  BlockQ8_0 block{};
  block.d = FloatToHalf(d);
  for (int j = 0; j < 32; ++j) block.codes[j] = static_cast<int8_t>(x[j] != x[j] ? 0 : ToCode(x[j] * Inverse(d), -127, 127));
  return block;
}

// d * (code - zero), zero = 8 or 16; ggml rounds x / d + zero + 0.5 down.
int OffsetCode(float x, float inverse, int zero) {
  const float scaled = x * inverse;
  if (scaled != scaled) return zero;
  const auto clamped = std::min(std::max(scaled, static_cast<float>(-zero)), static_cast<float>(zero));
  return std::min(2 * zero - 1, static_cast<int>(clamped + static_cast<float>(zero) + 0.5f));
}

BlockQ4_0 EncodeQ4_0(const float* x) {
  const float d = SignedMost(x, 32) / -8.0f;
  BlockQ4_0 block{};
  block.d = FloatToHalf(d);
  for (int j = 0; j < 32; ++j) SetNibble(block.nibbles, j, OffsetCode(x[j], Inverse(d), 8));
  return block;
}

template <typename Block>
void SetFiveBits(Block* block, int j, int code) {
  SetNibble(block->nibbles, j, code & 15);
  block->high[j / 8] = static_cast<uint8_t>(block->high[j / 8] | (code >> 4) << (j % 8));
}

BlockQ5_0 EncodeQ5_0(const float* x) {
  const float d = SignedMost(x, 32) / -16.0f;
  BlockQ5_0 block{};
  block.d = FloatToHalf(d);
  for (int j = 0; j < 32; ++j) SetFiveBits(&block, j, OffsetCode(x[j], Inverse(d), 16));
  return block;
}

BlockQ5_1 EncodeQ5_1(const float* x) {
  const auto [least, greatest] = std::minmax_element(x, x + 32);
  const float d = (*greatest - *least) / 31.0f;
  BlockQ5_1 block{};
  block.d = FloatToHalf(d);
  block.m = FloatToHalf(*least);
  for (int j = 0; j < 32; ++j) SetFiveBits(&block, j, ToCode((x[j] - *least) * Inverse(d), 0, 31));
  return block;
}

BlockQ6K EncodeQ6K(const float* x) {
  float scales[16];
  for (int s = 0; s < 16; ++s) scales[s] = SignedMost(x + s * 16, 16) / -32.0f;
  BlockQ6K block{};
  block.d = FloatToHalf(SignedMost(scales, 16) / -128.0f);
  const float d = HalfToFloat(block.d);
  for (int s = 0; s < 16; ++s) {
    block.scales[s] = static_cast<int8_t>(ToCode(scales[s] * Inverse(d), -128, 127));
    const float inverse = Inverse(d * static_cast<float>(block.scales[s]));
    for (int i = 0; i < 16; ++i) {
      const int at = s * 16 + i, code = ToCode(x[at] * inverse, -32, 31) + 32;
      const int half = at / 128, quarter = at % 128 / 32, j = at % 32;
      uint8_t& low = block.low[half * 64 + quarter % 2 * 32 + j];
      low = static_cast<uint8_t>(low | (quarter < 2 ? code & 15 : (code & 15) << 4));
      uint8_t& high = block.high[half * 32 + j];
      high = static_cast<uint8_t>(high | (code >> 4) << (2 * quarter));
    }
  }
  return block;
}

BlockQ4_0 EncodeIQ4NL(const float* x) {
  const float d = SignedMost(x, 32) / -127.0f;  // the table reaches further down than up
  BlockQ4_0 block{};
  block.d = FloatToHalf(d);
  for (int j = 0; j < 32; ++j) SetNibble(block.nibbles, j, NearestOf(kIQ4NLValues, x[j] * Inverse(d)));
  return block;
}

// The scale of the standard's section 6.3: the largest power of two in the block over that of the largest E2M1 value (4).
BlockMXFP4 EncodeMXFP4(const float* x) {
  const float most = std::fabs(SignedMost(x, 32));
  BlockMXFP4 block{};
  if (most > 0) block.e = static_cast<uint8_t>(std::clamp(std::ilogb(most) - 2 + 127, 0, 254));
  const float inverse = Inverse(E8M0Half(block.e));
  for (int j = 0; j < 32; ++j) SetNibble(block.nibbles, j, NearestOf(kMXFP4Values, x[j] * inverse));
  return block;
}

template <typename Block>
void Store(const Block& block, std::byte* to) {
  std::memcpy(to, &block, sizeof(block));
}

}  // namespace

void UnpackCodes(DType type, const std::byte* block, int s, uint8_t (&codes)[32]) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(block);
  const auto fill = [&]<DType kType>() {
    for (int j = 0; j < 32; ++j) codes[j] = static_cast<uint8_t>(CodeAt<kType>(bytes, s, j));
  };
  switch (type) {
    case DType::kQ4_0: return fill.operator()<DType::kQ4_0>();
    case DType::kIQ4NL: return fill.operator()<DType::kIQ4NL>();
    case DType::kMXFP4: return fill.operator()<DType::kMXFP4>();
    case DType::kQ5_0: return fill.operator()<DType::kQ5_0>();
    case DType::kQ5_1: return fill.operator()<DType::kQ5_1>();
    case DType::kQ4K: return fill.operator()<DType::kQ4K>();
    case DType::kQ5K: return fill.operator()<DType::kQ5K>();
    case DType::kQ6K: return fill.operator()<DType::kQ6K>();
    default: THERMOE_CHECK(false);
  }
}

void DecodeBlock(DType type, const std::byte* block, float* out) {
  const float d = HalfToFloat(Load<uint16_t>(block));  // of the types that begin with it
  uint8_t codes[32];
  const auto fill = [&](auto value) {
    UnpackCodes(type, block, 0, codes);
    for (int j = 0; j < 32; ++j) out[j] = value(codes[j]);
  };
  switch (type) {
    case DType::kQ8_0: {
      const auto q8 = Load<BlockQ8_0>(block);
      for (int j = 0; j < 32; ++j) out[j] = d * static_cast<float>(q8.codes[j]);
      return;
    }
    case DType::kQ4_0: return fill([&](int code) { return d * static_cast<float>(code - 8); });
    case DType::kQ5_0: return fill([&](int code) { return d * static_cast<float>(code - 16); });
    case DType::kQ5_1: {
      const float m = HalfToFloat(Load<BlockQ5_1>(block).m);
      return fill([&](int code) { return d * static_cast<float>(code) + m; });
    }
    case DType::kIQ4NL: return fill([&](int code) { return d * static_cast<float>(kIQ4NLValues[code]); });
    case DType::kMXFP4: {
      const float scale = E8M0Half(static_cast<uint8_t>(block[0]));
      return fill([&](int code) { return scale * static_cast<float>(kMXFP4Values[code]); });
    }
    case DType::kQ4K: return DecodeK<BlockQ4K>(type, block, out);
    case DType::kQ5K: return DecodeK<BlockQ5K>(type, block, out);
    case DType::kQ6K: {
      const auto q6 = Load<BlockQ6K>(block);
      const float d6 = HalfToFloat(q6.d);
      for (int s = 0; s < kSuperBlocks; ++s) {
        UnpackCodes(type, block, s, codes);
        for (int j = 0; j < 32; ++j) {
          out[s * 32 + j] = d6 * static_cast<float>(q6.scales[s * 2 + j / 16]) * static_cast<float>(codes[j] - 32);
        }
      }
      return;
    }
    default: THERMOE_CHECK(false);
  }
}

void EncodeBlock(DType type, const float* x, std::byte* block) {
  switch (type) {
    case DType::kQ8_0: return Store(EncodeQ8_0(x), block);
    case DType::kQ4_0: return Store(EncodeQ4_0(x), block);
    case DType::kQ5_0: return Store(EncodeQ5_0(x), block);
    case DType::kQ5_1: return Store(EncodeQ5_1(x), block);
    case DType::kQ4K: return Store(EncodeK<BlockQ4K>(x, 15), block);
    case DType::kQ5K: return Store(EncodeK<BlockQ5K>(x, 31), block);
    case DType::kQ6K: return Store(EncodeQ6K(x), block);
    case DType::kIQ4NL: return Store(EncodeIQ4NL(x), block);
    case DType::kMXFP4: return Store(EncodeMXFP4(x), block);
    default: THERMOE_CHECK(false);
  }
}

}  // namespace thermoe
