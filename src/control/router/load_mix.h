// SPDX-License-Identifier: Apache-2.0
// What the steps of the last second or so were made of, and what they would cost at another operating point.
#pragma once

#include "control/router/energy_model.h"
#include "control/router/operating_point.h"
#include "control/router/step_input.h"

namespace thermoe {

// A point's cost at a batch between those it was measured at: linear in log batch, flat beyond.
double LossAt(const OperatingPoint& point, double batch);
double BytesFracAt(const OperatingPoint& point, double batch);

// The present load at some point, for one mean step.
struct LoadCost {
  double bytes = 0, flops = 0;
  double work_j = 0;    // of bytes and FLOPs, without idle power
  double busy_s = 0;    // running
  double period_s = 0;  // from step to step without pacing: busy, and waiting for requests
  double decode_s = 0;  // of one decode step, without pause
  double demand_w = 0;  // mean power without pacing
};

class LoadMix {
 public:
  // A step that ran under `point`; `gap_s`: that nothing ran before it and no pause explains.
  void Add(const StepInput& step, const OperatingPoint& point, double gap_s);

  LoadCost CostAt(const OperatingPoint& point, const EnergyModel& model) const;
  // A mean decode step without prompt rows, beside its routed experts.
  struct DecodeStep {
    double other_bytes = 0, flops = 0;
  };
  DecodeStep decode_step() const;
  // As the steps were: measured seconds, the bytes that they read.
  double batch() const { return decode_.steps > 0 ? decode_.tokens / decode_.steps : 0; }
  double decode_tokens_per_step() const { return steps() > 0 ? decode_tokens_ / steps() : 0; }
  bool has_decode() const { return decode_.steps > 0.01; }
  bool has_prefill() const { return mixed_.steps > 0.01; }
  double prefill_rows() const {
    return mixed_.steps > 0 ? prefill_tokens_ / mixed_.steps : 0;
  }  // of a step that has some
  double mixed_step_s() const { return mixed_.steps > 0 ? mixed_.seconds / mixed_.steps : 0; }

 private:
  // Decayed sums.
  struct Sums {
    double steps = 0, tokens = 0, seconds = 0, expert_bytes = 0, other_bytes = 0, flops = 0;
    void Scale(double factor);
  };
  double steps() const { return decode_.steps + mixed_.steps; }

  Sums decode_;  // steps without prompt rows; expert_bytes as the plain model would have read
  Sums mixed_;   // steps with some; expert_bytes as read: they touch most experts at any point
  double gap_s_ = 0, prefill_tokens_ = 0, decode_tokens_ = 0;
};

}  // namespace thermoe
