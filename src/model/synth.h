// SPDX-License-Identifier: Apache-2.0
// Writes models of real shape and random weights: for measuring speed and power, and for tests, where no download
// is wanted. They compute like the real ones and say nothing of sense.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "model/config.h"
#include "model/formats.h"
#include "thermoe/status.h"

namespace thermoe {

struct SynthOptions {
  std::string
      arch;  // "olmoe" (OLMoE-1B-7B), "qwen3moe" (Qwen3-30B-A3B), "mixtral" (8x7B), "qwen2moe" (Qwen1.5-MoE-A2.7B)
  int layers = 0;             // 0: as many as the real model
  DType type = DType::kQ8_0;  // of matrices; norms, biases and gates are f32, as llama.cpp's converter has them
  bool medium = false;        // of kQ4K and kQ5K: some matrices of more bits, as llama.cpp's quantiser makes Q4_K_M and Q5_K_M
  uint64_t seed = 1;
  std::function<bool(double done_frac)> progress;  // return false to stop (kCancelled)
};

// The shape of the model that stands for `arch`; kInvalidArgument lists the known names.
Result<ModelConfig> SynthConfig(std::string_view arch);

// Writes a GGUF file that thermoe and llama.cpp load; the same bytes for the same options.
// Errors: kInvalidArgument (arch, layers, type, path), kNotFound, kResourceExhausted, kCancelled.
Status Synthesise(const SynthOptions& options, const std::string& out_path);

// The same for a shape of one's own; options.arch and options.layers are not read.
Status SynthesiseConfig(const ModelConfig& config, const SynthOptions& options, const std::string& out_path);

}  // namespace thermoe
