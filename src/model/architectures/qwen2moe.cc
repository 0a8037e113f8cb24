// SPDX-License-Identifier: Apache-2.0
// Qwen2-MoE (and Qwen1.5-MoE): biases on q, k and v; one shared expert behind a sigmoid gate; the routed experts'
// weights as the softmax gives them.
#include <algorithm>

#include "model/architecture.h"

namespace thermoe {
namespace {

void ReadGguf(GgufFields& fields, const TensorSource&, ModelConfig* config) {
  // Early files leave both widths out: the feed-forward length is the shared expert's, and slots times a routed one's.
  const int32_t feed_forward = fields.IntOr("feed_forward_length", 0);
  config->expert_width = fields.IntOr("expert_feed_forward_length", feed_forward / std::max(1, config->slots));
  config->shared_width = fields.IntOr("expert_shared_feed_forward_length", feed_forward);
  config->shared_gate = true;
  config->attention.qkv_bias = true;
  config->gate.normalise = false;
}

void ReadHf(HfFields& fields, ModelConfig* config) {
  config->expert_width = fields.Int({"moe_intermediate_size"});
  config->shared_width = fields.Int({"shared_expert_intermediate_size"});
  config->shared_gate = true;
  config->attention.qkv_bias = fields.BoolOr({"qkv_bias"}, true);
  config->gate.normalise = fields.BoolOr({"norm_topk_prob"}, false);
  RefuseHfDenseLayers(fields);
  if (fields.BoolOr({"use_sliding_window"}, false)) {
    RefuseSlidingWindow(fields, fields.path(), fields.IntOr({"sliding_window"}, 0), *config);
  }
}

NameMap Gguf() {
  return Join({GgufDecoderNames(),
               GgufBiasNames(),
               {{Role::kSharedGateProjection, "blk.{layer}.ffn_gate_shexp.weight"},
                {Role::kSharedUp, "blk.{layer}.ffn_up_shexp.weight"},
                {Role::kSharedDown, "blk.{layer}.ffn_down_shexp.weight"},
                {Role::kSharedGate, "blk.{layer}.ffn_gate_inp_shexp.weight"}}});
}

NameMap Hf() {
  return Join({HfDecoderNames(),
               HfBiasNames(),
               HfMlpExpertNames(),
               {{Role::kSharedGateProjection, "model.layers.{layer}.mlp.shared_expert.gate_proj.weight"},
                {Role::kSharedUp, "model.layers.{layer}.mlp.shared_expert.up_proj.weight"},
                {Role::kSharedDown, "model.layers.{layer}.mlp.shared_expert.down_proj.weight"},
                {Role::kSharedGate, "model.layers.{layer}.mlp.shared_expert_gate.weight"}}});
}

}  // namespace

constinit const Architecture kQwen2Moe = {"qwen2moe", "qwen2moe", "qwen2_moe", "Qwen2MoeForCausalLM",
                                          ReadGguf,   ReadHf,     Gguf,        Hf};

}  // namespace thermoe
