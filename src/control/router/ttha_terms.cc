// SPDX-License-Identifier: Apache-2.0
#include "control/router/ttha_terms.h"

#include <algorithm>

namespace thermoe {
namespace {

// [predicted / limit - allowed]+^2 and its slope by byte; nothing without a limit.
void Hinge(TthaTerm term, double predicted, double per_byte, double limit, double allowed, TthaByteTerms* out) {
  if (limit <= 0) return;
  const double over = std::max(0.0, predicted / limit - allowed);
  At(out->value, term) = over * over;
  At(out->per_byte, term) = 2 * over * per_byte / limit;
}

}  // namespace

const char* TthaTermName(TthaTerm term) {
  static constexpr const char* kNames[kTthaTerms] = {
      "ttha_power_loss",       "ttha_temp_loss", "ttha_latency_penalty", "ttha_memory_penalty",
      "ttha_throughput_bonus", "ttha_fidelity",  "ttha_balance"};
  return kNames[static_cast<size_t>(term)];
}

TthaValues TthaWeights(const TthaMultipliers& multipliers, const TthaPrices& prices, bool prefer_quality) {
  TthaValues weights = {};
  At(weights, TthaTerm::kPowerLoss) = multipliers.power;
  At(weights, TthaTerm::kTempLoss) = multipliers.temp;
  At(weights, TthaTerm::kLatencyPenalty) = multipliers.latency;
  At(weights, TthaTerm::kMemoryPenalty) = multipliers.memory;
  const bool slack = multipliers.Sum() <= 0;
  At(weights, TthaTerm::kThroughputBonus) = prefer_quality && slack ? 0 : prices.throughput;
  At(weights, TthaTerm::kFidelity) = prices.fidelity;
  At(weights, TthaTerm::kBalance) = prices.balance;
  return weights;
}

TthaByteTerms EvaluateByteTerms(const TthaMachine& machine, const TthaLimits& limits, int32_t tokens,
                                double expert_bytes) {
  TthaByteTerms out;
  TthaForecast& f = out.forecast;
  f.expert_bytes = expert_bytes;
  f.latency_us = machine.fixed_us + machine.us_per_byte * expert_bytes;
  const double busy_j = machine.fixed_j + machine.j_per_byte * expert_bytes;

  // At a given pace fewer bytes are fewer watts. Without one, watts are a ratio that bytes hardly move.
  const bool paced = machine.period_us > f.latency_us;
  const double period_us = paced ? machine.period_us : f.latency_us;
  double watts_per_byte = 0;
  f.power_w = machine.idle_w;
  if (period_us > 0) {
    f.power_w += busy_j / period_us * 1e6;
    watts_per_byte = (machine.j_per_byte - (paced ? 0 : busy_j * machine.us_per_byte / period_us)) / period_us * 1e6;
  }
  f.temp_c = machine.temp_rest_c + machine.c_per_w * f.power_w;
  f.memory_bytes = machine.memory_fixed_bytes + expert_bytes;
  Hinge(TthaTerm::kPowerLoss, f.power_w, watts_per_byte, limits.power_w, 1 - limits.power_margin_frac, &out);
  Hinge(TthaTerm::kTempLoss, f.temp_c, watts_per_byte * machine.c_per_w, limits.temp_c, 1 - limits.temp_margin_frac,
        &out);
  Hinge(TthaTerm::kLatencyPenalty, f.latency_us, machine.us_per_byte, limits.latency_us, 1, &out);
  Hinge(TthaTerm::kMemoryPenalty, f.memory_bytes, 1, limits.memory_bytes, 1, &out);

  // Under a cap a step cannot come faster than its joules allow: there bytes are throughput even where time is not.
  double step_us = f.latency_us, us_per_byte = machine.us_per_byte;
  if (limits.power_w > machine.idle_w) {
    const double capped_us = busy_j / (limits.power_w - machine.idle_w) * 1e6;
    if (capped_us > step_us) {
      step_us = capped_us;
      us_per_byte = machine.j_per_byte / (limits.power_w - machine.idle_w) * 1e6;
    }
  }
  if (step_us > 0) {
    f.tokens_per_s = tokens / step_us * 1e6;
    if (limits.reference_tokens_per_s > 0) {
      // The bonus is taken off the loss, so its value is negative.
      At(out.value, TthaTerm::kThroughputBonus) = -f.tokens_per_s / limits.reference_tokens_per_s;
      At(out.per_byte, TthaTerm::kThroughputBonus) =
          f.tokens_per_s / limits.reference_tokens_per_s * us_per_byte / step_us;
    }
  }
  return out;
}

}  // namespace thermoe
