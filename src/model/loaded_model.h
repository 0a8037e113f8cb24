// SPDX-License-Identifier: Apache-2.0
// Opens a model's files: one entry for both formats.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "model/config.h"
#include "model/weights.h"
#include "thermoe/status.h"
#include "thermoe/tokenizer.h"

namespace thermoe {

// One tensor of a file, for `inspect` and for identity.
struct TensorInfo {
  std::string name;
  std::string type;            // "q8_0", "bf16"
  std::vector<int64_t> shape;  // row-major, outermost first
  int64_t bytes = 0;
};

struct LoadedModel {
  std::string path;
  std::string format;    // "gguf v3", "safetensors"
  std::string identity;  // 32 hex digits, see identity.h
  ModelConfig config;
  ModelWeights weights;
  std::shared_ptr<const Tokenizer> tokenizer;
  std::string chat_template;        // Jinja source as the file has it; empty when none
  std::vector<TensorInfo> tensors;  // in file order
  int64_t file_bytes = 0;           // of all weight files

  // What the views in `weights` point into.
  std::vector<MappedFile> files;
  std::vector<std::unique_ptr<std::byte[]>> owned;
};

using LoadProgress = std::function<bool(double done_frac)>;

// `path`: a .gguf file or a folder with config.json, *.safetensors and tokenizer.json. Every tensor's shape is
// checked against the config, every byte range against its file. Pages come in on demand; with `progress`, files of
// more than 256 MiB that fit in memory are read ahead in pieces, and it hears of each. `check` sees the model before that, when its headers
// alone have been read.
// Errors: kNotFound, kCorrupt, kUnsupported, kInvalidArgument (not a regular file, a stray part of a split one),
// kCancelled (progress returned false), those of `check`.
Result<std::unique_ptr<LoadedModel>> LoadModelFiles(const std::string& path, const LoadProgress& progress = {},
                                                    const std::function<Status(const LoadedModel&)>& check = {});

}  // namespace thermoe
