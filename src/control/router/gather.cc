// SPDX-License-Identifier: Apache-2.0
#include "control/router/gather.h"

#include <algorithm>
#include <cmath>

namespace thermoe {
namespace {

constexpr double kRate_s = 3;          // time constant of the rate of prompts: some ten requests where it matters
constexpr double kRatio_s = 60;        // of generated tokens for each of a prompt
constexpr double kArrivalShare = 0.1;  // of an arrival in the share of free ones
constexpr double kStepShare = 0.01;    // of a step in how often rows end at all
constexpr double kMostlyFree = 0.5;
constexpr double kMostEnds = 0.8;     // where rows end at nearly every step, nothing tells
constexpr double kLatencyRoom = 0.8;  // of the target: what prompt rows take longer must fit, too
constexpr double kFill = 0.75;        // of the room for sequences: arrivals are uneven

}  // namespace

void Gather::Observe(const StepInput& step, double passed_s) {
  const double passed = std::max(passed_s, 1e-9);
  const bool prompts = step.prefill_tokens > 0, fewer = step.decode_tokens < rows_;
  const double upon_end = fewer || fewer_ ? 1 : 0;
  if (step.decode_tokens > 0) {
    end_frac_ += kStepShare * (upon_end - end_frac_);
    if (prompts && !prompts_) upon_end_frac_ += kArrivalShare * (upon_end - upon_end_frac_);
  }
  // A running mean over time of a rate that comes in lumps.
  const double keep = std::exp(-passed / kRate_s);
  prompt_rate_ = prompt_rate_ * keep + (1 - keep) * step.prefill_tokens / passed;
  const double keep_ratio = std::exp(-passed / kRatio_s);
  prompt_rows_ = prompt_rows_ * keep_ratio + step.prefill_tokens;
  decode_rows_ = decode_rows_ * keep_ratio + step.decode_tokens;
  prompts_ = prompts, fewer_ = fewer;
  rows_ = step.decode_tokens, queued_ = step.queued;
}

double Gather::demand_tokens_per_s() const { return prompt_rows_ > 0 ? prompt_rate_ * decode_rows_ / prompt_rows_ : 0; }

// Of arrivals: those beyond chance that come upon an end are not free.
double Gather::free_frac() const { return end_frac_ < kMostEnds ? (1 - upon_end_frac_) / (1 - end_frac_) : 0; }

double Gather::Period(double latency_target_s, int32_t most_rows) const {
  if (latency_target_s <= 0 || most_rows < 2 || queued_ > 0 || rows_ >= most_rows || free_frac() < kMostlyFree)
    return 0;
  const double demand = demand_tokens_per_s();
  return demand > 0 ? std::min(kLatencyRoom * latency_target_s, kFill * most_rows / demand) : 0;
}

}  // namespace thermoe
