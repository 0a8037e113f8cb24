// SPDX-License-Identifier: Apache-2.0
// What the hardware adapter is judged by: the terms of its loss and the linear form of the machine that they read.
// Plain data.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace thermoe {

enum class TthaTerm : uint8_t {
  kPowerLoss,
  kTempLoss,
  kLatencyPenalty,
  kMemoryPenalty,
  kThroughputBonus,
  kFidelity,
  kBalance
};
inline constexpr int kTthaTerms = 7;
const char* TthaTermName(TthaTerm term);  // "ttha_power_loss": as logs and metrics say it

// One number a term: weights, or values.
using TthaValues = std::array<double, kTthaTerms>;
inline double& At(TthaValues& values, TthaTerm term) { return values[static_cast<size_t>(term)]; }
inline double At(const TthaValues& values, TthaTerm term) { return values[static_cast<size_t>(term)]; }

// The Lagrange multipliers of the constraints.
struct TthaMultipliers {
  double power = 0, temp = 0, latency = 0, memory = 0;

  double Sum() const { return power + temp + latency + memory; }
};

// Weights that are no multipliers.
struct TthaPrices {
  double throughput = 1;
  double fidelity = 20;  // docs/ttha.md has what others gave
  double balance = 0.1;
};

// Under prefer quality the throughput bonus weighs 0 while every limit is slack.
TthaValues TthaWeights(const TthaMultipliers& multipliers, const TthaPrices& prices, bool prefer_quality);

// A decode step and the device as linear functions of the routed experts' bytes, at the current state.
struct TthaMachine {
  // latency = fixed + per byte * expert bytes; joules above idle likewise.
  double fixed_us = 0, us_per_byte = 0;
  double fixed_j = 0, j_per_byte = 0;
  double idle_w = 0;
  double period_us = 0;  // from step to step, pauses included; 0: steps follow one another
  // Temperature at the horizon = rest + per watt * average power.
  double temp_rest_c = 0, c_per_w = 0;
  // Memory that a step needs = fixed + the bytes of the experts that it touches.
  double memory_fixed_bytes = 0;

  bool operator==(const TthaMachine&) const = default;
};

// 0: no such limit.
struct TthaLimits {
  double power_w = 0, temp_c = 0, latency_us = 0, memory_bytes = 0;
  double power_margin_frac = 0.02, temp_margin_frac = 0.02;
  double reference_tokens_per_s = 0;  // 0: no throughput bonus

  bool operator==(const TthaLimits&) const = default;
};

// What the relaxation expects of the next steps.
struct TthaForecast {
  double expert_bytes = 0, latency_us = 0, power_w = 0, temp_c = 0, memory_bytes = 0, tokens_per_s = 0;
  double distinct_experts = 0;  // mean over layers
};

// The terms that are functions of the expert bytes alone (all but fidelity and balance, which stay 0): values, slopes
// by byte, and the forecast behind them.
struct TthaByteTerms {
  TthaValues value = {}, per_byte = {};
  TthaForecast forecast;
};
TthaByteTerms EvaluateByteTerms(const TthaMachine& machine, const TthaLimits& limits, int32_t tokens,
                                double expert_bytes);

}  // namespace thermoe
