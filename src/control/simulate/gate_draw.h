// SPDX-License-Identifier: Apache-2.0
// Gate logits of a model that is not there, drawn from a seed; the real rules (kernels/select.h) choose experts by them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/random.h"
#include "kernels/ops.h"
#include "model/config.h"
#include "thermoe/steering.h"

namespace thermoe {

// A gate logit is popularity[layer, expert] + text[layer, sequence, expert] + noise, each normal with this deviation. The text's part
// drifts from draw to draw.
struct GateStatistics {
  double popularity = 0, text = 0, noise = 0;
};
// Fitted to ember-22m at batch 16, 64 experts, 8 slots; drawn against measured (distinct experts of a layer): plain 49.7 / 49.65, k0 6 43.8 / 43.3,
// k0 5 40.0 / 39.2, soft 0.3 44.3 / 44.2, full 1 12.8 / 12.6 read in full; slots below 0.05 of the first 0.5 % / 0.5 %.
inline constexpr GateStatistics kEmberGate = {0.46, 0.805, 0.821};

class GateDraw {
 public:
  // `sequences`: places for sequences of their own text, 0 to sequences - 1.
  GateDraw(const ModelConfig& config, bool nested, int32_t sequences, const GateStatistics& statistics, uint64_t seed);

  // A new text begins at this place.
  void NewText(int32_t sequence);
  // Draws the next tokens' logits of one layer and selects: a decode row for each of `sequences`, then `prefill_rows` rows of one
  // prompt. Fills *record; up to `sample_rows` decode rows' logits go into record->gate_logits.
  void Draw(int32_t layer, std::span<const int32_t> sequences, int32_t prefill_rows, const LayerSteering* steering, int32_t sample_rows,
            LayerRecord* record);
  // The rows of the last Draw again, by other rules.
  void Reselect(const LayerSteering* steering, LayerRecord* record);

 private:
  const float* Normals();  // [E], anywhere in the table
  void Select(const LayerSteering* steering, LayerRecord* record);

  ModelConfig config_;
  bool nested_;
  int32_t sequences_;
  GateStatistics statistics_;
  Random random_;
  std::vector<float> normals_;     // a table: drawing each number anew would take most of a run's time
  std::vector<float> popularity_;  // [L, E]
  std::vector<float> text_;        // [L, sequences, E]
  uint64_t turn_ = 0;              // of the sampled rows

  // Scratch, grown to the largest step.
  std::vector<float> logits_, scores_, weight_;
  std::vector<int32_t> expert_, order_;
  std::vector<Planes> planes_;
  std::vector<kernels::Selection::Job> jobs_;
  std::vector<kernels::RowKind> kinds_;
};

}  // namespace thermoe
