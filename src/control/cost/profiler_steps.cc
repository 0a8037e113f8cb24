// SPDX-License-Identifier: Apache-2.0
// Operations as parts of steps: how a device with memory of its own is profiled. Neighbours share kernels there and kernels overlap, so that an
// operation alone says little of what it adds to a step. What depends on a step's rows alone is timed as it follows one another in a layer.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <mutex>
#include <thread>

#include "base/errors.h"
#include "control/cost/profiler.h"

namespace thermoe {
namespace {

using Clock = std::chrono::steady_clock;

// Calls go through the layers in turn, at least kLeastCalls of them and for about kGraph_us; what takes longer than kLong_us is larger than any
// cache by itself. The guess is a present GPU's: 3 us a launch, 2.5 TB/s, 400 TFLOP/s.
constexpr double kGraph_us = 400, kLong_us = 200, kLaunch_us = 3, kGuessBytesPer_us = 2.5e6, kGuessFlopsPer_us = 4e8;
constexpr size_t kMostCalls = 96, kMostLayers = 48;
constexpr int kLongCalls = 4;
// A visit lasts this long at least; a point is the median of its visits, one after another: nothing else uses the device.
constexpr double kVisit_us = 1000;
constexpr int kVisits = 3, kQuickVisits = 2, kMostReplays = 64;
// At least so much of a part's time is its own members', whatever those of other parts take elsewhere, and so much a segment's.
constexpr double kLeastOwnFrac = 0.2, kLeastSegmentFrac = 0.005;
constexpr int64_t kGateWithSelectRows = 32;
constexpr int kAllSegments = 9;
// Energy: a counter that changes ten times a second is watched over three changes, after one that other work had a part in and one more, for
// sensors lag.
constexpr double kChunk_us = 10000, kMostEnergy_s = 1.2;
constexpr size_t kSkippedChanges = 1, kLeastChanges = 3, kChanges = 4;
constexpr auto kLook = std::chrono::milliseconds(1);
// Of steps that are timed from outside.
constexpr int kWarmSteps = 4, kTimedSteps = 61;
constexpr uint64_t kStepKey = uint64_t{1} << 20;

class Waiting final : public kernels::MeasuredStep {
 public:
  double Run(int times) override {
    std::this_thread::sleep_for(std::chrono::duration<double, std::micro>(kChunk_us * times));
    return kChunk_us;
  }
};

double SecondsSince(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

double MedianOf(std::vector<double>* values) {
  std::sort(values->begin(), values->end());
  return (*values)[values->size() / 2];
}

double GuessOf(const kernels::OpCost& cost) { return kLaunch_us + BytesOf(cost) / kGuessBytesPer_us + cost.flops / kGuessFlopsPer_us; }

// Where in its part an operation stands: parts are timed up to the end of each of these. The gate's product and the selection are one where a
// backend may do them at once.
int SegmentOf(Family family, int64_t rows) {
  switch (family) {
    case Family::kRope:
    case Family::kStoreKv:
    case Family::kClamp:
    case Family::kAdd:
    case Family::kNorm: return 1;
    case Family::kLinearGate: return 2;
    case Family::kSelect: return rows > kGateWithSelectRows ? 3 : 2;
    default: return 0;
  }
}

bool HasRole(const LayerShape& layer, Family family, const MatrixShape& matrix) {
  switch (family) {
    case Family::kLinearQ: return layer.q == matrix;
    case Family::kLinearK: return layer.k == matrix;
    case Family::kLinearV: return layer.v == matrix;
    case Family::kLinearO: return layer.o == matrix;
    case Family::kLinearGate: return layer.gate == matrix;
    case Family::kLinearShared:
      return layer.shared_gate_proj == matrix || layer.shared_up == matrix || layer.shared_down == matrix || layer.shared_gate == matrix;
    case Family::kExpertNative:
    case Family::kExpertNestedBoth:
    case Family::kExpertNestedHi: return layer.expert_gate == matrix;
    default: return true;
  }
}

}  // namespace

Profiler::Part Profiler::PartOf(const OperationShape& shape) const {
  switch (shape.family) {
    case Family::kLinearQ:
    case Family::kLinearK:
    case Family::kLinearV:
    case Family::kRope:
    case Family::kStoreKv:
    case Family::kClamp: return Part::kBeforeAttention;
    case Family::kNorm: return shape.matrix.cols == target_.config->hidden ? Part::kAfterAttention : Part::kAlone;
    case Family::kLinearO:
    case Family::kAdd:
    case Family::kLinearGate:
    case Family::kSelect: return Part::kAfterAttention;
    case Family::kLinearShared:
    case Family::kSwiGlu: return Part::kShared;
    case Family::kLinearOutput: return Part::kLogits;
    case Family::kExpertNative:
    case Family::kExpertNestedBoth:
    case Family::kExpertNestedHi: return Part::kExperts;
    default: return Part::kAlone;
  }
}

size_t Profiler::LayerOf(const OperationShape& shape) const {
  for (size_t l = 0; l < model_.layers.size(); ++l) {
    if (HasRole(model_.layers[l], shape.family, shape.matrix)) return l;
  }
  return model_.layers.size();
}

// The engine's own list for such a step, cut into parts.
std::vector<OperationShape> Profiler::MembersOf(Part part, size_t layer, int64_t rows) const {
  StepShape step;
  step.decode_tokens = step.decode_positions = rows;
  step.logit_rows = std::min(rows, kLogitRows);
  const std::vector<PlannedOperation> plan = OperationsOfStep(model_, step);
  std::vector<OperationShape> members;
  size_t next_layer = 0;
  Part now = Part::kAlone;
  for (const PlannedOperation& operation : plan) {
    const OperationShape& shape = operation.shape;
    // The norm that a layer begins with is done with the end of what is before it.
    if (operation.stage == Stage::kAttention && now == Part::kShared) now = Part::kAlone;
    if (shape.family == Family::kLinearQ) now = Part::kBeforeAttention, ++next_layer;
    if (shape.family == Family::kLinearO) now = Part::kAfterAttention;
    if (operation.stage == Stage::kExperts) now = Part::kShared;
    if (operation.stage == Stage::kLogits) now = Part::kLogits;
    if (now != part || IsAttention(shape.family) || IsExpert(shape.family) || shape.family == Family::kSample) continue;
    if (part == Part::kLogits || next_layer == layer + 1) members.push_back(shape);
  }
  return members;
}

// What happens to q, k and v between their products and attention.
Profiler::Call Profiler::FinishCall(int64_t rows) {
  const ModelConfig& config = *target_.config;
  const auto view = [rows](std::vector<float>& values, int64_t cols) { return MutRows{values.data(), rows, cols}; };
  const MutRows q = view(q_, int64_t{config.heads} * config.head_dim), k = view(k_, int64_t{config.kv_heads} * config.head_dim), v = view(v_, k.cols);
  const MutRows cosines = view(cosines_, config.attention.rope_dim / 2), sines = view(sines_, cosines.cols);
  return [=, this, &config](size_t turn) {
    const LayerWeights& weights = target_.weights->layers[turn % target_.weights->layers.size()];
    const auto norm_heads = [&](MutRows values, const std::vector<float>& gain) {
      const auto width = static_cast<int64_t>(gain.size());
      const MutRows groups{values.data, values.size() / width, width};
      ops_->RmsNorm({groups, gain, config.norm_epsilon, groups});
    };
    if (config.attention.qk_norm != QkNorm::kNone) norm_heads(q, weights.q_norm), norm_heads(k, weights.k_norm);
    if (config.attention.clip_qkv > 0) {
      for (const MutRows& values : {q, k, v}) ops_->Clamp(values, config.attention.clip_qkv);
    }
    for (const MutRows& values : {q, k}) ops_->Rope({values, config.head_dim, config.attention.rope_dim, config.attention.rope, cosines, sines});
    ops_->StoreKv({k, v, kv_rows_, cache_->layer(static_cast<int32_t>(turn % static_cast<size_t>(kv_layers_)))});
  };
}

// Attention of decode rows may share a launch with what comes before it, which has a time of its own.
Profiler::Timed Profiler::TimeAttention(const OperationShape& shape, bool energy) {
  PlaceRows(shape);
  const ModelConfig& config = *target_.config;
  const Call finish = FinishCall(shape.tokens);
  const int64_t width = int64_t{config.heads} * config.head_dim;
  const MutRows q{q_.data(), shape.tokens, width}, out{attended_.data(), shape.tokens, width};
  const float scale = 1.0f / std::sqrt(static_cast<float>(config.head_dim));
  const Timed before = TimeCall(finish, CostOf(shape), false);
  Timed timed = TimeCall(
      [&](size_t turn) {
        finish(turn);
        ops_->Attention({q, kv_rows_, cache_->layer(static_cast<int32_t>(turn % static_cast<size_t>(kv_layers_))), config.heads, scale, out});
      },
      CostOf(shape), energy);
  const double own_frac = std::max(1 - before.us / timed.us, kLeastOwnFrac);
  timed.us *= own_frac;
  if (timed.energy_j) *timed.energy_j *= own_frac;
  return timed;
}

// Up to the end of segment `last`. Turns have inputs of their own where the first product's would be the last one's too: products of the same
// rows may be done together.
Profiler::Call Profiler::PartCall(Part part, size_t layer, int64_t rows, int last) {
  const ModelConfig& config = *target_.config;
  std::vector<size_t> alike;
  for (size_t l = 0; l < model_.layers.size(); ++l) {
    if (model_.layers[l] == model_.layers[layer]) alike.push_back(l);
  }
  const auto view = [rows](std::vector<float>& values, int64_t cols) { return MutRows{values.data(), rows, cols}; };
  const MutRows x = view(x_, config.hidden), h = view(h_, config.hidden);
  const MutRows q = view(q_, int64_t{config.heads} * config.head_dim), attended = view(attended_, q.cols);
  const MutRows k = view(k_, int64_t{config.kv_heads} * config.head_dim), v = view(v_, k.cols);
  const float epsilon = config.norm_epsilon;
  switch (part) {
    case Part::kBeforeAttention: {
      OperationShape stored;
      stored.family = Family::kStoreKv;
      stored.tokens = rows;
      PlaceRows(stored);
      const Call finish = FinishCall(rows);
      return [=, this](size_t turn) {
        const LayerWeights& weights = target_.weights->layers[alike[turn % alike.size()]];
        const MutRows from = turn % 2 == 0 ? h : x;
        ops_->Linear({from, weights.q, weights.q_bias, q});
        ops_->Linear({from, weights.k, weights.k_bias, k});
        ops_->Linear({from, weights.v, weights.v_bias, v});
        if (last >= 1) finish(turn);
      };
    }
    case Part::kAfterAttention: {
      OperationShape selected;
      selected.tokens = rows;
      PlaceSlots(selected);
      const MutRows logits = view(gate_logits_, config.experts);
      return [=, this, &config](size_t turn) {
        const LayerWeights& weights = target_.weights->layers[alike[turn % alike.size()]];
        ops_->Linear({turn % 2 == 0 ? attended : q, weights.o, {}, h});
        if (last < 1) return;
        ops_->Add({h, {}, x});
        ops_->RmsNorm({x, weights.expert_norm, epsilon, h});
        if (last < 2) return;
        ops_->Linear({h, weights.gate, {}, logits});
        if (last < 3 && rows > kGateWithSelectRows) return;
        ops_->Select({logits, config.gate, config.slots, model_.nested, nullptr, std::span(kinds_).first(static_cast<size_t>(rows)), &selection_});
      };
    }
    case Part::kShared: {
      const MutRows gate = view(shared_gate_, config.shared_width), up = view(shared_up_, config.shared_width);
      const MutRows scale = config.shared_gate ? view(shared_scale_, 1) : MutRows{}, out = view(out_, config.hidden);
      return [=, this, &config](size_t turn) {
        const LayerWeights& weights = target_.weights->layers[alike[turn % alike.size()]];
        ops_->Linear({h, weights.shared.gate, {}, gate});
        ops_->Linear({h, weights.shared.up, {}, up});
        ops_->SwiGlu({gate, up, gate});
        if (config.shared_gate) ops_->Linear({h, weights.shared_gate, {}, scale});
        ops_->Linear({gate, weights.shared.down, {}, out});
        ops_->Add({out, scale, x});
        ops_->RmsNorm({x, weights.attention_norm, epsilon, h});
      };
    }
    case Part::kLogits: {
      const MutRows normed = view(logit_rows_, config.hidden), logits = view(logits_, config.vocab);
      return [=, this](size_t) {
        ops_->RmsNorm({x, target_.weights->output_norm, epsilon, normed});
        ops_->Linear({normed, target_.weights->output, {}, logits});
      };
    }
    case Part::kExperts:
    case Part::kAlone: break;
  }
  return {};
}

// One of `call`'s calls inside a run of them.
Profiler::Timed Profiler::TimeCall(const Call& call, const kernels::OpCost& cost, bool energy) {
  const double guess_us = GuessOf(cost);
  const size_t layers = std::min(model_.layers.size(), kMostLayers);
  size_t calls = kLongCalls;
  if (ops_->on_device() && guess_us < kLong_us) {
    calls = std::max(layers, std::min(kMostCalls, static_cast<size_t>(kGraph_us / guess_us)));
  }
  const std::unique_ptr<kernels::MeasuredStep> step = ops_->Measure([&call, calls] {
    for (size_t turn = 0; turn < calls; ++turn) call(turn);
  });
  const double once_us = std::max(step->Run(1), 1e-3);
  const int times = std::clamp(static_cast<int>(kVisit_us / once_us), 1, kMostReplays);
  step->Run(times);
  std::vector<double> visits_us;
  for (int visit = 0; visit < (options_.quick ? kQuickVisits : kVisits); ++visit) visits_us.push_back(step->Run(times) / static_cast<double>(calls));
  Timed timed;
  timed.us = std::max(MedianOf(&visits_us), 1e-3);
  timed.spread_frac = (visits_us.back() - visits_us.front()) / 4 / timed.us;
  if (energy) {
    timed.energy_j = StepEnergyOf(step.get(), timed.us * static_cast<double>(calls));
    if (timed.energy_j) *timed.energy_j /= static_cast<double>(calls);
  }
  return timed;
}

// Joules of one replay, idle power included. A reading of the counter takes milliseconds: a thread of its own looks at it while the device works.
std::optional<double> Profiler::StepEnergyOf(kernels::MeasuredStep* step, double once_us) const {
  struct Change {
    double at_s, joules;
  };
  std::mutex mutex;
  std::vector<Change> changes;
  std::atomic<bool> done = false;
  const auto start = Clock::now();
  std::thread watch([&] {
    std::optional<double> last_j = options_.energy_j();
    while (!done) {
      const std::optional<double> now_j = options_.energy_j();
      if (now_j && last_j && *now_j != *last_j) {
        const std::lock_guard lock(mutex);
        changes.push_back({SecondsSince(start), *now_j});
      }
      last_j = now_j;
      std::this_thread::sleep_for(kLook);
    }
  });
  const int times = std::max(1, static_cast<int>(kChunk_us / once_us));
  double sum_us = 0;
  int chunks = 0;
  for (bool enough = false; !enough && SecondsSince(start) < kMostEnergy_s;) {
    sum_us += step->Run(times);
    ++chunks;
    const std::lock_guard lock(mutex);
    enough = changes.size() > kSkippedChanges + kChanges - 1;
  }
  done = true;
  watch.join();
  if (changes.size() < kSkippedChanges + kLeastChanges) return std::nullopt;
  const Change &from = changes[kSkippedChanges], &to = changes.back();
  if (to.joules <= from.joules) return std::nullopt;
  // Under a long load the device may be slower than in a short run: joules are those of the long one.
  return (to.joules - from.joules) / (to.at_s - from.at_s) * (sum_us / chunks) * 1e-6;
}

const Profiler::PartTime& Profiler::TimePart(Part part, size_t layer, int64_t rows, bool energy) {
  const auto key = std::tuple(part, layer, rows);
  if (const auto found = parts_.find(key); found != parts_.end() && (!energy || found->second.energy_tried)) return found->second;
  PartTime time;
  time.energy_tried = energy;
  // A segment's time is divided by what its members would take for one row: by launches and weights, alike for all sizes.
  const std::vector<OperationShape> members = MembersOf(part, layer, rows);
  const auto one_row_us = [rows](OperationShape member) {
    member.tokens = 1;
    const double us = GuessOf(CostOf(member));
    // Of a launch that multiplies and selects, selection takes about a third (gpu_gate, 32 rows).
    return member.family == Family::kSelect && rows <= kGateWithSelectRows ? us / 2 : us;
  };
  std::map<int, kernels::OpCost> costs;
  std::map<int, double> own_us;
  for (const OperationShape& member : members) {
    const int segment = SegmentOf(member.family, rows);
    costs[segment] += CostOf(member);
    if (PartOf(member) == part) {
      own_us[segment] += one_row_us(member);
    } else {
      time.known_us += MicrosecondsInStep(member);
    }
  }
  if (part == Part::kShared) {  // and the norm that follows
    OperationShape norm;
    norm.family = Family::kNorm;
    norm.matrix = {DType::kF32, 1, target_.config->hidden, false};
    norm.tokens = rows;
    time.known_us += MicrosecondsInStep(norm);
  }
  kernels::OpCost cost;
  std::map<int, double> segment_us;
  double until_us = 0, sum_us = 0;
  for (const auto& [segment, of_segment] : costs) {
    cost += of_segment;
    const bool all = segment == costs.rbegin()->first;
    time.all = TimeCall(PartCall(part, layer, rows, segment), cost, energy && all);
    if (!own_us.contains(segment)) continue;  // others' alone
    segment_us[segment] = std::max(time.all.us - until_us, kLeastSegmentFrac * time.all.us);
    sum_us += segment_us[segment];
    until_us = time.all.us;
  }
  time.known_us = std::min(time.known_us, (1 - kLeastOwnFrac) * time.all.us);
  for (const OperationShape& member : members) {
    const int segment = SegmentOf(member.family, rows);
    if (PartOf(member) == part) time.share_frac[TextOf(member)] = segment_us[segment] / sum_us * one_row_us(member) / own_us[segment];
  }
  return parts_[key] = std::move(time);
}

double Profiler::MicrosecondsInStep(const OperationShape& shape) {
  const std::optional<Timed> timed = TimeInStep(shape, false);
  return timed ? timed->us : 0;
}

// Experts and the norm that follows them, which adds up what their slots gave; the norm has a time of its own.
Profiler::Timed Profiler::TimeExperts(const OperationShape& shape, bool energy) {
  const bool shared = target_.config->shared_width > 0;
  double norm_us = 0;
  if (!shared) {
    OperationShape norm;
    norm.family = Family::kNorm;
    norm.matrix = {DType::kF32, 1, target_.config->hidden, false};
    norm.tokens = shape.tokens;
    norm_us = MicrosecondsInStep(norm);
  }
  const Call experts = ExpertCall(shape);  // after the norm, whose neighbours select
  if (!experts) return {};
  const MutRows out{out_.data(), shape.tokens, target_.config->hidden}, h{h_.data(), out.rows, out.cols};
  const std::vector<LayerWeights>& layers = target_.weights->layers;
  Timed timed = TimeCall(
      [&](size_t turn) {
        experts(turn);
        if (!shared) ops_->RmsNorm({out, layers[turn % layers.size()].attention_norm, target_.config->norm_epsilon, h});
      },
      CostOf(shape), energy);
  const double own_frac = std::max(1 - norm_us / timed.us, kLeastOwnFrac);
  timed.us *= own_frac;
  if (timed.energy_j) *timed.energy_j *= own_frac;
  return timed;
}

// What a step takes beyond its operations, by the clock of who waits for it: its inputs on their way, its end noticed, what its logits come to
// fetched. Few layers' worth of operations hide what a step hides.
Profiler::Timed Profiler::TimeAroundStep(const OperationShape& shape, bool energy) {
  const ModelConfig& config = *target_.config;
  const int64_t rows = shape.tokens, half = config.attention.rope_dim / 2;
  const auto n = static_cast<size_t>(rows);
  OperationShape embed;
  embed.family = Family::kEmbed;
  embed.matrix = model_.embedding;
  embed.tokens = rows;
  const size_t layers = model_.layers.size();
  const double operations_us = MicrosecondsInStep(embed) + static_cast<double>(layers) * TimePart(Part::kBeforeAttention, 0, rows, false).all.us +
                               TimePart(Part::kLogits, 0, rows, false).all.us;
  const Call body = PartCall(Part::kBeforeAttention, 0, rows, kAllSegments);
  const MutRows x{x_.data(), rows, config.hidden}, normed{logit_rows_.data(), rows, config.hidden}, logits{logits_.data(), rows, config.vocab};
  const auto step = [&] {
    ops_->Publish(std::as_bytes(std::span(ids_).first(n)));
    ops_->Publish(std::as_bytes(std::span(kinds_).first(n)));
    ops_->Publish(std::as_bytes(std::span(asked_).first(n)));
    ops_->SetRows(kv_rows_);
    ops_->SetSteering(nullptr, records_);
    ops_->BeginStep(kStepKey + static_cast<uint64_t>(rows));
    ops_->Embed(target_.weights->embedding, std::span(ids_).first(n), x);
    ops_->Angles({std::span(kv_rows_).first(n), inverse_frequency_, {cosines_.data(), rows, half}, {sines_.data(), rows, half}});
    for (size_t l = 0; l < layers; ++l) body(l);
    ops_->RmsNorm({x, target_.weights->output_norm, config.norm_epsilon, normed});
    ops_->Linear({normed, target_.weights->output, {}, logits});
    const bool summarised = ops_->Summarise({logits, std::span(asked_).first(n), std::span(summaries_).first(n)});
    ops_->EndStep();
    if (summarised) ops_->FinishSummaries();
    for (int64_t t = 0; t < rows && !summarised && target_.sample; ++t) target_.sample({logits.row(t), static_cast<size_t>(logits.cols)});
    ops_->FinishRecords();
  };
  std::vector<double> steps_us;
  for (int i = 0; i < kWarmSteps + kTimedSteps; ++i) {
    const auto start = Clock::now();
    step();
    if (i >= kWarmSteps) steps_us.push_back(1e6 * SecondsSince(start));
  }
  Timed timed;
  timed.us = std::max(MedianOf(&steps_us) - operations_us, 1.0);  // sorts
  timed.spread_frac = (steps_us[steps_us.size() * 3 / 4] - steps_us[steps_us.size() / 4]) / 2 / timed.us;
  if (energy) {  // meanwhile the device waits
    Waiting waiting;
    timed.energy_j = StepEnergyOf(&waiting, kChunk_us);
    if (timed.energy_j) *timed.energy_j *= timed.us / kChunk_us;
  }
  return timed;
}

std::optional<Profiler::Timed> Profiler::TimeInStep(const OperationShape& shape, bool energy) {
  const Part part = PartOf(shape);
  const size_t layer = LayerOf(shape);
  if (layer == model_.layers.size()) return std::nullopt;
  if (shape.family == Family::kSample) return TimeAroundStep(shape, energy);
  if (part == Part::kExperts) {
    const Timed timed = TimeExperts(shape, energy);
    return timed.us > 0 ? std::optional(timed) : std::nullopt;
  }
  if (shape.family == Family::kAttentionDecode) return TimeAttention(shape, energy);
  if (part == Part::kAlone) {
    const Call call = CallOf(shape);
    if (!call) return std::nullopt;
    return TimeCall(call, CostOf(shape), energy);
  }
  const PartTime& time = TimePart(part, layer, shape.tokens, energy);
  const auto share = time.share_frac.find(TextOf(shape));
  if (share == time.share_frac.end()) return std::nullopt;
  Timed timed = time.all;
  timed.us = (time.all.us - time.known_us) * share->second;
  if (timed.energy_j) *timed.energy_j *= timed.us / time.all.us;
  return timed;
}

Status Profiler::RunInSteps(const std::vector<const PlannedPoint*>& missing, size_t all, const std::function<Status(const CostPoint& point)>& on_point,
                            const std::function<bool(double done_frac)>& go_on) {
  size_t done = all - missing.size();
  for (const PlannedPoint* planned : missing) {
    const std::optional<Timed> timed = TimeInStep(planned->shape, planned->energy && options_.energy_j);
    THERMOE_RETURN_IF_ERROR(ops_->Health());
    if (timed) {
      CostPoint point;
      point.shape = planned->shape;
      point.held_out = planned->held_out;
      const kernels::OpCost cost = CostOf(point.shape);
      point.bytes = BytesOf(cost);
      point.flops = cost.flops;
      point.latency_us = timed->us;
      point.spread_frac = timed->spread_frac;
      point.energy_j = timed->energy_j;
      THERMOE_RETURN_IF_ERROR(on_point(point));
    }
    if (!go_on(static_cast<double>(++done) / static_cast<double>(all))) return ProfileStopped();
  }
  return Status::Ok();
}

}  // namespace thermoe
