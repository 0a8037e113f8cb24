// SPDX-License-Identifier: Apache-2.0
#include "forward/deltas.h"

#include <algorithm>
#include <cmath>

#include "base/random.h"

namespace thermoe {
namespace {

constexpr int kParts = 3;

// Input and output widths of a projection that has a low-rank group.
struct Widths {
  int64_t in = 0, out = 0;
};

Widths WidthsOf(const ModelConfig& config, DeltaGroup group) {
  const int64_t q = int64_t{config.heads} * config.head_dim, kv = int64_t{config.kv_heads} * config.head_dim;
  switch (group) {
    case DeltaGroup::kLowRankQ: return {config.hidden, q};
    case DeltaGroup::kLowRankK: return {config.hidden, kv};
    case DeltaGroup::kLowRankV: return {config.hidden, kv};
    case DeltaGroup::kLowRankO: return {q, config.hidden};
    case DeltaGroup::kLowRankGate: return {config.hidden, config.experts};
    default: return {config.hidden, config.vocab};
  }
}

// Elements of the groups that are not low-rank, of one layer where they have layers.
int64_t WidthOf(const ModelConfig& config, DeltaGroup group) {
  switch (group) {
    case DeltaGroup::kOutputBias: return config.vocab;
    case DeltaGroup::kExpertScale:
    case DeltaGroup::kRouterShift: return config.experts;
    default: return config.hidden;
  }
}

bool InAttention(DeltaGroup group) {
  return group == DeltaGroup::kAttentionGain || (group >= DeltaGroup::kLowRankQ && group <= DeltaGroup::kLowRankO);
}

double Dot(const float* a, const float* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

// Gram-Schmidt on each block of as many rows as there are columns.
void MakeOrthonormal(MutRows rows) {
  for (int64_t r = 0; r < rows.rows; ++r) {
    float* row = rows.row(r);
    for (int64_t before = r / rows.cols * rows.cols; before < r; ++before) {
      const double along = Dot(row, rows.row(before), rows.cols);
      for (int64_t i = 0; i < rows.cols; ++i) row[i] -= static_cast<float>(along * rows.row(before)[i]);
    }
    const double length = std::sqrt(Dot(row, row, rows.cols));
    for (int64_t i = 0; i < rows.cols; ++i) row[i] = static_cast<float>(row[i] / length);
  }
}

}  // namespace

bool HasLayers(DeltaGroup group) {
  return group != DeltaGroup::kOutputBias && group != DeltaGroup::kOutputGain && group != DeltaGroup::kHiddenBias &&
         group != DeltaGroup::kLowRankOutput;
}

DeltaLayout::DeltaLayout(const ModelConfig& config, const TttOptions& options)
    : index_(static_cast<size_t>(kDeltaGroups * kParts * config.layers), -1),
      layers_(config.layers),
      rank_(options.rank),
      lowest_layer_(config.layers) {
  for (const DeltaGroupOptions& group : options.groups) AddGroup(config, group);
}

void DeltaLayout::AddGroup(const ModelConfig& config, const DeltaGroupOptions& options) {
  const bool has_layers = HasLayers(options.group);
  const int32_t most = has_layers ? config.layers : 1;
  const int32_t count = has_layers && options.last_layers > 0 ? std::min(options.last_layers, most) : most;
  for (int32_t layer = most - count; layer < most; ++layer) {
    DeltaTensor tensor{options.group, DeltaPart::kWhole, layer, 1, 0, 0, options.learning_rate, options.damping};
    if (low_rank(options.group)) {
      const Widths widths = WidthsOf(config, options.group);
      tensor.rows = rank_;
      tensor.part = DeltaPart::kA, tensor.cols = widths.in;
      AddTensor(tensor);
      tensor.part = DeltaPart::kB, tensor.cols = widths.out;
      AddTensor(tensor);
    } else {
      tensor.cols = WidthOf(config, options.group);
      AddTensor(tensor);
    }
    if (!has_layers) continue;
    if (layer < lowest_layer_) lowest_layer_ = layer, lowest_has_attention_ = false;
    if (layer == lowest_layer_ && InAttention(options.group)) lowest_has_attention_ = true;
  }
}

void DeltaLayout::AddTensor(const DeltaTensor& tensor) {
  const auto slot = (static_cast<size_t>(tensor.group) * kParts + static_cast<size_t>(tensor.part)) * static_cast<size_t>(layers_) +
                    static_cast<size_t>(tensor.layer);
  index_[slot] = static_cast<int32_t>(tensors_.size());
  tensors_.push_back(tensor);
  tensors_.back().offset = size_;
  size_ += tensor.size();
}

const DeltaTensor* DeltaLayout::Find(DeltaGroup group, int32_t layer, DeltaPart part) const {
  const auto slot =
      (static_cast<size_t>(group) * kParts + static_cast<size_t>(part)) * static_cast<size_t>(layers_) + static_cast<size_t>(layer);
  const int32_t at = index_[slot];
  return at < 0 ? nullptr : &tensors_[static_cast<size_t>(at)];
}

Deltas Deltas::Start(std::shared_ptr<const DeltaLayout> layout, uint64_t seed, TttStart start) {
  Deltas deltas{std::move(layout), {}};
  deltas.values.assign(static_cast<size_t>(deltas.layout->size()), 0.0f);
  Random random(seed);
  for (const DeltaTensor& tensor : deltas.layout->tensors()) {
    if (tensor.part != DeltaPart::kA) continue;
    const double width = 1.0 / std::sqrt(static_cast<double>(tensor.cols));
    float* values = deltas.values.data() + tensor.offset;
    for (int64_t i = 0; i < tensor.size(); ++i) values[i] = static_cast<float>(width * random.Normal());
    if (start == TttStart::kOrthonormal) MakeOrthonormal({values, tensor.rows, tensor.cols});
  }
  return deltas;
}

}  // namespace thermoe
