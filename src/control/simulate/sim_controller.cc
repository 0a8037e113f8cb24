// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <utility>

#include "control/loop.h"
#include "control/simulate/sim_routers.h"

namespace thermoe {
namespace {

ControlLimits Limits(const SimLimits& limits) {
  ControlLimits out;
  out.power_w = limits.power_w;
  out.temp_c = limits.temp_c;
  out.latency_ms = limits.latency_ms;
  return out;
}

}  // namespace

Result<SimController> MakeSimController(const SimSetup& setup, SimRouterKind kind, const OperatingPoint& point) {
  const SimScenario& scenario = *setup.scenario;
  const DeviceProfile& profile = *setup.profile;
  ControlConfig config;
  config.router = kind == SimRouterKind::kPlain    ? RouterMode::kPlain
                  : kind == SimRouterKind::kStatic ? RouterMode::kStatic
                                                   : RouterMode::kAdaptive;
  config.static_point = point;
  config.limits = Limits(scenario.LimitsAt(0));
  config.quality_floor_nats = scenario.quality_floor_nats;
  if (config.router == RouterMode::kAdaptive) config.quality_budget_nats = scenario.quality_budget_nats;
  config.gather = scenario.gather && kind != SimRouterKind::kAdaptiveNoGather;
  const Result<Preference> prefer = ParsePreference(scenario.prefer);
  if (!prefer.ok()) return prefer.status();
  config.prefer = *prefer;
  config.ttha = kind == SimRouterKind::kAdaptiveAdapter || ((kind == SimRouterKind::kAdaptive || kind == SimRouterKind::kAdaptiveNoGather) && scenario.ttha);
  config.prices.idle_w = profile.idle_w;
  config.prices.j_per_byte = profile.energy_per_byte_pj * 1e-12;
  config.prices.j_per_flop = profile.energy_per_flop_pj * 1e-12;
  config.bytes_per_s = profile.bandwidth_gbps * 1e9;
  config.flops_per_s = profile.compute_tflops * 1e12;
  config.device_power_w = profile.limit_w;
  config.device_temp_c = profile.slowdown_c;
  config.prefill_chunk = scenario.load.prefill_chunk;
  config.max_sequences = scenario.load.max_batch;
  Result<std::unique_ptr<ControlLoop>> made = MakeControlLoop(std::move(config), setup.points, setup.shape);
  if (!made.ok()) return made.status();
  SimController controller;
  ControlLoop* loop = made->get();
  controller.set_limits = [loop](const SimLimits& limits) { return loop->SetLimits(Limits(limits)); };
  controller.loop = [loop] {
    const ControlStatus& s = loop->status();
    return AdaptLoop{.lambda = s.lambda_power + s.lambda_temp + s.lambda_latency,
                     .cap_w = s.cap_w,
                     .idle_w = s.idle_w,
                     .temp_limit_c = s.limits.temp_c,
                     .forecast_temp_c = std::max(s.temp_c, s.forecast_temp_c),
                     .latency_target_s = s.limits.latency_ms * 1e-3,
                     .safest = s.safest};
  };
  controller.controller = std::move(made).value();
  return {std::move(controller)};
}

}  // namespace thermoe
