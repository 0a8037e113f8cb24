// SPDX-License-Identifier: Apache-2.0
#include "control/energy/step_share.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace thermoe {

StepShare::StepShare(const ModelShape& model, const EnergyPrices& prices)
    : prices_(prices),
      layers_(static_cast<double>(model.layers.size())),
      heads_(model.config.heads),
      kv_heads_(model.config.kv_heads),
      head_dim_(model.config.head_dim),
      untouched_frac_(1 - static_cast<double>(model.config.slots) / std::max(model.config.experts, 1)) {
  OperationShape output;
  output.family = Family::kLinearOutput;
  output.matrix = model.output;
  output.tokens = 1;
  const kernels::OpCost cost = CostOf(output);
  output_bytes_ = cost.weight_bytes;
  output_flops_ = cost.flops;
}

double StepShare::OutputTiles(int64_t logit_rows) const {
  return static_cast<double>((logit_rows + kLogitRows - 1) / kLogitRows);
}

double StepShare::TouchedFrac(double rows) const { return 1 - std::pow(std::max(untouched_frac_, 0.0), rows); }

void StepShare::Share(const StepRecord& record, std::span<const StepPart> parts, std::span<double> shares_frac) const {
  THERMOE_CHECK(parts.size() == shares_frac.size());
  if (parts.size() == 1) {
    shares_frac[0] = 1;
    return;
  }
  // Attention by what each part sees; the output matrix by its logit rows; experts by how many it is expected to touch,
  // of those that the step did touch; all other weights are read by every part alone, and their FLOPs go by rows.
  const auto attention_flops = [this](const StepPart& part) {
    const double rows = part.rows, seen = rows * (part.first_position + (rows + 1) / 2);
    return layers_ * 4 * heads_ * head_dim_ * seen;  // as kernels::AttentionCost
  };
  double rows = 0, attended_flops = 0;
  double weight_bytes = record.weight_bytes, expert_bytes = record.expert_bytes, flops_of_all = record.flops;
  for (const StepPart& part : parts) {
    rows += part.rows;
    attended_flops += attention_flops(part);
    weight_bytes -= part.own_bytes;
    expert_bytes -= part.own_expert_bytes;
    flops_of_all -= part.own_flops;
  }
  const double dense_bytes =
      std::max(0.0, weight_bytes - expert_bytes - output_bytes_ * OutputTiles(record.logit_rows));
  const double row_flops = std::max(0.0, flops_of_all - attended_flops - output_flops_ * record.logit_rows) / rows;
  const double touched_frac = TouchedFrac(rows);
  double sum = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    const StepPart& part = parts[i];
    const double experts_frac = touched_frac > 0 ? TouchedFrac(part.rows) / touched_frac : 1;
    const double kv_bytes = layers_ * 2 * record.kv_element_bytes * kv_heads_ * head_dim_ * (part.first_position + 2.0 * part.rows);
    const double bytes = dense_bytes + expert_bytes * experts_frac + output_bytes_ * OutputTiles(part.logit_rows) +
                         kv_bytes + part.own_bytes;
    const double flops =
        row_flops * part.rows + attention_flops(part) + output_flops_ * part.logit_rows + part.own_flops;
    shares_frac[i] = bytes * prices_.j_per_byte + flops * prices_.j_per_flop;
    sum += shares_frac[i];
  }
  for (double& share : shares_frac) share = sum > 0 ? share / sum : 1 / static_cast<double>(parts.size());
}

}  // namespace thermoe
