// SPDX-License-Identifier: Apache-2.0
// From logits to the gradient with respect to the last layer's output, for a tile of rows.
#include <algorithm>
#include <cmath>

#include "forward/backward/low_rank.h"
#include "forward/step.h"

namespace thermoe {
namespace {

// The likeliest token where its probability is at least `confidence`, or -1.
int32_t ConfidentLabel(const float* logits, int64_t vocab, float confidence) {
  const float* best = std::max_element(logits, logits + vocab);
  double sum = 0;
  for (int64_t i = 0; i < vocab; ++i) sum += std::exp(static_cast<double>(logits[i]) - *best);
  return 1.0 / sum >= confidence ? static_cast<int32_t>(best - logits) : -1;
}

// What each row of the tile learns, -1: nothing.
void SetTargets(StepContext& step, int64_t first, ConstRows logits) {
  Learning& learning = *step.learning;
  for (int64_t i = 0; i < logits.rows; ++i) {
    int32_t& target = learning.ws.targets[static_cast<size_t>(i)];
    target = step.batch.rows[static_cast<size_t>(learning.tape.first + first + i)].target;
    if (learning.objective == TttObjective::kPseudoLabels && target >= 0) {
      target = ConfidentLabel(logits.row(i), logits.cols, learning.confidence);
    }
    learning.ws.loss_scale[static_cast<size_t>(i)] = target < 0 ? 0.0f : 1.0f;
  }
}

// Rows weigh by their surprise: against the mean of the segment's rows up to this tile.
void WeighRows(Learning& learning, std::span<const int32_t> targets, MutRows dlogits) {
  const double mean = learning.loss_nats / static_cast<double>(learning.rows);
  for (size_t i = 0; i < targets.size(); ++i) {
    if (targets[i] < 0) continue;
    double weight = 1;
    if (learning.surprise != 0 && mean > 0) {
      weight = std::pow(std::clamp(learning.ws.loss[i] / mean, 0.02, 20.0), static_cast<double>(learning.surprise));
      float* row = dlogits.row(static_cast<int64_t>(i));
      for (int64_t v = 0; v < dlogits.cols; ++v) row[v] *= static_cast<float>(weight);
    }
    learning.loss_rows += weight;
  }
}

// Brings the rows of the tile that teach to its front, and what the last layer gave for them into the workspace: the tile's gradients
// from here on are theirs alone. Returns their places in the tile.
std::vector<int64_t> DropEasyRows(Learning& learning, std::span<const int32_t> targets, int64_t first, MutRows* h, MutRows* dlogits) {
  std::vector<int64_t> kept;
  for (int64_t i = 0; i < h->rows; ++i) {
    if (targets[static_cast<size_t>(i)] < 0) continue;
    if (learning.ws.loss[static_cast<size_t>(i)] < learning.least_nats) {
      ++learning.left_out;
      continue;
    }
    const auto to = static_cast<int64_t>(kept.size());
    std::copy_n(h->row(i), h->cols, h->row(to));
    std::copy_n(dlogits->row(i), dlogits->cols, dlogits->row(to));
    std::copy_n(learning.tape.output.data() + (first + i) * h->cols, h->cols, learning.ws.h.data() + to * h->cols);
    kept.push_back(i);
  }
  h->rows = dlogits->rows = static_cast<int64_t>(kept.size());
  return kept;
}

}  // namespace

void LearnFromLogits(StepContext& step, int64_t first, MutRows h, MutRows logits) {
  Learning& learning = *step.learning;
  if (learning.objective == TttObjective::kFeatureAlignment) return;
  BackwardWorkspace& ws = learning.ws;
  const auto rows = static_cast<size_t>(logits.rows);
  SetTargets(step, first, logits);
  const std::span<const int32_t> targets = std::span(ws.targets).first(rows);
  const auto taking_part = std::count_if(targets.begin(), targets.end(), [](int32_t target) { return target >= 0; });
  if (taking_part == 0) return;
  const kernels::LossKind kind =
      learning.objective == TttObjective::kEntropy ? kernels::LossKind::kEntropy : kernels::LossKind::kNll;
  step.ops.LossBackward({kind, targets, std::span(ws.loss_scale).first(rows), logits, std::span(ws.loss).first(rows)});
  for (size_t i = 0; i < rows; ++i) learning.loss_nats += ws.loss[i];
  learning.rows += taking_part;
  if (!learning.nats.empty()) std::copy_n(ws.loss.begin(), rows, learning.nats.begin() + first);
  WeighRows(learning, targets, logits);
  std::vector<int64_t> kept;
  const bool packed = learning.picks_rows();
  if (packed) {
    kept = DropEasyRows(learning, targets, first, &h, &logits);
    if (kept.empty()) return;
  }

  if (const DeltaTensor* bias = learning.Find(DeltaGroup::kOutputBias, 0)) step.ops.SumRows({logits, learning.GradientOf(*bias)});
  const DeltaTensor* low_rank = learning.Find(DeltaGroup::kLowRankOutput, 0, DeltaPart::kA);
  const DeltaTensor* hidden_bias = learning.Find(DeltaGroup::kHiddenBias, 0);
  const DeltaTensor* gain = learning.Find(DeltaGroup::kOutputGain, 0);
  const bool below = learning.lowest_layer() < step.config.layers;
  const bool hidden = below || hidden_bias != nullptr || gain != nullptr;
  if (!hidden && low_rank == nullptr) return;
  const MutRows dh = Workspace::View(ws.dh, h.rows, h.cols);
  std::fill_n(dh.data, dh.size(), 0.0f);
  LowRankBackward(step, DeltaGroup::kLowRankOutput, 0, h, logits, dh);
  if (!hidden) return;
  step.ops.LinearBackward({logits, step.weights.output, dh});
  step.Count(kernels::LinearBackwardCost(step.weights.output, h.rows));
  if (hidden_bias != nullptr) step.ops.SumRows({dh, learning.GradientOf(*hidden_bias)});
  Tape& tape = learning.tape;
  const ConstRows output{packed ? ws.h.data() : tape.output.data() + first * h.cols, h.rows, h.cols};
  if (gain != nullptr) {
    const MutRows plain_h = Workspace::View(ws.plain_h, h.rows, h.cols);
    step.ops.RmsNorm({output, step.weights.output_norm, step.config.norm_epsilon, plain_h});
    step.ops.GainBackward({tape.deltas->of(*gain), plain_h, dh, learning.GradientOf(*gain)});
  }
  if (!below) return;
  const MutRows dx{packed ? ws.slot_dx.data() : tape.dx.data() + first * h.cols, h.rows, h.cols};
  if (packed) std::fill_n(dx.data, dx.size(), 0.0f);
  step.ops.RmsNormBackward({output, step.weights.output_norm, step.config.norm_epsilon, dh, dx});
  for (size_t i = 0; i < kept.size(); ++i) {
    if (ws.loss[static_cast<size_t>(kept[i])] < learning.deep_nats) continue;
    learning.held[static_cast<size_t>(first + kept[i])] = 0;
    std::copy_n(dx.row(static_cast<int64_t>(i)), h.cols, tape.dx.data() + (first + kept[i]) * h.cols);
  }
}

}  // namespace thermoe
