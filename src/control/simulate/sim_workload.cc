// SPDX-License-Identifier: Apache-2.0
#include "control/simulate/sim_workload.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "base/check.h"

namespace thermoe {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr double kArrivalGrid_s = 0.001;  // rates are summed and arrivals stand on this grid
constexpr double kLastArrival_s = 1e5;    // beyond every scenario
constexpr uint64_t kRoutingSeed = 0x5851f42d4c957f2dull;

}  // namespace

SimWorkload::SimWorkload(const SimLoad& load, const ModelShape& shape, uint64_t seed)
    : load_(load), shape_(shape), random_(seed), routing_(shape.config, shape.nested, load.max_batch, seed ^ kRoutingSeed) {
  for (int32_t place = load.max_batch; place-- > 0;) free_places_.push_back(place);
  if (load_.arrivals_per_s) {
    hazard_left_ = -std::log(1 - random_.Uniform());
    DrawArrival();
  } else {
    next_.time_s = kNever;
    // Sequences of every age, as if the load had been there before.
    const int32_t first = load_.sequences ? static_cast<int32_t>(std::lround(load_.sequences->At(0))) : load_.batch;
    for (int32_t i = 0; i < first; ++i) {
      Start(DrawRequest(0), true);
      Sequence& sequence = running_.back();
      const auto age = static_cast<int32_t>(random_.Below(static_cast<uint64_t>(sequence.generated_left)));
      sequence.position += age;
      sequence.generated_left -= age;
    }
  }
}

int32_t SimWorkload::DrawLength(int32_t mean) {
  return std::max(1, static_cast<int32_t>(std::lround(mean * (0.5 + random_.Uniform()))));
}

void SimWorkload::DrawArrival() {
  while (drawn_to_s_ < kLastArrival_s) {
    hazard_left_ -= load_.arrivals_per_s->At(drawn_to_s_) * kArrivalGrid_s;
    if (hazard_left_ > 0) {
      drawn_to_s_ += kArrivalGrid_s;
      continue;
    }
    next_ = DrawRequest(drawn_to_s_);
    // What is left over of this grid step counts for the next arrival, so that many can come in one.
    hazard_left_ += load_.arrivals_per_s->At(drawn_to_s_) * kArrivalGrid_s - std::log(1 - random_.Uniform());
    return;
  }
  next_.time_s = kNever;
}

void SimWorkload::Start(const Request& request, bool prefilled) {
  Sequence sequence;
  sequence.place = free_places_.back();
  free_places_.pop_back();
  sequence.prompt_left = prefilled ? 0 : request.prompt;
  sequence.position = prefilled ? request.prompt : 0;
  sequence.generated_left = request.generated;
  routing_.NewText(sequence.place);
  running_.push_back(sequence);
}

void SimWorkload::Admit(double now_s, int32_t max_sequences) {
  while (next_.time_s <= now_s) {
    queue_.push_back(next_);
    DrawArrival();
  }
  int32_t most = load_.sequences ? static_cast<int32_t>(std::lround(load_.sequences->At(now_s))) : load_.max_batch;
  if (max_sequences > 0) most = std::min(most, max_sequences);
  while (running() < most && (load_.batch > 0 || !queue_.empty())) {
    if (load_.batch > 0) {
      Start(DrawRequest(now_s), true);
      continue;
    }
    Start(queue_.front(), false);
    queue_.pop_front();
  }
}

// Rows of prompts, oldest sequence first, others' bursts before them. Returns their number.
int64_t SimWorkload::TakePrompts(int32_t chunk, StepShape* step) {
  int64_t left = chunk;
  const auto take = [&](int64_t rows, int64_t position) {
    step->prefill_tokens += rows;
    step->prefill_positions += rows * position + rows * (rows + 1) / 2;
    step->prefill_distinct_positions += position + rows;
    left -= rows;
  };
  burst_rows_ = static_cast<int32_t>(std::min<int64_t>(burst_left_, left));
  if (burst_rows_ > 0) take(burst_rows_, burst_done_);
  for (Sequence& sequence : running_) {
    if (sequence.prompt_left == 0 || left == 0) continue;
    sequence.rows = static_cast<int32_t>(std::min<int64_t>(sequence.prompt_left, left));
    take(sequence.rows, sequence.position);
    if (sequence.rows == sequence.prompt_left) ++step->logit_rows;
  }
  return step->prefill_tokens;
}

Work SimWorkload::Step(int32_t prefill_chunk, const std::shared_ptr<const Steering>& steering, StepRecord* record) {
  THERMOE_CHECK(has_work());
  step_ = StepShape{};
  decoding_.clear();
  for (Sequence& sequence : running_) {
    sequence.rows = 0;
    if (sequence.prompt_left > 0) continue;
    sequence.rows = 1;
    decoding_.push_back(sequence.place);
    step_.decode_positions += sequence.position + 1;
  }
  step_.decode_tokens = static_cast<int64_t>(decoding_.size());
  step_.logit_rows = step_.decode_tokens;
  TakePrompts(prefill_chunk > 0 ? std::min(prefill_chunk, load_.prefill_chunk) : load_.prefill_chunk, &step_);
  routing_.Step(decoding_, static_cast<int32_t>(step_.prefill_tokens), steering, record);
  for (const LayerRecord& layer : record->layers) {
    step_.layers.push_back({layer.distinct_experts, layer.distinct_full_experts, layer.distinct_hi_experts, layer.slots_full,
                            layer.slots_hi});
  }
  record->step = ++steps_;
  record->steering_version = steering != nullptr ? steering->version : 0;
  record->prefill_tokens = static_cast<int32_t>(step_.prefill_tokens);
  record->decode_tokens = static_cast<int32_t>(step_.decode_tokens);
  record->tokens = record->prefill_tokens + record->decode_tokens;
  record->logit_rows = static_cast<int32_t>(step_.logit_rows);
  record->weight_bytes = record->expert_bytes = record->kv_bytes = record->flops = 0;
  for (const PlannedOperation& operation : OperationsOfStep(shape_, step_)) {
    const kernels::OpCost cost = CostOf(operation.shape);
    record->weight_bytes += cost.weight_bytes;
    record->kv_bytes += cost.kv_bytes;
    record->flops += cost.flops;
    if (IsExpert(operation.shape.family)) record->expert_bytes += cost.weight_bytes;
  }
  // Activations are not counted, as the engine does not count them under a plant: they stay in caches.
  return {record->weight_bytes + record->kv_bytes, record->flops};
}

void SimWorkload::Commit() {
  if (burst_rows_ > 0) {
    burst_left_ -= burst_rows_;
    burst_done_ = burst_left_ > 0 ? burst_done_ + burst_rows_ : 0;
  } else if (load_.burst_tokens > 0 && ++decode_steps_ >= load_.burst_after_steps) {
    decode_steps_ = 0;
    burst_left_ = load_.burst_tokens;
  }
  burst_rows_ = 0;
  for (Sequence& sequence : running_) {
    sequence.position += sequence.rows;
    if (sequence.prompt_left > 0) {
      sequence.prompt_left -= sequence.rows;
      if (sequence.prompt_left == 0) --sequence.generated_left;  // the prompt's last row gives the first token
    } else {
      sequence.generated_left -= sequence.rows;
    }
  }
  std::erase_if(running_, [&](const Sequence& sequence) {
    const bool ended = sequence.prompt_left == 0 && sequence.generated_left <= 0;
    if (ended) free_places_.push_back(sequence.place);
    return ended;
  });
}

}  // namespace thermoe
