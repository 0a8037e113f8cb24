// SPDX-License-Identifier: Apache-2.0
#include "model/name_map.h"

namespace thermoe {
namespace {

constexpr std::string_view kLayerMark = "{layer}", kExpertMark = "{expert}";

void ReplaceMark(std::string& text, std::string_view mark, int32_t number) {
  const size_t at = text.find(mark);
  if (at != std::string::npos) text.replace(at, mark.size(), std::to_string(number));
}

}  // namespace

bool NamesEachExpert(const TensorName& name) { return name.pattern.find(kExpertMark) != std::string_view::npos; }

std::string TensorNameOf(const TensorName& name, int32_t layer, int32_t expert) {
  std::string text(name.pattern);
  ReplaceMark(text, kLayerMark, layer);
  ReplaceMark(text, kExpertMark, expert);
  return text;
}

NameMap Join(std::initializer_list<NameMap> maps) {
  NameMap joined;
  for (const NameMap& map : maps) joined.insert(joined.end(), map.begin(), map.end());
  return joined;
}

NameMap GgufDecoderNames() {
  return {{Role::kEmbedding, "token_embd.weight"},
          {Role::kOutputNorm, "output_norm.weight"},
          {Role::kOutput, "output.weight"},
          {Role::kAttentionNorm, "blk.{layer}.attn_norm.weight"},
          {Role::kQ, "blk.{layer}.attn_q.weight"},
          {Role::kK, "blk.{layer}.attn_k.weight"},
          {Role::kV, "blk.{layer}.attn_v.weight"},
          {Role::kO, "blk.{layer}.attn_output.weight"},
          {Role::kExpertNorm, "blk.{layer}.ffn_norm.weight"},
          {Role::kGate, "blk.{layer}.ffn_gate_inp.weight"},
          {Role::kExpertGate, "blk.{layer}.ffn_gate_exps.weight"},
          {Role::kExpertUp, "blk.{layer}.ffn_up_exps.weight"},
          {Role::kExpertDown, "blk.{layer}.ffn_down_exps.weight"}};
}

NameMap GgufBiasNames() {
  return {{Role::kQBias, "blk.{layer}.attn_q.bias"},
          {Role::kKBias, "blk.{layer}.attn_k.bias"},
          {Role::kVBias, "blk.{layer}.attn_v.bias"}};
}

NameMap GgufQkNormNames() {
  return {{Role::kQNorm, "blk.{layer}.attn_q_norm.weight"}, {Role::kKNorm, "blk.{layer}.attn_k_norm.weight"}};
}

NameMap HfDecoderNames() {
  return {{Role::kEmbedding, "model.embed_tokens.weight"},
          {Role::kOutputNorm, "model.norm.weight"},
          {Role::kOutput, "lm_head.weight"},
          {Role::kAttentionNorm, "model.layers.{layer}.input_layernorm.weight"},
          {Role::kQ, "model.layers.{layer}.self_attn.q_proj.weight"},
          {Role::kK, "model.layers.{layer}.self_attn.k_proj.weight"},
          {Role::kV, "model.layers.{layer}.self_attn.v_proj.weight"},
          {Role::kO, "model.layers.{layer}.self_attn.o_proj.weight"},
          {Role::kExpertNorm, "model.layers.{layer}.post_attention_layernorm.weight"},
          // Older checkpoints store rope's frequencies, which follow from rope_theta.
          {Role::kIgnored, "model.layers.{layer}.self_attn.rotary_emb.inv_freq"}};
}

NameMap HfMlpExpertNames() {
  return {{Role::kGate, "model.layers.{layer}.mlp.gate.weight"},
          {Role::kExpertGate, "model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight"},
          {Role::kExpertUp, "model.layers.{layer}.mlp.experts.{expert}.up_proj.weight"},
          {Role::kExpertDown, "model.layers.{layer}.mlp.experts.{expert}.down_proj.weight"},
          // As transformers 5 holds them in memory, and writes them when asked to.
          {Role::kExpertGate, "model.layers.{layer}.mlp.experts.gate_up_proj", Part::kFirstHalf},
          {Role::kExpertUp, "model.layers.{layer}.mlp.experts.gate_up_proj", Part::kSecondHalf},
          {Role::kExpertDown, "model.layers.{layer}.mlp.experts.down_proj"}};
}

NameMap HfBiasNames() {
  return {{Role::kQBias, "model.layers.{layer}.self_attn.q_proj.bias"},
          {Role::kKBias, "model.layers.{layer}.self_attn.k_proj.bias"},
          {Role::kVBias, "model.layers.{layer}.self_attn.v_proj.bias"}};
}

NameMap HfQkNormNames() {
  return {{Role::kQNorm, "model.layers.{layer}.self_attn.q_norm.weight"},
          {Role::kKNorm, "model.layers.{layer}.self_attn.k_norm.weight"}};
}

}  // namespace thermoe
