// SPDX-License-Identifier: Apache-2.0
// What tensors a model consists of, whatever its files call them: for every role its shape as the config gives it,
// whether it must be there, and where it goes in ModelWeights. The binder reads files by this table, the
// synthesiser writes them by it; a later architecture adds roles here.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/config.h"
#include "model/weights.h"

namespace thermoe {

enum class Role : uint8_t {
  kEmbedding,
  kOutputNorm,
  kOutput,
  kAttentionNorm,
  kQ,
  kK,
  kV,
  kQBias,
  kKBias,
  kVBias,
  kQNorm,
  kKNorm,
  kO,
  kExpertNorm,
  kGate,
  kExpertGate,
  kExpertUp,
  kExpertDown,
  kSharedGateProjection,
  kSharedUp,
  kSharedDown,
  kSharedGate,
  kIgnored,  // tensors that hold nothing the config does not say; no row in the table
};

enum class Scope : uint8_t { kModel, kLayer, kExpert };

struct MatrixShape {
  int64_t rows = 1;
  int64_t cols = 0;
};

struct RoleSpec {
  Role role;
  Scope scope;
  bool (*present)(const ModelConfig&);  // whether a model of this config has it
  MatrixShape (*shape)(const ModelConfig&);
  // Exactly one of the two is set. A vector has one row and becomes floats.
  WeightMatrix* (*matrix)(ModelWeights&, int32_t layer, int32_t expert);
  std::vector<float>* (*vector)(ModelWeights&, int32_t layer);
};

std::span<const RoleSpec> RoleTable();

}  // namespace thermoe
