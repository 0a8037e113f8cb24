// SPDX-License-Identifier: Apache-2.0
// One optimiser step on a session's deltas. Each tensor has its own learning rate.
#pragma once

#include <span>
#include <vector>

#include "forward/deltas.h"
#include "kernels/ops.h"
#include "thermoe/ttt.h"

namespace thermoe {

class DeltaOptimizer {
 public:
  DeltaOptimizer(std::shared_ptr<const DeltaLayout> layout, const TttOptions& options);

  // Moves what `scope` includes of `values` [layout->size()] against share * gradient [layout->size()], a mean over `tokens` tokens. Each
  // tensor counts its own steps and tokens: one that is learnt now and then moves as far as in its own first steps.
  void Step(const kernels::Ops& ops, std::span<const float> gradient, float share, int64_t tokens, std::span<float> values,
            const DeltaScope& scope = {});

  int64_t steps() const { return steps_; }
  int64_t tokens() const { return tokens_; }  // learnt from so far
  std::span<const float> first_moment() const { return first_; }
  std::span<const float> second_moment() const { return second_; }
  // Sizes as the layout's.
  void Restore(int64_t steps, int64_t tokens, std::span<const float> first, std::span<const float> second);

 private:
  kernels::AdamArgs Adam(const DeltaTensor& tensor, int64_t count, std::span<const float> gradient, float share, std::span<float> values);
  void Sgd(const DeltaTensor& tensor, std::span<const float> gradient, float share, std::span<float> values);
  void Muon(const DeltaTensor& tensor, std::span<const float> gradient, float share, std::span<float> values);

  std::shared_ptr<const DeltaLayout> layout_;
  TttOptimizer kind_;
  float beta1_, beta2_, epsilon_, cooling_, decay_;
  struct Count {
    int64_t steps = 0, tokens = 0;
  };
  int64_t steps_ = 0, tokens_ = 0;  // of the tensors learnt from most
  std::vector<Count> counts_;       // [tensors]
  float heat_ = 1;                  // that learning rates are multiplied by in this tensor's step
  std::vector<kernels::AdamArgs> adam_;  // of this step
  std::vector<float> first_, second_;  // [layout->size()] means of gradients and of their squares
  std::vector<float> direction_, gram_, gram2_, mixed_;  // of Muon
};

}  // namespace thermoe
