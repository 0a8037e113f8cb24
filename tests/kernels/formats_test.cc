// SPDX-License-Identifier: Apache-2.0
// The number formats that every kernel decodes: exact values from bytes written by hand.
#include "model/formats.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/float16.h"
#include "base/random.h"

namespace thermoe {
namespace {

// What a binary floating-point pattern with `exponent` and `mantissa` bits means (IEEE 754, section 3.4).
double MeaningOf(uint16_t pattern, int exponent_bits, int mantissa_bits) {
  const int sign = pattern >> 15;
  const int exponent = (pattern >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const int mantissa = pattern & ((1 << mantissa_bits) - 1);
  const int bias = (1 << (exponent_bits - 1)) - 1;
  double magnitude;
  if (exponent == (1 << exponent_bits) - 1) {
    magnitude = mantissa != 0 ? std::numeric_limits<double>::quiet_NaN() : std::numeric_limits<double>::infinity();
  } else if (exponent == 0) {
    magnitude = std::ldexp(mantissa, 1 - bias - mantissa_bits);
  } else {
    magnitude = std::ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits);
  }
  return sign != 0 ? -magnitude : magnitude;
}

struct Narrow {
  const char* name;
  int exponent_bits, mantissa_bits;
  float (*widen)(uint16_t);
  uint16_t (*narrow)(float);
};
constexpr Narrow kNarrow[] = {{"binary16", 5, 10, HalfToFloat, FloatToHalf},
                              {"bfloat16", 8, 7, Bf16ToFloat, FloatToBf16}};

TEST(Formats, NarrowFloatsWidenExactlyAndBack) {
  for (const Narrow& type : kNarrow) {
    for (uint32_t p = 0; p < 65536; ++p) {
      const auto pattern = static_cast<uint16_t>(p);
      const double meaning = MeaningOf(pattern, type.exponent_bits, type.mantissa_bits);
      const float wide = type.widen(pattern);
      if (std::isnan(meaning)) {
        ASSERT_TRUE(std::isnan(wide)) << type.name << " " << p;
        ASSERT_TRUE(std::isnan(type.widen(type.narrow(wide)))) << type.name << " " << p;
        continue;
      }
      ASSERT_EQ(static_cast<double>(wide), meaning) << type.name << " " << p;
      ASSERT_EQ(std::signbit(wide), pattern >= 0x8000) << type.name << " " << p;  // -0 too
      ASSERT_EQ(type.narrow(wide), pattern) << type.name;
    }
  }
}

TEST(Formats, NarrowingRoundsToNearestEven) {
  for (const Narrow& type : kNarrow) {
    const auto infinity = static_cast<uint16_t>(((1 << type.exponent_bits) - 1) << type.mantissa_bits);
    for (uint16_t low = 0; low + 1 < infinity; ++low) {
      const float a = type.widen(low), b = type.widen(static_cast<uint16_t>(low + 1));
      const float middle = a + (b - a) / 2;  // exact: one more bit
      const auto even = static_cast<uint16_t>(low % 2 == 0 ? low : low + 1);
      ASSERT_EQ(type.narrow(middle), even) << type.name << " " << low;
      ASSERT_EQ(type.narrow(-middle), even | 0x8000) << type.name << " " << low;
      ASSERT_EQ(type.narrow(std::nextafter(middle, a)), low) << type.name;
      ASSERT_EQ(type.narrow(std::nextafter(middle, b)), low + 1) << type.name;
    }
    EXPECT_EQ(type.narrow(std::numeric_limits<float>::infinity()), infinity);
    EXPECT_EQ(type.narrow(std::numeric_limits<float>::max()), infinity);
    EXPECT_EQ(type.narrow(std::numeric_limits<float>::denorm_min()), 0);
  }
}

std::vector<float> Decode(DType type, const void* block, const void* lo = nullptr, Planes planes = Planes::kBoth,
                          int64_t cols = kQuantBlock) {
  std::vector<float> out(static_cast<size_t>(cols), std::nanf(""));
  const WeightMatrix m{type, 1, cols, static_cast<const std::byte*>(block), static_cast<const std::byte*>(lo)};
  DecodeRow(m, 0, planes, out.data());
  return out;
}

TEST(Formats, Sizes) {
  EXPECT_EQ(RowBytes(DType::kF32, 7), 28);
  EXPECT_EQ(RowBytes(DType::kF16, 7), 14);
  EXPECT_EQ(RowBytes(DType::kBF16, 7), 14);
  EXPECT_EQ(RowBytes(DType::kQ8_0, 64), 68);
  EXPECT_EQ(RowBytes(DType::kQ4_0, 64), 36);
  EXPECT_EQ(RowBytes(DType::kNested8, 64), 36);
  EXPECT_EQ(NestedLoRowBytes(64), 32);
  const WeightMatrix nested{DType::kNested8, 10, 64, nullptr, nullptr};
  EXPECT_EQ(nested.bytes(Planes::kBoth), 10 * 68);  // no more than Q8_0
  EXPECT_EQ(nested.bytes(Planes::kHi), 10 * 36);
}

TEST(Formats, Q8ByHand) {
  uint8_t bytes[34] = {0x00, 0x38};  // 0x3800 little-endian: 0.5
  bytes[2] = 1;
  bytes[3] = 0xff;  // -1
  bytes[4] = 127;
  bytes[5] = 0x81;   // -127
  bytes[33] = 0x80;  // -128
  std::vector<float> want(32, 0.0f);
  want[0] = 0.5f;
  want[1] = -0.5f;
  want[2] = 63.5f;
  want[3] = -63.5f;
  want[31] = -64.0f;
  EXPECT_EQ(Decode(DType::kQ8_0, bytes), want);
}

TEST(Formats, Q4ByHand) {
  uint8_t bytes[18] = {0x00, 0xc0};              // 0xc000: -2
  for (int i = 2; i < 18; ++i) bytes[i] = 0x88;  // zeros
  bytes[2] = 0xf0;                               // weight 0: 0, weight 16: 15
  bytes[17] = 0x19;                              // weight 15: 9, weight 31: 1
  std::vector<float> want(32, -0.0f);
  want[0] = 16.0f;
  want[16] = -14.0f;
  want[15] = -2.0f;
  want[31] = 14.0f;
  EXPECT_EQ(Decode(DType::kQ4_0, bytes), want);
}

TEST(Formats, NestedByHand) {
  uint8_t hi[18] = {0x00, 0x3c};  // 1.0
  uint8_t lo[16] = {};
  for (int i = 2; i < 18; ++i) hi[i] = 0x88;  // hi = 0
  hi[2] = 0xf0;                               // weight 0: -8, weight 16: 7
  lo[0] = 0xf1;                               // weight 0: 1, weight 16: 15
  std::vector<float> both(32, 0.0f), high(32, 7.5f);
  both[0] = -127.0f;
  both[16] = 127.0f;
  high[0] = -120.5f;
  high[16] = 119.5f;
  EXPECT_EQ(Decode(DType::kNested8, hi, lo), both);
  EXPECT_EQ(Decode(DType::kNested8, hi, nullptr, Planes::kHi), high);
}

// fixtures/make_blocks.py says how the values were made.
TEST(Formats, BlocksMeanWhatTheGgufPackageSays) {
  std::ifstream file(std::string(THERMOE_FIXTURES) + "/blocks.json");
  const nlohmann::json types = nlohmann::json::parse(file);
  for (const DType type : {DType::kQ8_0, DType::kQ4_0, DType::kQ5_0, DType::kQ5_1, DType::kQ4K, DType::kQ5K, DType::kQ6K,
                           DType::kIQ4NL, DType::kMXFP4}) {
    const std::string name(TraitsOf(type).name);
    const nlohmann::json& blocks = types.at(name);
    EXPECT_EQ(TraitsOf(type).block_elements, blocks["block_elements"]) << name;
    const std::string hex = blocks["bytes"];
    std::vector<uint8_t> bytes;
    for (size_t i = 0; i < hex.size(); i += 2) bytes.push_back(static_cast<uint8_t>(std::stoi(hex.substr(i, 2), nullptr, 16)));
    const auto patterns = blocks["values"].get<std::vector<uint32_t>>();
    const auto cols = static_cast<int64_t>(patterns.size());
    ASSERT_EQ(RowBytes(type, cols), static_cast<int64_t>(bytes.size())) << name;
    const std::vector<float> got = Decode(type, bytes.data(), nullptr, Planes::kBoth, cols);
    for (size_t i = 0; i < patterns.size(); ++i) ASSERT_EQ(got[i], std::bit_cast<float>(patterns[i])) << name << " " << i;
  }
}

TEST(Formats, PlanesHoldEveryCode) {
  for (int first = -128; first < 128; first += kQuantBlock) {
    BlockQ8_0 block{};
    block.d = FloatToHalf(1.0f);
    for (int j = 0; j < kQuantBlock; ++j) block.codes[j] = static_cast<int8_t>(first + j);
    NestedHi hi;
    NestedLo lo;
    SplitPlanes(&block, 1, &hi, &lo);
    EXPECT_EQ(hi.d, block.d);
    for (int j = 0; j < kQuantBlock; ++j) {
      const int hi_nibble = j < 16 ? hi.nibbles[j] & 15 : hi.nibbles[j - 16] >> 4;
      const int lo_nibble = j < 16 ? lo.nibbles[j] & 15 : lo.nibbles[j - 16] >> 4;
      EXPECT_EQ(16 * (hi_nibble - 8) + lo_nibble, first + j);
    }
    EXPECT_EQ(Decode(DType::kNested8, &hi, &lo), Decode(DType::kQ8_0, &block));
    const std::vector<float> high = Decode(DType::kNested8, &hi, nullptr, Planes::kHi);
    for (int j = 0; j < kQuantBlock; ++j)
      EXPECT_LE(std::fabs(high[static_cast<size_t>(j)] - static_cast<float>(first + j)), 7.5f);
  }
}

std::vector<std::byte> Encode(DType type, const std::vector<float>& values) {
  std::vector<std::byte> bytes(static_cast<size_t>(RowBytes(type, static_cast<int64_t>(values.size()))));
  EncodeRow(type, values.data(), static_cast<int64_t>(values.size()), bytes.data());
  return bytes;
}

TEST(Formats, EncodingIsWithinAHalfStep) {
  Random random(21);
  for (int round = 0; round < 50; ++round) {
    std::vector<float> values(64);
    for (float& value : values) value = static_cast<float>(random.Normal() * std::pow(10.0, round % 7 - 3));
    for (const DType type : {DType::kQ8_0, DType::kQ4_0}) {
      const std::vector<std::byte> bytes = Encode(type, values);
      const std::vector<float> back = Decode(type, bytes.data(), nullptr, Planes::kBoth, 64);
      for (size_t b = 0; b < 2; ++b) {
        float most = 0;
        for (size_t j = 0; j < 32; ++j) most = std::max(most, std::fabs(values[b * 32 + j]));
        const float step = type == DType::kQ8_0 ? most / 127 : most / 8;
        for (size_t j = 0; j < 32; ++j) {
          // The scale's own rounding adds 2^-11 of the value. Q4_0's codes end at +7 steps on the side opposite to the
          // largest value, so a whole step may be cut off there.
          const float allowed = (type == DType::kQ8_0 ? 0.5f : 1.0f) * step + most * 0x1p-10f + 0x1p-24f * 127;
          EXPECT_LE(std::fabs(back[b * 32 + j] - values[b * 32 + j]), allowed) << TraitsOf(type).name;
        }
      }
    }
  }
}

// The error in norm of random normal values, against what the steps allow: uniform in a step whose size follows from the extremes.
TEST(Formats, EncodingKeepsNormalValues) {
  Random random(22);
  std::vector<float> values(4096);
  for (float& value : values) value = static_cast<float>(random.Normal());
  const std::pair<DType, double> kMostError[] = {{DType::kQ8_0, 0.006}, {DType::kQ4_0, 0.10},  {DType::kQ5_0, 0.05},
                                                 {DType::kQ5_1, 0.045}, {DType::kQ4K, 0.09},   {DType::kQ5K, 0.045},
                                                 {DType::kQ6K, 0.025},  {DType::kIQ4NL, 0.09}, {DType::kMXFP4, 0.13}};
  for (const auto& [type, most] : kMostError) {
    const std::vector<float> back = Decode(type, Encode(type, values).data(), nullptr, Planes::kBoth, 4096);
    double error = 0, norm = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      error += std::pow(back[i] - values[i], 2);
      norm += std::pow(values[i], 2);
    }
    EXPECT_LT(std::sqrt(error / norm), most) << TraitsOf(type).name;
    EXPECT_GT(std::sqrt(error / norm), most / 3) << TraitsOf(type).name << ": the bound says nothing";
  }
}

TEST(Formats, EncodingByHand) {
  std::vector<float> values(32, 0.0f);
  values[0] = 127.0f;
  values[1] = -3.5f;  // halves round away from zero
  values[31] = 2.4f;
  const std::vector<std::byte> q8 = Encode(DType::kQ8_0, values);
  BlockQ8_0 block8;
  std::memcpy(&block8, q8.data(), sizeof(block8));
  EXPECT_EQ(block8.d, 0x3c00);
  EXPECT_EQ(block8.codes[0], 127);
  EXPECT_EQ(block8.codes[1], -4);
  EXPECT_EQ(block8.codes[31], 2);
  values[0] = -16.0f;
  values[1] = 14.0f;
  values[31] = 15.5f;
  const std::vector<std::byte> q4 = Encode(DType::kQ4_0, values);
  BlockQ4_0 block4;
  std::memcpy(&block4, q4.data(), sizeof(block4));
  EXPECT_EQ(block4.d, 0x4000);  // -16 / -8
  EXPECT_EQ(block4.nibbles[0] & 15, 0);
  EXPECT_EQ(block4.nibbles[1] & 15, 15);
  EXPECT_EQ(block4.nibbles[15] >> 4, 15);  // 15.75 + 0.5 is cut to the last code
  EXPECT_EQ(block4.nibbles[2], 0x88);
}

TEST(Formats, ZeroBlocksStayZero) {
  const std::vector<float> zeros(256, 0.0f);
  for (int t = 0; t < kDTypes; ++t) {
    const auto type = static_cast<DType>(t);
    if (type == DType::kNested8) continue;
    EXPECT_EQ(Decode(type, Encode(type, zeros).data(), nullptr, Planes::kBoth, 256), zeros) << TraitsOf(type).name;
  }
}

}  // namespace
}  // namespace thermoe
