// SPDX-License-Identifier: Apache-2.0
// What is kept of a row of logits and with which probability, all in double, from the definitions (SamplingOptions): whether a token that a backend drew
// is one that may come of the same uniform number.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/residency.h"

namespace thermoe::testing {

class HostDraw {
 public:
  HostDraw(std::vector<float> logits, const kernels::TokenDraw& draw) : uniform_(draw.uniform) {
    std::vector<int32_t> seen;
    for (const int32_t id : draw.recent) {
      if (draw.repetition_penalty == 1 || std::find(seen.begin(), seen.end(), id) != seen.end()) continue;
      seen.push_back(id);
      float& logit = logits[static_cast<size_t>(id)];
      logit = logit > 0 ? logit / draw.repetition_penalty : logit * draw.repetition_penalty;
    }
    std::vector<int32_t> ids;
    for (size_t i = 0; i < logits.size(); ++i) {
      if (!std::isnan(logits[i])) ids.push_back(static_cast<int32_t>(i));
    }
    std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) { return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)]; });
    up_to_.resize(logits.size());
    const float best = ids.empty() ? 0 : logits[static_cast<size_t>(ids[0])];
    only_ = ids.empty() ? 0 : draw.temperature == 0 || std::isinf(best) ? ids[0] : -1;
    if (only_ >= 0) return;
    if (draw.top_k > 0) ids.resize(std::min(ids.size(), static_cast<size_t>(draw.top_k)));
    const auto power = [&](int32_t id, double temperature) { return std::exp(static_cast<double>(logits[static_cast<size_t>(id)] - best) / temperature); };
    double total = 0, reached = 0;
    for (const int32_t id : ids) total += power(id, 1);
    size_t keep = 0;
    while (keep < ids.size() && (draw.top_p >= 1 || reached < static_cast<double>(draw.top_p) * total)) reached += power(ids[keep++], 1);
    ids.resize(keep);
    const float least = draw.min_p > 0 ? best + std::log(draw.min_p) : -std::numeric_limits<float>::infinity();
    std::erase_if(ids, [&](int32_t id) { return logits[static_cast<size_t>(id)] < least; });
    std::sort(ids.begin(), ids.end());
    total = 0;
    for (const int32_t id : ids) total += power(id, draw.temperature);
    for (const int32_t id : ids) up_to_[static_cast<size_t>(id)] = power(id, draw.temperature) / total;
    for (size_t i = 1; i < up_to_.size(); ++i) up_to_[i] += up_to_[i - 1];
  }

  bool uses_uniform() const { return only_ < 0; }
  double Probability(int32_t token) const { return UpTo(token) - UpTo(token - 1); }
  // How far the uniform number is from where it draws the token; infinite where nothing does.
  double Off(int32_t token) const {
    if (only_ >= 0) return token == only_ ? 0 : std::numeric_limits<double>::infinity();
    return std::max({0.0, UpTo(token - 1) - uniform_, uniform_ - UpTo(token)});
  }
  int32_t Token() const {
    if (only_ >= 0) return only_;
    const auto at = std::upper_bound(up_to_.begin(), up_to_.end(), uniform_);
    return static_cast<int32_t>(at == up_to_.end() ? std::lower_bound(up_to_.begin(), up_to_.end(), up_to_.back()) - up_to_.begin() : at - up_to_.begin());
  }

 private:
  double UpTo(int32_t token) const { return token < 0 ? 0 : up_to_[static_cast<size_t>(token)]; }

  double uniform_;
  int32_t only_ = -1;          // the token where there is no choice
  std::vector<double> up_to_;  // [V] the probability of the tokens up to it
};

}  // namespace thermoe::testing
