// SPDX-License-Identifier: Apache-2.0
#include "control/simulate/gate_draw.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "kernels/select.h"

namespace thermoe {
namespace {

constexpr size_t kNormals = 1 << 16;
constexpr float kDrift = 0.95f;  // of a text's part from one token to the next

}  // namespace

GateDraw::GateDraw(const ModelConfig& config, bool nested, int32_t sequences, const GateStatistics& statistics, uint64_t seed)
    : config_(config), nested_(nested), sequences_(sequences), statistics_(statistics), random_(seed) {
  const auto experts = static_cast<size_t>(config.experts);
  THERMOE_CHECK(experts <= kernels::kMaxExperts && config.slots <= kernels::kMaxSlots && sequences > 0);
  normals_.resize(kNormals + experts);
  for (float& value : normals_) value = static_cast<float>(random_.Normal());
  popularity_.resize(static_cast<size_t>(config.layers) * experts);
  for (float& value : popularity_) value = static_cast<float>(statistics.popularity * random_.Normal());
  text_.resize(static_cast<size_t>(config.layers * sequences) * experts);
  for (int32_t s = 0; s < sequences; ++s) NewText(s);
  jobs_.resize(2 * experts);
}

const float* GateDraw::Normals() { return normals_.data() + (random_.Next() & (kNormals - 1)); }

void GateDraw::NewText(int32_t sequence) {
  const auto experts = static_cast<size_t>(config_.experts);
  const auto deviation = static_cast<float>(statistics_.text);
  for (int32_t layer = 0; layer < config_.layers; ++layer) {
    const float* normals = Normals();
    float* text = text_.data() + static_cast<size_t>(layer * sequences_ + sequence) * experts;
    for (size_t e = 0; e < experts; ++e) text[e] = deviation * normals[e];
  }
}

void GateDraw::Draw(int32_t layer, std::span<const int32_t> sequences, int32_t prefill_rows, const LayerSteering* steering,
                    int32_t sample_rows, LayerRecord* record) {
  const auto experts = static_cast<size_t>(config_.experts);
  const auto noise = static_cast<float>(statistics_.noise), deviation = static_cast<float>(statistics_.text);
  const float fresh = deviation * std::sqrt(1 - kDrift * kDrift);
  const size_t rows = sequences.size() + static_cast<size_t>(prefill_rows);
  logits_.resize(rows * experts);
  kinds_.assign(rows, kernels::RowKind::kPrefill);
  std::fill_n(kinds_.begin(), sequences.size(), kernels::RowKind::kDecode);
  const float* popularity = popularity_.data() + static_cast<size_t>(layer) * experts;
  const float* prompt = Normals();
  for (size_t row = 0; row < rows; ++row) {
    const bool decode = row < sequences.size();
    float* text = decode ? text_.data() + static_cast<size_t>(layer * sequences_ + sequences[row]) * experts : nullptr;
    const float* drift = decode ? Normals() : nullptr;
    const float* normals = Normals();
    float* logits = logits_.data() + row * experts;
    for (size_t e = 0; e < experts; ++e) {
      if (decode) text[e] = kDrift * text[e] + fresh * drift[e];
      logits[e] = popularity[e] + (decode ? text[e] : deviation * prompt[e]) + noise * normals[e];
    }
  }
  Select(steering, record);
  const size_t sampled = std::min(sequences.size(), static_cast<size_t>(std::max(sample_rows, 0)));
  record->gate_logits.resize(sampled * experts);
  for (size_t i = 0; i < sampled; ++i) {
    const size_t row = (turn_ + i) % sequences.size();
    std::copy_n(logits_.data() + row * experts, experts, record->gate_logits.data() + i * experts);
  }
  turn_ += sampled;
}

void GateDraw::Reselect(const LayerSteering* steering, LayerRecord* record) { Select(steering, record); }

void GateDraw::Select(const LayerSteering* steering, LayerRecord* record) {
  const auto rows = static_cast<int64_t>(kinds_.size());
  const int64_t experts = config_.experts, slots = config_.slots;
  const auto cells = static_cast<size_t>(rows * slots);
  scores_.resize(static_cast<size_t>(rows * experts));
  if (expert_.size() < cells) expert_.resize(cells), order_.resize(cells), weight_.resize(cells), planes_.resize(cells);
  kernels::Selection selection;
  selection.slots = config_.slots;
  selection.scores = {scores_.data(), rows, experts};
  selection.expert = {expert_.data(), rows, slots};
  selection.weight = {weight_.data(), rows, slots};
  selection.planes = {planes_.data(), rows, slots};
  selection.jobs = jobs_;
  selection.order = {order_.data(), cells};
  selection.record = record;
  kernels::SelectArgs args;
  args.logits = {logits_.data(), rows, experts};
  args.options = config_.gate;
  args.slots = config_.slots;
  args.nested = nested_;
  args.steering = steering;
  args.kinds = kinds_;
  args.out = &selection;
  kernels::SelectExperts(args);
}

}  // namespace thermoe
