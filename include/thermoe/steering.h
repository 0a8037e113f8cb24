// SPDX-License-Identifier: Apache-2.0
// The seam between the data flow and the control loop: plain data, no behaviour.
// In: Steering, what the gate may do. Out: StepRecord, what a step did.
// Vocabulary and rules: docs/glossary.md and docs/selection.md.
#pragma once

#include <cstdint>
#include <vector>

namespace thermoe {

// "As many as the model has": the neutral value of every slot count.
inline constexpr int kAllSlots = -1;

// How the gate of one MoE layer may choose experts. E: experts of the layer, K: slots per token.
struct LayerSteering {
  // [E] added to the gate's scores when experts are ranked, never to their weights. Empty: zeros.
  std::vector<float> selection_bias;
  // [E] planes of a nested expert that may be read: 1 = hi only, 2 = both. Empty: both.
  std::vector<uint8_t> plane_cap;
  // k0: a token's best slots that it gets whatever the batch holds; the rest are filled from the
  // experts guaranteed to some token of the same decode step. kAllSlots or >= K: no batch awareness.
  int guaranteed_slots = kAllSlots;
  // k_max: at most this many slots are kept. kAllSlots: K.
  int max_slots = kAllSlots;
  // A slot other than the first is dropped when its weight is below this fraction of the first's.
  float drop_below_frac = 0.0f;
  // The best-weighted slots that read both planes; the rest read hi only. kAllSlots: every slot.
  int full_slots = kAllSlots;
  // beta: in decode an expert's score is multiplied by exp(beta / 2 * log2(1 + n)) when experts are ranked, n being the
  // other decode tokens of the step whose plain choice holds it; never when they are weighed. 0: off.
  float soft_batch = 0.0f;

  bool operator==(const LayerSteering&) const = default;
};

// A sample of gate logits holds at most so many rows.
inline constexpr int32_t kMostGateRows = 1024;

// Immutable while a step runs; the engine swaps it only between steps.
struct Steering {
  uint64_t version = 0;
  std::vector<LayerSteering> layers;  // [MoE layers of the model]; empty: neutral everywhere
  // Decode rows of a step whose gate logits LayerRecord keeps, 0 to kMostGateRows; they take turns from step to step.
  // Results do not depend on it.
  int32_t sample_gate_rows = 0;

  bool operator==(const Steering&) const = default;
};

// What one MoE layer did in one step.
struct LayerRecord {
  std::vector<int32_t> expert_slots;  // [E] kept slots that went to each expert
  int32_t distinct_experts = 0;       // experts with at least one slot
  int32_t distinct_full_experts = 0;  // experts of which some slot read both planes
  int32_t distinct_hi_experts = 0;    // experts of which some slot read hi only; an expert may be in both counts
  int32_t slots_full = 0;             // kept slots that read both planes (or native storage)
  int32_t slots_hi = 0;               // kept slots that read hi only
  int32_t slots_dropped = 0;          // slots of the plain model (tokens * K) that were not kept
  double gate_mass_lost = 0.0;        // sum over tokens of 1 - kept / plain gate mass
  std::vector<float> gate_logits;     // [rows, E] as the gate gave them, rows at most Steering::sample_gate_rows
};

// Wall time of the stages of one step.
struct StageTimes {
  double embed_us = 0, attention_us = 0, gate_us = 0, experts_us = 0, logits_us = 0, sample_us = 0;
  double learn_us = 0;  // backward passes and updates of test-time training
  double total_us = 0;  // of a step that was begun ahead (EngineOptions::overlap_steps) since the end of the one before
};

// What one engine step did. Reused from step to step: copy what you keep.
struct StepRecord {
  uint64_t step = 0;
  uint64_t steering_version = 0;
  int32_t tokens = 0;           // rows computed: prefill + decode
  int32_t prefill_tokens = 0;   // rows that belong to prompt chunks
  int32_t decode_tokens = 0;    // rows that extend a sequence by one generated (or forced) token
  int32_t logit_rows = 0;       // rows whose logits were computed
  double weight_bytes = 0;      // weights read, each touched matrix (plane) counted once
  double expert_bytes = 0;      // the routed experts' part of weight_bytes
  double kv_bytes = 0;          // keys and values read and written
  int32_t kv_element_bytes = 4;  // of these: floats, or binary16 on a GPU
  double flops = 0;             // multiply-adds counted as two
  StageTimes times;
  std::vector<LayerRecord> layers;  // [MoE layers]
};

}  // namespace thermoe
