// SPDX-License-Identifier: Apache-2.0
// What the gates of a simulated step choose. Drawing every layer at every step would take most of a run's time, so layers take turns:
// each step draws one layer anew and keeps what the others drew before, unless their steering or batch has changed.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "control/simulate/gate_draw.h"

namespace thermoe {

class SimRouting {
 public:
  SimRouting(const ModelConfig& config, bool nested, int32_t sequences, uint64_t seed);

  void NewText(int32_t sequence) { gate_.NewText(sequence); }
  // A step of a decode row for each of `sequences` and `prefill_rows` rows of prompts. Fills record->layers. Gate logits are those of
  // layers that were drawn at this step.
  void Step(std::span<const int32_t> sequences, int32_t prefill_rows, const std::shared_ptr<const Steering>& steering, StepRecord* record);

  // Gate mass that biases alone lost in decode rows, mean over rows and layers; 0 without biases.
  double bias_mass_lost() const;

 private:
  struct Layer {
    LayerRecord decode;       // as drawn
    int32_t rows = 0;         // that it was drawn for
    double bias_mass = 0;     // of a row
    // Shares of prompt rows that read the expert hi only, or in full; as drawn.
    std::vector<float> hi_frac, full_frac;
    double prefill_mass = 0, prefill_full = 0, prefill_hi = 0;  // of a row: mass lost, slots
    bool decode_fresh = false, prefill_fresh = false;           // drawn under the present steering
  };

  void DrawDecode(size_t l, std::span<const int32_t> sequences);
  void DrawPrefill(size_t l);
  void AddPrefill(const Layer& layer, int32_t rows, LayerRecord* record) const;
  const LayerSteering* RulesOf(size_t l, bool with_biases) const;

  ModelConfig config_;
  bool nested_;
  GateDraw gate_;
  std::vector<Layer> layers_;
  std::shared_ptr<const Steering> steering_, unbiased_;  // unbiased_: null where there are no biases
  size_t turn_ = 0;
};

}  // namespace thermoe
