// SPDX-License-Identifier: Apache-2.0
// The backward pass of test-time training: gradients of a segment's loss with respect to a session's deltas
// (docs/test-time-training.md). Base weights get no gradients; only input gradients flow through them.
//
// Loss() runs inside the forward pass, where the logits are; Backward() after it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "forward/backward/tape.h"
#include "forward/deltas.h"
#include "kernels/ops.h"
#include "model/config.h"
#include "model/weights.h"
#include "runtime/expert_store.h"
#include "runtime/kv_cache.h"
#include "thermoe/steering.h"
#include "thermoe/ttt.h"

namespace thermoe {

// Mean and variance of the residual stream after each layer, over a calibration text.
struct FeatureStatistics {
  int32_t layers = 0, hidden = 0;
  std::vector<float> mean, variance;  // [L, D]
};

// Scratch of a backward pass, allocated once for the longest segment. T: its rows.
class BackwardWorkspace {
 public:
  BackwardWorkspace(const ModelConfig& config, int64_t max_rows, bool keeps_inner);
  static int64_t BytesFor(const ModelConfig& config, int64_t max_rows, bool keeps_inner);

  std::vector<float> h, plain_h;      // [T, D] normalised input of a stage with and without its gain
  std::vector<float> dh;              // [T, D]
  std::vector<float> q, dq, dattended;  // [T, heads * head_dim]
  std::vector<float> k, dk, dv;       // [T, kv_heads * head_dim]
  std::vector<float> draw;            // [T, heads * head_dim] gradient before a norm of heads
  std::vector<float> cosines, sines, minus_sines;  // [T, rope_dim / 2]
  std::vector<float> scores;          // [T, E]
  std::vector<float> dgate;           // [T, E]
  std::vector<float> weight, dweight;  // [T, K]
  std::vector<int32_t> order;         // [T * K]
  std::vector<kernels::Selection::Job> jobs;  // [2 E]
  std::vector<float> slot_dx;         // [T * K, D]
  std::vector<float> inner_gate, inner_up;    // [T * K, F] where the tape keeps none
  std::vector<float> shared_gate, shared_up, shared_out, shared_dout;  // [T, shared width] twice, [T, D] twice
  std::vector<float> shared_scale, shared_dscale;  // [T, 1]
  std::vector<float> low_rank, dlow_rank;  // [T, kMaxRank]
  std::vector<int32_t> targets;       // [T]
  std::vector<float> loss_scale, loss;  // [T]

 private:
  BackwardWorkspace() = default;
  template <typename Visitor>
  static void VisitBuffers(BackwardWorkspace& ws, const ModelConfig& config, int64_t rows, bool keeps_inner, const Visitor& visit);
};

// What learning from segments of up to `max_rows` rows takes: tape and workspace, with or without the experts' inner activations.
int64_t LearningBytes(const ModelConfig& config, int32_t lowest_layer, int64_t max_rows, bool keeps_inner);

struct Learning {
  Tape& tape;
  BackwardWorkspace& ws;
  std::span<float> gradient;  // [layout->size()] summed over the rows that take part, zeroed by Begin
  TttObjective objective = TttObjective::kNll;
  float confidence = 0;
  const FeatureStatistics* features = nullptr;  // of kFeatureAlignment
  float surprise = 0;         // TttOptions::surprise
  DeltaScope scope = {};      // what this segment's update learns
  float least_nats = 0;       // a token below it teaches nothing: it leaves the backward pass before the output matrix
  float deep_nats = 0;        // a token below it does not go below the output: its keys, values and experts are held as they are
  std::vector<uint8_t> held = {};  // [rows] set by the loss where one of the two is above 0: rows that the layers leave alone
  std::span<float> nats = {};  // [rows of the segment] NLL of each token before it is learnt, for whoever asks; or empty
  double loss_nats = 0;       // summed over the rows that took part
  double loss_rows = 0;       // what the gradient is divided by: rows by their weights
  int64_t rows = 0;           // that have a target
  int64_t left_out = 0;       // of them, by least_nats
  double spent_bytes = 0, spent_flops = 0;  // of the step's record, what LearnFromLogits added

  const DeltaLayout& layout() const { return *tape.deltas->layout; }
  // Where the backward pass ends: below it nothing is learnt. The number of layers: it does not begin.
  int32_t lowest_layer() const { return std::max(layout().lowest_layer(), scope.lowest_layer); }
  bool lowest_has_attention() const { return lowest_layer() > layout().lowest_layer() || layout().lowest_has_attention(); }
  bool picks_rows() const { return least_nats > 0 || deep_nats > 0; }
  // Null where the deltas do not have it.
  const DeltaTensor* Find(DeltaGroup group, int32_t layer, DeltaPart part = DeltaPart::kWhole) const {
    return layout().Find(group, layer, part);
  }
  std::span<float> GradientOf(const DeltaTensor& tensor) const {
    return gradient.subspan(static_cast<size_t>(tensor.offset), static_cast<size_t>(tensor.size()));
  }
  // Sets gradient, dx, losses and what was spent to zero.
  void Begin();
};

struct StepContext;

// Inside the forward pass, for a tile of rows whose logits are there: `h` [rows, D] is the input of the output matrix, `logits`
// [rows, V] become their gradients; the rows are neighbours and the first is row `first` of the segment.
void LearnFromLogits(StepContext& step, int64_t first, MutRows h, MutRows logits);

// After the forward pass: from the last layer down to the lowest that is adapted.
void Backward(StepContext& step);
void ExpertsBackward(StepContext& step, int32_t layer);
void AttentionBackward(StepContext& step, int32_t layer);
// dx += gradient of the distance of layer `layer`'s output `x` from its stored statistics.
void FeaturesBackward(Learning& learning, int32_t layer, ConstRows x, MutRows dx);

}  // namespace thermoe
