// SPDX-License-Identifier: Apache-2.0
// Qwen3-MoE: q and k normalised per head, gate weights renormalised over the top k, no shared expert.
#include <algorithm>

#include "model/architecture.h"

namespace thermoe {
namespace {

void ReadGguf(GgufFields& fields, const TensorSource&, ModelConfig* config) {
  // Early files leave the expert width out and give slots * width as the feed-forward length.
  const int32_t derived = fields.IntOr("feed_forward_length", 0) / std::max(1, config->slots);
  config->expert_width = fields.IntOr("expert_feed_forward_length", derived);
  config->attention.qk_norm = QkNorm::kPerHead;
}

void ReadHf(HfFields& fields, ModelConfig* config) {
  config->expert_width = fields.Int({"moe_intermediate_size"});
  config->attention.qk_norm = QkNorm::kPerHead;
  config->gate.normalise = fields.BoolOr({"norm_topk_prob"}, false);
  RefuseHfDenseLayers(fields);
  if (fields.BoolOr({"use_sliding_window"}, false)) {
    RefuseSlidingWindow(fields, fields.path(), fields.IntOr({"sliding_window"}, 0), *config);
  }
}

NameMap Gguf() { return Join({GgufDecoderNames(), GgufQkNormNames()}); }
NameMap Hf() { return Join({HfDecoderNames(), HfQkNormNames(), HfMlpExpertNames()}); }

}  // namespace

constinit const Architecture kQwen3Moe = {"qwen3moe", "qwen3moe", "qwen3_moe", "Qwen3MoeForCausalLM",
                                          ReadGguf,   ReadHf,     Gguf,        Hf};

}  // namespace thermoe
