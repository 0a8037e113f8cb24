// SPDX-License-Identifier: Apache-2.0
#include "control/plant/plant.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/check.h"
#include "control/telemetry/snapshot.h"

namespace thermoe {
namespace {

constexpr double kShortestSubstepSeconds = 1e-4;
constexpr double kLongestSeconds = 1e9;  // of one call: beyond, an update's length is lost in the clock's rounding

// Share of the way from nominal to lowest clock that a stage at temp_c asks for.
double Slowdown(double temp_c, double slowdown_c, double band_c) {
  return std::clamp((temp_c - (slowdown_c - band_c)) / band_c, 0.0, 1.0);
}

double Rounded(double value, double quantum) { return quantum > 0 ? quantum * std::round(value / quantum) : value; }

// A factor around 1; never so far that time would run backwards.
double Jitter(Random* random, double deviation_frac) { return std::max(0.1, 1 + deviation_frac * random->Normal()); }

// Substeps while clocks move. The power regulator averages over limit_window_s: a quarter of it follows the average.
// The thermal ramp is a proportional regulator whose gain is the most power over the band: half of capacity / gain
// keeps it from overshooting. No shorter than kShortestSubstepSeconds, so that no profile can make a second of its time
// an hour of ours.
double SubstepSeconds(const DeviceProfile& p) {
  const double compute_w = p.energy_per_flop_pj * p.compute_tflops;         // pJ * 1e12 / s
  const double traffic_w = p.energy_per_byte_pj * p.bandwidth_gbps * 1e-3;  // pJ * 1e9 / s
  const double gain_w_per_c = std::max((compute_w + traffic_w) / p.slowdown_band_c, 1e-12);
  const double ramp_s = 0.5 * std::min(p.die_capacity_j_per_c, p.memory_capacity_j_per_c) / gain_w_per_c;
  return std::max(kShortestSubstepSeconds, std::min(p.limit_window_s / 4, ramp_s));
}

}  // namespace

Plant::Plant(DeviceProfile profile, Scenario scenario, uint64_t seed)
    : profile_(std::move(profile)),
      scenario_(std::move(scenario)),
      seed_(seed),
      random_(seed),
      network_(profile_),
      substep_s_(SubstepSeconds(profile_)),
      limit_clock_mhz_(profile_.nominal_mhz) {
  StartFrom(network_.Steady(HeatOf(Load{}), scenario_.ambient_c.At(0))[kDie]);
}

void Plant::StartFrom(double die_c) {
  THERMOE_CHECK(now_s_ == 0);
  StageArray temps = network_.Steady(HeatOf(Load{}), scenario_.ambient_c.At(0));
  const double shift_c = die_c - temps[kDie];
  for (double& temp : temps) temp += shift_c;
  network_.set_temps_c(temps);
  limited_power_w_ = idle_power_w();
  UpdateSensors(Load{});
}

double Plant::ThermalClockMhz() const {
  const StageArray& temps = network_.temps_c();
  const double share = std::max(Slowdown(temps[kDie], profile_.slowdown_c, profile_.slowdown_band_c),
                                Slowdown(temps[kMemory], profile_.memory_max_c, profile_.slowdown_band_c));
  return profile_.nominal_mhz + (profile_.lowest_mhz - profile_.nominal_mhz) * share;
}

double Plant::clock_mhz() const { return shut_down_ ? 0 : std::min(limit_clock_mhz_, ThermalClockMhz()); }

uint32_t Plant::throttle() const {
  const double lowered = profile_.nominal_mhz * 0.999;  // regulators approach the nominal clock without end
  uint32_t bits = 0;
  if (limit_clock_mhz_ < lowered) bits |= static_cast<uint32_t>(Throttle::kPowerLimit);
  if (ThermalClockMhz() < lowered) bits |= static_cast<uint32_t>(Throttle::kThermal);
  return bits;
}

double Plant::WorkSeconds(const Work& work, double clock_mhz) const {
  const double bandwidth = profile_.bandwidth_gbps * 1e9 * std::min(1.0, clock_mhz / profile_.bandwidth_knee_mhz);
  const double compute =
      profile_.compute_tflops * 1e12 * std::pow(clock_mhz / profile_.nominal_mhz, profile_.compute_exponent);
  return std::max({work.bytes / bandwidth, work.flops / compute, work.least_s / std::min(1.0, clock_mhz / profile_.bandwidth_knee_mhz)});
}

// `work` takes `seconds` of the whole device; others have background_frac of its time.
Plant::Load Plant::LoadOf(const Work& work, double energy_factor, double seconds, double clock_mhz,
                          double background_frac) const {
  Load load;
  const double ours = seconds > 0 ? (1 - background_frac) / seconds : 0;  // works per second
  const double others =
      background_frac * profile_.bandwidth_gbps * 1e9 * std::min(1.0, clock_mhz / profile_.bandwidth_knee_mhz);
  const double byte_j = profile_.energy_per_byte_pj * 1e-12;
  const double flop_j =
      profile_.energy_per_flop_pj * 1e-12 * std::pow(clock_mhz / profile_.nominal_mhz, profile_.energy_exponent);
  load.bytes_per_s = work.bytes * ours + others;
  load.busy_frac = seconds > 0 ? 1 : background_frac;
  const double traffic_w = (work.bytes * ours * energy_factor + others) * byte_j;
  const double compute_w = work.flops * ours * energy_factor * flop_j;
  load.memory_w = traffic_w * profile_.memory_traffic_frac;
  const double known_j = profile_.idle_w * work.least_s + work.bytes * byte_j + work.flops * flop_j;
  load.die_w = traffic_w - load.memory_w + compute_w + std::max(0.0, work.least_j - known_j) * ours * energy_factor;
  return load;
}

// Leakage is the network's own.
StageArray Plant::HeatOf(const Load& load) const {
  if (shut_down_) return {};
  StageArray heat{};
  heat[kDie] = profile_.idle_w * (1 - profile_.memory_idle_frac) + load.die_w;
  heat[kMemory] = profile_.idle_w * profile_.memory_idle_frac + load.memory_w;
  return heat;
}

double Plant::PowerOf(const Load& load, double die_c) const {
  if (shut_down_) return 0;
  return profile_.idle_w + profile_.leakage_w_per_c * (die_c - profile_.leakage_reference_c) + load.die_w +
         load.memory_w;
}

double Plant::idle_power_w() const {
  const Load load = LoadOf(Work{}, 1, 0, clock_mhz(), scenario_.background_frac.At(now_s_));
  return PowerOf(load, network_.temps_c()[kDie]);
}

WorkOutcome Plant::Predict(const Work& work) const {
  WorkOutcome outcome;
  const double seconds = WorkSeconds(work, clock_mhz());
  if (shut_down_ || !(seconds > 0)) return {0, 0, !shut_down_};
  const double background = scenario_.background_frac.At(now_s_);
  outcome.duration_s = seconds / (1 - background);
  outcome.energy_j =
      outcome.duration_s * PowerOf(LoadOf(work, 1, seconds, clock_mhz(), background), network_.temps_c()[kDie]);
  return outcome;
}

// Where the next stretch ends: at `wanted_s`, the scenario's next change or the next sensor update, and after a substep
// where clocks may move. Where they rest, updates that nobody can see any more are left out: the last two before the
// end tell all.
double Plant::StretchEnd(double wanted_s, bool rests) {
  double end_s = std::min({wanted_s, scenario_.ambient_c.NextEdge(now_s_), scenario_.background_frac.NextEdge(now_s_)});
  const bool scenario_rests = scenario_.ambient_c.Rests(now_s_) && scenario_.background_frac.Rests(now_s_);
  if (!scenario_rests) end_s = std::min(end_s, now_s_ + profile_.update_s);
  if (!rests) end_s = std::min(end_s, now_s_ + substep_s_);
  updates_ = std::max(updates_, static_cast<int64_t>(std::floor(end_s / profile_.update_s)) - 2);
  return std::min(end_s, static_cast<double>(updates_ + 1) * profile_.update_s);
}

// One stretch under constant load. `frozen`: the clock stays as it is.
void Plant::PassTo(double end_s, const Load& load, bool frozen) {
  const double dt_s = end_s - now_s_;
  const StageArray mean_c = network_.Advance(dt_s, HeatOf(load), scenario_.ambient_c.At(now_s_ + dt_s / 2));
  const double power_w = PowerOf(load, mean_c[kDie]);
  now_s_ = end_s;
  energy_j_ += power_w * dt_s;
  busy_s_ += load.busy_frac * dt_s;
  bytes_ += load.bytes_per_s * dt_s;
  limited_power_w_ += (power_w - limited_power_w_) * -std::expm1(-dt_s / profile_.limit_window_s);
  if (!frozen) {
    // d ln(clock)/dt = excess / (4 window): critically damped with the average, as power goes about as the clock.
    const double excess_frac = (profile_.limit_w - limited_power_w_) / profile_.limit_w;
    limit_clock_mhz_ = std::clamp(limit_clock_mhz_ * std::exp(excess_frac * dt_s / (4 * profile_.limit_window_s)),
                                  profile_.lowest_mhz, profile_.nominal_mhz);
  }
  if (!shut_down_ && network_.temps_c()[kDie] >= profile_.shutdown_c) ShutDown();
  if (now_s_ >= static_cast<double>(updates_ + 1) * profile_.update_s) {
    ++updates_;
    UpdateSensors(load);
  }
}

// Off means cold: without leakage too.
void Plant::ShutDown() {
  shut_down_ = true;
  const StageArray temps = network_.temps_c();
  DeviceProfile off = profile_;
  off.leakage_w_per_c = 0;
  network_ = ThermalNetwork(off);
  network_.set_temps_c(temps);
}

void Plant::UpdateSensors(const Load& load) {
  const StageArray& temps = network_.temps_c();
  // By the update's number, so that noise does not depend on how the caller cut the time.
  Random noise(seed_ ^ (0x9e3779b97f4a7c15ull * static_cast<uint64_t>(updates_ + 1)));
  const auto temp_sensor = [&](ThermalStage stage) {
    return Rounded(temps[stage] + profile_.temp_noise_c * noise.Normal(), profile_.temp_quantum_c);
  };
  sensors_.power_instant_w = PowerOf(load, temps[kDie]) * Jitter(&noise, profile_.power_noise_frac);
  sensors_.temp_c = temp_sensor(kDie);
  sensors_.memory_temp_c = temp_sensor(kMemory);
  sensors_.clock_mhz = Rounded(clock_mhz(), profile_.quantum_mhz);
  sensors_.throttle = throttle();
  sensors_.energy_j = energy_j_;
  const double passed_s = now_s_ - update_s_;
  if (passed_s > 0) {
    sensors_.power_w = (energy_j_ - update_energy_j_) / passed_s;
    sensors_.utilisation_frac = std::min(1.0, busy_s_ / passed_s);
    sensors_.memory_utilisation_frac = std::min(1.0, bytes_ / (passed_s * profile_.bandwidth_gbps * 1e9));
  } else {
    sensors_.power_w = PowerOf(load, temps[kDie]);
  }
  update_s_ = now_s_;
  update_energy_j_ = energy_j_;
  busy_s_ = bytes_ = 0;
}

// Whether a whole substep moved nothing: then no further one will, until the scenario changes.
bool Plant::Settled(const StageArray& temps_before_c, double clock_before_mhz, double passed_s) const {
  if (passed_s < 0.5 * substep_s_ || !scenario_.ambient_c.Rests(now_s_) || !scenario_.background_frac.Rests(now_s_))
    return false;
  double moved = std::abs(clock_mhz() - clock_before_mhz) / profile_.nominal_mhz;
  for (int i = 0; i < kThermalStages; ++i) moved = std::max(moved, std::abs(network_.temps_c()[i] - temps_before_c[i]));
  return moved <= 1e-9;
}

// Runs `work`, or where it is null idles until idle_to_s. Stretch by stretch: clocks, rates and heat are constant in
// each.
WorkOutcome Plant::Progress(const Work* work, double idle_to_s) {
  const double start_s = now_s_, start_j = energy_j_;
  const double time_factor = work != nullptr ? Jitter(&random_, profile_.step_time_frac) : 1;
  const double energy_factor = work != nullptr ? Jitter(&random_, profile_.step_energy_frac) : 1;
  double left_frac = 1;  // of the work
  bool settled = false;
  for (bool done = false; !done && !(work != nullptr && shut_down_);) {
    const double background = scenario_.background_frac.At(now_s_);
    const double clock = clock_mhz();
    const double seconds = work != nullptr ? time_factor * WorkSeconds(*work, clock) : 0;
    const double full_s = seconds / (1 - background);
    const Load load = LoadOf(work != nullptr ? *work : Work{}, energy_factor, seconds, clock, background);

    const bool unlimited = limit_clock_mhz_ == profile_.nominal_mhz && limited_power_w_ <= profile_.limit_w;
    const bool rests = settled || shut_down_ || (work == nullptr && background == 0 && unlimited);
    const double from_s = now_s_;
    const double wanted_s = work != nullptr ? from_s + left_frac * full_s : idle_to_s;
    const double end_s = StretchEnd(wanted_s, rests);
    const double edge_s = std::min(scenario_.ambient_c.NextEdge(from_s), scenario_.background_frac.NextEdge(from_s));
    const StageArray temps = network_.temps_c();
    PassTo(end_s, load, settled);

    done = end_s >= wanted_s;
    if (full_s > 0) left_frac = std::max(0.0, left_frac - (end_s - from_s) / full_s);
    settled = end_s < edge_s && (settled || Settled(temps, clock, end_s - from_s));
  }
  return {now_s_ - start_s, energy_j_ - start_j, work == nullptr || !shut_down_};
}

WorkOutcome Plant::Run(const Work& work) {
  THERMOE_CHECK(work.bytes >= 0 && work.flops >= 0 && WorkSeconds(work, profile_.lowest_mhz) <= kLongestSeconds);
  if (shut_down_) return {0, 0, false};
  return Progress(&work, 0);
}

void Plant::Idle(double dt_s) {
  THERMOE_CHECK(dt_s >= 0 && dt_s <= kLongestSeconds);
  if (dt_s > 0) Progress(nullptr, now_s_ + dt_s);
}

WorkOutcome Plant::Advance(double dt_s, const Work& work) {
  const double end_s = now_s_ + dt_s;
  const WorkOutcome outcome = Run(work);
  if (end_s > now_s_) Progress(nullptr, end_s);
  return outcome;
}

}  // namespace thermoe
