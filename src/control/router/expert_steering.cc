// SPDX-License-Identifier: Apache-2.0
#include "control/router/expert_steering.h"

#include <algorithm>
#include <utility>

namespace thermoe {
namespace {

constexpr int32_t kReservoir = 4;            // rows of each layer; docs/ttha.md has the time that more take
constexpr size_t kPool = 4;                  // the engine holds one, a decision another
constexpr uint64_t kFirstVersion = 1 << 20;  // beyond every point's own
constexpr float kHiShare = 18.0f / 34;       // bytes of the hi plane, of both

std::vector<uint16_t> PlacementOf(const ControlConfig& config, const SteeringShape& shape) {
  if (!config.placement.empty()) return config.placement;
  return std::vector<uint16_t>(static_cast<size_t>(shape.layers) * static_cast<size_t>(shape.experts), 0);
}

LoadBalancerOptions BalancerOptions(const SteeringShape& shape, int32_t groups) {
  LoadBalancerOptions options;
  options.layers = shape.layers;
  options.experts = shape.experts;
  options.groups = groups;
  return options;
}

int32_t GroupsOf(const std::vector<uint16_t>& placement) {
  return placement.empty() ? 1 : 1 + *std::max_element(placement.begin(), placement.end());
}

}  // namespace

ExpertSteering::ExpertSteering(const ControlConfig& config, const SteeringShape& shape)
    : shape_(shape),
      groups_(GroupsOf(config.placement)),
      balancer_(BalancerOptions(shape, groups_), PlacementOf(config, shape)),
      version_(kFirstVersion) {
  const auto layers = static_cast<size_t>(shape.layers), experts = static_cast<size_t>(shape.experts);
  // Where a token takes every expert there is nothing to avoid.
  if (config.ttha && config.router == RouterMode::kAdaptive && shape.slots < shape.experts) {
    TthaOptions options;
    options.shape.layers = shape.layers;
    options.shape.experts = shape.experts;
    options.shape.slots = shape.slots;
    options.shape.rows = kReservoir;
    options.prefer_quality = config.prefer == Preference::kQuality;
    adapter_ = std::make_unique<TthaAdapter>(options);
    if (groups_ > 1) adapter_->SetPlacement(config.placement, groups_);
  }
  if (!on()) return;
  expert_bytes_.assign(layers * experts, 1);
  for (ExpertInput* input : {&next_, &used_}) {
    input->counts.layers.resize(layers);
    input->rows.layers.resize(layers);
    for (LayerRecord& layer : input->counts.layers) layer.expert_slots.assign(experts, 0);
    for (LayerRecord& layer : input->rows.layers) layer.gate_logits.reserve(experts * kSampleRows);
  }
  for (size_t i = 0; i < kPool; ++i) {
    pool_.push_back(std::make_shared<Steering>());
    pool_.back()->layers.resize(layers);
    for (LayerSteering& layer : pool_.back()->layers) {
      layer.selection_bias.reserve(experts);
      layer.plane_cap.reserve(experts);
    }
  }
}

void ExpertSteering::Observe(const StepRecord& record) {
  if ((!samples_ && groups_ < 2) || record.decode_tokens <= 0 || record.layers.size() != next_.rows.layers.size())
    return;
  const auto experts = static_cast<size_t>(shape_.experts);
  next_.rows.decode_tokens = record.decode_tokens;
  for (size_t l = 0; l < record.layers.size(); ++l) {
    const std::vector<float>& from = record.layers[l].gate_logits;
    std::vector<float>& to = next_.rows.layers[l].gate_logits;
    if (from.size() >= experts)
      to.assign(from.begin(),
                from.begin() + static_cast<ptrdiff_t>(std::min(from.size() / experts, size_t{kSampleRows}) * experts));
  }
  // Prompts touch nearly every expert whatever biases say.
  if (record.prefill_tokens > 0) return;
  for (const LayerRecord& layer : record.layers) {
    if (layer.expert_slots.size() != experts) return;
  }
  for (size_t l = 0; l < record.layers.size(); ++l) {
    LayerRecord& to = next_.counts.layers[l];
    for (size_t e = 0; e < experts; ++e) to.expert_slots[e] += record.layers[l].expert_slots[e];
    to.distinct_experts += record.layers[l].distinct_experts;
  }
  next_.counts.decode_tokens += record.decode_tokens;
  next_.counts.expert_bytes += record.expert_bytes;
}

// Bytes of touching an expert: measured, with experts whose lo plane is capped at their share.
void ExpertSteering::SetBytes(const OperatingPoint& point) {
  double distinct = 0;
  for (const LayerRecord& layer : used_.counts.layers) distinct += layer.distinct_experts;
  if (!(distinct > 0) || !(used_.counts.expert_bytes > 0)) return;
  const auto experts = static_cast<size_t>(shape_.experts);
  double shares = 0;
  for (size_t i = 0; i < expert_bytes_.size(); ++i) {
    const size_t layer = i / experts;
    const bool capped =
        layer < point.plane_cap.size() && !point.plane_cap[layer].empty() && point.plane_cap[layer][i % experts] == 1;
    expert_bytes_[i] = capped ? kHiShare : 1;
    shares += static_cast<double>(expert_bytes_[i]);
  }
  const double scale = used_.counts.expert_bytes / distinct * static_cast<double>(expert_bytes_.size()) / shares;
  for (float& bytes : expert_bytes_) bytes *= static_cast<float>(scale);
}

bool ExpertSteering::Tick(const TthaObserved& core, const OperatingPoint& point, bool calm) {
  const bool added = adds();
  const bool strained = adapter_ != nullptr && !calm && core.multipliers.Sum() > 0;
  learnt_ = (samples_ && strained) || groups_ > 1;
  if (learnt_) {
    std::swap(used_, next_);
    if (groups_ > 1) balancer_.Update(used_.counts, {});  // one sensor: every group's margin is the same
    const std::vector<float>& biases = balancer_.group_biases();
    balances_ = std::any_of(biases.begin(), biases.end(), [](float b) { return b != 0; });
  }
  if (learnt_ && samples_) {
    SetBytes(point);
    adapter_->Observe(used_.counts);
    TthaObserved observed = core;
    observed.record = &used_.rows;
    observed.device = used_.device;
    observed.expert_bytes = expert_bytes_;
    adapter_->UpdateTtha(observed);
  }
  if (samples_ && !strained) adapter_->Rest();
  samples_ = strained;
  next_.rows.decode_tokens = next_.counts.decode_tokens = 0;
  next_.counts.expert_bytes = 0;
  next_.device = {};
  for (LayerRecord& layer : next_.counts.layers) {
    std::fill(layer.expert_slots.begin(), layer.expert_slots.end(), 0);
    layer.distinct_experts = 0;
  }
  for (LayerRecord& layer : next_.rows.layers) layer.gate_logits.clear();
  return added || adds();
}

std::shared_ptr<const Steering> ExpertSteering::Add(const Steering& point) {
  auto free = std::find_if(pool_.begin(), pool_.end(), [](const auto& each) { return each.use_count() == 1; });
  if (free == pool_.end()) free = pool_.insert(pool_.end(), std::make_shared<Steering>());
  Steering& steering = **free;
  steering.layers.resize(point.layers.size());
  for (size_t l = 0; l < point.layers.size(); ++l) {
    LayerSteering& to = steering.layers[l];
    const LayerSteering& from = point.layers[l];
    to.guaranteed_slots = from.guaranteed_slots;
    to.max_slots = from.max_slots;
    to.drop_below_frac = from.drop_below_frac;
    to.full_slots = from.full_slots;
    to.soft_batch = from.soft_batch;
    to.plane_cap.assign(from.plane_cap.begin(), from.plane_cap.end());
    to.selection_bias.clear();
  }
  steering.version = ++version_;
  steering.sample_gate_rows = samples_ ? kSampleRows : 0;
  if (samples_) adapter_->Publish(&steering);
  balancer_.AddTo(&steering);
  return *free;
}

double ExpertSteering::bias_sum() const {
  double sum = 0;
  if (adapter_ != nullptr) {
    for (const float bias : adapter_->biases()) sum += static_cast<double>(bias);
  }
  return sum;
}

Status ExpertSteering::Restore(const std::string& state, const std::string& source) {
  return adapter_ == nullptr || state.empty() ? Status::Ok() : adapter_->FromJson(state, source);
}

}  // namespace thermoe
