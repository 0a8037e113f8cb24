// SPDX-License-Identifier: Apache-2.0
// TthaAdapter: test-time hardware adaptation. Learns, while the machine is strained, which experts to avoid
// (docs/ttha.md).
//
// A small network maps what is known of each expert and of the device to a bias on the gate's ranking. UpdateTtha takes
// one step on the loss of ttha_terms.h, predicted through the relaxation of ttha_relaxation.h. Nothing is allocated
// after construction.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "control/router/ttha_network.h"
#include "control/router/ttha_relaxation.h"
#include "control/router/ttha_terms.h"
#include "control/telemetry/snapshot.h"
#include "forward/steering.h"

namespace thermoe {

// The device now. A field without a value is unknown and counts as unremarkable.
struct TthaDevice {
  std::optional<double> temp_margin_c, temp_slope_c_per_s;
  std::optional<double> power_frac;  // of the limit
  std::optional<double> utilisation_frac, memory_utilisation_frac;
  std::optional<double> clock_frac;          // of the highest
  uint32_t throttle = 0;                     // bits of Throttle
  std::optional<double> latency_slack_frac;  // 1 - latency / target
  double queued = 0;                         // requests that wait
};
// Power against `power_limit_w` and temperature against `temp_limit_c` where above 0, else against the device's own.
TthaDevice TthaDeviceFrom(const Snapshot& now, const Snapshot* before, double power_limit_w, double temp_limit_c);

// What touching one expert of a layer costs at the current state: the six costs of CostPrediction.
struct TthaExpertCost {
  double latency_us = 0, energy_j = 0, temp_rise_c = 0, memory_bytes = 0;
  double compute_utilisation_frac = 0, memory_utilisation_frac = 0;
};

struct TthaOptions {
  RelaxationShape shape;
  // The strongest bias, in units of the mean K-th best score of the layer: the gate adds biases to its probabilities,
  // and an expert of that score is what a biased one competes with.
  float bound = 2.0f;
  float learning_rate = 0.02f;
  float memory = 0.05f;  // weight of an update's rows in the moving averages
  TthaPrices prices;
  bool prefer_quality = false;
};

// What an update is told. Spans may be empty and live only during the call.
struct TthaObserved {
  const StepRecord* record = nullptr;  // the newest step, with a sample of gate logits
  TthaDevice device;
  TthaMachine machine;
  TthaLimits limits;
  TthaMultipliers multipliers;
  std::span<const float> expert_bytes;  // [L, E] that reading the expert takes at the point in force; empty: 1 each
  std::span<const TthaExpertCost> layer_costs;  // [L]; empty: unknown
  std::span<const float> residency_frac;        // [L, E] of the expert's planes that are in fast memory; empty: all
};

// For logs and metrics. Values as they enter the loss: weight * value, summed, is what the step descends.
struct TthaReport {
  TthaValues value = {}, weight = {};
  TthaForecast forecast;
  double gain = 0;             // g: min(1, sum of the multipliers)
  double uncertainty_nll = 0;  // ttha_uncertainty: of the loads that were seen
  double mean_shrink = 1;      // what uncertainty leaves of the biases
  bool stepped = false;        // the weights moved
};

class TthaAdapter {
 public:
  explicit TthaAdapter(const TthaOptions& options);

  // Counts the loads of a step; cheap, for every step.
  void Observe(const StepRecord& record);
  // Once a tick: learns from `observed` and sets biases().
  const TthaReport& UpdateTtha(const TthaObserved& observed);

  // No limit presses: neutral at once, without an update. What was learnt stays.
  void Rest();

  // [L, E], each <= 0 with a 0 in every layer; all exactly 0 while no multiplier is above 0 and before the first rows
  // came.
  const std::vector<float>& biases() const { return published_; }
  // [E] of a layer; empty while neutral.
  std::span<const float> Biases(int32_t layer) const;
  uint64_t version() const { return version_; }  // moves when biases() do
  bool neutral() const { return report_.gain <= 0; }
  // Writes biases() into layers [L]; empty selection biases when neutral.
  void Publish(Steering* steering) const;
  const TthaReport& report() const { return report_; }

  std::string ToJson() const { return network_.ToJson(); }
  Status FromJson(std::string_view text, const std::string& source) { return network_.FromJson(text, source); }

  // The parts of an update, for tests and tools. Assess computes features, biases and terms and learns nothing.
  const TthaReport& Assess(const TthaObserved& observed);
  // d (sum weight * value) / d unshifted biases [L, E], at the last Assess.
  const std::vector<float>& GradientByBias(const TthaValues& weights);
  // The same by the network's weights, after GradientByBias; uncertainty counts as given.
  std::span<const float> GradientByWeights();
  TthaNetwork& network() { return network_; }
  TthaRelaxation& relaxation() { return relaxation_; }
  // Terms at biases of the caller's choice, [L, E].
  void Evaluate(const TthaObserved& observed, const float* biases);
  // [L, E]: the group of each expert for ttha_balance, 0 to groups - 1.
  void SetPlacement(std::span<const uint16_t> group_of_expert, int32_t groups);
  // Adds the sample of a record to the reservoir and the averages.
  void AddRows(const StepRecord& record);

 private:
  void LearnUncertainty();
  void SetFeatures(const TthaObserved& observed);
  void SetDeviceFeatures(const TthaDevice& device, double gain);
  void EvaluateBalance();

  TthaOptions options_;
  size_t all_ = 0;  // L * E
  TthaRelaxation relaxation_;
  TthaNetwork network_;
  TthaReport report_;
  int32_t tokens_ = 1;  // of a decode step, B
  // Moving averages.
  std::vector<float> popularity_;  // [L, E] share of tokens whose plain choice has the expert
  std::vector<float> load_;        // [L, E] share of tokens that got it
  std::vector<float> kth_score_;   // [L]
  std::vector<int32_t> seen_;      // [L] updates with rows
  // Since the last update.
  std::vector<float> slots_;  // [L, E]
  double slot_tokens_ = 0;
  bool predicted_ = false;  // chosen() holds a prediction of the loads to come
  // Of this update.
  std::vector<float> features_;  // [L * E, kFeatures]
  std::array<float, TthaNetwork::kDevice> device_ = {};
  std::vector<float> scale_;            // [L, E]: d bias / d network's output, without g
  std::vector<float> raw_, published_;  // [L, E]
  std::vector<float> bytes_;            // [L, E]
  std::vector<float> by_bias_, by_output_, by_chosen_, by_active_, by_variance_;  // [L, E] scratch
  std::vector<float> counted_;                                                    // [E] scratch
  TthaByteTerms byte_terms_;
  std::vector<uint16_t> group_;     // [L, E]
  std::vector<double> group_load_;  // [groups], shares
  int32_t groups_ = 1;
  uint64_t version_ = 0;
};

}  // namespace thermoe
