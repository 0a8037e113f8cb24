// SPDX-License-Identifier: Apache-2.0
#include "control/router/ttha_network.h"

#include <algorithm>
#include <cmath>

#include "base/random.h"
#include "control/router/ttha_lanes.h"

namespace thermoe {

using ttha::Fill;
using ttha::kLanes;
using ttha::Lanes;
using ttha::Load;
using ttha::Store;

namespace {

constexpr float kMostLogVariance = 6;
constexpr int kVectors = TthaNetwork::kHidden / kLanes;
static_assert(TthaNetwork::kHidden % kLanes == 0);

}  // namespace

TthaNetwork::TthaNetwork(int32_t experts) : experts_(experts) {
  const auto rows = static_cast<size_t>(experts);
  hidden_.assign(rows * kHidden, 0);
  bias_.assign(rows, 0);
  log_variance_.assign(rows, 0);
  // Fixed, so that runs repeat. Only the first layer is random: the output weights are 0.
  Random random(0x7474686131ull);
  for (int i = 0; i < kOffsetAt; ++i) {
    const double fan_in = i < kDeviceAt ? 6.0 : 24.0;  // many features rest at 0
    weights_[static_cast<size_t>(i)] = static_cast<float>(random.Normal() / std::sqrt(fan_in));
  }
}

void TthaNetwork::Forward(const float* features, const float* device) {
  features_ = features;
  std::copy_n(device, kDevice, device_.begin());
  const float* w = weights_.data();
  // The device's share is the same for every expert.
  Lanes base[kVectors], out[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    base[v] = Load(w + kOffsetAt + v * kLanes);
    out[v] = Load(w + kOutAt + v * kLanes);
    for (int d = 0; d < kDevice; ++d) base[v] += device[d] * Load(w + kDeviceAt + d * kHidden + v * kLanes);
  }
  float variance = w[kVarianceOffsetAt];
  for (int d = 0; d < kDevice; ++d) variance += device[d] * w[kVarianceDeviceAt + d];
  for (int32_t e = 0; e < experts_; ++e) {
    const float* x = features + e * kFeatures;
    float* hidden = &hidden_[static_cast<size_t>(e * kHidden)];
    Lanes dot = Fill(0);
    for (int v = 0; v < kVectors; ++v) {
      Lanes z = base[v];
      for (int f = 0; f < kFeatures; ++f) z += x[f] * Load(w + f * kHidden + v * kLanes);
      z = ttha::Tanh(z);
      Store(hidden + v * kLanes, z);
      dot += z * out[v];
    }
    float log_variance = variance;
    for (int f = 0; f < kFeatures; ++f) log_variance += x[f] * w[kVarianceAt + f];
    bias_[static_cast<size_t>(e)] = ttha::Sum(dot);
    log_variance_[static_cast<size_t>(e)] = std::clamp(log_variance, -kMostLogVariance, kMostLogVariance);
  }
  int32_t e = 0;
  for (; e + kLanes <= experts_; e += kLanes)
    Store(&bias_[static_cast<size_t>(e)], ttha::Tanh(Load(&bias_[static_cast<size_t>(e)])));
  for (; e < experts_; ++e) bias_[static_cast<size_t>(e)] = ttha::Tanh(Fill(bias_[static_cast<size_t>(e)]))[0];
}

void TthaNetwork::AddBiasGradient(const float* by_bias) {
  const float* w = weights_.data();
  float* g = gradient_.data();
  Lanes out[kVectors], by_out[kVectors], by_offset[kVectors], by_weight[kFeatures][kVectors];
  for (int v = 0; v < kVectors; ++v) {
    out[v] = Load(w + kOutAt + v * kLanes);
    by_out[v] = by_offset[v] = Fill(0);
    for (int f = 0; f < kFeatures; ++f) by_weight[f][v] = Fill(0);
  }
  for (int32_t e = 0; e < experts_; ++e) {
    const float* x = features_ + e * kFeatures;
    const float* hidden = &hidden_[static_cast<size_t>(e * kHidden)];
    const float u = bias_[static_cast<size_t>(e)], by_dot = by_bias[e] * (1 - u * u);
    for (int v = 0; v < kVectors; ++v) {
      const Lanes h = Load(hidden + v * kLanes), by_z = by_dot * out[v] * (1.0f - h * h);
      by_out[v] += by_dot * h;
      by_offset[v] += by_z;
      for (int f = 0; f < kFeatures; ++f) by_weight[f][v] += x[f] * by_z;
    }
  }
  const auto add = [g](int at, Lanes value) { Store(g + at, Load(g + at) + value); };
  for (int v = 0; v < kVectors; ++v) {
    const int lane = v * kLanes;
    add(kOutAt + lane, by_out[v]);
    add(kOffsetAt + lane, by_offset[v]);
    for (int d = 0; d < kDevice; ++d)
      add(kDeviceAt + d * kHidden + lane, device_[static_cast<size_t>(d)] * by_offset[v]);
    for (int f = 0; f < kFeatures; ++f) add(f * kHidden + lane, by_weight[f][v]);
  }
}

void TthaNetwork::AddVarianceGradient(const float* by_log_variance) {
  float* g = gradient_.data();
  float total = 0;
  for (int32_t e = 0; e < experts_; ++e) {
    const float by = by_log_variance[e];
    total += by;
    for (int f = 0; f < kFeatures; ++f) g[kVarianceAt + f] += by * features_[e * kFeatures + f];
  }
  for (int d = 0; d < kDevice; ++d) g[kVarianceDeviceAt + d] += total * device_[static_cast<size_t>(d)];
  g[kVarianceOffsetAt] += total;
}

bool TthaNetwork::Step(float learning_rate) {
  constexpr float kBeta1 = 0.9f, kBeta2 = 0.99f, kEpsilon = 1e-10f;
  const bool finite = std::all_of(gradient_.begin(), gradient_.end(), [](float g) { return std::isfinite(g); });
  if (finite) {
    ++steps_;
    const auto n = static_cast<float>(std::min<int64_t>(steps_, 100000));
    const float scale1 = 1 / (1 - std::pow(kBeta1, n)), scale2 = 1 / (1 - std::pow(kBeta2, n));
    for (size_t i = 0; i < kWeights; ++i) {
      const float g = gradient_[i];
      mean_[i] = kBeta1 * mean_[i] + (1 - kBeta1) * g;
      square_[i] = kBeta2 * square_[i] + (1 - kBeta2) * g * g;
      const float step = learning_rate * mean_[i] * scale1 / (std::sqrt(square_[i] * scale2) + kEpsilon);
      weights_[i] = std::clamp(weights_[i] - step, -kMostWeight, kMostWeight);
    }
  }
  ClearGradient();
  return finite;
}

}  // namespace thermoe
