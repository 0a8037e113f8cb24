// SPDX-License-Identifier: Apache-2.0
#include "model/architecture.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <vector>

#include "base/errors.h"

namespace thermoe {
namespace {

constexpr const Architecture* kArchitectures[] = {&kMixtral, &kOlmoe, &kQwen2Moe, &kQwen3Moe};

Status UnknownArchitecture(const std::string& path, std::string_view name) {
  return Unsupported("{}: architecture \"{}\" is not known; this build runs {}", path, name, ArchitectureNames());
}

Status UnsupportedRope(const std::string& path, std::string_view type) {
  return Unsupported("{}: rope scaling \"{}\" is not supported; use a checkpoint without it", path, type);
}

void ReadCommonGguf(GgufFields& fields, const TensorSource& tensors, ModelConfig* config) {
  config->layers = fields.Int("block_count");
  config->context = fields.Int("context_length");
  config->hidden = fields.Int("embedding_length");
  config->heads = fields.Int("attention.head_count");
  config->kv_heads = fields.IntOr("attention.head_count_kv", config->heads);
  config->head_dim = fields.IntOr("attention.key_length", config->hidden / std::max(1, config->heads));
  if (fields.IntOr("attention.value_length", config->head_dim) != config->head_dim) {
    fields.Refuse(Unsupported("{}: keys and values of different lengths are not supported by architecture {}",
                              fields.path(), config->architecture));
  }
  config->norm_epsilon = fields.FloatOr("attention.layer_norm_rms_epsilon", 1e-5f);
  config->experts = fields.IntOr("expert_count", 0);
  if (config->experts == 0) {
    fields.Refuse(Unsupported("{}: has no experts (a dense model); thermoe runs mixture-of-experts models: {}",
                              fields.path(), ArchitectureNames()));
  }
  config->slots = fields.Int("expert_used_count");
  config->tied_embeddings = tensors.Find("output.weight") == nullptr;
  config->attention.rope_theta = fields.FloatOr("rope.freq_base", 10000.0f);
  config->attention.rope_dim = fields.IntOr("rope.dimension_count", config->head_dim);
  const std::string scaling = fields.TextOr("rope.scaling.type", "none");
  if (scaling != "none" && scaling != "default") fields.Refuse(UnsupportedRope(fields.path(), scaling));
  RefuseSlidingWindow(fields, fields.path(), fields.IntOr("attention.sliding_window", 0), *config);
}

// Early files give the scaling's kind as "type".
void RefuseHfRopeScaling(HfFields& fields) {
  for (const char* field : {"rope_scaling", "rope_parameters"}) {
    HfFields rope = fields.Object(field);
    const std::string type = rope.TextOr({"rope_type", "type"}, "default");
    fields.Refuse(rope.status());
    if (type != "default") fields.Refuse(UnsupportedRope(fields.path(), type));
  }
}

void RefuseHfOptions(HfFields& fields, const ModelConfig& config) {
  if (fields.Has({"quantization_config"})) {
    fields.Refuse(Unsupported(
        "{}: the weights are quantised (quantization_config), which safetensors checkpoints are not read with; use "
        "the original checkpoint or a GGUF file",
        fields.path()));
  }
  const std::string activation = fields.TextOr({"hidden_act"}, "silu");
  if (activation != "silu") {
    fields.Refuse(Unsupported("{}: activation \"{}\" is not supported by architecture {}", fields.path(), activation,
                              config.architecture));
  }
  if (fields.BoolOr({"attention_bias"}, false)) {
    fields.Refuse(
        Unsupported("{}: attention_bias is not supported by architecture {}", fields.path(), config.architecture));
  }
  for (const nlohmann::json& type : fields.Array("layer_types")) {
    if (type != "full_attention") {
      fields.Refuse(Unsupported("{}: layers of type {} are not supported by architecture {}", fields.path(),
                                type.dump(), config.architecture));
    }
  }
  RefuseHfRopeScaling(fields);
}

void ReadCommonHf(HfFields& fields, ModelConfig* config) {
  config->name = fields.TextOr({"_name_or_path"}, "");
  config->layers = fields.Int({"num_hidden_layers"});
  config->context = fields.Int({"max_position_embeddings"});
  config->hidden = fields.Int({"hidden_size"});
  config->heads = fields.Int({"num_attention_heads"});
  config->kv_heads = fields.IntOr({"num_key_value_heads"}, config->heads);
  config->head_dim = fields.IntOr({"head_dim"}, config->hidden / std::max(1, config->heads));
  config->vocab = fields.Int({"vocab_size"});
  config->norm_epsilon = fields.FloatOr({"rms_norm_eps"}, 1e-6f);
  config->experts = fields.Int({"num_experts", "num_local_experts"});
  config->slots = fields.Int({"num_experts_per_tok"});
  config->tied_embeddings = fields.BoolOr({"tie_word_embeddings"}, false);
  config->attention.rope = RopeKind::kHalves;
  config->attention.rope_theta = HfRopeTheta(fields, 10000.0f);
  HfFields rope = fields.Object("rope_parameters");
  const float turning_frac = rope.FloatOr({"partial_rotary_factor"}, fields.FloatOr({"partial_rotary_factor"}, 1.0f));
  fields.Refuse(rope.status());
  config->attention.rope_dim =
      static_cast<int32_t>(config->head_dim * std::min(1.0, std::max(0.0, static_cast<double>(turning_frac))));
  RefuseHfOptions(fields, *config);
}

Status CheckConfig(const std::string& path, const ModelConfig& c) {
  const auto bad = [&](const std::string& what) {
    return Corrupt("{}: {}; download or convert the model again", path, what);
  };
  if (c.head_dim < 1) return bad(fmt::format("{} heads do not fit in a hidden size of {}", c.heads, c.hidden));
  if (c.kv_heads < 1 || c.heads % c.kv_heads != 0) {
    return bad(fmt::format("{} query heads cannot share {} key-value heads", c.heads, c.kv_heads));
  }
  if (c.slots > c.experts) return bad(fmt::format("{} experts a token of only {}", c.slots, c.experts));
  if (c.expert_width < 1) return bad("the experts' width is not stated");
  const AttentionOptions& a = c.attention;
  if (a.rope_dim < 2 || a.rope_dim % 2 != 0 || a.rope_dim > c.head_dim) {
    return bad(fmt::format("rope over {} of {} head elements", a.rope_dim, c.head_dim));
  }
  if (!(a.rope_theta > 0)) return bad(fmt::format("rope base {}", a.rope_theta));
  if (!(c.norm_epsilon >= 0)) return bad(fmt::format("norm epsilon {}", c.norm_epsilon));
  if (!(a.clip_qkv >= 0)) return bad(fmt::format("clip of q, k and v at {}", a.clip_qkv));
  return Status::Ok();
}

}  // namespace

std::string ArchitectureNames() {
  std::vector<std::string_view> names;
  for (const Architecture* architecture : kArchitectures) names.push_back(architecture->name);
  return fmt::format("{}", fmt::join(names, ", "));
}

const Architecture* FindArchitecture(std::string_view name) {
  for (const Architecture* architecture : kArchitectures) {
    if (name == architecture->name) return architecture;
  }
  return nullptr;
}

Result<ArchitectureConfig> ReadGgufConfig(const GgufFile& file, const TensorSource& tensors) {
  GgufFields general(file, "general");
  const std::string name = general.TextOr("architecture", "");
  for (const Architecture* architecture : kArchitectures) {
    if (name != architecture->gguf_name) continue;
    ArchitectureConfig read{architecture, {}};
    ModelConfig& config = read.config;
    config.architecture = architecture->name;
    config.name = general.TextOr("name", "");
    GgufFields fields(file, name);
    ReadCommonGguf(fields, tensors, &config);
    GgufFields tokens(file, "tokenizer.ggml");
    config.vocab = static_cast<int32_t>(std::min<uint64_t>(tokens.Count("tokens"), INT32_MAX));
    if (config.vocab == 0) config.vocab = fields.Int("vocab_size");
    architecture->read_gguf(fields, tensors, &config);
    THERMOE_RETURN_IF_ERROR(general.status());
    THERMOE_RETURN_IF_ERROR(tokens.status());
    THERMOE_RETURN_IF_ERROR(fields.status());
    THERMOE_RETURN_IF_ERROR(CheckConfig(file.path(), config));
    return read;
  }
  THERMOE_RETURN_IF_ERROR(general.status());
  return UnknownArchitecture(file.path(), name);
}

Result<ArchitectureConfig> ReadHfConfig(const std::string& path, const nlohmann::json& config_json) {
  HfFields fields(path, config_json);
  const std::string model_type = fields.TextOr({"model_type"}, "");
  const nlohmann::json& classes = fields.Array("architectures");
  const std::string hf_class =
      !classes.empty() && classes[0].is_string() ? classes[0].get<std::string>() : "";
  for (const Architecture* architecture : kArchitectures) {
    if (model_type != architecture->hf_model_type && !(model_type.empty() && hf_class == architecture->hf_class)) {
      continue;
    }
    ArchitectureConfig read{architecture, {}};
    read.config.architecture = architecture->name;
    ReadCommonHf(fields, &read.config);
    architecture->read_hf(fields, &read.config);
    THERMOE_RETURN_IF_ERROR(fields.status());
    THERMOE_RETURN_IF_ERROR(CheckConfig(path, read.config));
    return read;
  }
  THERMOE_RETURN_IF_ERROR(fields.status());
  return UnknownArchitecture(path, model_type.empty() ? hf_class : model_type);
}

void RefuseSlidingWindow(FieldErrors& errors, const std::string& path, int32_t window, const ModelConfig& config) {
  if (window == 0 || window >= config.context) return;
  errors.Refuse(
      Unsupported("{}: a sliding attention window of {} in a context of {} is not supported by architecture {}", path,
                  window, config.context, config.architecture));
}

float HfRopeTheta(HfFields& fields, float fallback) {
  HfFields rope = fields.Object("rope_parameters");
  const float theta = rope.FloatOr({"rope_theta"}, fields.FloatOr({"rope_theta"}, fallback));
  fields.Refuse(rope.status());
  return theta;
}

void RefuseHfDenseLayers(HfFields& fields) {
  if (fields.IntOr({"decoder_sparse_step"}, 1) != 1 || !fields.Array("mlp_only_layers").empty()) {
    fields.Refuse(Unsupported(
        "{}: some layers are dense (decoder_sparse_step, mlp_only_layers), which is not supported", fields.path()));
  }
}

}  // namespace thermoe
