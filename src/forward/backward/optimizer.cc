// SPDX-License-Identifier: Apache-2.0
#include "forward/backward/optimizer.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace thermoe {
namespace {

// out [n, n] = a [n, m] a^T
void Gram(const float* a, int64_t n, int64_t m, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      double sum = 0;
      for (int64_t k = 0; k < m; ++k) sum += static_cast<double>(a[i * m + k]) * a[j * m + k];
      out[i * n + j] = out[j * n + i] = static_cast<float>(sum);
    }
  }
}

}  // namespace

DeltaOptimizer::DeltaOptimizer(std::shared_ptr<const DeltaLayout> layout, const TttOptions& options)
    : layout_(std::move(layout)),
      kind_(options.optimizer),
      beta1_(options.beta1),
      beta2_(options.beta2),
      epsilon_(options.epsilon),
      cooling_(options.cooling),
      decay_(options.decay),
      counts_(layout_->tensors().size()),
      first_(static_cast<size_t>(layout_->size()), 0.0f),
      second_(kind_ == TttOptimizer::kSgd ? 0 : first_.size(), 0.0f) {
  if (kind_ != TttOptimizer::kMuon) return;
  int64_t largest = 0;
  for (const DeltaTensor& tensor : layout_->tensors()) largest = std::max(largest, tensor.part == DeltaPart::kWhole ? 0 : tensor.size());
  direction_.resize(static_cast<size_t>(largest));
  mixed_.resize(direction_.size());
  gram_.resize(static_cast<size_t>(layout_->rank() * layout_->rank()));
  gram2_.resize(gram_.size());
}

void DeltaOptimizer::Step(const kernels::Ops& ops, std::span<const float> gradient, float share, int64_t tokens, std::span<float> values,
                          const DeltaScope& scope) {
  THERMOE_CHECK(gradient.size() == first_.size() && values.size() == first_.size());
  adam_.clear();
  for (size_t index = 0; index < counts_.size(); ++index) {
    const DeltaTensor& tensor = layout_->tensors()[index];
    if (!scope.Includes(tensor)) continue;
    Count& count = counts_[index];
    heat_ = static_cast<float>(std::pow(1.0 + static_cast<double>(count.tokens) / 512.0, -static_cast<double>(cooling_)));
    steps_ = std::max(steps_, ++count.steps);
    tokens_ = std::max(tokens_, count.tokens += tokens);
    const auto at = static_cast<size_t>(tensor.offset), size = static_cast<size_t>(tensor.size());
    const std::span<const float> g = gradient.subspan(at, size);
    const std::span<float> x = values.subspan(at, size);
    // A starts at random and only turns B's steps into a direction: shrinking it would shrink them.
    if (decay_ > 0 && tensor.part != DeltaPart::kA) {
      for (float& value : x) value *= 1 - decay_;
    }
    if (kind_ == TttOptimizer::kSgd) {
      Sgd(tensor, g, share, x);
    } else if (kind_ == TttOptimizer::kMuon && tensor.part != DeltaPart::kWhole) {
      Muon(tensor, g, share, x);
    } else {
      adam_.push_back(Adam(tensor, count.steps, g, share, x));
    }
  }
  ops.Adam(adam_);
}

kernels::AdamArgs DeltaOptimizer::Adam(const DeltaTensor& tensor, int64_t count, std::span<const float> gradient, float share,
                                       std::span<float> values) {
  const auto steps = static_cast<double>(count);
  const auto rate = static_cast<float>(heat_ * tensor.learning_rate / (1 - std::pow(static_cast<double>(beta1_), steps)));
  const auto square = static_cast<float>(1 / (1 - std::pow(static_cast<double>(beta2_), steps)));
  const auto at = static_cast<size_t>(tensor.offset);
  return {gradient, share, beta1_, beta2_, rate * (1 + tensor.damping), square, epsilon_, tensor.damping,
            std::span(first_).subspan(at, values.size()), std::span(second_).subspan(at, values.size()), values};
}

void DeltaOptimizer::Sgd(const DeltaTensor& tensor, std::span<const float> gradient, float share, std::span<float> values) {
  float* m = first_.data() + tensor.offset;
  for (size_t i = 0; i < values.size(); ++i) {
    m[i] = beta1_ * m[i] + share * gradient[i];
    values[i] -= heat_ * tensor.learning_rate * m[i];
  }
}

// The momentum with all its singular values made nearly one, by five Newton-Schulz steps of the published coefficients, then
// scaled so that an element moves by about the learning rate, as with Adam (Liu et al. 2025, arXiv 2502.16982: 0.2 sqrt(max side)).
void DeltaOptimizer::Muon(const DeltaTensor& tensor, std::span<const float> gradient, float share, std::span<float> values) {
  const int64_t n = tensor.rows, m = tensor.cols;
  float* momentum = first_.data() + tensor.offset;
  double squares = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const float g = share * gradient[i];
    momentum[i] = beta1_ * momentum[i] + g;
    direction_[i] = g + beta1_ * momentum[i];  // Nesterov's
    squares += static_cast<double>(direction_[i]) * direction_[i];
  }
  const auto shrink = static_cast<float>(1 / (std::sqrt(squares) + 1e-20));
  for (size_t i = 0; i < values.size(); ++i) direction_[i] *= shrink;
  for (int round = 0; round < 5; ++round) {
    constexpr float kA = 3.4445f, kB = -4.7750f, kC = 2.0315f;
    Gram(direction_.data(), n, m, gram_.data());
    Gram(gram_.data(), n, n, gram2_.data());  // it is symmetric
    for (size_t i = 0; i < static_cast<size_t>(n * n); ++i) gram2_[i] = kB * gram_[i] + kC * gram2_[i];
    for (int64_t i = 0; i < n; ++i) {
      float* out = mixed_.data() + i * m;
      for (int64_t k = 0; k < m; ++k) out[k] = kA * direction_[static_cast<size_t>(i * m + k)];
      for (int64_t j = 0; j < n; ++j) {
        const float factor = gram2_[static_cast<size_t>(i * n + j)];
        const float* row = direction_.data() + j * m;
        for (int64_t k = 0; k < m; ++k) out[k] += factor * row[k];
      }
    }
    std::copy_n(mixed_.data(), n * m, direction_.data());
  }
  const float rate = heat_ * tensor.learning_rate * 0.2f * std::sqrt(static_cast<float>(std::max(n, m)));
  for (size_t i = 0; i < values.size(); ++i) values[i] -= rate * direction_[i];
}

void DeltaOptimizer::Restore(int64_t steps, int64_t tokens, std::span<const float> first, std::span<const float> second) {
  THERMOE_CHECK(first.size() == first_.size() && second.size() == second_.size());
  steps_ = steps;
  tokens_ = tokens;
  counts_.assign(counts_.size(), {steps, tokens});
  std::copy(first.begin(), first.end(), first_.begin());
  std::copy(second.begin(), second.end(), second_.begin());
}

}  // namespace thermoe
