// SPDX-License-Identifier: Apache-2.0
// OLMoE: q and k normalised over their whole width, optionally clipped; gate weights as the softmax gives them.
#include "model/architecture.h"

namespace thermoe {
namespace {

void ReadGguf(GgufFields& fields, const TensorSource&, ModelConfig* config) {
  config->expert_width = fields.Int("feed_forward_length");
  config->attention.qk_norm = QkNorm::kWhole;
  config->attention.clip_qkv = fields.FloatOr("attention.clamp_kqv", 0.0f);
  config->gate.normalise = false;
}

void ReadHf(HfFields& fields, ModelConfig* config) {
  config->expert_width = fields.Int({"intermediate_size"});
  config->attention.qk_norm = QkNorm::kWhole;
  config->attention.clip_qkv = fields.FloatOr({"clip_qkv"}, 0.0f);
  config->gate.normalise = fields.BoolOr({"norm_topk_prob"}, false);
}

NameMap Gguf() { return Join({GgufDecoderNames(), GgufQkNormNames()}); }
NameMap Hf() { return Join({HfDecoderNames(), HfQkNormNames(), HfMlpExpertNames()}); }

}  // namespace

constinit const Architecture kOlmoe = {"olmoe", "olmoe", "olmoe", "OlmoeForCausalLM", ReadGguf, ReadHf, Gguf, Hf};

}  // namespace thermoe
