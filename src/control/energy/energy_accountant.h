// SPDX-License-Identifier: Apache-2.0
// Joules by request and phase, from a counter that moves now and then.
//
// Between two changes of the counter lies a window. Everything in it, steps and the time between them, is predicted:
// idle power times its duration, plus bytes and FLOPs at their prices. When the counter moves, its joules are shared in
// proportion to the predictions; until then predictions stand in. A step that the change falls into is cut there. What
// a step is worth is shared between its requests by StepShare; time between steps goes in equal parts to the requests
// in flight, as idle, or to none.
//
// It has no clock of its own: times are the caller's, and rise. docs/energy.md tells the rules and why.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "control/cost/cost_model.h"
#include "control/energy/power_fit.h"
#include "control/energy/step_share.h"
#include "control/telemetry/snapshot.h"
#include "thermoe/control.h"

namespace thermoe {

class EnergyAccountant {
 public:
  using Account = int32_t;

  // `counted_as`: what joules of a counter are called. Accounting starts at `now_s`.
  EnergyAccountant(const ModelShape& model, const EnergyPrices& prices, EnergySource counted_as, double now_s);

  // A request is in flight from here until Finish; what it cost can be read until Release.
  Account Open();
  void Finish(Account account);
  void Release(Account account);

  // A reading made at `read_s`, of which only energy, power and state matter. A counter that moved closes the window at
  // that time, once that is accounted. Neither this nor the next two allocate.
  void Observe(double read_s, const Snapshot& snapshot);
  // No step ran from what was accounted last to `to_s`.
  void Idle(double to_s);
  // A step, from what was accounted last to `end_s`. `parts`: at least one, each of another account or phase.
  void Step(double end_s, const StepRecord& record, std::span<const StepPart> parts);

  // Joules so far; what the open window holds is predicted.
  RequestEnergy Read(Account account) const;
  EnergyTotals totals() const;
  EnergySource source() const;
  // Whether a reading may yet confirm what was accounted up to `time_s`.
  bool MaySettle(double time_s) const { return base_j_ && !lost_ && window_s_ < time_s; }
  const PowerFit& fit() const { return fit_; }

 private:
  enum Phase { kPrefill, kDecode, kIdle, kPhases };
  using Phases = std::array<double, kPhases>;  // J
  struct State {
    Phases settled = {}, open = {};
    double estimated_j = 0;  // of settled
    bool has_open = false;
  };
  struct Reading {
    double time_s = 0, energy_j = 0;
  };

  void Add(double to_s, const StepRecord* record, std::span<const StepPart> parts);
  void AddPiece(double seconds, double step_frac, const StepRecord* record, std::span<const StepPart> parts);
  void Charge(Account account, Phase phase, double joules);
  void Close(const Reading& reading);
  void Settle(double factor, bool estimated);
  std::optional<double> EnergyOf(double read_s, const Snapshot& snapshot);

  StepShare share_;
  EnergyPrices prices_;
  EnergySource counted_as_;
  PowerFit fit_;
  double last_s_;  // accounted up to here

  std::vector<State> states_;                     // [accounts]
  std::vector<Account> free_, in_flight_, open_;  // open_: those that the open window holds something of
  std::vector<double> shares_frac_;               // [parts]

  // The open window.
  double window_s_;                             // where it began
  Phases window_ = {};                          // predicted, of all accounts and none
  double unassigned_j_ = 0, unassigned_s_ = 0;  // the part of it that is nobody's
  double work_j_ = 0;                           // of bytes and FLOPs, at prices alone
  bool window_lost_ = false;                    // the source was lost in it

  // Readings.
  std::optional<double> base_j_;    // at window_s_
  std::optional<Reading> pending_;  // the counter moved, at a time not yet accounted
  double seen_j_ = 0, seen_s_ = 0;  // the newest reading that moved
  bool lost_ = false, counted_ = false;
  bool has_counter_ = false, by_power_ = false;
  std::optional<double> power_s_;  // of the power reading before
  double power_sum_j_ = 0;

  Phases settled_ = {};
  double settled_unassigned_j_ = 0, estimated_j_ = 0, counted_j_ = 0;
};

}  // namespace thermoe
