// SPDX-License-Identifier: Apache-2.0
#include "control/router/ttha_relaxation.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "control/router/ttha_lanes.h"

namespace thermoe {

using ttha::Fill;
using ttha::kLanes;
using ttha::Lanes;
using ttha::Load;
using ttha::Store;

namespace {

constexpr float kPadScore = -1e4f;   // no row chooses a padding lane
constexpr float kSmallStep = 0.02f;  // in temperatures: what is left after second order is below 2e-6
constexpr int kMostRounds = 24;
constexpr float kLeastTemperature = 1e-7f;  // of rows whose K-th score is all but 0

}  // namespace

TthaRelaxation::TthaRelaxation(const RelaxationShape& shape) : shape_(shape) {
  THERMOE_CHECK(shape.layers > 0 && shape.rows > 0 && shape.slots > 0 && shape.slots < shape.experts &&
                shape.sharpness_frac > 0);
  padded_ = (shape.experts + kLanes - 1) / kLanes * kLanes;
  const auto rows = static_cast<size_t>(shape.layers * shape.rows), padded = static_cast<size_t>(padded_);
  const auto all = static_cast<size_t>(shape.layers * shape.experts), experts = static_cast<size_t>(shape.experts);
  scores_.assign(rows * padded, kPadScore);
  p_.assign(rows * padded, 0);
  plain_ = p_;
  rows_.resize(rows);
  count_.assign(static_cast<size_t>(shape.layers), 0);
  next_ = count_;
  bias_.assign(padded, 0);
  mean_ = pull_ = bias_;
  choice_.assign(experts, 0);
  order_.resize(experts);
  chosen_.assign(all, 0);
  active_.assign(all, 0);
  inside_.assign(all, 1);
}

bool TthaRelaxation::full_layers() const {
  return std::all_of(count_.begin(), count_.end(), [](int32_t count) { return count > 0; });
}

bool TthaRelaxation::AddRow(int32_t layer, const float* logits) {
  const int32_t experts = shape_.experts;
  float most = logits[0];
  for (int32_t e = 0; e < experts; ++e) {
    if (!std::isfinite(logits[e])) return false;
    most = std::max(most, logits[e]);
  }
  const auto l = static_cast<size_t>(layer);
  const int32_t index = next_[l];
  next_[l] = (index + 1) % shape_.rows;
  count_[l] = std::min(count_[l] + 1, shape_.rows);

  float* s = &scores_[Offset(layer, index)];
  float sum = 0;
  for (int32_t e = 0; e < padded_; e += kLanes) {
    Lanes z = Fill(-80);
    for (int32_t i = 0; i < kLanes && e + i < experts; ++i) z[i] = logits[e + i] - most;
    Store(s + e, ttha::Exp(z));
  }
  for (int32_t e = 0; e < experts; ++e) sum += s[e];
  for (int32_t e = 0; e < experts; ++e) order_[static_cast<size_t>(e)] = s[e] /= sum;
  for (int32_t e = experts; e < padded_; ++e) s[e] = kPadScore;
  // The plain choice; ties go to the lower index, as in the gate.
  std::nth_element(order_.begin(), order_.begin() + shape_.slots, order_.end(), std::greater<>());
  const float kth = *std::min_element(order_.begin(), order_.begin() + shape_.slots);
  int32_t left = shape_.slots;
  for (int32_t e = 0; e < experts; ++e) left -= s[e] > kth;
  for (int32_t e = 0; e < experts; ++e) {
    const bool chosen = s[e] > kth || (s[e] == kth && left-- > 0);
    choice_[static_cast<size_t>(e)] = chosen ? 1 : 0;
  }
  kth_score_ = kth;
  Row& row = rows_[static_cast<size_t>(layer * shape_.rows + index)];
  row.temperature = std::max(kLeastTemperature, shape_.sharpness_frac * kth);
  row.threshold = (kth + order_[static_cast<size_t>(shape_.slots)]) / 2;
  std::fill(bias_.begin(), bias_.end(), 0.0f);
  row.plain_mass = Solve(s, bias_.data(), &row, &plain_[Offset(layer, index)]);
  return true;
}

float TthaRelaxation::Solve(const float* s, const float* biases, Row* row, float* p) const {
  const float inverse = 1 / row->temperature, slots = static_cast<float>(shape_.slots);
  // p's sum falls as the threshold rises: Newton's steps, kept inside what is known to enclose the root.
  float low = -1e30f, high = 1e30f;
  for (int round = 0;; ++round) {
    Lanes sum = Fill(0), slope = Fill(0), bend = Fill(0);
    for (int32_t e = 0; e < padded_; e += kLanes) {
      const Lanes chance = ttha::Sigmoid((Load(s + e) + Load(biases + e) - row->threshold) * inverse);
      const Lanes weight = chance * (1.0f - chance);
      Store(p + e, chance);
      sum += chance;
      slope += weight;
      bend += weight * (1.0f - 2.0f * chance);
    }
    const float excess = ttha::Sum(sum) - slots, weight = std::max(ttha::Sum(slope), 1e-6f);
    float step = excess / weight;  // of the threshold, in temperatures
    if (std::fabs(step) < kSmallStep || round == kMostRounds) {
      // The rest of the way by the second-order series: no further exponentials.
      if (std::fabs(step) >= kSmallStep) step = 0;
      step += step * step / 2 * ttha::Sum(bend) / weight;
      row->threshold += step * row->temperature;
      Lanes mass = Fill(0);
      for (int32_t e = 0; e < padded_; e += kLanes) {
        const Lanes chance = Load(p + e), by = chance * (1.0f - chance);
        const Lanes moved = chance - by * step + by * (1.0f - 2.0f * chance) * (step * step / 2);
        Store(p + e, moved);
        mass += moved * Load(s + e);
      }
      return ttha::Sum(mass);
    }
    (excess > 0 ? low : high) = row->threshold;
    float next = row->threshold + std::clamp(step, -4.0f, 4.0f) * row->temperature;
    if (next <= low || next >= high) next = low > -1e29f && high < 1e29f ? (low + high) / 2 : next;
    row->threshold = next;
  }
}

void TthaRelaxation::Evaluate(const float* biases, int32_t tokens, const float* popularity) {
  tokens_ = std::max(tokens, 1);
  const int32_t experts = shape_.experts;
  mass_lost_ = 0;
  for (int32_t layer = 0; layer < shape_.layers; ++layer) {
    const int32_t rows = count_[static_cast<size_t>(layer)];
    std::copy_n(biases + layer * experts, experts, bias_.begin());
    std::fill(mean_.begin(), mean_.end(), 0.0f);
    double lost = 0;
    for (int32_t r = 0; r < rows; ++r) {
      Row& row = rows_[static_cast<size_t>(layer * shape_.rows + r)];
      float* p = &p_[Offset(layer, r)];
      lost +=
          1 - static_cast<double>(Solve(scores(layer, r), bias_.data(), &row, p)) / static_cast<double>(row.plain_mass);
      const float* plain = &plain_[Offset(layer, r)];
      for (int32_t e = 0; e < padded_; e += kLanes) {
        const Lanes moved = popularity == nullptr ? Load(p + e) : Load(p + e) - Load(plain + e);
        Store(&mean_[static_cast<size_t>(e)], Load(&mean_[static_cast<size_t>(e)]) + moved);
      }
    }
    const float share = rows > 0 ? 1 / static_cast<float>(rows) : 0;
    mass_lost_ += lost * static_cast<double>(share) / shape_.layers;
    for (int32_t e = 0; e < experts; ++e) {
      const auto at = static_cast<size_t>(layer * experts + e);
      float& mean = mean_[static_cast<size_t>(e)];
      mean = mean * share + (popularity == nullptr ? 0 : popularity[at]);
      inside_[at] = mean >= 0 && mean <= 1 ? 1 : 0;
    }
    for (int32_t e = 0; e < padded_; e += kLanes) {
      float* mean = &mean_[static_cast<size_t>(e)];
      const Lanes q = ttha::Clamp(Load(mean), 0, 1);
      Store(mean, q);
      Store(&pull_[static_cast<size_t>(e)], 1.0f - ttha::Power(1.0f - q, tokens_));
    }
    std::copy_n(mean_.begin(), experts, chosen_.begin() + layer * experts);
    std::copy_n(pull_.begin(), experts, active_.begin() + layer * experts);
  }
}

void TthaRelaxation::AddGradient(const float* by_chosen, const float* by_active, double by_mass_lost, float* to) const {
  const int32_t experts = shape_.experts;
  const float batch = static_cast<float>(tokens_);
  float grad[kLanes];
  for (int32_t layer = 0; layer < shape_.layers; ++layer) {
    const int32_t rows = count_[static_cast<size_t>(layer)];
    if (rows == 0) continue;
    const float share = 1 / static_cast<float>(rows);
    // By p of one row, through q: the same for all rows of the layer.
    for (int32_t e = 0; e < padded_; e += kLanes) {
      Lanes q = Fill(0), chosen = Fill(0), active = Fill(0);
      for (int32_t i = 0; i < kLanes && e + i < experts; ++i) {
        const auto at = static_cast<size_t>(layer * experts + e + i);
        q[i] = chosen_[at];
        chosen[i] = inside_[at] != 0 ? by_chosen[at] : 0;
        active[i] = inside_[at] != 0 ? by_active[at] : 0;
      }
      Store(&pull_[static_cast<size_t>(e)], (chosen + active * batch * ttha::Power(1.0f - q, tokens_ - 1)) * share);
    }
    for (int32_t r = 0; r < rows; ++r) {
      const Row& row = rows_[static_cast<size_t>(layer * shape_.rows + r)];
      const float* p = &p_[Offset(layer, r)];
      const float* s = scores(layer, r);
      const auto by_score =
          static_cast<float>(-by_mass_lost / (static_cast<double>(row.plain_mass) * rows * shape_.layers));
      // p = sigmoid(u): dp_e/dh_j = w_e / T (1[e = j] - w_j / sum w), w = p (1 - p).
      Lanes weight = Fill(0), pulled = Fill(0);
      for (int32_t e = 0; e < padded_; e += kLanes) {
        const Lanes chance = Load(p + e), w = chance * (1.0f - chance);
        weight += w;
        pulled += w * (Load(&pull_[static_cast<size_t>(e)]) + by_score * Load(s + e));
      }
      const float total = ttha::Sum(weight);
      if (!(total > 1e-20f)) continue;
      const float mean = ttha::Sum(pulled) / total, inverse = 1 / row.temperature;
      for (int32_t e = 0; e < padded_; e += kLanes) {
        const Lanes chance = Load(p + e), w = chance * (1.0f - chance);
        Store(grad, w * (Load(&pull_[static_cast<size_t>(e)]) + by_score * Load(s + e) - mean) * inverse);
        for (int32_t i = 0; i < kLanes && e + i < experts; ++i) to[layer * experts + e + i] += grad[i];
      }
    }
  }
}

}  // namespace thermoe
