// SPDX-License-Identifier: Apache-2.0
// What an engine takes of the memory that it computes in, and whether that is there.
#pragma once

#include "kernels/ops.h"
#include "model/loaded_model.h"
#include "runtime/kv_cache.h"
#include "runtime/threads.h"
#include "thermoe/engine.h"
#include "thermoe/model.h"

namespace thermoe {

KvShape KvShapeOf(const ModelConfig& config);
// Positions of the cache: a pool in which every sequence can hold its whole context at the same time.
int64_t KvPositions(int64_t context, int64_t sequences);
// Rows of the largest step: a chunk of prompts beside one token of every sequence.
int32_t MaxRows(const kernels::EngineSize& size);
inline int32_t MaxRows(const EngineOptions& options) {
  return MaxRows(kernels::EngineSize{options.max_sequences, options.context, options.prefill_chunk});
}

// Of the memory that `ops` computes in, by shapes alone. kResourceExhausted says what is needed, what is free, what would fit and which flag asks
// for that.
Status CheckMemory(const kernels::Ops& ops, const LoadedModel& model, ExpertStorage storage, const kernels::EngineSize& size);
// The same on the host, of which so much is available.
Status CheckHostMemory(const ModelConfig& config, const kernels::EngineSize& size, int64_t available_bytes);

// For a model whose headers alone have been read: whether Engine::Create would find its backend and room for it.
Status CheckEngine(const LoadedModel& model, ExpertStorage storage, const EngineOptions& options, ThreadPool* threads);

}  // namespace thermoe
