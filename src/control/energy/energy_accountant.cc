// SPDX-License-Identifier: Apache-2.0
#include "control/energy/energy_accountant.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"

namespace thermoe {
namespace {

constexpr double kLeastIdle_w = 0.01;      // where prices say less: predictions need something to be in proportion to
constexpr double kMostPowerStep_s = 0.35;  // power readings further apart do not say what was drawn in between
constexpr double kLongWindow_s = 1;  // longer ones with more idle time of nobody than work say little about the work
constexpr double kAllEstimated_frac = 0.99;
// A counter that shows less than this share of what is predicted for a window with a loss in it was reset meanwhile.
constexpr double kLeastAfterLoss_frac = 0.7;

double Sum(std::span<const double> values) { return std::accumulate(values.begin(), values.end(), 0.0); }
double Share(double part, double whole) { return whole > 0 ? std::clamp(part / whole, 0.0, 1.0) : 0; }

}  // namespace

EnergyAccountant::EnergyAccountant(const ModelShape& model, const EnergyPrices& prices, EnergySource counted_as,
                                   double now_s)
    : share_(model, prices),
      prices_(prices),
      counted_as_(counted_as),
      fit_(std::max(prices.idle_w, kLeastIdle_w)),
      last_s_(now_s),
      window_s_(now_s) {}

EnergyAccountant::Account EnergyAccountant::Open() {
  if (free_.empty()) {
    free_.push_back(static_cast<Account>(states_.size()));
    states_.emplace_back();
    // What steps and Release need, so that they allocate nothing.
    for (std::vector<Account>* list : {&free_, &in_flight_, &open_}) list->reserve(states_.capacity());
    shares_frac_.resize(states_.size());
  }
  const Account account = free_.back();
  free_.pop_back();
  states_[static_cast<size_t>(account)] = State{};
  in_flight_.push_back(account);
  return account;
}

void EnergyAccountant::Finish(Account account) { std::erase(in_flight_, account); }

// What the open window holds of it stays in the window's own sums.
void EnergyAccountant::Release(Account account) {
  Finish(account);
  std::erase(open_, account);
  free_.push_back(account);
}

// The counter; or power readings summed over time, for a source that never showed a counter.
std::optional<double> EnergyAccountant::EnergyOf(double read_s, const Snapshot& snapshot) {
  if (snapshot.energy_j) {
    if (by_power_) base_j_.reset();  // another zero
    by_power_ = false;
    has_counter_ = true;
    return snapshot.energy_j;
  }
  if (has_counter_) return std::nullopt;
  if (!snapshot.power_w) {
    power_s_.reset();
    return std::nullopt;
  }
  const double step_s = power_s_ ? read_s - *power_s_ : -1;
  power_s_ = read_s;
  by_power_ = true;
  if (step_s < 0 || step_s > kMostPowerStep_s) {
    base_j_.reset();
  } else {
    power_sum_j_ += *snapshot.power_w * step_s;
  }
  return power_sum_j_;
}

void EnergyAccountant::Observe(double read_s, const Snapshot& snapshot) {
  lost_ = snapshot.state == SourceState::kLost;
  window_lost_ = window_lost_ || lost_;
  const std::optional<double> energy_j = EnergyOf(read_s, snapshot);
  // Back after a loss that a counter cannot have rested for, and where it was: it was reset.
  const bool was_reset = window_lost_ && !lost_ && read_s - seen_s_ > kStaleAfter_s;
  if (!energy_j || !std::isfinite(*energy_j) || (base_j_ && *energy_j == seen_j_ && !was_reset)) return;
  seen_j_ = *energy_j;
  seen_s_ = read_s;
  const Reading reading{std::max(read_s, last_s_), *energy_j};
  if (read_s > last_s_) {
    pending_ = reading;
  } else {
    pending_.reset();
    Close(reading);
  }
}

void EnergyAccountant::Idle(double to_s) { Add(to_s, nullptr, {}); }

void EnergyAccountant::Step(double end_s, const StepRecord& record, std::span<const StepPart> parts) {
  THERMOE_CHECK(!parts.empty());
  if (shares_frac_.size() < parts.size()) shares_frac_.resize(parts.size());
  share_.Share(record, parts, std::span(shares_frac_).first(parts.size()));
  Add(end_s, &record, parts);
}

void EnergyAccountant::Add(double to_s, const StepRecord* record, std::span<const StepPart> parts) {
  const double from_s = last_s_, seconds = std::max(0.0, to_s - from_s);
  double done_frac = 0;
  if (pending_ && pending_->time_s < to_s) {
    const double before_s = std::max(0.0, pending_->time_s - from_s);
    done_frac = before_s / seconds;
    AddPiece(before_s, done_frac, record, parts);
    Close(*pending_);
    pending_.reset();
  }
  AddPiece(seconds * (1 - done_frac), 1 - done_frac, record, parts);
  last_s_ = std::max(last_s_, to_s);
  if (pending_ && pending_->time_s <= last_s_) {
    Close(*pending_);
    pending_.reset();
  }
}

// `seconds` of a step, which are `step_frac` of it, or of no step.
void EnergyAccountant::AddPiece(double seconds, double step_frac, const StepRecord* record,
                                std::span<const StepPart> parts) {
  const double idle_j = fit_.idle_w() * seconds;
  if (record != nullptr) {
    const double bytes = record->weight_bytes + record->kv_bytes;
    const double work_j = step_frac * (bytes * prices_.j_per_byte + record->flops * prices_.j_per_flop);
    work_j_ += work_j;
    const double step_j = idle_j + fit_.scale() * work_j;
    for (size_t i = 0; i < parts.size(); ++i) {
      Charge(parts[i].account, parts[i].prefill ? kPrefill : kDecode, step_j * shares_frac_[i]);
    }
  } else if (in_flight_.empty()) {
    window_[kIdle] += idle_j;
    unassigned_j_ += idle_j;
    unassigned_s_ += seconds;
  } else {
    for (const Account account : in_flight_) Charge(account, kIdle, idle_j / static_cast<double>(in_flight_.size()));
  }
}

void EnergyAccountant::Charge(Account account, Phase phase, double joules) {
  State& state = states_[static_cast<size_t>(account)];
  if (!state.has_open) open_.push_back(account);
  state.has_open = true;
  state.open[phase] += joules;
  window_[phase] += joules;
}

// The counter moved to `reading`: its joules go to what the window holds.
void EnergyAccountant::Close(const Reading& reading) {
  const double gained_j = base_j_ ? reading.energy_j - *base_j_ : -1;
  const double seconds = reading.time_s - window_s_, predicted_j = Sum(window_);
  const bool was_reset = window_lost_ && gained_j < kLeastAfterLoss_frac * predicted_j;
  if (gained_j < 0 || was_reset) {
    Settle(1, true);  // from before the first reading, or across a reset: no reading will ever tell
  } else {
    counted_ = true;
    counted_j_ += gained_j;
    if (seconds > 0 && !window_lost_) fit_.Learn(gained_j / seconds, work_j_ / seconds);
    const double assigned_j = predicted_j - unassigned_j_;
    if (seconds > kLongWindow_s && unassigned_s_ > 0.5 * seconds) {
      // Some work, then nobody looked for long: the work as predicted, and what is left was idling.
      const double work_j = std::min(assigned_j, gained_j);
      window_[kIdle] -= unassigned_j_;
      unassigned_j_ = 0;
      Settle(assigned_j > 0 ? work_j / assigned_j : 0, true);
      settled_[kIdle] += gained_j - work_j;
      settled_unassigned_j_ += gained_j - work_j;
    } else if (predicted_j > 0) {
      Settle(gained_j / predicted_j, false);
    } else {
      settled_[kIdle] += gained_j;
      settled_unassigned_j_ += gained_j;
    }
  }
  base_j_ = reading.energy_j;
  window_s_ = reading.time_s;
  window_lost_ = lost_;
}

// Makes `factor` times its predictions of the open window final, and empties it.
void EnergyAccountant::Settle(double factor, bool estimated) {
  for (const Account account : open_) {
    State& state = states_[static_cast<size_t>(account)];
    for (int p = 0; p < kPhases; ++p) state.settled[p] += factor * state.open[p];
    if (estimated) state.estimated_j += factor * Sum(state.open);
    state.open = {};
    state.has_open = false;
  }
  open_.clear();
  for (int p = 0; p < kPhases; ++p) settled_[p] += factor * window_[p];
  settled_unassigned_j_ += factor * unassigned_j_;
  if (estimated) estimated_j_ += factor * Sum(window_);
  window_ = {};
  unassigned_j_ = unassigned_s_ = work_j_ = 0;
}

EnergySource EnergyAccountant::source() const {
  // Who sees a recording's readings must be told, also while they have not moved yet.
  if (!counted_) return counted_as_ == EnergySource::kReplayed ? counted_as_ : EnergySource::kEstimate;
  return by_power_ && counted_as_ == EnergySource::kCounter ? EnergySource::kPower : counted_as_;
}

RequestEnergy EnergyAccountant::Read(Account account) const {
  const State& state = states_[static_cast<size_t>(account)];
  RequestEnergy energy;
  energy.prefill_j = state.settled[kPrefill] + state.open[kPrefill];
  energy.decode_j = state.settled[kDecode] + state.open[kDecode];
  energy.idle_j = state.settled[kIdle] + state.open[kIdle];
  energy.estimated_frac = Share(state.estimated_j + Sum(state.open), energy.total_j());
  energy.source = source();
  if (energy.estimated_frac > kAllEstimated_frac && counted_as_ != EnergySource::kReplayed)
    energy.source = EnergySource::kEstimate;
  if (energy.source == EnergySource::kEstimate) energy.estimated_frac = 1;
  return energy;
}

EnergyTotals EnergyAccountant::totals() const {
  EnergyTotals totals;
  totals.prefill_j = settled_[kPrefill] + window_[kPrefill];
  totals.decode_j = settled_[kDecode] + window_[kDecode];
  totals.idle_j = settled_[kIdle] + window_[kIdle];
  totals.unassigned_idle_j = settled_unassigned_j_ + unassigned_j_;
  totals.estimated_frac = !counted_ ? 1 : Share(estimated_j_ + Sum(window_), totals.total_j());
  totals.source = source();
  totals.counted_j = counted_j_;
  return totals;
}

}  // namespace thermoe
