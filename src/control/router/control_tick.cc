// SPDX-License-Identifier: Apache-2.0
// What ControlCore does ten times a second: sensors, cap, prices, point, bounds, status.
#include <algorithm>
#include <cmath>

#include "control/router/control_core.h"

namespace thermoe {
namespace {

constexpr double kDwell_s = 0.5;
constexpr double kShortestTick_s = 1e-3;
constexpr double kTempMargin_c = 0.7;    // below the limit: a sensor of whole degrees, and its noise
constexpr double kCapRise_per_s = 0.05;  // of the cap that heat allows: it falls at once and rises slowly
constexpr double kHeatBinds = 1.5;       // heat caps far above the demand are no caps
constexpr double kBlindCap = 0.97;       // of a power cap that only feed-forward holds
constexpr double kBlindDeviations = 2, kLeastBlindCap = 0.7;
constexpr double kSureEnough = 0.03, kCaution = 2, kMostCaution = 0.4;
constexpr double kBlindHeatCap = 0.85;    // of the last cap that heat allowed
constexpr double kBlindHeatDevice = 0.5;  // of the device's power, when heat was never seen
constexpr double kLatencyMargin = 0.96;
constexpr double kReference_s = 60;
constexpr double kBurst_s = 0.1;  // a step with prompt rows may take so long of the second that a cap is a mean over
constexpr int32_t kLeastChunk = 16;
constexpr double kUnmet_s = 5;  // that a limit must be passed on end before it is said that it cannot be kept

}  // namespace

RouterInput ControlCore::InputNow() const {
  RouterInput input;
  input.mix = &mix_;
  input.model = &model_;
  input.cap_w = pacer_.cap_w();
  input.latency_target_s = config_.limits.latency_ms * 1e-3;
  input.lambda_energy = std::min(1.0, power_.value() + temp_.value());
  input.lambda_latency = latency_.value();
  input.reference_j = reference_j_;
  input.current = output_.point;
  return input;
}

void ControlCore::Tick(const StepInput& step, bool urgent) {
  const double dt_s = std::max(kShortestTick_s, step.end_s - tick_s_);
  tick_s_ = step.end_s;
  limits_changed_ = false;
  late_steps_ = 0;
  safest_ = SensorsFail(step);
  if (!step.sensors.energy_j && step.sensors.power_w) {  // power readings alone: the window is the tick
    measured_w_ = *step.sensors.power_w;
    counted_j_ = measured_w_ * window_.work.seconds;
    predicted_j_ = window_.predicted_j;
    pacer_.Correct(counted_j_ - predicted_j_);
    model_.LearnEnergy(counted_j_, window_.work);
    window_ = {};
  }
  SetCap(step.sensors, dt_s);
  SetCaution();
  MovePrices(dt_s);
  SolveBudget(dt_s);
  ChoosePoint(step, urgent);
  Show(step);
  NoteUnmet(step.end_s);
  ++status_.ticks;
}

// What is left of a cap that only feed-forward holds: less what the model does not know at the mix that the cap leads
// to.
double ControlCore::BlindFrac() const {
  const double unsure_frac = PacedUncertainty(router_.Safest(mix_.batch()));
  return std::clamp(kBlindCap - kBlindDeviations * unsure_frac, kLeastBlindCap, kBlindCap);
}

// Of a mean step's joules at `point`, at the pace that the power limit leads to.
double ControlCore::PacedUncertainty(int32_t point) const {
  const double cap_w = config_.limits.power_w;
  const LoadCost cost = mix_.CostAt(router_.points()[static_cast<size_t>(point)], model_);
  const double room_w = std::max(cap_w - model_.idle_w(), 0.02 * cap_w);
  const WorkTotals paced = {std::max(cost.period_s, cost.work_j / room_w), cost.bytes, cost.flops};
  return model_.UncertaintyFrac(paced);
}

// After sensors failed, what is paced for is more until prices are known well: they were last learnt while little ran,
// and a second above the cap is not made good later.
void ControlCore::SetCaution() {
  wary_ = wary_ || safest_;
  caution_frac_ = 0;
  if (!wary_ || safest_ || !(config_.limits.power_w > 0)) return;
  const double unsure_frac = PacedUncertainty(output_.point) - kSureEnough;
  wary_ = unsure_frac > 0;
  caution_frac_ = std::clamp(kCaution * unsure_frac, 0.0, kMostCaution);
}

// What pacing holds: the lower of the power limit and what heat allows.
void ControlCore::SetCap(const SensorInput& sensors, double dt_s) {
  const double limit_c = config_.limits.temp_c;
  if (sensors.temp_c && measured_w_ > 0 && (sensors.energy_j || sensors.power_w)) {
    const double power_w = tick_window_s_ > 0 ? tick_j_ / tick_window_s_ : measured_w_;
    forecast_.Learn(*sensors.temp_c, power_w, dt_s);
  } else {
    forecast_.Restart();
  }
  tick_j_ = tick_window_s_ = 0;
  double heat_w = 0;
  if (limit_c > 0 && forecast_.known() && !safest_) {
    const double floor_w = model_.idle_w() * 1.05;
    heat_w = std::max(floor_w, forecast_.PowerFor(limit_c - kTempMargin_c));
    const double demand_w = mix_.CostAt(router_.points()[0], model_).demand_w;
    if (heat_cap_w_ > 0) heat_w = std::min(heat_w, heat_cap_w_ * (1 + kCapRise_per_s * dt_s));
    heat_cap_w_ = demand_w > 0 && heat_w > kHeatBinds * demand_w ? 0 : heat_w;
  } else if (limit_c > 0 && safest_) {
    heat_w = kBlindHeatCap * (heat_cap_w_ > 0 ? heat_cap_w_ : measured_w_);
    if (!(heat_w > 0)) heat_w = kBlindHeatDevice * config_.device_power_w;
  } else {
    heat_cap_w_ = 0;
  }
  if (!safest_) heat_w = heat_cap_w_;
  double cap_w = config_.limits.power_w * (safest_ ? BlindFrac() : 1);
  if (heat_w > 0) cap_w = cap_w > 0 ? std::min(cap_w, heat_w) : heat_w;
  pacer_.SetCap(cap_w);
}

// Violations are those that the plain model without pacing would meet at the present load: measured, carried over by
// the identified model. So a price does not fall because what it buys works, which would bring the violation back.
void ControlCore::MovePrices(double dt_s) {
  const LoadCost plain = mix_.CostAt(router_.points()[0], model_);
  const ControlLimits& limits = config_.limits;
  const auto move = [&](Multiplier* multiplier, bool limited, double violation) {
    if (!limited) {
      multiplier->Reset();
    } else if (!safest_) {  // blind: prices rest
      multiplier->Update(violation, dt_s);
    }
  };
  move(&power_, limits.power_w > 0, limits.power_w > 0 ? plain.demand_w / limits.power_w - 1 : 0);
  move(&temp_, limits.temp_c > 0, heat_cap_w_ > 0 ? plain.demand_w / heat_cap_w_ - 1 : -1);

  const double target_s = limits.latency_ms * 1e-3;
  double late = 0;
  if (target_s > 0) {
    const RouterInput input = InputNow();
    const double now_s = router_.Outlook(output_.point, input).latency_s, plain_s = router_.Outlook(0, input).latency_s;
    late = latency_s_ * (now_s > 0 ? plain_s / now_s : 1) / (kLatencyMargin * target_s) - 1;
  }
  move(&latency_, target_s > 0, late);

  const double j = router_.Outlook(0, InputNow()).j_per_token;
  if (j > 0)
    reference_j_ = reference_j_ > 0 ? reference_j_ + (j - reference_j_) * -std::expm1(-dt_s / kReference_s) : j;
}

TthaObserved ControlCore::Observed() const {
  TthaObserved observed;
  const RouterInput input = InputNow();
  const LoadMix::DecodeStep step = mix_.decode_step();
  TthaMachine& machine = observed.machine;
  machine.fixed_us = 1e6 * model_.Seconds(step.other_bytes, 0);
  machine.us_per_byte = 1e6 * model_.Seconds(1, 0);
  machine.fixed_j = model_.j_per_byte() * step.other_bytes + model_.j_per_flop() * step.flops;
  machine.j_per_byte = model_.j_per_byte();
  machine.idle_w = model_.idle_w();
  machine.period_us = 1e6 * latency_s_;
  if (forecast_.known()) {
    machine.temp_rest_c = forecast_.TempAt(0);
    machine.c_per_w = forecast_.state().fast_c_per_w;
  }
  TthaLimits& limits = observed.limits;
  limits.power_w = pacer_.cap_w();
  limits.temp_c = config_.limits.temp_c;
  limits.latency_us = 1e3 * config_.limits.latency_ms;
  const double plain_s = router_.Outlook(0, input).latency_s;
  if (plain_s > 0) limits.reference_tokens_per_s = mix_.batch() / plain_s;
  observed.multipliers = {power_.value(), temp_.value(), latency_.value(), 0};
  return observed;
}

void ControlCore::AddTo(TthaDevice* device, int32_t queued) const {
  if (config_.limits.latency_ms > 0 && latency_s_ > 0)
    device->latency_slack_frac = 1 - latency_s_ * 1e3 / config_.limits.latency_ms;
  device->queued = queued;
}

void ControlCore::ShowAdapter(const TthaReport* report) {
  status_.ttha = report != nullptr;
  if (report == nullptr) return;
  status_.ttha_gain = report->gain;
  status_.ttha_weight = report->weight;
  status_.ttha_value = report->value;
}

// What one byte more costs now: its joules; idle power for its time where the machine runs without a rest; at a cap,
// the pause that pays for it.
void ControlCore::SolveBudget(double dt_s) {
  if (!budget_.on()) return;
  const LoadCost now = mix_.CostAt(router_.points()[static_cast<size_t>(output_.point)], model_);
  const double cap_w = pacer_.cap_w(), idle_w = model_.idle_w();
  auto regime = QualityBudget::Regime::kBusy;
  double j_per_byte = model_.j_per_byte();
  if (cap_w > 0 && now.demand_w > cap_w) {
    regime = QualityBudget::Regime::kCapped;
    j_per_byte *= cap_w / std::max(cap_w - idle_w, 0.02 * cap_w);
  } else if (now.period_s > now.busy_s) {
    regime = QualityBudget::Regime::kWaiting;
  } else {
    j_per_byte += idle_w * model_.Seconds(1, 0);
  }
  budget_.Solve(regime, j_per_byte, dt_s);
}

void ControlCore::ChoosePoint(const StepInput& step, bool urgent) {
  const RouterInput input = InputNow();
  RouterChoice choice = router_.Choose(input);
  if (safest_) choice = {router_.Safest(mix_.batch()), DecisionReason::kSafest};
  const double target_s = input.latency_target_s;
  // Each step's batch then has its own point, unless that would miss the latency target.
  by_budget_ = budget_.on() && !safest_;
  if (by_budget_) {
    const int32_t rows = step.decode_tokens > 0 ? step.decode_tokens : static_cast<int32_t>(std::lround(mix_.batch()));
    const int32_t point = budget_.PointFor(rows);
    by_budget_ = target_s <= 0 || router_.Outlook(point, input).latency_s <= kLatencyMargin * target_s;
    if (by_budget_) {
      choice = {point, DecisionReason::kBudget};
      changed_s_ = -1e9;  // no dwell: the choice is a table of batches
    }
  }
  const bool passed =
      urgent || (target_s > 0 && latency_s_ > target_s) ||
      (config_.limits.temp_c > 0 && step.sensors.temp_c && *step.sensors.temp_c > config_.limits.temp_c);
  reason_ = choice.reason;
  if (choice.point != output_.point) {
    if (!passed && step.end_s - changed_s_ < kDwell_s) {
      reason_ = DecisionReason::kDwell;
    } else {
      Take(choice.point, step.end_s);
    }
  }
  BoundWork(InputNow(), step);
}

// Smaller prompt chunks and fewer sequences, where the engine gave bounds to start from and points do not do.
void ControlCore::BoundWork(const RouterInput& input, const StepInput& step) {
  if (!config_.limits.any() || config_.router == RouterMode::kPlain) {
    output_.prefill_chunk = output_.max_sequences = 0;
    return;
  }
  if (config_.prefill_chunk > 0 && mix_.has_prefill() && mix_.prefill_rows() > 0) {
    const double row_s = mix_.mixed_step_s() / mix_.prefill_rows();
    double most_s = 1e9;
    if (input.cap_w > 0 && input.lambda_energy > 0) most_s = kBurst_s;
    if (input.latency_target_s > 0 && mix_.has_decode())
      most_s = std::min(most_s, kLatencyMargin * input.latency_target_s);
    int32_t chunk = config_.prefill_chunk;  // halves, so that noise does not move it
    while (chunk > kLeastChunk && row_s * chunk > most_s) chunk /= 2;
    output_.prefill_chunk = chunk < config_.prefill_chunk ? chunk : 0;
  }
  if (config_.max_sequences > 0 && input.latency_target_s > 0 && step.end_s - bounded_s_ >= kDwell_s) {
    const double ratio = std::max(latency_s_, router_.Outlook(output_.point, input).latency_s) / input.latency_target_s;
    const int32_t now = output_.max_sequences > 0 ? output_.max_sequences : config_.max_sequences;
    int32_t next = now;
    if (ratio > 1 && reason_ != DecisionReason::kDwell)
      next = std::max(1, static_cast<int32_t>(std::min<double>(now, mix_.batch())) - 1);
    if (ratio < 0.85 && now < config_.max_sequences) next = now + 1;
    if (next != now) bounded_s_ = step.end_s;
    output_.max_sequences = next < config_.max_sequences ? next : 0;
  }
}

void ControlCore::Show(const StepInput& step) {
  const RouterInput input = InputNow();
  const PointOutlook outlook = router_.Outlook(output_.point, input);
  ControlStatus& s = status_;
  s.time_s = step.end_s;
  s.limits = config_.limits;
  s.lambda_power = power_.value(), s.lambda_temp = temp_.value(), s.lambda_latency = latency_.value();
  s.point_index = output_.point;
  s.point_text = texts_[static_cast<size_t>(output_.point)];
  s.point_loss_nats = outlook.loss_nats, s.point_bytes_frac = outlook.bytes_frac;
  s.batch = mix_.batch();
  s.pause_frac = elapsed_s_ > 0 ? paused_s_ / elapsed_s_ : 0;
  s.power_w = step.sensors.energy_j || step.sensors.power_w ? measured_w_ : 0;
  s.cap_w = pacer_.cap_w();
  s.demand_w = outlook.cost.demand_w;
  s.forecast_power_w = s.cap_w > 0 ? std::min(s.cap_w, s.demand_w) : s.demand_w;
  s.temp_c = step.sensors.temp_c.value_or(0);
  s.forecast_temp_c = forecast_.known() ? forecast_.TempAt(s.forecast_power_w) : 0;
  s.latency_ms = latency_s_ * 1e3;
  s.mean_loss_nats = budget_.mean_loss_nats();
  s.idle_w = model_.idle_w(), s.j_per_byte = model_.j_per_byte(), s.j_per_flop = model_.j_per_flop();
  s.safest = safest_;
  s.reason = reason_;
  s.prefill_chunk = output_.prefill_chunk, s.max_sequences = output_.max_sequences;
}

// What no routing and no pause helps against, said once it has lasted.
void ControlCore::NoteUnmet(double now_s) {
  const ControlLimits& limits = config_.limits;
  Unmet failing = Unmet::kNone;
  double value = 0;
  if (limits.temp_c > 0 && !safest_ && forecast_.known() &&
      forecast_.PowerFor(limits.temp_c - kTempMargin_c) < model_.idle_w()) {
    failing = Unmet::kIdleHeat, value = status_.temp_c;
  } else if (limits.power_w > 0 && model_.known() && model_.idle_w() >= limits.power_w) {
    failing = Unmet::kIdlePower, value = model_.idle_w();
  } else if (limits.latency_ms > 0 && status_.latency_ms > limits.latency_ms) {
    failing = Unmet::kLatency, value = status_.latency_ms;
  }
  if (failing != failing_) failing_ = failing, failing_since_s_ = now_s;
  if (failing_ == Unmet::kNone || status_.unmet != Unmet::kNone || now_s - failing_since_s_ < kUnmet_s) return;
  status_.unmet = failing_, status_.unmet_value = value;
}

ControlState ControlCore::state() const {
  const auto lambda = [](const Multiplier& m) { return ControlState::Lambda{m.integral(), m.smoothed()}; };
  return {lambda(power_), lambda(temp_), lambda(latency_), model_.state(), forecast_.state(), reference_j_, ""};
}

bool ControlCore::Restore(const ControlState& state) {
  EnergyModel model = model_;
  ThermalForecast forecast = forecast_;
  if (!model.Restore(state.energy) || !forecast.Restore(state.thermal)) return false;
  for (const auto& lambda : {state.power, state.temp, state.latency}) {
    if (!(lambda.integral >= 0 && lambda.integral <= 1 && std::abs(lambda.smoothed) <= 2)) return false;
  }
  if (!(state.reference_j >= 0 && state.reference_j < 1e9)) return false;
  model_ = model;
  forecast_ = forecast;
  power_.Restore(state.power.integral, state.power.smoothed);
  temp_.Restore(state.temp.integral, state.temp.smoothed);
  latency_.Restore(state.latency.integral, state.latency.smoothed);
  reference_j_ = state.reference_j;
  return true;
}

}  // namespace thermoe
