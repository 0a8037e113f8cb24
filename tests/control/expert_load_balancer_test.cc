// SPDX-License-Identifier: Apache-2.0
#include "control/router/expert_load_balancer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/random.h"

namespace thermoe {
namespace {

constexpr size_t kExperts = 16, kSlots = 4, kTokens = 64;

// Experts 0 to 7 are group 0 and liked more.
std::vector<uint16_t> Halves() {
  std::vector<uint16_t> groups(kExperts, 0);
  std::fill(groups.begin() + kExperts / 2, groups.end(), uint16_t{1});
  return groups;
}

LoadBalancerOptions Options(int groups) {
  LoadBalancerOptions options;
  options.layers = 1;
  options.experts = kExperts;
  options.groups = groups;
  return options;
}

// A gate: top-K of noisy scores plus the steering's biases.
StepRecord Route(Random* random, const Steering& steering) {
  StepRecord record;
  record.layers.resize(1);
  record.layers[0].expert_slots.assign(kExperts, 0);
  const std::vector<float>& bias = steering.layers[0].selection_bias;
  for (size_t t = 0; t < kTokens; ++t) {
    std::vector<std::pair<double, size_t>> rank;
    for (size_t e = 0; e < kExperts; ++e) {
      const double score = 0.06 + 0.01 * random->Normal() + (e < kExperts / 2 ? 0.004 : 0);
      rank.push_back({score + (bias.empty() ? 0 : static_cast<double>(bias[e])), e});
    }
    std::sort(rank.rbegin(), rank.rend());
    for (size_t k = 0; k < kSlots; ++k) ++record.layers[0].expert_slots[rank[k].second];
  }
  return record;
}

// Mean share of group 0 over the last of `updates`.
double ShareAfter(ExpertLoadBalancer* balancer, int updates, const std::vector<double>& margins) {
  Random random(1);
  double share = 0;
  for (int i = 0; i < updates; ++i) {
    Steering steering;
    steering.layers.resize(1);
    balancer->AddTo(&steering);
    balancer->Update(Route(&random, steering), margins);
    if (i >= updates - 50) share += balancer->group_shares()[0] / 50;
  }
  return share;
}

TEST(ExpertLoadBalancer, EvensOutTheGroups) {
  ExpertLoadBalancer balancer(Options(2), Halves());
  Random random(1);
  Steering none;
  none.layers.resize(1);
  balancer.Update(Route(&random, none), {});
  EXPECT_GT(balancer.group_shares()[0], 0.55) << "the unbalanced gate prefers group 0";
  EXPECT_NEAR(ShareAfter(&balancer, 400, {}), 0.5, 0.04);
  EXPECT_LT(balancer.group_biases()[0], 0);
  EXPECT_EQ(balancer.group_biases()[1], 0);
}

TEST(ExpertLoadBalancer, AHotGroupGetsLess) {
  ExpertLoadBalancer balancer(Options(2), Halves());
  EXPECT_NEAR(ShareAfter(&balancer, 400, {10, 30}), 0.25, 0.05);
  EXPECT_DOUBLE_EQ(balancer.targets()[0], 0.25);
}

TEST(ExpertLoadBalancer, UnknownMarginsCountAsTheMeanAndPassedLimitsAsTheLeast) {
  ExpertLoadBalancer balancer(Options(2), Halves());
  Random random(2);
  Steering steering;
  steering.layers.resize(1);
  const StepRecord record = Route(&random, steering);
  const auto targets = [&](std::vector<double> margins) {
    balancer.Update(record, margins);
    return balancer.targets();
  };
  EXPECT_EQ(targets({}), (std::vector<double>{0.5, 0.5}));
  EXPECT_EQ(targets({std::nan(""), 12}), (std::vector<double>{0.5, 0.5}));
  EXPECT_EQ(targets({-5, 3}), (std::vector<double>{0.25, 0.75}));
  EXPECT_EQ(targets({std::numeric_limits<double>::infinity(), 3}), (std::vector<double>{0.5, 0.5}));
}

TEST(ExpertLoadBalancer, IsZeroWithOneGroup) {
  ExpertLoadBalancer balancer(Options(1), std::vector<uint16_t>(kExperts, 0));
  ShareAfter(&balancer, 60, {0.1});
  EXPECT_EQ(balancer.group_biases(), std::vector<float>(1, 0.0f));
  Steering steering;
  steering.layers.resize(1);
  balancer.AddTo(&steering);
  EXPECT_TRUE(steering.layers[0].selection_bias.empty());
}

TEST(ExpertLoadBalancer, AddsToBiasesThatAreThereAndStaysInBounds) {
  LoadBalancerOptions options = Options(2);
  options.most = 0.003f;
  ExpertLoadBalancer balancer(options, Halves());
  ShareAfter(&balancer, 300, {1, 1000});
  EXPECT_FLOAT_EQ(balancer.group_biases()[0], -0.006f);
  Steering steering;
  steering.layers.resize(1);
  steering.layers[0].selection_bias.assign(kExperts, -0.5f);
  balancer.AddTo(&steering);
  EXPECT_FLOAT_EQ(steering.layers[0].selection_bias[0], -0.506f);
  EXPECT_FLOAT_EQ(steering.layers[0].selection_bias[kExperts - 1], -0.5f);
}

TEST(ExpertLoadBalancer, RecordsWithoutLoadsChangeNothing) {
  ExpertLoadBalancer balancer(Options(2), Halves());
  StepRecord record;
  balancer.Update(record, {});
  record.layers.resize(1);
  balancer.Update(record, {});
  record.layers[0].expert_slots.assign(kExperts, 0);
  balancer.Update(record, {});
  EXPECT_EQ(balancer.group_biases(), (std::vector<float>{0, 0}));
}

// With a group that a layer has no expert in, the others share what is there.
TEST(ExpertLoadBalancer, ALayerBalancesTheGroupsThatItHas) {
  ExpertLoadBalancer balancer(Options(3), Halves());
  EXPECT_NEAR(ShareAfter(&balancer, 400, {20, 20, 20}), 0.5, 0.04);
  EXPECT_EQ(balancer.group_biases()[2], 0);
}

}  // namespace
}  // namespace thermoe
