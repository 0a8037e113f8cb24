// SPDX-License-Identifier: Apache-2.0
// What a model is, apart from its weights: sizes, and the options of every stage of the forward pass.
// An architecture (model/architectures/) is a function from a file's own fields to this, and a name map.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace thermoe {

// How q and k are normalised before rope.
enum class QkNorm : uint8_t {
  kNone,
  kPerHead,  // RMS norm over head_dim, one gain [head_dim] for all heads (Qwen3)
  kWhole,    // RMS norm over all heads at once, gain [heads * head_dim] (OLMoE)
};

// Which elements of a head turn together.
enum class RopeKind : uint8_t {
  kHalves,       // (i, i + rope_dim / 2): Hugging Face layout, GPT-NeoX
  kInterleaved,  // (2 i, 2 i + 1): GGUF "llama", whose q and k rows are permuted for it
};

// How gate logits become scores and weights.
enum class Scoring : uint8_t {
  kSoftmax,  // softmax over all experts; top-k of it
};

struct AttentionOptions {
  QkNorm qk_norm = QkNorm::kNone;
  RopeKind rope = RopeKind::kHalves;
  float rope_theta = 10000.0f;
  int32_t rope_dim = 0;    // elements of a head that turn; the rest pass through
  float clip_qkv = 0.0f;   // OLMoE: clamp q, k, v to +-clip; 0: off
  bool qkv_bias = false;   // q, k and v have biases
};

struct GateOptions {
  Scoring scoring = Scoring::kSoftmax;
  bool normalise = true;  // weights of the kept slots sum to 1
};

// Config of one layer's feed-forward part. Every layer of the architectures so far is MoE.
struct ModelConfig {
  std::string architecture;  // registry name: "qwen3moe", "olmoe", "mixtral", "qwen2moe"
  std::string name;          // the file's own, may be empty
  int32_t layers = 0;
  int32_t hidden = 0;       // D
  int32_t heads = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
  int32_t vocab = 0;        // V
  int32_t context = 0;      // longest position the model was made for
  int32_t experts = 0;      // E
  int32_t slots = 0;        // K
  int32_t expert_width = 0; // F
  int32_t shared_width = 0; // width of the shared expert; 0: none
  bool shared_gate = false; // the shared expert's output is scaled by sigmoid(w . x) (Qwen2-MoE)
  float norm_epsilon = 1e-5f;
  bool tied_embeddings = false;
  AttentionOptions attention;
  GateOptions gate;
};

}  // namespace thermoe
