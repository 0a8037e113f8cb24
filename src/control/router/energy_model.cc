// SPDX-License-Identifier: Apache-2.0
#include "control/router/energy_model.h"

#include <algorithm>
#include <cmath>

namespace thermoe {
namespace {

// Prices drift slowly (leakage with temperature, clocks): a random walk of 10 % in 100 windows of half a second.
// Exponential forgetting was tried and lost: at a constant load bytes, FLOPs and seconds keep one proportion, what is
// not excited is forgotten, and noise then moves idle power to 0 within ten seconds.
constexpr double kDrift = 1e-4;
constexpr double kLeastNoise = 0.0004,
                 kMostNoise = 0.25;  // variance of a window's joules, relative: it is cut within steps
constexpr double kNoiseShare = 0.1;  // of a window in the running estimate of that
constexpr double kPriorVariance = 1;
constexpr double kLeast = 1e-3, kMost = 1e3;  // relative to the prices
constexpr double kLongest_s = 10;             // a longer window says little about now
// A step's share in the running mean of speed: ten steps follow a background load within 30 ms.
constexpr double kTimeShare = 0.1;
constexpr double kMostSpeedRatio = 4;  // of one step against the mean: a stall is no new speed

}  // namespace

EnergyModel::EnergyModel(const EnergyPrices& prices, double bytes_per_s, double flops_per_s, double device_w)
    : prior_{std::max(prices.idle_w, 1e-3), std::max(prices.j_per_byte, 1e-15), std::max(prices.j_per_flop, 1e-17)},
      device_w_(device_w) {
  state_.value.fill(1);
  for (int i = 0; i < kTerms; ++i) {
    state_.spread[i].fill(0);
    state_.spread[i][i] = kPriorVariance;
  }
  state_.bytes_per_s = bytes_per_s;
  state_.flops_per_s = flops_per_s;
}

void EnergyModel::LearnEnergy(double joules, const WorkTotals& work, double cut_j2) {
  if (!(joules > 0 && joules < 1e7 && work.seconds > 1e-3 && work.seconds < kLongest_s)) return;
  if (!(work.bytes >= 0 && work.bytes < 1e16 && work.flops >= 0 && work.flops < 1e19)) return;
  // 1 = sum value_i * x_i
  const std::array<double, kTerms> x = {prior_[0] * work.seconds / joules, prior_[1] * work.bytes / joules,
                                        prior_[2] * work.flops / joules};
  auto& p = state_.spread;
  std::array<double, kTerms> px{};
  double error = 1, explained = 0;
  for (int i = 0; i < kTerms; ++i) {
    for (int j = 0; j < kTerms; ++j) px[i] += p[i][j] * x[j];
    error -= state_.value[i] * x[i];
    explained += x[i] * px[i];
  }
  // What errors are not due to prices that are not known yet, nor to the cut, is noise.
  const double cut = std::max(0.0, cut_j2) / (joules * joules);
  const double surprise = std::clamp(error * error - explained - cut, kLeastNoise, kMostNoise);
  state_.noise += kNoiseShare * (surprise - state_.noise);
  const double denominator = state_.noise + cut + explained;
  if (!std::isfinite(denominator)) return;
  for (int i = 0; i < kTerms; ++i) {
    state_.value[i] = std::clamp(state_.value[i] + px[i] / denominator * error, kLeast, kMost);
    for (int j = 0; j <= i; ++j) p[i][j] = p[j][i] = p[i][j] - px[i] * px[j] / denominator;
  }
  for (int i = 0; i < kTerms; ++i) {
    p[i][i] += kDrift;
    if (p[i][i] <= kPriorVariance) continue;  // never less sure than at first
    const double scale = std::sqrt(kPriorVariance / p[i][i]);
    for (int j = 0; j < kTerms; ++j) p[i][j] *= scale, p[j][i] *= scale;
  }
  state_.windows = std::min(state_.windows + 1, 1e6);
}

void EnergyModel::LearnTime(double seconds, double bytes, double flops) {
  if (!(seconds > 1e-7 && seconds < 1e3) || !(bytes >= 0 && flops >= 0 && bytes + flops > 0)) return;
  // The bound that this step ran into is the one that its time says something about.
  const double by_bytes = state_.bytes_per_s > 0 ? bytes / state_.bytes_per_s : 0;
  const double by_flops = state_.flops_per_s > 0 ? flops / state_.flops_per_s : 0;
  const auto follow = [&](double* rate, double sample) {
    if (*rate <= 0) {
      *rate = sample;
    } else {
      *rate += kTimeShare * (std::clamp(sample, *rate / kMostSpeedRatio, *rate * kMostSpeedRatio) - *rate);
    }
  };
  if (state_.bytes_per_s <= 0 && bytes > 0) return follow(&state_.bytes_per_s, bytes / seconds);
  // Twice as slow as bytes explain, and nothing known of FLOPs: those are what it waited for.
  if (state_.flops_per_s <= 0 && flops > 0 && seconds > 2 * by_bytes)
    return follow(&state_.flops_per_s, flops / seconds);
  if (by_flops > by_bytes) {
    follow(&state_.flops_per_s, flops / seconds);
  } else if (bytes > 0) {
    follow(&state_.bytes_per_s, bytes / seconds);
  }
}

double EnergyModel::Joules(const WorkTotals& work) const {
  return idle_w() * work.seconds + j_per_byte() * work.bytes + j_per_flop() * work.flops;
}

double EnergyModel::CautiousJoules(const WorkTotals& work) const {
  const double joules = Joules(work);
  return known() ? joules : std::max(joules, device_w_ * work.seconds);
}

double EnergyModel::UncertaintyFrac(const WorkTotals& work) const {
  const double joules = Joules(work);
  if (!(joules > 0)) return 1;
  const std::array<double, kTerms> x = {prior_[0] * work.seconds / joules, prior_[1] * work.bytes / joules,
                                        prior_[2] * work.flops / joules};
  double variance = 0;
  for (int i = 0; i < kTerms; ++i) {
    for (int j = 0; j < kTerms; ++j) variance += x[i] * state_.spread[i][j] * x[j];
  }
  return std::sqrt(std::max(variance, 0.0));
}

double EnergyModel::Seconds(double bytes, double flops) const {
  const double by_bytes = state_.bytes_per_s > 0 ? bytes / state_.bytes_per_s : 0;
  const double by_flops = state_.flops_per_s > 0 ? flops / state_.flops_per_s : 0;
  return std::max(by_bytes, by_flops);
}

bool EnergyModel::Restore(const State& state) {
  const auto rate = [](double value) { return value >= 0 && value < 1e18; };
  if (!rate(state.bytes_per_s) || !rate(state.flops_per_s) || !(state.windows >= 0 && state.windows <= 1e6))
    return false;
  if (!(state.noise >= kLeastNoise && state.noise <= kMostNoise)) return false;
  for (int i = 0; i < kTerms; ++i) {
    if (!(state.value[i] >= kLeast && state.value[i] <= kMost)) return false;
    if (!(state.spread[i][i] > 0 && state.spread[i][i] <= kPriorVariance * 1.0001)) return false;
    for (int j = 0; j < i; ++j) {
      const double p = state.spread[i][j];
      if (p != state.spread[j][i] || !(p * p <= state.spread[i][i] * state.spread[j][j])) return false;
    }
  }
  state_ = state;
  return true;
}

}  // namespace thermoe
