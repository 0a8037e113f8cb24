// SPDX-License-Identifier: Apache-2.0
// KernelCostModel: what an operation would cost, as a pure function of measured points and an operation's shape.
//
// A table of points belongs to a family, weight type and matrix. Inside its grid: piecewise linear in the logarithms of
// size and latency, or in steps where whole rounds of blocks were measured (cost_rounds.h). Where nothing was measured: a
// roofline, at the speed that the family reached elsewhere. Predictions never fall when an operation grows, but where
// another kernel takes over: where the latencies of an operation of rows, or of most launches of experts (cost_switch.h),
// were measured to fall for good.
#pragma once

#include <array>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "control/cost/cost_table.h"
#include "control/cost/operation.h"
#include "control/cost/stage_correction.h"
#include "control/telemetry/snapshot.h"

namespace thermoe {

// One measured operation.
struct CostPoint {
  OperationShape shape;
  double latency_us = 0;           // lower quartile of the visits
  double spread_frac = 0;          // half the distance of the visits' quartiles, over latency_us
  std::optional<double> energy_j;  // of one call, idle power included; unknown without a counter
  double bytes = 0, flops = 0;     // CostOf(shape)
  bool held_out = false;           // measured to test predictions; the model does not read it
};

// What turns bytes, FLOPs and time into joules and degrees where no counter measures them. Energy predicted from these
// is always marked as an estimate. Defaults: the order of size of one server core and its memory.
struct EnergyPrices {
  double idle_w = 5;
  double j_per_byte = 60e-12;
  double j_per_flop = 20e-12;
  double die_j_per_c = 20;  // heat that warms the die by one degree when none flows away
};

enum class PredictionBasis : uint8_t {
  kGrid,      // inside measured points
  kOutside,   // beyond the edge of measured points
  kRoofline,  // nothing measured for this family, type and matrix
};
const char* PredictionBasisName(PredictionBasis basis);  // "grid", "outside", "roofline"

struct CostPrediction {
  double latency_us = 0;
  double energy_j = 0;
  bool energy_measured = false;                                      // from a counter, else an estimate
  double temp_rise_c = 0;                                            // an estimate: of the die if no heat flowed away
  double memory_bytes = 0;                                           // moved: weights, activations, keys and values
  double compute_utilisation_frac = 0, memory_utilisation_frac = 0;  // of the most that any point reached
  double uncertainty_frac = 0;                                       // one standard deviation of latency, relative
  PredictionBasis basis = PredictionBasis::kGrid;
};

struct StepPrediction {
  CostPrediction total;
  std::array<double, kStages> stage_us = {};  // by Stage, corrected; they sum to total.latency_us
};

// A step that was learnt: what its stages took, and what they were predicted to take just before, corrected and as
// profiled.
struct LearntStep {
  double measured_us = 0, corrected_us = 0, plain_us = 0;
};

class KernelCostModel {
 public:
  KernelCostModel() = default;
  // Points that were held out, are not finite or not above 0 are left out. Steps that mix precisions say how their two kinds of jobs are done:
  // in one call, in calls of their own or somewhere between; or with each expert read once, whoever wants it.
  explicit KernelCostModel(std::vector<CostPoint> points, const EnergyPrices& prices = {});

  // One call. Family factors of the correction apply, offsets (of whole stages) do not. `now`: the power it shows
  // prices the time of operations whose energy was not measured.
  CostPrediction Predict(const OperationShape& shape, const Snapshot* now = nullptr) const;
  StepPrediction PredictStep(const ModelShape& model, const StepShape& step, const Snapshot* now = nullptr) const;

  // Learns from what a step took. Nothing when the record cannot be true (times missing, not finite, absurd) and was
  // ignored. Allocates only for the first record of a model.
  std::optional<LearntStep> Learn(const ModelShape& model, const StepRecord& record);
  const StageCorrection& correction(Stage stage) const { return corrections_[static_cast<size_t>(stage)]; }

  // The tables, roofs and corrections, for people.
  std::string Describe() const;
  double peak_gbps() const { return roof_bytes_per_us_ * 1e-3; }
  double peak_gflops() const { return roof_flops_per_us_ * 1e-3; }
  size_t points() const { return points_; }

 private:
  using Key = std::tuple<Family, DType, DType, bool, int64_t, int64_t, int32_t, int32_t>;

  static Key KeyOf(const OperationShape& shape);
  static CostCoords CoordsOf(const OperationShape& shape);
  void MakeTables(std::map<Key, CostTable> measured);
  double RooflineUs(const OperationShape& shape) const;
  // Latency, uncertainty and basis of one call without correction.
  CostPrediction Plain(const OperationShape& shape, double* watts) const;
  CostPrediction Single(const OperationShape& shape, double* watts) const;
  CostPrediction Mixed(const OperationShape& shape, double* watts) const;
  void LearnMixing(const std::vector<CostPoint>& mixed);
  void Finish(const OperationShape& shape, double watts, const Snapshot* now, CostPrediction* prediction) const;
  std::array<double, kStages> PlainStages(std::span<const PlannedOperation> plan) const;

  std::map<Key, std::vector<CostTable>> tables_;  // of one kernel each, smaller launches first
  std::array<double, kFamilies> slowness_ = {};  // median of measured over roofline; 0: nothing measured
  // What a machine of which nothing is known is taken to reach: 10 GB/s, 20 GFLOP/s, 1 us a call.
  double roof_bytes_per_us_ = 1e4, roof_flops_per_us_ = 2e4, call_us_ = 1;
  EnergyPrices prices_;
  // Of mixed experts. How far apart the two kinds of jobs are done: 0 they share a call, 1 each kind has its own. Or an expert is read once for both, at
  // the cost of as many experts, each with all its slots, times this; 0: it is not.
  double apart_frac_ = 0, once_factor_ = 0;
  size_t points_ = 0;
  std::array<StageCorrection, kStages> corrections_;
  // Of Learn, kept for their memory.
  StepShape learnt_step_;
  std::vector<PlannedOperation> learnt_plan_;
};

// A stage of a family's operations when they are looked at alone. Norm and add, which several stages use, belong to
// attention.
Stage StageOf(Family family);

// How far predictions are from measured points that the model has not seen.
struct CostErrors {
  int points = 0;
  double median_frac = 0, p95_frac = 0;
};
CostErrors ErrorsOf(const KernelCostModel& model, const std::vector<CostPoint>& held_out);
// The same of joules, of points that have them measured.
CostErrors EnergyErrorsOf(const KernelCostModel& model, const std::vector<CostPoint>& held_out);

}  // namespace thermoe
