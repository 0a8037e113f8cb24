// SPDX-License-Identifier: Apache-2.0
// What goes on between steps: the engine's clock, its sensors, its joules, and the place where the control loop is
// called.
//
// Live: a thread of its own reads the source; steps only look at the newest reading. Under a plant time is virtual:
// each step takes what the simulated device takes for its bytes and FLOPs.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>

#include "control/energy/energy_accountant.h"
#include "control/plant/plant_source.h"
#include "control/step_controller.h"
#include "control/telemetry/sampler.h"
#include "thermoe/control.h"
#include "thermoe/steering.h"

namespace thermoe {

class Supervisor {
 public:
  // `telemetry`: as EngineOptions; `own`: the source that shows what computes, which "auto" means, and "nvml" on such a device. Errors: those of
  // the source or profile.
  static Result<std::unique_ptr<Supervisor>> Create(const std::string& telemetry, const ModelShape& model, const std::string& own);
  // For tests: a source of the caller's, read every `period_s`.
  static std::unique_ptr<Supervisor> Watch(std::unique_ptr<TelemetrySource> source, const ModelShape& model,
                                           double period_s);
  ~Supervisor();

  double now_s() const;  // since some moment; never falls
  // The pause that was decided after the last step.
  void BeforeStep();
  // From `start_s` on a step ran. Sets record->times under a plant, where they are virtual. kResourceExhausted: the
  // simulated device shut down or would take hours for the step.
  Status AfterStep(double start_s, StepRecord* record, std::span<const StepPart> parts, int32_t queued = 0);
  // The steering that was decided after the last step, once; null: none.
  std::shared_ptr<const Steering> TakeSteering() { return std::move(decision_.steering); }

  // The bounds that were decided after the last step, within the engine's own.
  int32_t PrefillChunk(int32_t own) const { return Bound(decision_.prefill_chunk, own); }
  int32_t MaxSequences(int32_t own) const { return Bound(decision_.max_sequences, own); }

  // Joules of requests; null when nothing is accounted.
  EnergyAccountant* accountant() { return accountant_ ? &*accountant_ : nullptr; }
  // Accounts the time up to now.
  EnergyTotals Totals();
  // Waits until a reading confirms what was accounted, `most_s` at most. Under a plant nothing needs to be waited for.
  void Settle(double most_s);
  // No work is left: counters that rest from now on are no fault.
  void Rest();

  void SetController(std::unique_ptr<StepController> controller) { controller_ = std::move(controller); }
  StepController* controller() { return controller_.get(); }
  // What is known of the device before any work.
  struct DeviceFacts {
    EnergyPrices prices;
    double bytes_per_s = 0, flops_per_s = 0;  // 0: unknown
    double power_limit_w = 0, temp_limit_c = 0;  // the device's own; 0: unknown
    bool shows_power = false, shows_temp = false;
  };
  DeviceFacts Facts();
  const EnergyPrices& prices() const { return prices_; }
  const TelemetryInfo& info() const { return info_; }
  // The newest reading; lost where there is none.
  Snapshot Latest();

 private:
  Supervisor() = default;
  static int32_t Bound(int32_t decided, int32_t own) { return decided > 0 && decided < own ? decided : own; }
  void Look();
  void CatchUp();

  TelemetryInfo info_;
  EnergyPrices prices_;
  std::unique_ptr<TelemetrySampler> sampler_;  // live
  uint64_t seen_readings_ = 0;
  std::unique_ptr<Plant> plant_;  // virtual
  std::optional<PlantSource> plant_source_;
  std::optional<EnergyAccountant> accountant_;
  std::unique_ptr<StepController> controller_;
  StepDecision decision_;
};

}  // namespace thermoe
