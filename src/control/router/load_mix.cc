// SPDX-License-Identifier: Apache-2.0
#include "control/router/load_mix.h"

#include <algorithm>
#include <cmath>

namespace thermoe {
namespace {

constexpr double kMemory_s = 0.5;  // time constant of the sums
constexpr double kLeastFrac = 0.05;
constexpr double kBatchHigh = 16;  // of PointCost batch16

double Interpolate(double at1, double at16, double batch) {
  const double x = std::log2(std::clamp(batch, 1.0, kBatchHigh)) / std::log2(kBatchHigh);
  return at1 + (at16 - at1) * x;
}

}  // namespace

double LossAt(const OperatingPoint& point, double batch) {
  return Interpolate(point.batch1.loss_nats, point.batch16.loss_nats, batch);
}

double BytesFracAt(const OperatingPoint& point, double batch) {
  return std::max(kLeastFrac, Interpolate(point.batch1.expert_bytes_frac, point.batch16.expert_bytes_frac, batch));
}

void LoadMix::Sums::Scale(double factor) {
  steps *= factor, tokens *= factor, seconds *= factor, expert_bytes *= factor, other_bytes *= factor, flops *= factor;
}

void LoadMix::Add(const StepInput& step, const OperatingPoint& point, double gap_s) {
  const double seconds = step.end_s - step.start_s;
  const double keep = std::exp(-(seconds + gap_s) / kMemory_s);
  decode_.Scale(keep);
  mixed_.Scale(keep);
  gap_s_ = gap_s_ * keep + gap_s;
  prefill_tokens_ = prefill_tokens_ * keep + step.prefill_tokens;
  decode_tokens_ = decode_tokens_ * keep + step.decode_tokens;
  const bool decode = step.prefill_tokens == 0;
  Sums& sums = decode ? decode_ : mixed_;
  sums.steps += 1;
  sums.tokens += step.decode_tokens;
  sums.seconds += seconds;
  sums.expert_bytes += decode ? step.expert_bytes / BytesFracAt(point, step.decode_tokens) : step.expert_bytes;
  sums.other_bytes += step.other_bytes;
  sums.flops += step.flops;
}

LoadMix::DecodeStep LoadMix::decode_step() const {
  if (!(decode_.steps > 0)) return {};
  return {decode_.other_bytes / decode_.steps, decode_.flops / decode_.steps};
}

LoadCost LoadMix::CostAt(const OperatingPoint& point, const EnergyModel& model) const {
  LoadCost cost;
  const double all = steps();
  if (all <= 0) return cost;
  double decode_busy_s = 0, decode_bytes = 0;
  if (decode_.steps > 0) {
    decode_bytes = decode_.other_bytes + decode_.expert_bytes * BytesFracAt(point, batch());
    // Seconds by the model, which follows the last steps; a mean over half a second would lag behind a new background
    // load.
    decode_busy_s = model.Seconds(decode_bytes, decode_.flops);
    cost.decode_s = decode_busy_s / decode_.steps;
  }
  const double mixed_bytes = mixed_.expert_bytes + mixed_.other_bytes;
  cost.bytes = (decode_bytes + mixed_bytes) / all;
  cost.flops = (decode_.flops + mixed_.flops) / all;
  cost.work_j = model.j_per_byte() * cost.bytes + model.j_per_flop() * cost.flops;
  const double busy_s = decode_busy_s + mixed_.seconds, present_s = decode_.seconds + mixed_.seconds + gap_s_;
  // Time without requests means that their rate is given, not the machine's: running faster only waits longer.
  const bool waiting = gap_s_ > 0.02 * present_s;
  cost.busy_s = busy_s / all;
  cost.period_s = (waiting ? std::max(busy_s, present_s) : busy_s) / all;
  cost.demand_w = model.idle_w() + (cost.period_s > 0 ? cost.work_j / cost.period_s : 0);
  return cost;
}

}  // namespace thermoe
