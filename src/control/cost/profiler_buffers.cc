// SPDX-License-Identifier: Apache-2.0
// What the profiler's steps work on (profiler_steps.cc), made and told to the backend.
#include <algorithm>
#include <utility>

#include "base/errors.h"
#include "base/random.h"
#include "control/cost/profiler.h"

namespace thermoe {

// Buffers of the largest step, known to the backend, which gets the model too.
Status Profiler::MakeStepBuffers(int64_t rows) {
  const ModelConfig& config = *target_.config;
  const int64_t q_width = int64_t{config.heads} * config.head_dim, kv_width = int64_t{config.kv_heads} * config.head_dim;
  const auto fill = [](std::vector<float>* values, int64_t count, uint64_t seed) {
    Random random(seed);
    values->resize(static_cast<size_t>(count));
    for (float& value : *values) value = static_cast<float>(random.Uniform() * 2 - 1);
  };
  uint64_t seed = 10;
  for (const auto& [values, width] : {std::pair{&x_, int64_t{config.hidden}}, {&h_, int64_t{config.hidden}}, {&q_, q_width}, {&k_, kv_width},
                                      {&v_, kv_width}, {&attended_, q_width}, {&gate_logits_, int64_t{config.experts}},
                                      {&shared_gate_, int64_t{config.shared_width}}, {&shared_up_, int64_t{config.shared_width}},
                                      {&shared_scale_, int64_t{1}}}) {
    fill(values, rows * width, ++seed);
  }
  fill(&logit_rows_, kLogitRows * config.hidden, ++seed);
  fill(&logits_, kLogitRows * config.vocab, ++seed);
  asked_.assign(static_cast<size_t>(kLogitRows), 0);
  summaries_.resize(asked_.size());
  OperationShape largest;
  largest.tokens = rows;
  PlaceSlots(largest);
  if (ops_->on_device()) {
    std::vector<std::span<const FfnWeights>> experts;
    for (int32_t l = 0; l < config.layers; ++l) experts.push_back(target_.experts->layer(l));
    const auto most = static_cast<int32_t>(rows);
    const int64_t bytes = 4 * static_cast<int64_t>(in_.size() + out_.size() + third_.size() + 3 * x_.size() + 2 * q_.size() + 2 * k_.size());
    THERMOE_RETURN_IF_ERROR(ops_->Hold({config, *target_.weights, experts, cache_->pool(), bytes, most, most, config.context}));
  }
  for (std::vector<float>* values : {&in_, &out_, &third_, &ones_, &cosines_, &sines_, &inverse_frequency_, &x_, &h_, &q_, &k_, &v_, &attended_, &gate_logits_,
                                     &shared_gate_, &shared_up_, &shared_scale_, &logit_rows_, &logits_, &slot_weight_, &scores_}) {
    ops_->Adopt(std::as_writable_bytes(std::span(*values)));
    ops_->Publish(std::as_bytes(std::span(*values)));
  }
  for (std::vector<int32_t>* values : {&ids_, &asked_, &slot_expert_, &order_}) {
    ops_->Adopt(std::as_writable_bytes(std::span(*values)));
    ops_->Publish(std::as_bytes(std::span(*values)));
  }
  ops_->Adopt(std::as_writable_bytes(std::span(kinds_)));
  ops_->Publish(std::as_bytes(std::span(kinds_)));
  ops_->Adopt(std::as_writable_bytes(std::span(slot_planes_)));
  ops_->Adopt(std::as_writable_bytes(std::span(jobs_)));
  ops_->Adopt(std::as_writable_bytes(std::span(&selection_.job_count, 1)));
  ops_->SetSteering(nullptr, records_);
  THERMOE_RETURN_IF_ERROR(FillKeys(rows));
  return ops_->Health();
}

// Every position of every layer, by the backend's own means.
Status Profiler::FillKeys(int64_t rows) {
  const int64_t positions = static_cast<int64_t>(kv_blocks_.size()) * kKvBlock, width = int64_t{target_.config->kv_heads} * target_.config->head_dim;
  OperationShape shape;
  shape.family = Family::kAttentionPrefill;  // whose rows come after a past
  for (int64_t first = 0; first < positions; first += rows) {
    shape.tokens = std::min(rows, positions - first);
    shape.distinct_positions = first + shape.tokens;
    PlaceRows(shape);
    const ConstRows k{k_.data(), shape.tokens, width}, v{v_.data(), shape.tokens, width};
    for (int32_t l = 0; l < kv_layers_; ++l) ops_->StoreKv({k, v, kv_rows_, cache_->layer(l)});
  }
  return ops_->Health();
}

}  // namespace thermoe
