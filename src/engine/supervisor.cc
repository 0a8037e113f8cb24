// SPDX-License-Identifier: Apache-2.0
#include "engine/supervisor.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <thread>
#include <utility>

#include "base/errors.h"
#include "control/plant/open_plant.h"
#include "control/telemetry/find_sources.h"
#include "control/telemetry/snapshot_fields.h"

namespace thermoe {
namespace {

constexpr double kPeriod_s = 0.025;
constexpr double kMostPause_s = 1;       // a controller that asks for more is asked again
constexpr double kMostStep_s = 1e4;      // of virtual time: a profile that needs longer holds a slip of units
constexpr double kSettleStep_s = 0.002;  // between looks while waiting for a counter

constexpr std::string_view kPlant = "plant:", kReplay = "replay:", kNvml = "nvml";

// One H100 idling with a context, per byte and per FLOP (data/profiles/h100.toml): where a GPU's counter is read, the
// defaults of a server core would be far off until it has moved some times.
constexpr EnergyPrices kGpuPrices = {.idle_w = 120, .j_per_byte = 130e-12, .j_per_flop = 1e-12};

EnergyPrices PricesOf(const DeviceProfile& profile) {
  EnergyPrices prices;
  prices.idle_w = profile.idle_w;
  prices.j_per_byte = profile.energy_per_byte_pj * 1e-12;
  prices.j_per_flop = profile.energy_per_flop_pj * 1e-12;
  prices.die_j_per_c = profile.die_capacity_j_per_c;
  return prices;
}

Work WorkOf(const StepRecord& record) { return {record.weight_bytes + record.kv_bytes, record.flops}; }

// At the lowest clock.
double LongestSeconds(const DeviceProfile& profile, const Work& work) {
  const double clock_frac = profile.lowest_mhz / profile.nominal_mhz;
  const double bandwidth =
      profile.bandwidth_gbps * 1e9 * std::min(1.0, profile.lowest_mhz / profile.bandwidth_knee_mhz);
  return std::max(work.bytes / bandwidth,
                  work.flops / (profile.compute_tflops * 1e12 * std::pow(clock_frac, profile.compute_exponent)));
}

}  // namespace

Result<std::unique_ptr<Supervisor>> Supervisor::Create(const std::string& telemetry, const ModelShape& model, const std::string& own) {
  if (telemetry == "none") return std::unique_ptr<Supervisor>(new Supervisor());
  if (telemetry.starts_with(kPlant) && telemetry.size() > kPlant.size()) {
    Result<std::unique_ptr<Plant>> plant = OpenPlant(telemetry.substr(kPlant.size()));
    if (!plant.ok()) return plant.status();
    std::unique_ptr<Supervisor> supervisor(new Supervisor());
    supervisor->plant_ = std::move(plant).value();
    supervisor->plant_source_.emplace(supervisor->plant_.get());
    supervisor->info_ = {supervisor->plant_source_->name(), true, false};
    supervisor->prices_ = PricesOf(supervisor->plant_->profile());
    supervisor->accountant_.emplace(model, supervisor->prices_, EnergySource::kSimulated,
                                    supervisor->now_s());
    supervisor->Look();
    return supervisor;
  }
  // A GPU that idles beside a processor that computes says nothing about the steps, nor the other way round.
  Result<std::unique_ptr<TelemetrySource>> source = FindSource(telemetry == "auto" || (telemetry == kNvml && own.starts_with(kNvml)) ? own : telemetry);
  if (!source.ok()) {
    if (!source.status().message().ends_with(SourceChoices())) return source.status();
    return Status(source.status().code(), source.status().message() + "; none is without telemetry");
  }
  return Watch(std::move(source).value(), model, kPeriod_s);
}

std::unique_ptr<Supervisor> Supervisor::Watch(std::unique_ptr<TelemetrySource> source, const ModelShape& model,
                                              double period_s) {
  std::unique_ptr<Supervisor> supervisor(new Supervisor());
  const std::string name = source->name();
  const bool replayed = name.starts_with(kReplay);
  supervisor->info_ = {name, false, replayed};
  if (name.starts_with(kNvml)) supervisor->prices_ = kGpuPrices;
  const EnergyPrices prices = supervisor->prices_;
  const double opened_s = supervisor->now_s();
  supervisor->accountant_.emplace(model, prices, replayed ? EnergySource::kReplayed : EnergySource::kCounter, opened_s);
  // The first reading here, so that the counter's start is known before any work.
  supervisor->accountant_->Observe(opened_s, source->Read());
  supervisor->sampler_ =
      std::make_unique<TelemetrySampler>(std::move(source), TelemetrySampler::Options{period_s, SteadySeconds});
  supervisor->sampler_->Start();
  return supervisor;
}

Supervisor::~Supervisor() = default;

double Supervisor::now_s() const { return plant_ != nullptr ? plant_->now_s() : SteadySeconds(); }

Snapshot Supervisor::Latest() {
  if (plant_source_) return plant_source_->Read();
  return sampler_ != nullptr ? sampler_->Latest() : LostAt(0);
}

// Shows the accountant a reading that it has not seen. The plant's counter is read exactly, not by its sensor.
void Supervisor::Look() {
  if (plant_ != nullptr) {
    Snapshot exact;
    exact.state = SourceState::kOk;
    exact.energy_j = plant_->energy_j();
    accountant_->Observe(plant_->now_s(), exact);
  } else if (sampler_ != nullptr && sampler_->readings() != seen_readings_) {
    seen_readings_ = sampler_->readings();
    const PublishedSnapshot newest = sampler_->Newest();
    accountant_->Observe(newest.read_s, newest.snapshot);
  }
}

void Supervisor::BeforeStep() {
  const double pause_s = std::clamp(decision_.pause_s, 0.0, kMostPause_s);
  decision_.pause_s = 0;
  if (!(pause_s > 0)) return;
  if (plant_ != nullptr) {
    plant_->Idle(pause_s);
  } else {
    std::this_thread::sleep_for(std::chrono::duration<double>(pause_s));
  }
}

Status Supervisor::AfterStep(double start_s, StepRecord* record, std::span<const StepPart> parts, int32_t queued) {
  if (plant_ != nullptr) {
    const Work work = WorkOf(*record);
    const DeviceProfile& profile = plant_->profile();
    if (LongestSeconds(profile, work) > kMostStep_s) {
      return ResourceExhausted(
          "{}: the simulated device may take {:.0f} s for one step; check the profile's [throughput] and [clock]",
          info_.name, LongestSeconds(profile, work));
    }
    if (accountant_) Look();
    if (accountant_) accountant_->Idle(start_s);
    const WorkOutcome outcome = plant_->Run(work);
    if (!outcome.completed) {
      return ResourceExhausted(
          "{}: the simulated device shut down at {:.0f} C after {:.1f} s; cool its room or draw less power", info_.name,
          profile.shutdown_c, plant_->now_s());
    }
    record->times = StageTimes{};  // the stages' are not known
    record->times.total_us = outcome.duration_s * 1e6;
  }
  const double end_s = now_s();
  if (accountant_) {
    Look();
    accountant_->Idle(start_s);
    accountant_->Step(end_s, *record, parts);
  }
  if (sampler_ != nullptr) sampler_->SetWorking(true);
  // The control loop's place: everything it may see goes in here, everything it may say comes out.
  if (controller_ != nullptr) decision_ = controller_->AfterStep({start_s, end_s, *record, Latest(), queued});
  return Status::Ok();
}

Supervisor::DeviceFacts Supervisor::Facts() {
  DeviceFacts facts;
  facts.prices = prices_;
  const Snapshot now = Latest();
  facts.power_limit_w = now.power_limit_w.value_or(0);
  facts.temp_limit_c = now.temp_max_c ? *now.temp_max_c : now.temp_slowdown_c.value_or(0);
  facts.shows_power = now.power_w || now.power_instant_w || now.energy_j;
  facts.shows_temp = now.temp_c.has_value();
  if (plant_ == nullptr) return facts;
  const DeviceProfile& profile = plant_->profile();
  facts.bytes_per_s = profile.bandwidth_gbps * 1e9;
  facts.flops_per_s = profile.compute_tflops * 1e12;
  facts.power_limit_w = profile.limit_w;
  facts.temp_limit_c = profile.slowdown_c;
  facts.shows_power = facts.shows_temp = true;
  return facts;
}

void Supervisor::CatchUp() {
  Look();
  accountant_->Idle(now_s());
}

EnergyTotals Supervisor::Totals() {
  if (!accountant_) return {};
  CatchUp();
  return accountant_->totals();
}

void Supervisor::Settle(double most_s) {
  if (!accountant_) return;
  const double asked_s = now_s();
  CatchUp();
  if (sampler_ == nullptr) return;
  while (accountant_->MaySettle(asked_s) && now_s() - asked_s < most_s) {
    std::this_thread::sleep_for(std::chrono::duration<double>(kSettleStep_s));
    CatchUp();
  }
}

void Supervisor::Rest() {
  if (sampler_ != nullptr) sampler_->SetWorking(false);
}

}  // namespace thermoe
