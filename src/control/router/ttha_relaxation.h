// SPDX-License-Identifier: Apache-2.0
// A differentiable stand-in for the gate: recent gate logits, and what selection under biases would make of them.
//
// Row r of a layer with scores s and K slots chooses expert e with probability p_e = sigmoid((s_e + h_e - tau_r) /
// T_r), tau_r such that sum_e p_e = K (found by Newton's method, differentiated implicitly); T_r is a fraction of the
// row's K-th best score, so that it becomes the gate's own top-K as the fraction goes to 0. Over the rows of a layer
// q_e = mean p_e, and a batch of B tokens that each draw so holds e with probability 1 - (1 - q_e)^B. A shift of all
// biases of a layer changes nothing.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/views.h"

namespace thermoe {

struct RelaxationShape {
  int32_t layers = 0, experts = 0, slots = 0;  // L, E, K < E
  int32_t rows = 8;                            // N: newest rows kept of each layer
  // T over the K-th best score. A soft choice can gain gate mass by becoming sharper, which the gate's own choice
  // cannot: at 0.25 that hid all the mass that biases lost (docs/ttha.md).
  float sharpness_frac = 0.06f;
};

class TthaRelaxation {
 public:
  explicit TthaRelaxation(const RelaxationShape& shape);

  // Takes the place of the layer's oldest row. `logits` [E]; a row with a number that is not finite is left out
  // (false).
  bool AddRow(int32_t layer, const float* logits);
  // Of the newest row: 1 for each of the plain model's K experts [E], and its K-th best score.
  std::span<const uint8_t> newest_choice() const { return choice_; }
  float newest_kth_score() const { return kth_score_; }
  bool full_layers() const;  // every layer has a row

  // Solves every row under `biases` [L, E] for a batch of `tokens`. `popularity` [L, E] or null: the share of tokens
  // whose plain choice has the expert, known from more rows than are kept; then q is that plus what the biases change
  // on the rows that are.
  void Evaluate(const float* biases, int32_t tokens, const float* popularity = nullptr);
  // Of the last Evaluate, each [L, E]: q, and the chance that a batch holds the expert.
  const std::vector<float>& chosen() const { return chosen_; }
  const std::vector<float>& active() const { return active_; }
  double mass_lost_frac() const {
    return mass_lost_;
  }  // of what the relaxed plain router keeps, mean over rows and layers

  // *to += d/d biases of [sum (by_chosen * q + by_active * active) + by_mass_lost * mass_lost]; all [L, E].
  void AddGradient(const float* by_chosen, const float* by_active, double by_mass_lost, float* to) const;

 private:
  struct Row {
    float temperature = 1, threshold = 0, plain_mass = 1;
  };
  const float* scores(int32_t layer, int32_t row) const { return &scores_[Offset(layer, row)]; }
  size_t Offset(int32_t layer, int32_t row) const { return static_cast<size_t>((layer * shape_.rows + row) * padded_); }
  // Moves the threshold until p sums to K; writes p [padded]; returns sum p s.
  float Solve(const float* scores, const float* biases, Row* row, float* p) const;

  RelaxationShape shape_;
  int32_t padded_ = 0;                     // E to whole lanes
  std::vector<float> scores_, plain_, p_;  // [L, N, padded]; p without biases, set by AddRow, and with, set by Evaluate
  std::vector<Row> rows_;                  // [L, N]
  std::vector<int32_t> count_, next_;      // [L]
  std::vector<float> bias_, mean_;         // [padded] scratch of one layer
  std::vector<uint8_t> inside_;            // [L, E] q lies inside its bounds and moves with the rows
  mutable std::vector<float> pull_;        // [padded] scratch
  std::vector<uint8_t> choice_;            // [E]
  std::vector<float> order_;               // [E] scratch
  float kth_score_ = 0;
  std::vector<float> chosen_, active_;  // [L, E]
  double mass_lost_ = 0;
  int32_t tokens_ = 1;
};

}  // namespace thermoe
