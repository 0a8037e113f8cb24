// SPDX-License-Identifier: Apache-2.0
#include "forward/sample.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "support/host_draw.h"

namespace thermoe {
namespace {

std::map<TokenId, double> Frequencies(std::vector<float> logits, const SamplingOptions& options, int draws = 20000) {
  Sampler sampler(static_cast<int32_t>(logits.size()));
  Random random(5);
  std::map<TokenId, double> counts;
  for (int i = 0; i < draws; ++i) {
    std::vector<float> copy = logits;
    counts[sampler.Sample(copy, options, {}, &random)] += 1.0 / draws;
  }
  return counts;
}

SamplingOptions AtTemperature(float temperature) {
  SamplingOptions options;
  options.temperature = temperature;
  return options;
}

TEST(LogSumExp, IsTheFormula) {
  Random random(8);
  for (const size_t n : {1, 2, 63, 64, 65, 320, 50257}) {
    for (const double scale : {0.01, 1.0, 30.0, 1000.0}) {
      std::vector<float> logits(n);
      for (float& logit : logits) logit = static_cast<float>(random.Normal() * scale);
      if (n > 2) logits[n / 2] = -std::numeric_limits<float>::infinity();  // has no part in the sum
      const double most = *std::max_element(logits.begin(), logits.end());
      double sum = 0;
      for (const float logit : logits) sum += std::exp(logit - most);
      const double want = most + std::log(sum);
      // The sum's relative error of 3e-7 is absolute after the logarithm; then the result is rounded to float.
      EXPECT_NEAR(LogSumExp(logits), want, 4e-7 + 6e-8 * std::fabs(want)) << n << " logits, scale " << scale;
      EXPECT_NEAR(LogProb(logits, 0), logits[0] - want, 4e-7 + 2e-7 * std::fabs(want) + 1e-7 * std::fabs(logits[0]));
    }
  }
}

TEST(LogSumExp, SeesWhatIsNotFiniteWhereverItStands) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const size_t n : {1, 64, 100}) {
    for (size_t at = 0; at < n; ++at) {
      std::vector<float> logits(n, 1.5f);
      EXPECT_TRUE(AllFinite(logits));
      logits[at] = infinity;
      EXPECT_FALSE(AllFinite(logits));
      EXPECT_EQ(LogSumExp(logits), infinity);
      logits[at] = -infinity;
      EXPECT_FALSE(AllFinite(logits));
      logits[at] = std::numeric_limits<float>::quiet_NaN();
      EXPECT_FALSE(AllFinite(logits));
      EXPECT_TRUE(std::isnan(LogSumExp(logits))) << at << " of " << n;
    }
  }
  EXPECT_EQ(LogSumExp(std::vector<float>(70, -infinity)), -infinity);
}

TEST(Sampler, GreedyTakesTheFirstBest) {
  std::vector<float> logits = {1, 3, 3, 2};
  Sampler sampler(4);
  Random random(1);
  EXPECT_EQ(sampler.Sample(logits, {}, {}, &random), 1);
}

// What tests of backends that draw compare with.
TEST(Sampler, IsTheDefinitions) {
  Random random(9);
  for (int round = 0; round < 2000; ++round) {
    std::vector<float> logits(1 + random.Below(round % 2 == 0 ? 10 : 500));
    for (float& logit : logits) {
      logit = static_cast<float>(random.Normal() * 3);
      if (round % 5 == 0) logit = std::round(logit);
      if (round % 7 == 0 && random.Below(4) == 0) logit = random.Below(2) == 0 ? -std::numeric_limits<float>::infinity() : std::numeric_limits<float>::quiet_NaN();
    }
    SamplingOptions options;
    options.temperature = round % 11 == 0 ? 0 : 0.1f + static_cast<float>(random.Uniform() * 2);
    options.top_k = static_cast<int>(random.Below(2) * random.Below(20));
    if (random.Below(2) == 0) options.top_p = 0.01f + 0.99f * static_cast<float>(random.Uniform());
    if (random.Below(3) == 0) options.min_p = static_cast<float>(random.Uniform() * 0.3);
    if (random.Below(2) == 0) options.repetition_penalty = 0.5f + static_cast<float>(random.Uniform());
    std::vector<TokenId> recent(random.Below(12));
    for (TokenId& id : recent) id = static_cast<TokenId>(random.Below(logits.size()));
    const kernels::TokenDraw draw{0, options.temperature, options.top_k, options.top_p, options.min_p, options.repetition_penalty, recent, Random(random).Uniform()};
    const testing::HostDraw host(logits, draw);
    Sampler sampler(static_cast<int32_t>(logits.size()));
    Random before = random;
    const TokenId token = sampler.Sample(logits, options, recent, &random);
    ASSERT_LE(host.Off(token), 1e-12) << round;
    ASSERT_EQ(host.uses_uniform(), random.Next() != before.Next()) << round;
  }
}

TEST(Sampler, DrawsFollowTheSoftmaxAtATemperature) {
  const std::vector<float> logits = {0.0f, 1.0f, 2.0f};
  for (const float temperature : {0.5f, 1.0f, 2.0f}) {
    double total = 0;
    for (const float logit : logits) total += std::exp(logit / temperature);
    const auto seen = Frequencies(logits, AtTemperature(temperature));
    for (size_t i = 0; i < logits.size(); ++i) {
      EXPECT_NEAR(seen.at(static_cast<TokenId>(i)), std::exp(logits[i] / temperature) / total, 0.015);
    }
  }
}

TEST(Sampler, CutsKeepWhatTheyPromise) {
  const std::vector<float> logits = {std::log(0.5f), std::log(0.3f), std::log(0.15f), std::log(0.05f)};
  SamplingOptions options = AtTemperature(1);
  options.top_k = 2;
  EXPECT_EQ(Frequencies(logits, options).size(), 2u);
  options = AtTemperature(1);
  options.top_p = 0.81f;  // 0.5 + 0.3 falls short, so the third stays
  EXPECT_EQ(Frequencies(logits, options).size(), 3u);
  options.top_p = 0.4f;
  EXPECT_EQ(Frequencies(logits, options).size(), 1u);
  options = AtTemperature(1);
  options.min_p = 0.25f;  // of 0.5: 0.125
  EXPECT_EQ(Frequencies(logits, options).size(), 3u);
}

TEST(Sampler, PenaltyLowersRecentIdsOnce) {
  Sampler sampler(3);
  Random random(1);
  SamplingOptions options;
  options.repetition_penalty = 2;
  std::vector<float> logits = {3.0f, 2.0f, -1.0f};
  const std::vector<TokenId> recent = {0, 0, 2};
  float logit = 0;
  EXPECT_EQ(sampler.Sample(logits, options, recent, &random, &logit), 1);
  EXPECT_EQ(logits, (std::vector<float>{1.5f, 2.0f, -2.0f}));
  EXPECT_EQ(logit, 2.0f);
}

TEST(Sampler, NotANumberIsNeverChosen) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> logits = {nan, 1, nan, 0.5f};
  const auto seen = Frequencies(logits, AtTemperature(1), 200);
  EXPECT_EQ(seen.count(0) + seen.count(2), 0u);
  logits = {nan, nan};
  Sampler sampler(2);
  Random random(1);
  EXPECT_EQ(sampler.Sample(logits, {}, {}, &random), 0);
}

TEST(Sampler, SameSeedSameDraws) {
  Sampler sampler(100);
  const auto draw = [&](uint64_t seed) {
    Random random(seed);
    std::vector<TokenId> ids;
    for (int i = 0; i < 50; ++i) {
      std::vector<float> logits(100);
      for (size_t j = 0; j < logits.size(); ++j) logits[j] = static_cast<float>((j * 37 + static_cast<size_t>(i)) % 11);
      ids.push_back(sampler.Sample(logits, AtTemperature(1), {}, &random));
    }
    return ids;
  };
  EXPECT_EQ(draw(3), draw(3));
  EXPECT_NE(draw(3), draw(4));
}

TEST(CheckSampling, NamesTheOption) {
  SamplingOptions options;
  EXPECT_TRUE(CheckSampling(options).ok());
  options.top_p = 0;
  EXPECT_NE(CheckSampling(options).message().find("top-p"), std::string::npos);
  options = {};
  options.temperature = std::numeric_limits<float>::quiet_NaN();
  EXPECT_NE(CheckSampling(options).message().find("temperature"), std::string::npos);
}

}  // namespace
}  // namespace thermoe
