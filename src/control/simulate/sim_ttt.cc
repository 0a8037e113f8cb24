// SPDX-License-Identifier: Apache-2.0
#include "control/simulate/sim_ttt.h"

#include <algorithm>

#include "thermoe/ttt.h"

namespace thermoe {
namespace {

constexpr size_t kMostDeferred = 64;  // as the engine keeps
constexpr int64_t kRank = 24;         // of the tier "combined"
constexpr double kStepMemory = 20;    // steps that the running mean of slowness reaches back
constexpr double kMostSlowness = 8;

// Groups and parameters of the tier "combined" on this shape.
LearningShape CombinedOn(const ModelShape& shape) {
  LearningShape learning;
  for (const DeltaGroup group :
       {DeltaGroup::kOutputBias, DeltaGroup::kOutputGain, DeltaGroup::kResidualBias, DeltaGroup::kAttentionGain,
        DeltaGroup::kExpertGain, DeltaGroup::kExpertScale, DeltaGroup::kLowRankQ, DeltaGroup::kLowRankV,
        DeltaGroup::kLowRankO, DeltaGroup::kLowRankOutput}) {
    learning.groups |= 1u << static_cast<uint32_t>(group);
  }
  learning.rank = kRank;
  const ModelConfig& config = shape.config;
  learning.parameters = config.vocab * (1 + kRank) + config.hidden * (1 + kRank);
  for (const LayerShape& layer : shape.layers) {
    learning.parameters += int64_t{3} * config.hidden + config.experts;
    for (const MatrixShape& matrix : {layer.q, layer.v, layer.o})
      learning.parameters += kRank * (matrix.rows + matrix.cols);
  }
  return learning;
}

}  // namespace

SimTtt::SimTtt(SimTttMode mode, const SimTttOptions& options, const ModelShape& shape, const DeviceProfile& profile)
    : mode_(mode), options_(options), shape_(shape) {
  device_.prices.idle_w = profile.idle_w;
  device_.prices.j_per_byte = profile.energy_per_byte_pj * 1e-12;
  device_.prices.j_per_flop = profile.energy_per_flop_pj * 1e-12;
  device_.bytes_per_s = profile.bandwidth_gbps * 1e9;
  device_.flops_per_s = profile.compute_tflops * 1e12;
  pricer_.Begin(shape_, CombinedOn(shape_));
  NewText();
}

void SimTtt::NewText() {
  controller_.emplace(AdaptConfig{.price_nats = options_.price_nats}, MeasuredBenefit());
  truth_.emplace(MeasuredBenefit());
  text_read_ = 0;
  result_.dropped += static_cast<int64_t>(deferred_.size());
  deferred_.clear();
}

AdaptInput SimTtt::InputOf(const SimTttStep& step, const Segment& segment) {
  AdaptInput input;
  input.tokens = segment.rows;
  input.tokens_ahead = static_cast<double>(step.ahead);
  input.cost = pricer_.Price(costs_, device_, segment.rows, segment.position);
  input.read = pricer_.PriceRead(costs_, device_, segment.rows, segment.position, segment.rows);
  input.guard = input.read;
  input.step.bytes = step.work.bytes;
  input.step.seconds = SecondsOf(step.work);
  input.step.joules = step.work.bytes * device_.prices.j_per_byte + step.work.flops * device_.prices.j_per_flop;
  for (AdaptCost* cost : {&input.step, &input.read, &input.guard}) cost->seconds *= slowness_;
  for (AdaptCost& cost : input.cost) cost.seconds *= slowness_;
  input.decode_rows = step.decode_rows;
  input.loop = step.loop;
  return input;
}

Work SimTtt::Take(const AdaptCost& cost) {
  result_.joules += cost.joules;
  result_.seconds += cost.seconds;
  return {cost.bytes, (cost.joules - cost.bytes * device_.prices.j_per_byte) / device_.prices.j_per_flop};
}

Work SimTtt::Add(const SimTttStep& step) {
  SimTttStep now = step;
  if (step.rows > 0 && (options_.text_tokens > 0 ? text_read_ >= options_.text_tokens : step.position == 0)) NewText();
  if (options_.text_tokens > 0) now.ahead = std::max<int64_t>(options_.text_tokens - text_read_ - step.rows, 0);
  text_read_ += step.rows;
  Work work = step.rows > 0 ? Read(now) : Work{};
  predicted_s_ = SecondsOf({step.work.bytes + work.bytes, step.work.flops + work.flops});
  if (mode_ != SimTttMode::kAuto || deferred_.empty()) return work;
  now.work.bytes += work.bytes;
  now.work.flops += work.flops;
  const Work more = CatchUp(now);
  work = {work.bytes + more.bytes, work.flops + more.flops};
  predicted_s_ = SecondsOf({step.work.bytes + work.bytes, step.work.flops + work.flops});
  return work;
}

double SimTtt::SecondsOf(const Work& work) const {
  return std::max(work.bytes / device_.bytes_per_s, work.flops / device_.flops_per_s);
}

void SimTtt::Observe(double seconds) {
  if (!(predicted_s_ > 0)) return;
  slowness_ += (std::clamp(seconds / predicted_s_, 1.0, kMostSlowness) - slowness_) / kStepMemory;
}

Work SimTtt::Read(const SimTttStep& step) {
  const Segment segment{step.rows, step.position};
  const AdaptInput input = InputOf(step, segment);
  gain_sum_ += step.rows * truth_->Now().nats;
  result_.tokens += step.rows;
  AdaptDecision decision;
  if (mode_ == SimTttMode::kAlways) {
    decision.tier = AdaptTier::kCombined;
  } else {
    decision = controller_->Decide(input);
  }
  if (2 * step.rows < options_.segment) decision = {};
  if (decision.defer) {
    deferred_.push_back(segment);
    ++result_.deferred;
    if (deferred_.size() > kMostDeferred) deferred_.pop_front(), ++result_.dropped;
  }
  ++result_.tiers[static_cast<size_t>(decision.tier)];
  Work work;
  AdaptOutcome outcome;
  outcome.read_tokens = step.rows;
  outcome.tier = decision.tier;
  outcome.learnt_tokens = decision.tier == AdaptTier::kSkip ? 0 : step.rows;
  if (decision.guard) {
    outcome.worse_nats.assign(static_cast<size_t>(step.rows), static_cast<float>(-truth_->Now().nats));
    work = Take(input.guard);
  }
  if (decision.tier != AdaptTier::kSkip) {
    outcome.joules = input.cost[static_cast<size_t>(decision.tier)].joules;
    const Work learn = Take(input.cost[static_cast<size_t>(decision.tier)]);
    work = {work.bytes + learn.bytes, work.flops + learn.flops};
    truth_->Learnt(decision.tier, step.rows);
  }
  controller_->Observe(outcome);
  return work;
}

// The oldest segment that was put off, with another pass over it.
Work SimTtt::CatchUp(const SimTttStep& step) {
  const Segment segment = deferred_.front();
  AdaptInput input = InputOf(step, segment);
  input.deferred = true;
  for (size_t tier = 1; tier < kAdaptTiers; ++tier) {
    AdaptCost& cost = input.cost[tier];
    cost.seconds += input.read.seconds;
    cost.joules += input.read.joules;
    cost.bytes += input.read.bytes;
  }
  const AdaptDecision decision = controller_->Decide(input);
  if (decision.tier == AdaptTier::kSkip) {
    if (!decision.defer) deferred_.pop_front(), ++result_.dropped;  // no longer worth it
    return {};
  }
  deferred_.pop_front();
  ++result_.caught_up;
  AdaptOutcome outcome;
  outcome.tier = decision.tier;
  outcome.learnt_tokens = segment.rows;
  outcome.joules = input.cost[static_cast<size_t>(decision.tier)].joules;
  controller_->Observe(outcome);
  truth_->Learnt(decision.tier, segment.rows);
  return Take(input.cost[static_cast<size_t>(decision.tier)]);
}

SimTttResult SimTtt::result() const {
  SimTttResult result = result_;
  result.gain_nats = result.tokens > 0 ? gain_sum_ / static_cast<double>(result.tokens) : 0;
  return result;
}

}  // namespace thermoe
