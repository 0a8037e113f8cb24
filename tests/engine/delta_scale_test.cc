// SPDX-License-Identifier: Apache-2.0
// How large deltas should be, learnt from gradients of what comes next.
#include "engine/delta_scale.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/random.h"

namespace thermoe::testing {
namespace {

ModelConfig Config() {
  ModelConfig config;
  config.layers = 4, config.hidden = 8, config.experts = 4, config.vocab = 32;
  config.heads = 2, config.kv_heads = 2, config.head_dim = 4;
  return config;
}

TttOptions Options() {
  TttOptions options;
  options.rank = 2;
  options.groups = {{DeltaGroup::kOutputBias}, {DeltaGroup::kExpertGain}, {DeltaGroup::kLowRankQ}};
  return options;
}

// Values that grow by `step` an update, and noisy gradients of half `curvature` (value - goal)^2 a row, 48 rows each.
std::vector<float> Learn(DeltaScale* scale, const DeltaLayout& layout, float step, float goal, int updates) {
  Random random(1);
  std::vector<float> values(static_cast<size_t>(layout.size()), 0.0f), gradient(values.size());
  for (int update = 0; update < updates; ++update) {
    for (size_t i = 0; i < values.size(); ++i) {
      gradient[i] = static_cast<float>(48 * 0.1 * (values[i] - goal) + random.Normal());
    }
    scale->Begin(layout, {}, gradient, values);
    for (float& value : values) value += step;
    scale->End(layout, {}, values);
  }
  return values;
}

TEST(DeltaScale, ShrinksWhatOvershootsAndEnlargesWhatFallsShort) {
  const DeltaLayout layout(Config(), Options());
  DeltaScale large(0.15, 2), small(0.15, 2);
  Learn(&large, layout, 0.05f, 0.3f, 30);
  Learn(&small, layout, 0.01f, 3.0f, 30);
  for (size_t part = 0; part < DeltaScale::kParts; ++part) {
    EXPECT_LT(large.scale(part), 0.8) << "goes to 1.5 for 0.3, part " << part;
    EXPECT_GE(large.scale(part), DeltaScale::kLeast);
    EXPECT_GT(small.scale(part), 1.25) << "goes to 0.3 for 3, part " << part;
    EXPECT_LE(small.scale(part), DeltaScale::kMost);
  }
}

TEST(DeltaScale, DeltasAreScaleTimesWhatStepsAddUpTo) {
  const DeltaLayout layout(Config(), Options());
  DeltaScale scale(0.15, 2), none(0, 2);
  const std::vector<float> scaled = Learn(&scale, layout, 0.05f, 0.3f, 30),
                           plain = Learn(&none, layout, 0.05f, 0.3f, 30);
  for (const DeltaTensor& tensor : layout.tensors()) {
    const size_t part = !HasLayers(tensor.group) ? 0 : tensor.layer >= 2 ? 1 : 2;
    const double factor = tensor.part == DeltaPart::kA ? 1 : scale.scale(part);
    const auto at = static_cast<size_t>(tensor.offset);
    EXPECT_NEAR(scaled[at], factor * plain[at], 1e-3) << DeltaGroupName(tensor.group) << " " << tensor.layer;
  }
  EXPECT_FALSE(none.learns());
  EXPECT_EQ(none.parts(), decltype(none.parts()){});
}

TEST(DeltaScale, WhatAnUpdateLeavesOutKeepsItsScale) {
  const DeltaLayout layout(Config(), Options());
  DeltaScale scale(0.15, 2);
  std::vector<float> values(static_cast<size_t>(layout.size()), 1.0f), gradient(values.size(), 1.0f);
  const DeltaScope output{~0u, 4};
  scale.Begin(layout, output, gradient, values);
  scale.End(layout, output, values);
  EXPECT_LT(scale.scale(0), 1);
  EXPECT_EQ(scale.scale(1), 1);
  EXPECT_EQ(scale.scale(2), 1);
  for (const DeltaTensor& tensor : layout.tensors()) {
    if (HasLayers(tensor.group)) {
      EXPECT_EQ(values[static_cast<size_t>(tensor.offset)], 1.0f);
    }
  }
  gradient[0] = std::nanf("");
  scale.Begin(layout, {}, gradient, values);
  EXPECT_TRUE(std::isfinite(scale.scale(0)));
}

}  // namespace
}  // namespace thermoe::testing
