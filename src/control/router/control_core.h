// SPDX-License-Identifier: Apache-2.0
// The decisions of the control loop, without steering objects, files or clocks: StepInput to StepOutput. Reproducible
// to the bit.
#pragma once

#include <vector>

#include "control/router/adaptive_router.h"
#include "control/router/control_config.h"
#include "control/router/energy_model.h"
#include "control/router/gather.h"
#include "control/router/load_mix.h"
#include "control/router/multiplier.h"
#include "control/router/pacer.h"
#include "control/router/quality_budget.h"
#include "control/router/step_input.h"
#include "control/router/thermal_forecast.h"
#include "control/router/ttha_adapter.h"

namespace thermoe {

// What is kept from run to run.
struct ControlState {
  struct Lambda {
    double integral = 0, smoothed = 0;
  };
  Lambda power, temp, latency;
  EnergyModel::State energy;
  ThermalForecast::State thermal;
  double reference_j = 0;  // joules of a token
  std::string ttha;        // weights of the hardware adapter as JSON; "": none
};

class ControlCore {
 public:
  // `points`: plain first; `fixed`: the only one to use, or -1.
  ControlCore(const ControlConfig& config, std::vector<OperatingPoint> points, int32_t fixed);

  StepOutput AfterStep(const StepInput& step);
  void SetLimits(const ControlLimits& limits);  // checked by the caller

  const ControlStatus& status() const { return status_; }
  const AdaptiveRouter& router() const { return router_; }
  bool ticked() const { return ticked_; }  // in the last AfterStep
  // Joules counted, and predicted for the same stretch, when the counter last moved.
  double counted_j() const { return counted_j_; }
  double predicted_j() const { return predicted_j_; }

  // Machine, limits and multipliers as the hardware adapter reads them; what it observed itself is left out.
  TthaObserved Observed() const;
  // What the device is doing, beside what `now` says.
  void AddTo(TthaDevice* device, int32_t queued) const;
  // For the status; null: off.
  void ShowAdapter(const TthaReport* report);

  // Without the adapter's.
  ControlState state() const;
  // False, and nothing changes, when it is not one that a loop can come to.
  bool Restore(const ControlState& state);

 private:
  struct Window {  // since the counter moved last
    WorkTotals work;
    double predicted_j = 0;
  };

  void Account(const StepInput& step);
  void ReadEnergy(const StepInput& step);
  bool Plausible(double counted_j, const Window& window);
  bool SensorsFail(const StepInput& step) const;
  void Tick(const StepInput& step, bool urgent);
  double BlindFrac() const;
  double PacedUncertainty(int32_t point) const;
  void SetCaution();
  void SetCap(const SensorInput& sensors, double dt_s);
  void MovePrices(double dt_s);
  void ChoosePoint(const StepInput& step, bool urgent);
  void SolveBudget(double dt_s);
  void Take(int32_t point, double now_s);
  double Pause(const StepInput& step);
  void BoundWork(const RouterInput& input, const StepInput& step);
  RouterInput InputNow() const;
  void Show(const StepInput& step);
  void NoteUnmet(double now_s);

  ControlConfig config_;
  AdaptiveRouter router_;
  std::vector<std::string> texts_;  // [points]
  Multiplier power_, temp_, latency_;
  EnergyModel model_;
  ThermalForecast forecast_;
  Pacer pacer_;
  LoadMix mix_;
  QualityBudget budget_;
  Gather gather_;

  StepOutput output_;
  double last_end_s_ = 0;
  double pause_s_ = 0, paced_s_ = 0;  // before the present step: in all, and for a cap
  bool started_ = false;
  // Energy.
  bool seen_energy_ = false, anchored_ = false;
  double energy_j_ = 0, energy_moved_s_ = 0;  // the counter's last value, and since when it shows that
  Window last_;                               // the newest step, with what lies before it
  Window window_;
  WorkTotals learn_;  // the same since the model last learnt
  double learn_j_ = 0, learn_cut_j2_ = 0;
  double cut_j2_ = 0;   // of the end that the window began with
  int32_t absurd_ = 0;  // windows in a row that the model does not believe
  double counted_j_ = 0, predicted_j_ = 0, measured_w_ = 0;
  double tick_j_ = 0, tick_window_s_ = 0;  // counted since the last tick
  // Running means.
  double latency_s_ = 0, paused_s_ = 0, elapsed_s_ = 0, drawn_j_ = 0;
  int32_t late_steps_ = 0;  // decode steps over the target in a row
  // Ticks.
  double tick_s_ = 0, changed_s_ = -1e9, bounded_s_ = -1e9;
  double caution_frac_ = 0;  // added to what is paced for
  bool wary_ = false;        // sensors failed, and prices are not known well yet
  bool safest_ = false, limits_changed_ = false, ticked_ = false;
  bool by_budget_ = false;  // points follow each step's batch
  double heat_cap_w_ = 0;   // that the temperature limit allows; 0: none or unknown
  double reference_j_ = 0;
  DecisionReason reason_ = DecisionReason::kHeadroom;
  Unmet failing_ = Unmet::kNone;  // at the last tick, and since when
  double failing_since_s_ = 0;
  ControlStatus status_;
};

}  // namespace thermoe
