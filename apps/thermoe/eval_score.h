// SPDX-License-Identifier: Apache-2.0
// Scores windows with an engine and sums what the steps recorded.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "eval_windows.h"
#include "thermoe/engine.h"
#include "thermoe/status.h"

namespace thermoe {

// Sums over steps; means are per MoE layer.
struct ExpertUse {
  int64_t layer_steps = 0;   // MoE layers times steps
  int64_t layer_tokens = 0;  // MoE layers times rows
  double distinct = 0, distinct_full = 0;
  double slots_full = 0, slots_hi = 0, slots_dropped = 0;
  double gate_mass_lost = 0;

  void Add(const StepRecord& record);
  double MeanDistinct() const { return distinct / std::max<double>(1, layer_steps); }
  double MeanSlots() const { return (slots_full + slots_hi) / std::max<double>(1, layer_tokens); }
  double MeanGateMassLost() const { return gate_mass_lost / std::max<double>(1, layer_tokens); }
  // Expert bytes read per layer and step, in whole 8-bit experts: the hi plane is 18 of a block's 34 bytes. A step
  // reads an expert once for all its tokens.
  double ExpertsReadPerStep() const {
    return (distinct * 18 + distinct_full * 16) / 34 / std::max<double>(1, layer_steps);
  }
  // The same per layer and token, as if each token ran alone.
  double ExpertsReadPerToken() const {
    return (slots_full * 34 + slots_hi * 18) / 34 / std::max<double>(1, layer_tokens);
  }
};

struct WindowScore {
  double nll_sum = 0;  // nats, over the counted predictions
  int counted = 0;

  double mean_nll() const { return nll_sum / counted; }
};

struct Scores {
  std::vector<WindowScore> windows;
  ExpertUse use;

  int64_t tokens() const;
  double mean_nll() const;
};

// Mean and standard error of the windows' own mean changes.
struct Change {
  double mean_nats = 0;
  double error_nats = 0;  // NaN with fewer than two windows
};

// `steered` against `plain` on the same windows.
Change PairedChange(const Scores& steered, const Scores& plain);

// Called with the predictions done so far.
using ScoreProgress = std::function<void(int64_t predictions)>;

// Each window as one prompt through prefill.
Result<Scores> ScoreByPrefill(Engine* engine, const std::vector<EvalWindow>& windows, const ScoreProgress& progress);

// `batch` consecutive windows at a time in lock step through decode steps, each window teacher-forced after its first
// id. That id is a prefill row, so batch-aware selection does not act on it; `use` sums decode steps only.
Result<Scores> ScoreByDecode(Engine* engine, const std::vector<EvalWindow>& windows, int batch,
                             const ScoreProgress& progress);

}  // namespace thermoe
