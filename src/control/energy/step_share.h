// SPDX-License-Identifier: Apache-2.0
// How the joules of one step are shared between the requests in it: each pays in proportion to what its rows would have
// cost in a step of their own.
//
// Weights are read once for all rows, so shares by rows would make a decode row nearly free beside a prompt chunk, and
// a prompt dearer when it is alone. By stand-alone cost nobody pays more than alone, equal requests pay the same, and
// what a step saves by reading once goes to all in proportion.
#pragma once

#include <cstdint>
#include <span>

#include "control/cost/cost_model.h"
#include "control/cost/operation.h"

namespace thermoe {

// One request's rows in one step: a prompt chunk, or the row of a generated token.
struct StepPart {
  int32_t account = -1;  // EnergyAccountant::Open
  bool prefill = false;
  int32_t rows = 0;
  int32_t logit_rows = 0;      // rows whose logits were computed
  int32_t first_position = 0;  // rows lie one behind the other
  // Of the record's totals, what was done for this part alone: what it learnt.
  double own_bytes = 0, own_expert_bytes = 0, own_flops = 0;
};

class StepShare {
 public:
  StepShare(const ModelShape& model, const EnergyPrices& prices);

  // Fractions that sum to 1, one a part. Does not allocate.
  void Share(const StepRecord& record, std::span<const StepPart> parts, std::span<double> shares_frac) const;

 private:
  double OutputTiles(int64_t logit_rows) const;
  // Share of all experts that `rows` tokens are expected to touch when each draws `slots` of them.
  double TouchedFrac(double rows) const;

  EnergyPrices prices_;
  double layers_, heads_, kv_heads_, head_dim_;
  double untouched_frac_;               // chance that a token does not hold an expert
  double output_bytes_, output_flops_;  // of the output matrix: one tile of rows, one row
};

}  // namespace thermoe
