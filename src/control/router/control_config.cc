// SPDX-License-Identifier: Apache-2.0
#include "control/router/control_config.h"

#include <array>
#include <cmath>
#include <utility>

#include "base/errors.h"

namespace thermoe {
namespace {

constexpr std::array<const char*, 3> kModes = {"plain", "static", "adaptive"};
constexpr std::array<const char*, 3> kPreferences = {"throughput", "quality", "energy"};
constexpr std::array<const char*, 7> kReasons = {"headroom",       "price",  "dwell", "fixed",
                                                 "prefer quality", "safest", "budget"};
constexpr double kMostPower_w = 1e5, kMostTemp_c = 150, kMostLatency_ms = 1e6;
constexpr size_t kMostPlaced = 1 << 20;
constexpr double kMostGroups = 4095;

Status CheckRange(const char* name, double value, double low, double high) {
  if (value >= low && value <= high) return Status::Ok();
  return InvalidArgument("{}: {:g} is outside {:g} to {:g}; choose a value in that range", name, value, low, high);
}

}  // namespace

const char* RouterModeName(RouterMode mode) { return kModes[static_cast<size_t>(mode)]; }
const char* PreferenceName(Preference preference) { return kPreferences[static_cast<size_t>(preference)]; }
const char* DecisionReasonName(DecisionReason reason) { return kReasons[static_cast<size_t>(reason)]; }

Result<RouterMode> ParseRouterMode(std::string_view name) {
  for (size_t i = 0; i < kModes.size(); ++i) {
    if (name == kModes[i]) return static_cast<RouterMode>(i);
  }
  return InvalidArgument("router: \"{}\" is none; choose plain, static or adaptive", name);
}

Result<Preference> ParsePreference(std::string_view name) {
  for (size_t i = 0; i < kPreferences.size(); ++i) {
    if (name == kPreferences[i]) return static_cast<Preference>(i);
  }
  return InvalidArgument("prefer: \"{}\" is none; choose throughput, quality or energy", name);
}

Status CheckLimits(const ControlLimits& limits, double device_power_w, double device_temp_c) {
  THERMOE_RETURN_IF_ERROR(CheckRange("power limit, W", limits.power_w, 0, kMostPower_w));
  THERMOE_RETURN_IF_ERROR(CheckRange("temperature limit, C", limits.temp_c, 0, kMostTemp_c));
  THERMOE_RETURN_IF_ERROR(CheckRange("latency target, ms", limits.latency_ms, 0, kMostLatency_ms));
  if (device_power_w > 0 && limits.power_w > device_power_w) {
    return InvalidArgument("power limit: {:g} W is above the device's own limit of {:g} W; choose a lower one",
                           limits.power_w, device_power_w);
  }
  if (device_temp_c > 0 && limits.temp_c > device_temp_c) {
    return InvalidArgument("temperature limit: {:g} C is above the device's own limit of {:g} C; choose a lower one",
                           limits.temp_c, device_temp_c);
  }
  return Status::Ok();
}

Status CheckConfig(const ControlConfig& config) {
  THERMOE_RETURN_IF_ERROR(CheckLimits(config.limits, config.device_power_w, config.device_temp_c));
  THERMOE_RETURN_IF_ERROR(CheckRange("quality floor, nats", config.quality_floor_nats, 0, 10));
  THERMOE_RETURN_IF_ERROR(CheckRange("quality budget, nats", config.quality_budget_nats, 0, 10));
  if (config.quality_budget_nats > config.quality_floor_nats) {
    return InvalidArgument(
        "quality budget: a mean of {:g} nats is above the floor of {:g} nats that bounds every step; choose a lower "
        "one or raise the floor",
        config.quality_budget_nats, config.quality_floor_nats);
  }
  if (config.quality_budget_nats > 0 &&
      (config.router != RouterMode::kAdaptive || config.prefer != Preference::kEnergy)) {
    return InvalidArgument(
        "quality budget: is for the adaptive router that prefers energy, not for {} and {}; leave one of them out",
        RouterModeName(config.router), PreferenceName(config.prefer));
  }
  THERMOE_RETURN_IF_ERROR(CheckRange("tick, s", config.tick_s, 0.01, 10));
  THERMOE_RETURN_IF_ERROR(CheckRange("idle power, W", config.prices.idle_w, 0, kMostPower_w));
  THERMOE_RETURN_IF_ERROR(CheckRange("joules per byte", config.prices.j_per_byte, 0, 1));
  THERMOE_RETURN_IF_ERROR(CheckRange("joules per FLOP", config.prices.j_per_flop, 0, 1));
  THERMOE_RETURN_IF_ERROR(CheckRange("bytes per second", config.bytes_per_s, 0, 1e17));
  THERMOE_RETURN_IF_ERROR(CheckRange("FLOPs per second", config.flops_per_s, 0, 1e19));
  THERMOE_RETURN_IF_ERROR(CheckRange("device power, W", config.device_power_w, 0, kMostPower_w));
  THERMOE_RETURN_IF_ERROR(CheckRange("device temperature, C", config.device_temp_c, 0, kMostTemp_c));
  THERMOE_RETURN_IF_ERROR(CheckRange("prefill chunk", config.prefill_chunk, 0, 1 << 24));
  if (config.placement.size() > kMostPlaced)
    return InvalidArgument("placement: of {} experts; give at most {}", config.placement.size(), kMostPlaced);
  for (const uint16_t group : config.placement)
    THERMOE_RETURN_IF_ERROR(CheckRange("placement group", group, 0, kMostGroups));
  return CheckRange("most sequences", config.max_sequences, 0, 1 << 24);
}

}  // namespace thermoe
