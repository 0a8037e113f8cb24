// SPDX-License-Identifier: Apache-2.0
// An architecture is data: what the formats call it, how their fields become a ModelConfig, and what they name its
// tensors. To add one: a page in model/architectures/, a line in architecture.cc, and roles where it has new ones.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "model/config.h"
#include "model/fields.h"
#include "model/name_map.h"
#include "model/tensor_source.h"
#include "thermoe/status.h"

namespace thermoe {

struct Architecture {
  const char* name;           // as in ModelConfig::architecture
  const char* gguf_name;      // general.architecture, and the prefix of its metadata
  const char* hf_model_type;  // config.json: model_type
  const char* hf_class;       // config.json: architectures

  // Fill in what differs between architectures; the common fields are read before. Failures stay in `fields`.
  void (*read_gguf)(GgufFields& fields, const TensorSource& tensors, ModelConfig* config);
  void (*read_hf)(HfFields& fields, ModelConfig* config);
  NameMap (*gguf_names)();
  NameMap (*hf_names)();
};

extern const Architecture kQwen3Moe, kOlmoe, kMixtral, kQwen2Moe;  // model/architectures/

// "mixtral, olmoe, qwen2moe, qwen3moe".
std::string ArchitectureNames();

// By ModelConfig::architecture; null when unknown.
const Architecture* FindArchitecture(std::string_view name);

// The whole config of a file, checked for consistency.
// Errors: kUnsupported (an architecture or option that is not known), kCorrupt (fields missing or absurd).
struct ArchitectureConfig {
  const Architecture* architecture = nullptr;
  ModelConfig config;
};
Result<ArchitectureConfig> ReadGgufConfig(const GgufFile& file, const TensorSource& tensors);
Result<ArchitectureConfig> ReadHfConfig(const std::string& path, const nlohmann::json& config_json);

// Refuses a file whose attention window is shorter than its context; `window` 0: none.
void RefuseSlidingWindow(FieldErrors& errors, const std::string& path, int32_t window, const ModelConfig& config);

// config.json's rope base, from "rope_parameters" or the top level.
float HfRopeTheta(HfFields& fields, float fallback);

// Refuses layers that are dense instead of mixtures ("decoder_sparse_step", "mlp_only_layers").
void RefuseHfDenseLayers(HfFields& fields);

}  // namespace thermoe
