// SPDX-License-Identifier: Apache-2.0
// Finds every tensor of a model by its role, checks it against the config and points ModelWeights at it. One binder
// for all architectures and formats: what differs is data (roles.h, name_map.h).
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "model/architecture.h"
#include "model/tensor_source.h"
#include "model/weights.h"
#include "thermoe/status.h"

namespace thermoe {

// Views go into `source`'s files, or into `owned` for tensors whose address does not suit their type.
// Errors: kCorrupt (a tensor missing or of the wrong shape), kUnsupported (a type this build cannot read, or a
// tensor that the architecture has no place for: leaving it out would give wrong results).
Status BindWeights(const TensorSource& source, const ModelConfig& config, const NameMap& names, ModelWeights* weights,
                   std::vector<std::unique_ptr<std::byte[]>>* owned);

}  // namespace thermoe
