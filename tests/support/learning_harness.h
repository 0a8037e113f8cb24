// SPDX-License-Identifier: Apache-2.0
// Forward and backward pass over one segment without an engine, at deltas that a test chooses.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "base/random.h"
#include "engine/model_impl.h"
#include "forward/step.h"
#include "kernels/dispatch.h"
#include "support/float64_model.h"

namespace thermoe::testing {

// Every group, in all layers.
inline TttOptions AllGroups(int rank = 3) {
  TttOptions options;
  for (int group = 0; group < kDeltaGroups; ++group)
    options.groups.push_back({static_cast<DeltaGroup>(group), 0.01f, 0});
  options.rank = rank;
  return options;
}

// Deltas that are not zero: a few percent of what they change.
inline Deltas RandomDeltas(const ModelConfig& config, const TttOptions& options, uint64_t seed) {
  Deltas deltas = Deltas::Start(std::make_shared<DeltaLayout>(config, options), seed);
  Random random(seed + 1);
  for (const DeltaTensor& tensor : deltas.layout->tensors()) {
    if (tensor.part == DeltaPart::kA) continue;
    for (int64_t i = 0; i < tensor.size(); ++i)
      deltas.values[static_cast<size_t>(tensor.offset + i)] = static_cast<float>(0.05 * random.Normal());
  }
  return deltas;
}

struct Learnt {
  double loss = 0;              // mean over the rows that took part; of the segment for feature alignment
  int64_t rows = 0;             // that took part
  std::vector<float> gradient;  // of `loss`
  std::vector<float> logits;    // [rows that want them, V]
  HeldChoice choice;            // of the layers that the tape keeps; others empty
};

struct LearnOptions {
  TttObjective objective = TttObjective::kNll;
  float confidence = 0;
  const FeatureStatistics* features = nullptr;
  bool keep_inner = true;
};

class LearningHarness {
 public:
  LearningHarness(std::shared_ptr<const Model> model, const kernels::Ops& ops, const Steering* steering = nullptr,
                  int32_t max_rows = 128)
      : model_(std::move(model)),
        config_(model_->impl().config()),
        ops_(ops),
        steering_(steering),
        workspace_(config_, max_rows),
        max_rows_(max_rows) {
    Result<std::unique_ptr<KvCache>> cache = KvCache::Create({config_.layers, config_.kv_heads, config_.head_dim}, 512);
    EXPECT_TRUE(cache.ok()) << cache.status().message();
    cache_ = std::move(cache).value();
    record_.layers.resize(static_cast<size_t>(config_.layers));
  }

  const ModelConfig& config() const { return config_; }

  // Earlier tokens: their keys and values stay as these deltas (null: none) made them.
  void Read(std::span<const TokenId> ids, const Deltas* deltas) {
    Pass(ids, {}, deltas, nullptr);
    cache_->Commit(&sequence_, sequence_.length + static_cast<int32_t>(ids.size()));
  }

  // Learns from the next tokens, again and again from the same place: their keys and values are not kept. targets
  // [ids], -1: none.
  Learnt Learn(std::span<const TokenId> ids, std::span<const TokenId> targets, const Deltas& deltas,
               const LearnOptions& options = {}) {
    const auto rows = static_cast<int64_t>(ids.size());
    Tape tape(config_, deltas.layout->lowest_layer(), rows, options.keep_inner);
    BackwardWorkspace scratch(config_, rows, options.keep_inner);
    Learnt learnt;
    learnt.gradient.resize(deltas.values.size(), 7.0f);  // Begin sets it to zero
    tape.Begin(0, rows, &deltas, &sequence_, sequence_.length, deltas.layout->lowest_layer());
    Learning learning{tape, scratch, learnt.gradient, options.objective, options.confidence, options.features};
    learning.Begin();
    learnt.logits = Pass(ids, targets, &deltas, &learning);
    learnt.rows = learning.loss_rows;
    learnt.loss = learning.loss_nats / static_cast<double>(std::max<int64_t>(1, learning.loss_rows));
    for (float& value : learnt.gradient) value /= static_cast<float>(std::max<int64_t>(1, learning.loss_rows));
    for (int32_t layer = 0; layer < config_.layers; ++layer) {
      learnt.choice.expert.push_back(tape.keeps(layer) ? tape.layer(layer).expert : std::vector<int32_t>{});
      learnt.choice.planes.push_back(tape.keeps(layer) ? tape.layer(layer).planes : std::vector<Planes>{});
    }
    return learnt;
  }

  // What has been read.
  PastKeys Past() const {
    PastKeys past{sequence_.length, {}, {}};
    for (int32_t l = 0; l < config_.layers; ++l) {
      const KvLayer layer = cache_->layer(l);
      past.keys.emplace_back();
      past.values.emplace_back();
      for (int32_t position = 0; position < sequence_.length; ++position) {
        for (int32_t head = 0; head < config_.kv_heads; ++head) {
          const int64_t at =
              layer.offset(sequence_.blocks[static_cast<size_t>(position / kKvBlock)], head, position % kKvBlock);
          past.keys.back().insert(past.keys.back().end(), layer.keys + at, layer.keys + at + config_.head_dim);
          past.values.back().insert(past.values.back().end(), layer.values + at, layer.values + at + config_.head_dim);
        }
      }
    }
    return past;
  }

 private:
  class Collect final : public LogitSink {
   public:
    void OnLogits(size_t, LogitRow* row) override { logits.insert(logits.end(), row->all().begin(), row->all().end()); }
    std::vector<float> logits;
  };

  std::vector<float> Pass(std::span<const TokenId> ids, std::span<const TokenId> targets, const Deltas* deltas,
                          Learning* learning) {
    const auto rows = static_cast<int32_t>(ids.size());
    EXPECT_LE(rows, max_rows_);
    EXPECT_TRUE(cache_->Reserve(&sequence_, sequence_.length + rows).ok());
    Batch batch;
    for (int32_t i = 0; i < rows; ++i) {
      const TokenId target = targets.empty() ? -1 : targets[static_cast<size_t>(i)];
      batch.rows.push_back({ids[static_cast<size_t>(i)], &sequence_, sequence_.length + i, kernels::RowKind::kPrefill,
                            target >= 0, deltas, target});
    }
    Collect sink;
    StepContext step{config_,
                     model_->impl().loaded().weights,
                     model_->impl().experts(),
                     ops_,
                     *cache_,
                     steering_,
                     batch,
                     workspace_,
                     record_,
                     sink};
    step.learning = learning;
    Forward(step);
    if (learning != nullptr) Backward(step);
    return std::move(sink.logits);
  }

  std::shared_ptr<const Model> model_;
  const ModelConfig& config_;
  const kernels::Ops& ops_;
  const Steering* steering_;
  Workspace workspace_;
  int32_t max_rows_;
  std::unique_ptr<KvCache> cache_;
  KvSequence sequence_;
  StepRecord record_;
};

}  // namespace thermoe::testing
