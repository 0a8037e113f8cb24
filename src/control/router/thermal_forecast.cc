// SPDX-License-Identifier: Apache-2.0
#include "control/router/thermal_forecast.h"

#include <algorithm>
#include <cmath>

namespace thermoe {
namespace {

constexpr double kRoom_c = 30;            // about
constexpr double kFastShare = 0.5;        // of a device's whole rise above the room, that comes at once: 18 of 30 C on an H100
constexpr double kDefaultFast_c_per_w = 0.04;
constexpr double kFurthest = 5;           // of `fast` from the first guess, either way
// A weight of one change of 20 % of full power for the guess, and a memory of about 100 such changes.
constexpr double kForget = 0.99, kGuessPower_w = 100, kLeastChange_w = 15;
// Alpha-beta filter of the base, at ticks of 0.1 s: two seconds, so that a sensor's whole degrees do not show in the cap.
constexpr double kAlpha = 0.06, kBeta = 0.0015;
constexpr double kPower_s = 0.15;  // the die follows power with this
constexpr double kMostSlope_c_per_s = 5;

}  // namespace

ThermalForecast::ThermalForecast(double device_w, double device_temp_c)
    : prior_c_per_w_(device_w > 0 && device_temp_c > kRoom_c ? kFastShare * (device_temp_c - kRoom_c) / device_w
                                                              : kDefaultFast_c_per_w) {
  state_ = {prior_c_per_w_, prior_c_per_w_ * kGuessPower_w * kGuessPower_w, kGuessPower_w * kGuessPower_w};
}

void ThermalForecast::Learn(double temp_c, double power_w, double dt_s) {
  if (!known_) {
    known_ = true;
    power_w_ = power_w;
    base_c_ = temp_c - state_.fast_c_per_w * power_w;
    slope_c_per_s_ = 0;
    count_ = 0;
  }
  power_w_ += (power_w - power_w_) * -std::expm1(-dt_s / kPower_s);
  if (count_ >= kLag) {
    const double dt_c = temp_c - temps_[count_ % kLag], dp_w = power_w_ - powers_[count_ % kLag];
    if (std::abs(dp_w) > kLeastChange_w) {
      state_.moment_cw = kForget * state_.moment_cw + dt_c * dp_w;
      state_.moment_ww = kForget * state_.moment_ww + dp_w * dp_w;
      const double before = state_.fast_c_per_w;
      state_.fast_c_per_w =
          std::clamp(state_.moment_cw / state_.moment_ww, prior_c_per_w_ / kFurthest, prior_c_per_w_ * kFurthest);
      base_c_ -= (state_.fast_c_per_w - before) * power_w_;  // what is seen now stays explained
    }
  }
  temps_[count_ % kLag] = temp_c;
  powers_[count_ % kLag] = power_w_;
  ++count_;
  const double error_c = temp_c - state_.fast_c_per_w * power_w_ - (base_c_ + slope_c_per_s_ * dt_s);
  base_c_ += slope_c_per_s_ * dt_s + kAlpha * error_c;
  slope_c_per_s_ = std::clamp(slope_c_per_s_ + kBeta / dt_s * error_c, -kMostSlope_c_per_s, kMostSlope_c_per_s);
}

// A falling base is not counted on: the room may warm again.
double ThermalForecast::TempAt(double power_w) const {
  return base_c_ + std::max(0.0, slope_c_per_s_) * kHorizon_s + state_.fast_c_per_w * power_w;
}

double ThermalForecast::PowerFor(double temp_c) const {
  return (temp_c - base_c_ - std::max(0.0, slope_c_per_s_) * kHorizon_s) / state_.fast_c_per_w;
}

bool ThermalForecast::Restore(const State& state) {
  if (!(state.fast_c_per_w >= prior_c_per_w_ / kFurthest * 0.999 && state.fast_c_per_w <= prior_c_per_w_ * kFurthest * 1.001)) return false;
  if (!(std::abs(state.moment_cw) < 1e12 && state.moment_ww > 0 && state.moment_ww < 1e12)) return false;
  state_ = state;
  return true;
}

}  // namespace thermoe
