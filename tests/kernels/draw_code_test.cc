// SPDX-License-Identifier: Apache-2.0
// The numbers that a draw on the device is made of; needs no device.
#include "kernels/cuda/draw_code.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/random.h"

namespace thermoe::cuda {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(DrawCode, RisesWithTheLogitAndFallsWithTheToken) {
  const std::vector<float> rising = {-kInfinity, -3e38f, -1.5f, -1.0f, -1e-38f, -1e-45f, 0.0f, 1e-45f, 0.5f, 2.0f, 3e38f, kInfinity};
  for (size_t i = 0; i < rising.size(); ++i) {
    for (const int32_t id : {0, 1, 255, 256, 151935, static_cast<int32_t>(kMostIds) - 1}) {
      const uint64_t code = CodeOf(rising[i], id);
      EXPECT_GT(code, 0u);
      EXPECT_EQ(code >> kCodeBits, 0u);
      EXPECT_EQ(LogitOf(code), rising[i]);
      EXPECT_EQ(IdOf(code), id);
      EXPECT_EQ(FromById(ById(code)), code);
      if (id > 0) {
        EXPECT_LT(code, CodeOf(rising[i], id - 1));
        EXPECT_LT(ById(code), ById(CodeOf(-5, id - 1)));
      }
      if (i > 0) {
        EXPECT_GT(code, CodeOf(rising[i - 1], 0));
      }
    }
  }
  EXPECT_EQ(CodeOf(-0.0f, 7), CodeOf(0.0f, 7));
}

TEST(DrawCode, BinsOfDigitsKeepTheOrder) {
  Random random(1);
  for (int i = 0; i < 1000; ++i) {
    uint64_t a = CodeOf(static_cast<float>(random.Normal()), static_cast<int32_t>(random.Below(1000)));
    uint64_t b = i % 2 == 0 ? CodeOf(static_cast<float>(random.Normal()), 3) : a ^ random.Below(1 << 12);
    if (a < b) std::swap(a, b);
    for (int shift = kCodeBits; shift > 0; shift -= kDigitBits) {
      if (a >> shift != b >> shift) break;
      ASSERT_LT(DigitBin(a, shift), 1u << kDigitBits);
      ASSERT_LE(DigitBin(a, shift), DigitBin(b, shift));  // the larger first
    }
  }
}

TEST(DrawCode, MassesAreRoundedProbabilities) {
  constexpr double kUnit = 0x1p-38;
  EXPECT_EQ(MassOf(1.0f), uint64_t{1} << kMassBits);
  EXPECT_EQ(MassOf(0.0f), 0u);
  Random random(2);
  float before = 0;
  std::vector<float> probabilities = {0x1p-6f, std::nextafter(0x1p-6f, 0.0f), 0x1p-38f, 0x1p-39f, 1e-30f};
  for (int i = 0; i < 10000; ++i) probabilities.push_back(static_cast<float>(std::exp(-30 * random.Uniform())));
  std::sort(probabilities.begin(), probabilities.end());
  for (const float p : probabilities) {
    ASSERT_NEAR(static_cast<double>(MassOf(p)), static_cast<double>(p) / kUnit, 0.5 + 6e-8 * static_cast<double>(p) / kUnit) << p;
    ASSERT_LE(MassOf(before), MassOf(p));
    before = p;
  }
}

TEST(DrawCode, SharesAndDraws) {
  EXPECT_EQ(NeededOf(0.5f, 8), 4u);
  EXPECT_EQ(NeededOf(0.5f, 9), 5u);
  EXPECT_EQ(NeededOf(1e-30f, 9), 1u);
  EXPECT_EQ(NeededOf(0.99999994f, 3), 3u);
  EXPECT_LT(NeededOf(0.99999994f, uint64_t{1} << 57), uint64_t{1} << 57);
  EXPECT_EQ(DrawnAt(0, 9), 1u);
  EXPECT_EQ(DrawnAt(0.5, 8), 5u);  // four have not been reached past
  EXPECT_EQ(DrawnAt(1 - 0x1p-53, 9), 9u);
  EXPECT_LE(DrawnAt(1 - 0x1p-53, (uint64_t{1} << 57) - 1), (uint64_t{1} << 57) - 1);  // a double has no such number
}

TEST(DrawCode, PenaltiesLowerEitherSign) {
  EXPECT_EQ(Penalised(3, 2), 1.5f);
  EXPECT_EQ(Penalised(-3, 2), -6.0f);
  EXPECT_EQ(Penalised(0, 2), 0.0f);
  EXPECT_TRUE(std::isnan(Penalised(std::numeric_limits<float>::quiet_NaN(), 2)));
}

}  // namespace
}  // namespace thermoe::cuda
