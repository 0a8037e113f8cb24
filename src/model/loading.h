// SPDX-License-Identifier: Apache-2.0
// The two ways to fill a LoadedModel, behind LoadModelFiles. Both leave `path` to the caller.
#pragma once

#include <string>

#include "model/loaded_model.h"
#include "model/tensor_source.h"
#include "thermoe/status.h"

namespace thermoe {

// `path`: a .gguf file; of a split model, any of its parts.
Status LoadGguf(const std::string& path, LoadedModel* model);

// `folder`: config.json, model.safetensors or model.safetensors.index.json with its shards, tokenizer.json.
Status LoadHuggingFace(const std::string& folder, LoadedModel* model);

// Fills model->tensors from `source`.
void ListTensors(const TensorSource& source, LoadedModel* model);

}  // namespace thermoe
