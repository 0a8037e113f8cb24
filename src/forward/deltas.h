// SPDX-License-Identifier: Apache-2.0
// A session's deltas: one flat array of floats, and where each group's part of each layer lies in it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/views.h"
#include "model/config.h"
#include "thermoe/ttt.h"

namespace thermoe {

// The parts of low-rank groups are two matrices: a [r, in] (A transposed, so that both are read by rows) and b [r, out].
enum class DeltaPart : uint8_t { kWhole, kA, kB };

struct DeltaTensor {
  DeltaGroup group = DeltaGroup::kOutputBias;
  DeltaPart part = DeltaPart::kWhole;
  int32_t layer = 0;  // 0 for groups without layers
  int64_t rows = 1, cols = 0;
  int64_t offset = 0;  // in floats
  float learning_rate = 0, damping = 0;

  int64_t size() const { return rows * cols; }
};

bool HasLayers(DeltaGroup group);

// What one update learns of a layout: groups, and of those with layers the ones from `lowest_layer` on. The rest stays as it is.
struct DeltaScope {
  uint32_t groups = ~0u;  // bits by DeltaGroup
  int32_t lowest_layer = 0;

  bool Includes(const DeltaTensor& tensor) const {
    return ((groups >> static_cast<uint32_t>(tensor.group)) & 1) != 0 && (!HasLayers(tensor.group) || tensor.layer >= lowest_layer);
  }
};

class DeltaLayout {
 public:
  // `options` has passed CheckTttOptions.
  DeltaLayout(const ModelConfig& config, const TttOptions& options);

  std::span<const DeltaTensor> tensors() const { return tensors_; }
  // Null: not adapted.
  const DeltaTensor* Find(DeltaGroup group, int32_t layer, DeltaPart part = DeltaPart::kWhole) const;
  int64_t size() const { return size_; }
  int32_t rank() const { return rank_; }
  // Layers below do not take part in a backward pass; the number of layers where only groups after the last one are adapted.
  int32_t lowest_layer() const { return lowest_layer_; }
  // Whether a backward pass goes through the attention of the lowest layer, or only through its experts.
  bool lowest_has_attention() const { return lowest_has_attention_; }
  bool low_rank(DeltaGroup group) const { return group >= DeltaGroup::kLowRankQ; }

 private:
  void AddTensor(const DeltaTensor& tensor);
  void AddGroup(const ModelConfig& config, const DeltaGroupOptions& options);

  std::vector<DeltaTensor> tensors_;
  std::vector<int32_t> index_;  // [group][part][layer] into tensors_, -1: none
  int32_t layers_ = 0, rank_ = 0, lowest_layer_ = 0;
  bool lowest_has_attention_ = false;
  int64_t size_ = 0;
};

struct Deltas {
  std::shared_ptr<const DeltaLayout> layout;
  std::vector<float> values;  // [layout->size()]

  // Zeros, and A of the low-rank groups by `seed`: the plain model.
  static Deltas Start(std::shared_ptr<const DeltaLayout> layout, uint64_t seed, TttStart start = TttStart::kNormal);

  std::span<const float> of(const DeltaTensor& tensor) const {
    return std::span(values).subspan(static_cast<size_t>(tensor.offset), static_cast<size_t>(tensor.size()));
  }
  ConstRows matrix(const DeltaTensor& tensor) const { return {values.data() + tensor.offset, tensor.rows, tensor.cols}; }
};

}  // namespace thermoe
