// SPDX-License-Identifier: Apache-2.0
#include "control/router/control_core.h"

#include <algorithm>
#include <cmath>

namespace thermoe {
namespace {

constexpr double kMean_s = 1;          // time constant of what the status shows as means
constexpr double kLatencyShare = 0.1;  // of a step in the running mean of latency
constexpr int32_t kLateSteps = 3;      // so many over the target in a row do not wait for the next tick
constexpr double kUrgentSpacing_s = 0.02;
// The model learns from windows of several changes of the counter: each is cut somewhere within a step, and the longer,
// the less it matters. The first are shorter, so that something is known soon.
constexpr double kLearn_s = 0.45, kFirstLearn_s = 0.15;
constexpr double kCounterPeriod_s = 0.1;                 // of counters that move slower than steps
constexpr double kMostOverDevice = 1.5, kCutStep_j = 1;  // a window is cut within steps
constexpr double kCutShare = 0.33;  // of a step's joules, as standard deviation of what a window's end takes from it
constexpr double kMostRatio = 5;
constexpr int32_t kMostAbsurd = 5;  // in a row
constexpr double kStaleEnergy_s = kStaleAfter_s;
constexpr double kMostPower_w = 1e5, kMostTemp_c = 150, kLeastTemp_c = -50, kMostEnergy_j = 1e13;

std::optional<double> Possible(const std::optional<double>& value, double low, double high) {
  return value && *value >= low && *value <= high ? value : std::nullopt;
}

double Amount(double value) { return value >= 0 && value < 1e18 ? value : 0; }

}  // namespace

StepInput InputFrom(const StepObservation& observation) {
  StepInput input;
  const StepRecord& record = observation.record;
  input.start_s = std::isfinite(observation.start_s) ? observation.start_s : 0;
  input.end_s = std::isfinite(observation.end_s) ? observation.end_s : input.start_s;
  input.prefill_tokens = record.prefill_tokens;
  input.decode_tokens = record.decode_tokens;
  input.queued = observation.queued;
  input.expert_bytes = Amount(record.expert_bytes);
  input.other_bytes = Amount(record.weight_bytes - record.expert_bytes) + Amount(record.kv_bytes);
  input.flops = Amount(record.flops);
  const Snapshot& snapshot = observation.snapshot;
  input.sensors.state = snapshot.state;
  if (snapshot.state != SourceState::kLost) {
    input.sensors.temp_c = Possible(snapshot.temp_c, kLeastTemp_c, kMostTemp_c);
    input.sensors.power_w = Possible(snapshot.power_w, 0, kMostPower_w);
    input.sensors.energy_j = Possible(snapshot.energy_j, 0, kMostEnergy_j);
  }
  return input;
}

ControlCore::ControlCore(const ControlConfig& config, std::vector<OperatingPoint> points, int32_t fixed)
    : config_(config),
      router_(std::move(points), fixed, config.quality_floor_nats, config.prefer),
      model_(config.prices, config.bytes_per_s, config.flops_per_s, config.device_power_w),
      forecast_(config.device_power_w, config.device_temp_c),
      budget_(router_.points(), config.quality_floor_nats, config.quality_budget_nats) {
  for (const OperatingPoint& point : router_.points()) texts_.push_back(Describe(point));
  output_.point = std::max(fixed, 0);
  status_.limits = config_.limits;
  status_.point_index = output_.point;
  status_.point_text = texts_[static_cast<size_t>(output_.point)];
  pacer_.SetCap(config_.limits.power_w);
}

void ControlCore::SetLimits(const ControlLimits& limits) {
  limits_changed_ = limits_changed_ || !(limits == config_.limits);
  config_.limits = limits;
  if (limits_changed_) status_.unmet = failing_ = Unmet::kNone;
}

// The heartbeat: account for what ran, tick when it is time or something is wrong, and say how long to wait.
StepOutput ControlCore::AfterStep(const StepInput& step) {
  if (!started_) {
    last_end_s_ = step.start_s;
    tick_s_ = step.start_s;
    energy_moved_s_ = step.end_s;
    started_ = true;
  }
  Account(step);
  ReadEnergy(step);
  const bool late =
      config_.limits.latency_ms > 0 && late_steps_ >= kLateSteps && step.end_s - tick_s_ >= kUrgentSpacing_s;
  const bool urgent = limits_changed_ || late || SensorsFail(step) != safest_;
  ticked_ = urgent || step.end_s - tick_s_ >= config_.tick_s;
  if (ticked_) Tick(step, urgent);
  if (by_budget_ && step.decode_tokens > 0) Take(budget_.PointFor(step.decode_tokens), step.end_s);
  output_.pause_s = Pause(step);
  last_end_s_ = std::max(last_end_s_, step.end_s);
  return output_;
}

void ControlCore::Take(int32_t point, double now_s) {
  if (point == output_.point) return;
  output_.point = point;
  changed_s_ = now_s;
  ++status_.point_changes;
}

// Before the next step: what the cap asks for, and what gathers requests.
double ControlCore::Pause(const StepInput& step) {
  const double passed_s = std::max(0.0, step.end_s - last_end_s_);
  paced_s_ = pause_s_ = pacer_.AfterStep(drawn_j_, passed_s, model_.idle_w());
  status_.gather_ms = 0;
  if (config_.router != RouterMode::kAdaptive || config_.prefer != Preference::kEnergy || !config_.gather)
    return pause_s_;
  gather_.Observe(step, passed_s);
  const int32_t chunk = output_.prefill_chunk > 0 ? output_.prefill_chunk : config_.prefill_chunk;
  const bool prompt_waits = chunk > 0 && step.prefill_tokens >= chunk;  // more of it is to come
  if (safest_ || prompt_waits) return pause_s_;
  const int32_t most_rows = output_.max_sequences > 0 ? output_.max_sequences : config_.max_sequences;
  const double period_s = gather_.Period(config_.limits.latency_ms * 1e-3, most_rows);
  pause_s_ = std::min(std::max(pause_s_, period_s - (step.end_s - step.start_s)), Pacer::kMostPause_s);
  status_.gather_ms = 1e3 * period_s;
  return pause_s_;
}

// A step, and the time before it, as the model prices them.
void ControlCore::Account(const StepInput& step) {
  const double step_s = std::max(0.0, step.end_s - step.start_s);
  const double passed_s = std::max(step_s, step.end_s - last_end_s_), between_s = passed_s - step_s;
  const double gap_s = std::max(0.0, between_s - pause_s_);
  // Steps that were stretched say that the machine waits for requests, as a gap does.
  const double waited_s = std::max(0.0, between_s - paced_s_);
  const WorkTotals work{step_s, step.bytes(), step.flops};
  drawn_j_ = (safest_ ? model_.CautiousJoules(work) : model_.Joules(work)) + model_.idle_w() * between_s;
  last_ = {{passed_s, step.bytes(), step.flops}, drawn_j_};
  if (!safest_) drawn_j_ *= 1 + caution_frac_;
  window_.work += last_.work;
  window_.predicted_j += last_.predicted_j;
  model_.LearnTime(step_s, step.bytes(), step.flops);
  const OperatingPoint& point = router_.points()[static_cast<size_t>(output_.point)];
  mix_.Add(step, point, waited_s);
  const bool decode = step.prefill_tokens == 0;
  budget_.Add(step.decode_tokens, output_.point,
              decode ? step.expert_bytes / BytesFracAt(point, step.decode_tokens) : 0);

  const double keep = std::exp(-passed_s / kMean_s);
  paused_s_ = paused_s_ * keep + std::min(between_s, pause_s_);
  elapsed_s_ = elapsed_s_ * keep + passed_s;
  if (step.decode_tokens > 0) {
    const double latency_s = passed_s - gap_s;
    latency_s_ += (latency_s_ > 0 ? kLatencyShare : 1) * (latency_s - latency_s_);
    late_steps_ = latency_s * 1e3 > config_.limits.latency_ms ? late_steps_ + 1 : 0;
  }
}

// A counter that leaps is no measurement. What the model finds absurd again and again is, though: then the model is
// wrong.
bool ControlCore::Plausible(double counted_j, const Window& window) {
  if (config_.device_power_w > 0 &&
      counted_j > kMostOverDevice * config_.device_power_w * window.work.seconds + kCutStep_j)
    return false;
  const bool near =
      !model_.known() || (counted_j < kMostRatio * window.predicted_j && counted_j * kMostRatio > window.predicted_j);
  absurd_ = near ? 0 : absurd_ + 1;
  return near || absurd_ > kMostAbsurd;
}

// Closes the window where the counter moved: somewhere since the step before, and no longer ago than its period, so
// half of that ago at best guess. The step or pause there is cut. What is wrong in that is noise, for the sums stay
// exact.
void ControlCore::ReadEnergy(const StepInput& step) {
  if (!step.sensors.energy_j) {
    if (seen_energy_) pacer_.Forgive();
    seen_energy_ = anchored_ = false;
    energy_moved_s_ = step.end_s;
    if (!step.sensors.power_w) window_ = {};  // else the tick closes it
    return;
  }
  const double energy_j = *step.sensors.energy_j;
  if (seen_energy_ && energy_j == energy_j_) return;
  if (!seen_energy_ || energy_j < energy_j_ || step.end_s - energy_moved_s_ > 10 * kStaleEnergy_s) anchored_ = false;
  const double stretch_s = std::max(1e-9, last_.work.seconds);
  const double after_frac = std::min(0.5, 0.5 * kCounterPeriod_s / stretch_s);
  const double after_s = after_frac * stretch_s;
  const double step_s = std::max(0.0, step.end_s - step.start_s);
  const double step_frac = step_s > 0 ? std::min(1.0, after_s / step_s) : 0;  // of the step that ran after it moved
  const double between_s = std::max(0.0, after_s - step_s);
  Window after;
  after.work = {after_s, step_frac * last_.work.bytes, step_frac * last_.work.flops};
  after.predicted_j = step_frac * (last_.predicted_j - model_.idle_w() * std::max(0.0, stretch_s - step_s)) +
                      model_.idle_w() * between_s;
  // Which part of the step lies before the counter's move is a guess: evenly spread, a third of it as standard
  // deviation.
  const double cut_j = kCutShare * std::max(0.0, last_.predicted_j - model_.idle_w() * stretch_s);
  const double cut_j2 = cut_j * cut_j;
  window_.work += {-after.work.seconds, -after.work.bytes, -after.work.flops};
  window_.predicted_j -= after.predicted_j;
  if (anchored_ && !Plausible(energy_j - energy_j_, window_)) anchored_ = false;
  if (anchored_) {
    counted_j_ = energy_j - energy_j_;
    predicted_j_ = window_.predicted_j;
    measured_w_ = window_.work.seconds > 0 ? counted_j_ / window_.work.seconds : measured_w_;
    tick_j_ += counted_j_;
    tick_window_s_ += window_.work.seconds;
    if (window_.work.seconds < kStaleEnergy_s * 3) pacer_.Correct(counted_j_ - predicted_j_);
    if (learn_.seconds <= 0) learn_cut_j2_ = cut_j2_;
    learn_ += window_.work;
    learn_j_ += counted_j_;
    if (learn_.seconds >= (model_.known() ? kLearn_s : kFirstLearn_s)) {
      model_.LearnEnergy(learn_j_, learn_, learn_cut_j2_ + cut_j2);
      learn_ = {};
      learn_j_ = 0;
    }
  } else {
    learn_ = {};
    learn_j_ = 0;
  }
  cut_j2_ = cut_j2;
  // The first value seen may be old; the first change is where counting starts.
  anchored_ = seen_energy_ && energy_j > energy_j_;
  seen_energy_ = true;
  energy_j_ = energy_j;
  energy_moved_s_ = step.end_s;
  window_ = after;
}

// Whether a sensor that a limit needs is missing, now.
bool ControlCore::SensorsFail(const StepInput& step) const {
  const SensorInput& sensors = step.sensors;
  const bool power = config_.limits.power_w > 0, temp = config_.limits.temp_c > 0;
  if (!power && !temp) return false;
  if (sensors.state == SourceState::kLost) return true;
  const bool energy_rests = seen_energy_ && step.end_s - energy_moved_s_ > kStaleEnergy_s;
  if (sensors.energy_j ? energy_rests : !sensors.power_w.has_value()) return true;
  return temp && !sensors.temp_c;
}

}  // namespace thermoe
