// SPDX-License-Identifier: Apache-2.0
// The hardware adapter's network, shared over experts and layers, with its gradient by hand and Adam.
//
//   hidden = tanh(W1^T features + Wd^T device + b1);  bias = tanh(w2 . hidden), in (-1, 1);  w2 starts at 0, so the
//   bias does log variance = v . features + vd . device + c, which learns by itself how far loads were from their
//   prediction
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "thermoe/status.h"

namespace thermoe {

class TthaNetwork {
 public:
  static constexpr int kFeatures = 11, kDevice = 12, kHidden = 8;
  static constexpr int kBiasWeights = (kFeatures + kDevice + 2) * kHidden;  // W1, Wd, b1, w2
  static constexpr int kVarianceWeights = kFeatures + kDevice + 1;          // v, vd, c
  static constexpr int kWeights = kBiasWeights + kVarianceWeights;
  static constexpr float kMostWeight = 100;  // training keeps to it, files must

  explicit TthaNetwork(int32_t experts);  // rows of features, of all layers together

  // `features` [experts, kFeatures], kept by the caller until Backward; `device` [kDevice].
  void Forward(const float* features, const float* device);
  const std::vector<float>& bias() const { return bias_; }                  // [experts]
  const std::vector<float>& log_variance() const { return log_variance_; }  // [experts], in [-6, 6]

  // Gradients at the last Forward are added to gradient(), which Step reads and clears.
  void AddBiasGradient(const float* by_bias);  // [experts]
  void AddVarianceGradient(const float* by_log_variance);
  std::span<const float> gradient() const { return gradient_; }
  void ClearGradient() { gradient_.fill(0); }

  // Adam (Kingma and Ba, 2015). A gradient that is not finite is dropped (false).
  bool Step(float learning_rate);

  std::span<float> weights() { return weights_; }
  std::span<const float> weights() const { return weights_; }
  int64_t steps() const { return steps_; }

  std::string ToJson() const;
  // kCorrupt names `source`, the field and what it must be; then nothing has changed. Adam starts anew.
  Status FromJson(std::string_view text, const std::string& source);

 private:
  static constexpr int kDeviceAt = kFeatures * kHidden, kOffsetAt = kDeviceAt + kDevice * kHidden,
                       kOutAt = kOffsetAt + kHidden;
  static constexpr int kVarianceAt = kBiasWeights, kVarianceDeviceAt = kVarianceAt + kFeatures,
                       kVarianceOffsetAt = kVarianceDeviceAt + kDevice;

  std::array<float, kWeights> weights_ = {}, gradient_ = {}, mean_ = {}, square_ = {};
  int64_t steps_ = 0;
  int32_t experts_ = 0;
  const float* features_ = nullptr;
  std::array<float, kDevice> device_ = {};
  std::vector<float> hidden_;  // [experts, kHidden]
  std::vector<float> bias_, log_variance_;
};

}  // namespace thermoe
