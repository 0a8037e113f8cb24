// SPDX-License-Identifier: Apache-2.0
// Every weight of a model by role. Matrices are views into mapped files (or into storage the model owns);
// vectors (norm gains, biases) are copied to float.
#pragma once

#include <vector>

#include "model/formats.h"

namespace thermoe {

struct FfnWeights {
  WeightMatrix gate;  // [F, D]
  WeightMatrix up;    // [F, D]
  WeightMatrix down;  // [D, F]
};

struct LayerWeights {
  std::vector<float> attention_norm;  // [D]
  WeightMatrix q, k, v;               // [heads * head_dim, D], [kv_heads * head_dim, D] twice
  std::vector<float> q_bias, k_bias, v_bias;  // empty when the model has none
  std::vector<float> q_norm, k_norm;  // [head_dim] or [heads * head_dim] (QkNorm); empty when none
  WeightMatrix o;                     // [D, heads * head_dim]
  std::vector<float> expert_norm;     // [D], before gate and experts
  WeightMatrix gate;                  // [E, D]
  std::vector<FfnWeights> experts;    // [E]
  FfnWeights shared;                  // empty when the model has none
  WeightMatrix shared_gate;           // [1, D]; empty when none
};

struct ModelWeights {
  WeightMatrix embedding;           // [V, D]
  std::vector<LayerWeights> layers; // [L]
  std::vector<float> output_norm;   // [D]
  WeightMatrix output;              // [V, D]; the embedding when tied
};

}  // namespace thermoe
