// SPDX-License-Identifier: Apache-2.0
// Every term of UpdateTtha's loss: its gradient is there, and is what central differences say.
#include <gtest/gtest.h>

#include <cmath>

#include "base/random.h"
#include "control/router/ttha_adapter.h"

namespace thermoe {
namespace {

constexpr int kLayers = 2, kExperts = 10, kSlots = 3, kTokens = 4;

// Biases are around the K-th best score, so the step is a fraction of it; errors of float sums stay far below what it
// moves.
constexpr float kStep = 4e-3f;

StepRecord RandomRecord(uint64_t seed, int layers = kLayers, int experts = kExperts, int rows = 4) {
  Random random(seed);
  StepRecord record;
  record.tokens = record.decode_tokens = kTokens;
  record.layers.resize(static_cast<size_t>(layers));
  for (LayerRecord& layer : record.layers) {
    layer.expert_slots.assign(static_cast<size_t>(experts), 0);
    for (int i = 0; i < kTokens * kSlots; ++i) ++layer.expert_slots[random.Below(static_cast<uint64_t>(experts))];
    for (int i = 0; i < rows * experts; ++i)
      layer.gate_logits.push_back(static_cast<float>(random.Normal()) - 0.1f * static_cast<float>(i % experts));
  }
  return record;
}

TthaOptions SmallOptions() {
  TthaOptions options;
  options.shape = {kLayers, kExperts, kSlots, 4, 0.25f};  // smooth enough for differences in floats
  return options;
}

// Every limit is passed, so every term is at work.
TthaObserved Strained() {
  TthaObserved observed;
  observed.machine = {50, 20, 0.002, 0.0015, 10, 400, 60, 0.3, 1};
  observed.limits = {50, 60, 120, 4, 0.02, 0.02, 20000};
  observed.multipliers = {0.5, 0.4, 0.3, 0.2};
  observed.device.temp_margin_c = 2;
  observed.device.power_frac = 1.1;
  return observed;
}

// An adapter that has seen rows and whose biases are no longer 0.
struct Trained {
  TthaAdapter adapter{SmallOptions()};
  TthaObserved observed = Strained();
  std::vector<float> bytes;

  Trained() {
    for (int i = 0; i < kLayers * kExperts; ++i) bytes.push_back(0.8f + 0.05f * static_cast<float>(i % 7));
    observed.expert_bytes = bytes;
    std::vector<uint16_t> groups;
    for (int i = 0; i < kLayers * kExperts; ++i) groups.push_back(static_cast<uint16_t>(i % 3));
    adapter.SetPlacement(groups, 3);
    adapter.AddRows(RandomRecord(1));
    Random random(5);
    for (float& w : adapter.network().weights()) w += 0.3f * static_cast<float>(random.Normal());
    adapter.Assess(observed);
  }
};

class TthaGradient : public ::testing::TestWithParam<int> {
 protected:
  TthaValues OneTerm() const {
    TthaValues weights = {};
    weights[static_cast<size_t>(GetParam())] = 1;
    return weights;
  }
};

TEST_P(TthaGradient, ByBiasesIsWhatDifferencesSay) {
  Trained t;
  const std::vector<float> at = t.adapter.biases();
  const std::vector<float> gradient = t.adapter.GradientByBias(OneTerm());
  double size = 0;
  for (const float g : gradient) size = std::max(size, std::fabs(static_cast<double>(g)));
  ASSERT_GT(size, 1e-4) << "a term that does not depend on the biases";
  int moved = 0;
  for (size_t i = 0; i < gradient.size(); ++i) {
    const auto value = [&](float step) {
      std::vector<float> biases = at;
      biases[i] += step;
      t.adapter.Evaluate(t.observed, biases.data());
      return t.adapter.report().value[static_cast<size_t>(GetParam())];
    };
    // Fourth order: the relaxation is curved over steps that float sums can resolve.
    const double h = static_cast<double>(kStep);
    const double difference = (8 * (value(kStep) - value(-kStep)) - (value(2 * kStep) - value(-2 * kStep))) / (12 * h);
    EXPECT_NEAR(static_cast<double>(gradient[i]), difference, 1e-3 * size) << "bias " << i;
    moved += std::fabs(static_cast<double>(gradient[i])) > 1e-3 * size;
  }
  EXPECT_GT(moved, static_cast<int>(gradient.size()) * 3 / 4);
}

TEST_P(TthaGradient, ByWeightsIsWhatDifferencesSay) {
  Trained t;
  t.adapter.network().ClearGradient();
  t.adapter.GradientByBias(OneTerm());
  const std::span<const float> by_weights = t.adapter.GradientByWeights();
  const std::vector<float> gradient(by_weights.begin(), by_weights.end());
  double size = 0;
  for (const float g : gradient) size = std::max(size, std::fabs(static_cast<double>(g)));
  ASSERT_GT(size, 1e-6);
  for (size_t i = 0; i < TthaNetwork::kWeights; ++i) {
    if (i >= TthaNetwork::kBiasWeights) {
      EXPECT_EQ(gradient[i], 0) << "uncertainty learns from its errors alone";
      continue;
    }
    const auto value = [&](float step) {
      float& w = t.adapter.network().weights()[i];
      const float before = w;
      w += step;
      const double result = t.adapter.Assess(t.observed).value[static_cast<size_t>(GetParam())];
      w = before;
      return result;
    };
    const float h = 0.05f;
    const double difference =
        (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * static_cast<double>(h));
    EXPECT_NEAR(static_cast<double>(gradient[i]), difference, 1e-3 * size) << "weight " << i;
  }
}

TEST_P(TthaGradient, OfALayerSumsToZero) {
  Trained t;
  const std::vector<float> gradient = t.adapter.GradientByBias(OneTerm());
  for (size_t layer = 0; layer < kLayers; ++layer) {
    double sum = 0, size = 0;
    for (size_t e = 0; e < kExperts; ++e) {
      sum += static_cast<double>(gradient[layer * kExperts + e]);
      size += std::fabs(static_cast<double>(gradient[layer * kExperts + e]));
    }
    EXPECT_NEAR(sum, 0, 1e-5 * size);
  }
}

INSTANTIATE_TEST_SUITE_P(Terms, TthaGradient, ::testing::Range(0, kTthaTerms),
                         [](const auto& term) { return std::string(TthaTermName(static_cast<TthaTerm>(term.param))); });

TEST(TthaTerms, AreZeroWithoutTheirLimit) {
  const TthaByteTerms terms = EvaluateByteTerms({50, 20, 0.002, 0.0015, 10, 400, 60, 0.3, 1}, TthaLimits{}, 4, 12);
  for (const double value : terms.value) EXPECT_EQ(value, 0);
  EXPECT_DOUBLE_EQ(terms.forecast.latency_us, 50 + 20 * 12);
  EXPECT_DOUBLE_EQ(terms.forecast.power_w, 10 + (0.002 + 0.0015 * 12) / 400e-6);
  EXPECT_DOUBLE_EQ(terms.forecast.temp_c, 60 + 0.3 * terms.forecast.power_w);
}

TEST(TthaTerms, FewerBytesAreMoreTokensUnderACapEvenAtTheSamePace) {
  const TthaMachine machine{1000, 0, 0.01, 0.001, 50, 0, 0, 0, 0};  // time does not depend on bytes
  TthaLimits limits;
  limits.reference_tokens_per_s = 1000;
  EXPECT_EQ(At(EvaluateByteTerms(machine, limits, 4, 20).per_byte, TthaTerm::kThroughputBonus), 0);
  limits.power_w = 60;
  EXPECT_GT(At(EvaluateByteTerms(machine, limits, 4, 20).per_byte, TthaTerm::kThroughputBonus), 0);
}

TEST(TthaTerms, MultipliersAreTheWeightsOfTheirConstraints) {
  const TthaPrices prices{2, 3, 4};
  TthaValues weights = TthaWeights({0.1, 0.2, 0.3, 0.4}, prices, /*prefer_quality=*/true);
  EXPECT_EQ(weights, (TthaValues{0.1, 0.2, 0.3, 0.4, 2, 3, 4}));
  EXPECT_EQ(At(TthaWeights({}, prices, /*prefer_quality=*/true), TthaTerm::kThroughputBonus), 0);
  EXPECT_EQ(At(TthaWeights({}, prices, /*prefer_quality=*/false), TthaTerm::kThroughputBonus), 2);
}

TEST(TthaBalance, IsZeroWithOneGroup) {
  Trained t;
  EXPECT_GT(At(t.adapter.report().value, TthaTerm::kBalance), 0);
  t.adapter.SetPlacement(std::vector<uint16_t>(kLayers * kExperts, 0), 1);
  EXPECT_EQ(At(t.adapter.Assess(t.observed).value, TthaTerm::kBalance), 0);
}

TEST(TthaUncertainty, GradientIsWhatDifferencesSay) {
  TthaNetwork network(3);
  Random random(3);
  std::vector<float> features(3 * TthaNetwork::kFeatures), device(TthaNetwork::kDevice);
  for (float& x : features) x = static_cast<float>(random.Normal());
  for (float& x : device) x = static_cast<float>(random.Normal());
  for (float& w : network.weights()) w = 0.1f * static_cast<float>(random.Normal());
  const float by[3] = {0.5f, -1, 2};
  const auto value = [&] {
    network.Forward(features.data(), device.data());
    double sum = 0;
    for (size_t e = 0; e < 3; ++e) sum += static_cast<double>(by[e]) * static_cast<double>(network.log_variance()[e]);
    return sum;
  };
  value();
  network.AddVarianceGradient(by);
  const std::vector<float> gradient(network.gradient().begin(), network.gradient().end());
  for (size_t i = 0; i < TthaNetwork::kWeights; ++i) {
    float& w = network.weights()[i];
    const float before = w;
    w = before + 0.05f;
    const double up = value();
    w = before - 0.05f;
    const double down = value();
    w = before;
    EXPECT_NEAR(static_cast<double>(gradient[i]), (up - down) / 0.1, 2e-3) << i;
  }
}

}  // namespace
}  // namespace thermoe
