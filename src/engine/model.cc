// SPDX-License-Identifier: Apache-2.0
#include "thermoe/model.h"

#include <cmath>
#include <new>
#include <numeric>

#include "base/errors.h"
#include "engine/engine_memory.h"
#include "engine/model_impl.h"
#include "kernels/op_cost.h"
#include "kernels/ops.h"

namespace thermoe {
namespace {

int64_t CountParameters(const std::vector<TensorInfo>& tensors) {
  int64_t total = 0;
  for (const TensorInfo& tensor : tensors) {
    total += std::accumulate(tensor.shape.begin(), tensor.shape.end(), int64_t{1}, std::multiplies<>());
  }
  return total;
}

ModelInfo MakeInfo(const LoadedModel& loaded, const ExpertStore& experts) {
  const ModelConfig& config = loaded.config;
  ModelInfo info;
  info.path = loaded.path;
  info.format = loaded.format;
  info.architecture = config.architecture;
  info.name = config.name;
  info.identity = loaded.identity;
  info.layers = info.moe_layers = config.layers;
  info.hidden = config.hidden;
  info.heads = config.heads;
  info.kv_heads = config.kv_heads;
  info.head_dim = config.head_dim;
  info.vocab = config.vocab;
  info.context = config.context;
  info.experts = config.experts;
  info.expert_slots = config.slots;
  info.expert_width = config.expert_width;
  info.expert_storage = experts.storage();
  info.experts_requantised = experts.requantised();
  info.expert_type = experts.type_name();
  info.parameters = CountParameters(loaded.tensors);
  const int64_t per_expert = int64_t{3} * config.hidden * config.expert_width;
  info.active_parameters = info.parameters - per_expert * config.layers * (config.experts - config.slots);
  info.file_bytes = loaded.file_bytes;
  // Layers may differ in type.
  double both_bytes = 0, hi_bytes = 0;
  for (int32_t layer = 0; layer < config.layers; ++layer) {
    both_bytes += kernels::ExpertBytes(experts.layer(layer).front(), Planes::kBoth) / config.layers;
    hi_bytes += kernels::ExpertBytes(experts.layer(layer).front(), Planes::kHi) / config.layers;
  }
  info.expert_bytes = std::llround(both_bytes);
  if (experts.storage() == ExpertStorage::kNested) info.expert_hi_bytes = std::llround(hi_bytes);
  return info;
}

// What the kernels' fixed bounds demand of a config.
Status CheckBounds(const LoadedModel& loaded) {
  const ModelConfig& config = loaded.config;
  if (config.experts > kernels::kMaxExperts || config.slots > kernels::kMaxSlots) {
    return Unsupported("{}: {} experts with {} slots per token; this build runs up to {} experts and {} slots", loaded.path,
                       config.experts, config.slots, kernels::kMaxExperts, kernels::kMaxSlots);
  }
  return Status::Ok();
}

}  // namespace

ModelImpl::ModelImpl(std::unique_ptr<LoadedModel> loaded, std::vector<WeightBuffer> dense, ExpertStore experts)
    : loaded_(std::move(loaded)), dense_(std::move(dense)), experts_(std::move(experts)), info_(MakeInfo(*loaded_, experts_)) {}

Model::Model(std::unique_ptr<ModelImpl> impl) : impl_(std::move(impl)) {}
Model::~Model() = default;

Result<std::shared_ptr<const Model>> Model::Load(const std::string& path, const LoadOptions& options) try {
  // Rewriting the experts reads everything once more, so the two passes count as halves.
  const auto part = [&](double from, double to) -> LoadProgress {
    if (!options.progress) return {};
    return [&options, from, to](double done) { return options.progress(from + (to - from) * done); };
  };
  ThreadPool threads(options.threads);
  const auto check = [&](const LoadedModel& headers) {
    THERMOE_RETURN_IF_ERROR(CheckBounds(headers));
    return options.engine == nullptr ? Status::Ok() : CheckEngine(headers, options.experts, *options.engine, &threads);
  };
  Result<std::unique_ptr<LoadedModel>> loaded = LoadModelFiles(path, part(0, 0.5), check);
  if (!loaded.ok()) return loaded.status();
  Result<ExpertStore> experts = ExpertStore::Create(**loaded, options.experts, options.interleave, &threads, part(0.5, 1));
  if (!experts.ok()) return experts.status();
  std::vector<WeightBuffer> dense;
  if (options.interleave) RepackDense(loaded->get(), &threads, &dense);
  auto impl = std::make_unique<ModelImpl>(std::move(loaded).value(), std::move(dense), std::move(experts).value());
  return std::shared_ptr<const Model>(new Model(std::move(impl)));
} catch (const std::bad_alloc&) {
  return ResourceExhausted("{}: memory ran out while loading; free some, or take a smaller model", path);
}

const ModelInfo& Model::info() const { return impl_->info(); }
const Tokenizer& Model::tokenizer() const { return *impl_->loaded().tokenizer; }

Result<std::shared_ptr<const ChatTemplate>> Model::chat_template() const {
  return RecogniseChatTemplate(impl_->loaded().chat_template);
}

}  // namespace thermoe
