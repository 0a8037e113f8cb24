// SPDX-License-Identifier: Apache-2.0
// A model on disk, opened: configuration, weights (mapped, shared) and tokenizer.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "thermoe/status.h"
#include "thermoe/tokenizer.h"

namespace thermoe {

struct EngineOptions;  // thermoe/engine.h

enum class ExpertStorage {
  kNative,  // as the file has it, mapped
  kNested,  // 8-bit codes in a hi and a lo plane: one copy, two precisions (docs/nested-experts.md)
};

struct LoadOptions {
  ExpertStorage experts = ExpertStorage::kNative;
  // Rewrite quantised matrices into the layout of the CPU's integer kernels, in memory of the process. Off: they stay mapped,
  // shared with other processes, and are computed in float, slower.
  bool interleave = true;
  int threads = 0;  // for rewriting; 0: one per core that this process may use
  // The engine that the model is for, looked at by Load alone. What its memory or its device's has no room for is then refused, with what would
  // fit, before weights are read or rewritten. Null: Engine::Create finds out.
  const EngineOptions* engine = nullptr;
  // Called now and then with the share done, 0..1, while a long load runs. Return false to stop (kCancelled).
  std::function<bool(double done_frac)> progress;
};

// What people and programs ask about a model. Shapes in elements.
struct ModelInfo {
  std::string path;          // as given to Load
  std::string format;        // "gguf v3", "safetensors"
  std::string architecture;  // "qwen3moe", "olmoe", "mixtral", "qwen2moe"
  std::string name;          // the file's own, may be empty
  std::string identity;      // hex hash of metadata, tensor table and sampled bytes
  int32_t layers = 0, hidden = 0, heads = 0, kv_heads = 0, head_dim = 0, vocab = 0, context = 0;
  int32_t moe_layers = 0, experts = 0, expert_slots = 0, expert_width = 0;
  ExpertStorage expert_storage = ExpertStorage::kNative;
  bool experts_requantised = false;  // nested from bf16/f16/f32: quantised to 8 bits at load
  std::string expert_type;           // "q8_0", or "nested8 (from bf16)"
  int64_t parameters = 0;
  int64_t active_parameters = 0;   // per token
  int64_t file_bytes = 0;
  int64_t expert_bytes = 0;        // one routed expert: gate, up and down (both planes if nested)
  int64_t expert_hi_bytes = 0;     // the same by the hi plane only; 0 for native storage
};

class ModelImpl;

class Model {
 public:
  // `path`: a .gguf file or a Hugging Face folder (config.json, *.safetensors, tokenizer.json).
  // Errors: kNotFound, kCorrupt, kUnsupported, kResourceExhausted, kCancelled; each names file, field and remedy.
  static Result<std::shared_ptr<const Model>> Load(const std::string& path,
                                                   const LoadOptions& options = {});
  ~Model();

  const ModelInfo& info() const;
  const Tokenizer& tokenizer() const;
  // The template that the file itself carries, recognised; see RecogniseChatTemplate for errors.
  Result<std::shared_ptr<const ChatTemplate>> chat_template() const;

  const ModelImpl& impl() const { return *impl_; }  // for the engine

 private:
  explicit Model(std::unique_ptr<ModelImpl> impl);
  std::unique_ptr<ModelImpl> impl_;
};

}  // namespace thermoe
