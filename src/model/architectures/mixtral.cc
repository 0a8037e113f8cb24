// SPDX-License-Identifier: Apache-2.0
// Mixtral: a Llama with experts, which is what GGUF calls it; gate weights renormalised over the top k.
#include "model/architecture.h"

namespace thermoe {
namespace {

void ReadGguf(GgufFields& fields, const TensorSource& tensors, ModelConfig* config) {
  config->expert_width = fields.Int("feed_forward_length");
  // The converter permutes the rows of q and k of this architecture so that neighbours turn together.
  config->attention.rope = RopeKind::kInterleaved;
  config->attention.qkv_bias = tensors.Find("blk.0.attn_q.bias") != nullptr;
}

void ReadHf(HfFields& fields, ModelConfig* config) {
  config->expert_width = fields.Int({"intermediate_size"});
  config->attention.rope_theta = HfRopeTheta(fields, 1e6f);  // Mixtral's own default
  RefuseSlidingWindow(fields, fields.path(), fields.IntOr({"sliding_window"}, 0), *config);
}

NameMap Gguf() {
  return Join({GgufDecoderNames(),
               GgufBiasNames(),
               // Files from before April 2024 have a tensor for each expert.
               {{Role::kExpertGate, "blk.{layer}.ffn_gate.{expert}.weight"},
                {Role::kExpertUp, "blk.{layer}.ffn_up.{expert}.weight"},
                {Role::kExpertDown, "blk.{layer}.ffn_down.{expert}.weight"}}});
}

NameMap Hf() {
  return Join({HfDecoderNames(),
               {{Role::kGate, "model.layers.{layer}.block_sparse_moe.gate.weight"},
                {Role::kExpertGate, "model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight"},
                {Role::kExpertUp, "model.layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight"},
                {Role::kExpertDown, "model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight"}}});
}

}  // namespace

constinit const Architecture kMixtral = {"mixtral", "llama", "mixtral", "MixtralForCausalLM",
                                         ReadGguf,  ReadHf,  Gguf,      Hf};

}  // namespace thermoe
