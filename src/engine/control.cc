// SPDX-License-Identifier: Apache-2.0
// The engine's cost model and its control loop: made from its options and what telemetry and profile know of the device, and shown.
#include <fmt/format.h>

#include <filesystem>
#include <system_error>
#include <utility>

#include "base/errors.h"
#include "control/adapt/adapt_log.h"
#include "engine/engine_impl.h"
#include "engine/profile_target.h"

namespace thermoe {
namespace {

Result<ControlConfig> ConfigFrom(const ControlOptions& options) {
  ControlConfig config;
  const Result<RouterMode> router = ParseRouterMode(options.router);
  if (!router.ok()) return router.status();
  const Result<Preference> prefer = ParsePreference(options.prefer);
  if (!prefer.ok()) return prefer.status();
  config.router = *router;
  config.prefer = *prefer;
  config.limits = {options.power_limit_w, options.temp_limit_c, options.latency_target_ms};
  config.quality_floor_nats = options.quality_floor_nats;
  config.quality_budget_nats = options.quality_budget_nats;
  config.gather = options.gather;
  config.static_point.full_slots = options.static_point.full_slots;
  config.static_point.k0 = options.static_point.guaranteed_slots;
  config.static_point.k_max = options.static_point.max_slots;
  config.static_point.soft_batch = options.static_point.soft_batch;
  config.static_point.drop_below_frac = options.static_point.drop_below_frac;
  config.ttha = options.ttha;
  config.state_path = options.state_path;
  config.log_path = options.log_path;
  return config;
}

// A limit that nothing measures could only be guessed at; one that an idle device passes cannot be kept. What a real one draws idle is
// learnt later.
Status CheckDevice(const ControlLimits& limits, const Supervisor::DeviceFacts& facts, const TelemetryInfo& info) {
  const bool power = limits.power_w > 0 && !facts.shows_power, temp = limits.temp_c > 0 && !facts.shows_temp;
  if (info.simulated && limits.power_w > 0 && limits.power_w <= facts.prices.idle_w) {
    return InvalidArgument("power limit: {:g} W is not above the {:g} W that {} draws idle; choose a higher one", limits.power_w,
                           facts.prices.idle_w, info.name);
  }
  if (!power && !temp) return Status::Ok();
  return InvalidArgument("{} limit: telemetry \"{}\" shows no {}; choose another source (thermoe doctor lists them) or leave the limit out",
                         power ? "power" : "temperature", info.name, power ? "power" : "temperature");
}

// One sentence, with what to do; "" where all limits are kept.
std::string UnmetText(const ControlStatus& status) {
  switch (status.unmet) {
    case Unmet::kNone:
      return "";
    case Unmet::kIdleHeat:
      return fmt::format("the temperature limit of {:g} C leaves no room for work: the die is at {:.0f} C though it hardly works; raise the limit",
                         status.limits.temp_c, status.unmet_value);
    case Unmet::kIdlePower:
      return fmt::format("the power limit of {:g} W leaves no room for work: at rest alone the device draws {:.4g} W; raise the limit",
                         status.limits.power_w, status.unmet_value);
    case Unmet::kLatency:
      return fmt::format("the latency target of {:g} ms was not kept: steps took {:.3g} ms{}; raise one of them", status.limits.latency_ms,
                         status.unmet_value, status.cap_w > 0 ? " under the other limits" : "");
  }
  return "";
}

}  // namespace

void EngineImpl::StartPricing() {
  std::vector<CostPoint> points;
  std::error_code error;
  if (const std::string& path = options_.profile_path; !path.empty() && std::filesystem::exists(path, error)) {
    Result<std::vector<CostPoint>> loaded = LoadProfile(path, *model_, Describe(), ops_->device_name());
    if (loaded.ok()) {
      points = std::move(*loaded);
    } else {
      cost_view_.profile_error = loaded.status().message();
    }
  }
  pricer_.emplace(ShapeOf(ProfileTargetOf(*model_)), std::move(points));
  cost_view_.profiled_points = static_cast<int>(pricer_->model().points());
}

CostView EngineImpl::cost_view() const {
  CostView view = cost_view_;
  view.steps = pricer_->steps();
  view.error_frac = pricer_->error_frac();
  view.profile_error_frac = pricer_->plain_error_frac();
  for (size_t tier = 0; tier < kAdaptTiers; ++tier) {
    const AdaptErrors errors = adapt_pricer_.errors(static_cast<AdaptTier>(tier));
    view.adapt_updates[tier] = errors.updates;
    view.adapt_error_frac[tier] = errors.error_frac;
    view.adapt_profile_error_frac[tier] = errors.plain_error_frac;
  }
  return view;
}

DeviceLoad EngineImpl::device_load() const {
  const kernels::LoadFacts facts = ops_->load_facts();
  return {facts.bytes, facts.seconds, facts.read_seconds, 1e-9 * facts.link_bytes_per_s};
}

Status EngineImpl::StartControl(Supervisor* supervisor) {
  if (!options_.control.on()) return Status::Ok();
  Result<ControlConfig> config = ConfigFrom(options_.control);
  if (!config.ok()) return config.status();
  Supervisor::DeviceFacts facts = supervisor->Facts();
  if (facts.bytes_per_s <= 0 && cost_view_.profiled_points > 0) {  // before the first step shows it
    facts.bytes_per_s = pricer_->DecodeBytesPerSecond();
    facts.flops_per_s = pricer_->PrefillFlopsPerSecond(options_.prefill_chunk);
  }
  const TelemetryInfo& info = supervisor->info();
  THERMOE_RETURN_IF_ERROR(CheckDevice(config->limits, facts, info));
  config->model = std::filesystem::path(model_->info().path).filename().string();
  config->telemetry = info.name;
  config->simulated = info.simulated;
  config->replayed = info.replayed;
  config->prices = facts.prices;
  config->bytes_per_s = facts.bytes_per_s;
  config->flops_per_s = facts.flops_per_s;
  config->device_power_w = facts.power_limit_w;
  config->device_temp_c = facts.temp_limit_c;
  config->prefill_chunk = options_.prefill_chunk;
  config->max_sequences = options_.max_sequences;
  OperatingPoints front;
  if (const std::string& path = options_.control.points_path;
      !path.empty() && config->router == RouterMode::kAdaptive) {
    Result<OperatingPoints> points = ReadOperatingPoints(path, model_->info().identity);
    if (!points.ok()) return points.status();
    front = std::move(*points);
  }
  const bool nested = model_->impl().experts().storage() == ExpertStorage::kNested;
  Result<std::unique_ptr<ControlLoop>> loop = MakeControlLoop(
      std::move(*config), std::move(front), SteeringShape{config_.layers, config_.experts, config_.slots, nested});
  if (!loop.ok()) return loop.status();
  loop_ = loop->get();
  facts_ = facts;
  supervisor->SetController(std::move(*loop));
  return Status::Ok();
}

ControlView EngineImpl::control_view() {
  ControlView view;
  view.time_s = supervisor_->now_s();
  const Snapshot now = supervisor_->Latest();
  view.power_w = now.power_w ? *now.power_w : now.power_instant_w.value_or(0);
  view.temp_c = now.temp_c.value_or(0);
  const Supervisor::DeviceFacts facts = loop_ == nullptr ? supervisor_->Facts() : facts_;
  view.device_power_w = facts.power_limit_w;
  view.device_temp_c = facts.temp_limit_c;
  view.adapt = adapt_view_;
  if (loop_ == nullptr) return view;
  const ControlStatus& status = loop_->status();
  view.on = true;
  view.router = options_.control.router;
  view.power_limit_w = status.limits.power_w;
  view.temp_limit_c = status.limits.temp_c;
  view.latency_target_ms = status.limits.latency_ms;
  if (status.power_w > 0) view.power_w = status.power_w;
  view.latency_ms = status.latency_ms;
  view.lambda_power = status.lambda_power;
  view.lambda_temp = status.lambda_temp;
  view.lambda_latency = status.lambda_latency;
  view.point = status.point_index;
  view.points = static_cast<int32_t>(loop_->points().size());
  view.point_text = status.point_text;
  view.reason = DecisionReasonName(status.reason);
  view.point_loss_nats = status.point_loss_nats;
  view.point_bytes_frac = status.point_bytes_frac;
  view.pause_frac = status.pause_frac;
  view.gather_ms = status.gather_ms;
  view.quality_budget_nats = options_.control.quality_budget_nats;
  view.mean_loss_nats = status.mean_loss_nats;
  view.demand_w = status.demand_w;
  view.safest = status.safest;
  view.unmet = UnmetText(status);
  view.ticks = status.ticks;
  view.point_changes = status.point_changes;
  view.ttha = status.ttha;
  view.ttha_gain = status.ttha_gain;
  for (size_t term = 0; term < kTthaTerms; ++term) {
    view.ttha_terms[term] = {TthaTermName(static_cast<TthaTerm>(term)), status.ttha_weight[term], status.ttha_value[term]};
  }
  return view;
}

Status EngineImpl::SaveControl() {
  if (!options_.ttt_state_path.empty() && benefit_.sessions > 0) {
    THERMOE_RETURN_IF_ERROR(WriteBenefitState(options_.ttt_state_path, benefit_));
  }
  if (loop_ == nullptr) return Status::Ok();
  THERMOE_RETURN_IF_ERROR(loop_->FlushLog());
  return loop_->SaveState();
}

}  // namespace thermoe
