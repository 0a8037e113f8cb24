// SPDX-License-Identifier: Apache-2.0
#include "control/simulate/sim_routing.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <utility>

#include "forward/steering.h"

namespace thermoe {
namespace {

constexpr int32_t kPrefillSample = 32;   // rows that tell how prompts are routed; far fewer than most chunks hold
constexpr int32_t kRowsPerRedraw = 8;    // a batch that changed by one in so many is drawn anew

bool HasBiases(const Steering* steering) {
  return steering != nullptr && std::any_of(steering->layers.begin(), steering->layers.end(), [](const LayerSteering& layer) {
           return std::any_of(layer.selection_bias.begin(), layer.selection_bias.end(), [](float b) { return b != 0; });
         });
}

}  // namespace

SimRouting::SimRouting(const ModelConfig& config, bool nested, int32_t sequences, uint64_t seed)
    : config_(config), nested_(nested), gate_(config, nested, sequences, kEmberGate, seed), layers_(static_cast<size_t>(config.layers)) {}

const LayerSteering* SimRouting::RulesOf(size_t l, bool with_biases) const {
  return SteeringOfLayer(with_biases ? steering_.get() : unbiased_.get(), static_cast<int32_t>(l));
}

void SimRouting::DrawDecode(size_t l, std::span<const int32_t> sequences) {
  Layer& layer = layers_[l];
  layer.rows = static_cast<int32_t>(sequences.size());
  layer.decode_fresh = true;
  const int32_t sample = steering_ != nullptr ? steering_->sample_gate_rows : 0;
  gate_.Draw(static_cast<int32_t>(l), sequences, 0, RulesOf(l, true), sample, &layer.decode);
  layer.bias_mass = 0;
  if (unbiased_ == nullptr || layer.rows == 0) return;
  LayerRecord without;
  gate_.Reselect(RulesOf(l, false), &without);
  layer.bias_mass = (layer.decode.gate_mass_lost - without.gate_mass_lost) / layer.rows;
}

void SimRouting::DrawPrefill(size_t l) {
  Layer& layer = layers_[l];
  const auto experts = static_cast<size_t>(config_.experts);
  layer.prefill_fresh = true;
  LayerRecord drawn;
  gate_.Draw(static_cast<int32_t>(l), {}, kPrefillSample, RulesOf(l, true), 0, &drawn);
  layer.full_frac.assign(experts, 0);
  layer.hi_frac.assign(experts, 0);
  // Which slots of an expert were full is not recorded: the layer's shares, unless a plane cap decides. Half a row of an even choice
  // stands for experts that the sample missed.
  const LayerSteering* rules = RulesOf(l, true);
  const double slots = std::max(1, drawn.slots_full + drawn.slots_hi);
  for (size_t e = 0; e < experts; ++e) {
    const double even = slots / kPrefillSample / static_cast<double>(experts);
    const double frac = (drawn.expert_slots[e] + 0.5 * even) / (kPrefillSample + 0.5);
    const bool capped = nested_ && rules != nullptr && !rules->plane_cap.empty() && rules->plane_cap[e] == 1;
    const double full = capped ? 0 : drawn.slots_full / slots;
    layer.full_frac[e] = static_cast<float>(frac * full);
    layer.hi_frac[e] = static_cast<float>(frac * (1 - full));
  }
  layer.prefill_mass = drawn.gate_mass_lost / kPrefillSample;
  layer.prefill_full = static_cast<double>(drawn.slots_full) / kPrefillSample;
  layer.prefill_hi = static_cast<double>(drawn.slots_hi) / kPrefillSample;
}

// Adds what `rows` rows of prompts are expected to touch beside what the decode rows did.
void SimRouting::AddPrefill(const Layer& layer, int32_t rows, LayerRecord* record) const {
  const double experts = config_.experts;
  const double decode_full = record->distinct_full_experts / experts, decode_hi = record->distinct_hi_experts / experts;
  double any = 0, full = 0, hi = 0;
  for (size_t e = 0; e < layer.full_frac.size(); ++e) {
    const double no_full = std::pow(1.0 - layer.full_frac[e], rows), no_hi = std::pow(1.0 - layer.hi_frac[e], rows);
    any += record->expert_slots[e] > 0 ? 1 : 1 - no_full * no_hi;
    full += 1 - (1 - decode_full) * no_full;
    hi += 1 - (1 - decode_hi) * no_hi;
    record->expert_slots[e] += static_cast<int32_t>(std::lround(rows * (layer.full_frac[e] + layer.hi_frac[e])));
  }
  record->distinct_experts = static_cast<int32_t>(std::lround(any));
  record->distinct_full_experts = std::min(record->distinct_experts, static_cast<int32_t>(std::lround(full)));
  record->distinct_hi_experts = std::min(record->distinct_experts, static_cast<int32_t>(std::lround(hi)));
  record->slots_full += static_cast<int32_t>(std::lround(rows * layer.prefill_full));
  record->slots_hi += static_cast<int32_t>(std::lround(rows * layer.prefill_hi));
  record->slots_dropped += static_cast<int32_t>(std::lround(rows * (config_.slots - layer.prefill_full - layer.prefill_hi)));
  record->gate_mass_lost += rows * layer.prefill_mass;
}

void SimRouting::Step(std::span<const int32_t> sequences, int32_t prefill_rows, const std::shared_ptr<const Steering>& steering,
                      StepRecord* record) {
  if (steering != steering_) {
    steering_ = steering;
    unbiased_ = nullptr;
    if (HasBiases(steering.get())) {
      auto plain = std::make_shared<Steering>(*steering);
      for (LayerSteering& layer : plain->layers) layer.selection_bias.clear();
      unbiased_ = std::move(plain);
    }
    for (Layer& layer : layers_) layer.decode_fresh = layer.prefill_fresh = false;
  }
  record->layers.resize(layers_.size());
  const auto rows = static_cast<int32_t>(sequences.size());
  turn_ = (turn_ + 1) % layers_.size();
  for (size_t l = 0; l < layers_.size(); ++l) {
    Layer& layer = layers_[l];
    const bool other_batch = std::abs(rows - layer.rows) * kRowsPerRedraw > layer.rows;
    const bool draw = !layer.decode_fresh || other_batch || l == turn_;
    if (draw) DrawDecode(l, sequences);
    record->layers[l] = layer.decode;
    if (!draw) record->layers[l].gate_logits.clear();
    if (prefill_rows == 0) continue;
    if (!layer.prefill_fresh) DrawPrefill(l);
    AddPrefill(layer, prefill_rows, &record->layers[l]);
  }
}

double SimRouting::bias_mass_lost() const {
  double sum = 0;
  for (const Layer& layer : layers_) sum += layer.bias_mass;
  return sum / static_cast<double>(layers_.size());
}

}  // namespace thermoe
