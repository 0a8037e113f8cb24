// SPDX-License-Identifier: Apache-2.0
#include "engine/engine_memory.h"

#include <algorithm>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "base/errors.h"
#include "base/saturating.h"
#include "forward/step.h"
#include "kernels/dispatch.h"

namespace thermoe {
namespace {

using kernels::EngineSize;

// MemAvailable of /proc/meminfo, or -1 where there is none.
int64_t AvailableBytes() {
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name;
    int64_t kib = 0;
    if (words >> name >> kib && name == "MemAvailable:") return kib * 1024;
  }
  return -1;
}

kernels::StepSizes StepSizesOf(const ModelConfig& config, const EngineSize& size) {
  return {KvPositions(size.context, size.sequences), Workspace::BytesFor(config, MaxRows(size)), MaxRows(size), size.sequences, size.context};
}

}  // namespace

KvShape KvShapeOf(const ModelConfig& config) { return {config.layers, config.kv_heads, config.head_dim}; }

// One block more than the context for each sequence: a fork that writes into a shared block copies it first.
int64_t KvPositions(int64_t context, int64_t sequences) { return SaturatingProduct(sequences, (context + kKvBlock - 1) / kKvBlock + 1, kKvBlock); }

int32_t MaxRows(const EngineSize& size) { return size.prefill_chunk + size.sequences; }

Status CheckHostMemory(const ModelConfig& config, const EngineSize& size, int64_t available_bytes) {
  const auto kv_bytes = [&](const EngineSize& at) { return KvCache::BytesFor(KvShapeOf(config), KvPositions(at.context, at.sequences)); };
  const auto step_bytes = [&](const EngineSize& at) { return Workspace::BytesFor(config, MaxRows(at)); };
  const auto fits = [&](const EngineSize& at) { return SaturatingSum(kv_bytes(at), step_bytes(at)) <= available_bytes; };
  if (fits(size)) return Status::Ok();
  const std::string what = kernels::WhatFits(size, fits);
  return ResourceExhausted("the KV cache of {} sequences of {} tokens needs {} MiB and a step {} MiB but {} MiB of memory are free; {}", size.sequences,
                           size.context, kv_bytes(size) >> 20, step_bytes(size) >> 20, available_bytes >> 20,
                           what.empty() ? "free some, or take a smaller model" : what);
}

Status CheckMemory(const kernels::Ops& ops, const LoadedModel& model, ExpertStorage storage, const EngineSize& size) {
  const ModelConfig& config = model.config;
  if (!ops.on_device()) {
    const int64_t available = AvailableBytes();
    return available < 0 ? Status::Ok() : CheckHostMemory(config, size, available);
  }
  std::vector<std::span<const FfnWeights>> experts;
  for (const LayerWeights& layer : model.weights.layers) experts.emplace_back(layer.experts);
  return ops.CheckFits({config, model.weights, experts, storage == ExpertStorage::kNested}, size,
                       [&config](const EngineSize& at) { return StepSizesOf(config, at); });
}

Status CheckEngine(const LoadedModel& model, ExpertStorage storage, const EngineOptions& options, ThreadPool* threads) {
  const Result<std::unique_ptr<kernels::Ops>> ops = kernels::MakeOps(options.backend, options.isa, threads, options.device);
  if (!ops.ok()) return ops.status();
  // What is out of range is for Create to refuse.
  const int32_t most = model.config.context, context = options.context > 0 ? std::min(options.context, most) : most;
  return CheckMemory(**ops, model, storage, {std::clamp(options.max_sequences, 1, 4096), context, std::clamp(options.prefill_chunk, 1, 8192)});
}

}  // namespace thermoe
