// SPDX-License-Identifier: Apache-2.0
#include "control/telemetry/energy_meter.h"

#include <algorithm>

#include "control/telemetry/snapshot.h"

namespace thermoe {
namespace {

// NVML's counter changes every 100 ms and is polled every 25 ms: a window of one observed change is 75, 100 or 125 ms
// where polls and changes drift past each other. Merging the short ones halves the worst error.
constexpr double kMinWindow_s = 0.09;
constexpr double kMaxWindow_s = 1.0;  // a mean over longer is not what the device does now
constexpr double kMaxRestStep_s = 0.2;
constexpr double kLeastStep_s = 0.1;  // a change shows the energy of up to one update interval at once

}  // namespace

std::optional<double> EnergyMeter::Gained(double time_s, uint64_t count) const {
  const double most_j = options_.max_power_w * std::max(time_s - changed_s_, kLeastStep_s);
  if (count >= count_) {
    const double gained_j = static_cast<double>(count - count_) * options_.joules_per_count;
    return gained_j <= most_j ? std::optional(gained_j) : std::nullopt;
  }
  for (const uint64_t modulus : options_.wraps_at) {
    if (modulus != 0 && (count_ > modulus || count > modulus)) continue;
    const uint64_t gained = modulus - count_ + count;  // modulo 2^64, which a modulus of 0 means
    const double gained_j = static_cast<double>(gained) * options_.joules_per_count;
    if (gained_j <= most_j) return gained_j;
  }
  return std::nullopt;
}

void EnergyMeter::Update(double time_s, uint64_t count) {
  if (!started_) {
    started_ = true;
    count_ = count;
    read_s_ = changed_s_ = time_s;
    return;
  }
  rest_s_ += std::min(time_s - read_s_, kMaxRestStep_s);
  read_s_ = time_s;
  if (count == count_) return;

  const std::optional<double> gained_j = Gained(time_s, count);
  count_ = count;
  changed_s_ = time_s;
  rest_s_ = 0;
  if (!gained_j) {
    RestartWindow();
    return;
  }
  energy_j_ += *gained_j;
  const double span_s = time_s - window_s_;
  if (window_open_ && span_s < kMinWindow_s) return;
  power_w_.reset();
  if (window_open_ && span_s <= kMaxWindow_s) power_w_ = (energy_j_ - window_j_) / span_s;
  window_open_ = true;
  window_s_ = time_s;
  window_j_ = energy_j_;
}

void EnergyMeter::RestartWindow() {
  window_open_ = false;
  power_w_.reset();
}

std::optional<double> EnergyMeter::power_w() const { return rest_s_ < kRestLimit_s ? power_w_ : std::nullopt; }

}  // namespace thermoe
