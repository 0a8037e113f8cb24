// SPDX-License-Identifier: Apache-2.0
#include "control/cost/profiler.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <set>

#include "base/check.h"
#include "base/errors.h"
#include "base/random.h"
#include "kernels/dispatch.h"

namespace thermoe {
namespace {

// A batch of calls lasts this long at least: a thousand times the clock's resolution.
constexpr double kBatch_us = 60;
// A visit of a point is the fastest of some batches, which takes out interrupts; a point the lower quartile of its
// visits: what it takes while nothing else runs. Another program on one of the cores makes each fork wait for it, a
// hundred times the operation; the median held that out only where it ran less than half of the time.
constexpr int kBatches = 5, kVisits = 12, kQuickVisits = 4;
// As many points as one visit to each takes so long are a round: visited in turn, so that the visits of a point lie
// seconds apart and what holds a shared machine up for a second hits one or two of them.
constexpr double kRound_s = 2;
// Energy: calls between two readings of the counter; a window of so many changes, or what comes in so long. NVML's
// counter changes ten times a second, RAPL's a thousand times.
constexpr double kReading_us = 2000, kMostEnergy_s = 2;
constexpr int kCounterChanges = 20, kLeastChanges = 5;
// Layers of keys and values that calls go through in turn; in steps so many that no cache holds them.
constexpr int32_t kMostKvLayers = 4, kMostKvLayersInSteps = 16;
constexpr int64_t kKvPositions = 16384, kKvPositionsInSteps = 32768;

const WeightMatrix* MatrixOfRole(const ModelWeights& weights, const LayerWeights& layer, Family family,
                                 const MatrixShape& shape) {
  switch (family) {
    case Family::kEmbed: return &weights.embedding;
    case Family::kLinearQ: return &layer.q;
    case Family::kLinearK: return &layer.k;
    case Family::kLinearV: return &layer.v;
    case Family::kLinearO: return &layer.o;
    case Family::kLinearGate: return &layer.gate;
    case Family::kLinearOutput: return &weights.output;
    case Family::kLinearShared:
      for (const WeightMatrix* matrix :
           {&layer.shared.gate, &layer.shared.up, &layer.shared.down, &layer.shared_gate}) {
        if (!matrix->empty() && ShapeOf(*matrix) == shape) return matrix;
      }
      return nullptr;
    default: return nullptr;
  }
}

void FillUniform(std::vector<float>* values, int64_t count, uint64_t seed) {
  Random random(seed);
  values->resize(static_cast<size_t>(count));
  for (float& value : *values) value = static_cast<float>(random.Uniform() * 2 - 1);
}

}  // namespace

ModelShape ShapeOf(const ProfileTarget& target) {
  std::vector<std::span<const FfnWeights>> experts;
  for (int32_t l = 0; l < target.config->layers; ++l) experts.push_back(target.experts->layer(l));
  return ShapeOf(*target.config, *target.weights, experts);
}

Status ProfileStopped() { return {StatusCode::kCancelled, "the profile was stopped; run it again to go on from here"}; }

Result<std::unique_ptr<Profiler>> Profiler::Create(const ProfileTarget& target, const ProfilerOptions& options) {
  std::unique_ptr<Profiler> profiler(new Profiler(target, options));
  profiler->model_ = ShapeOf(target);
  profiler->threads_ = std::make_unique<ThreadPool>(options.threads);
  Result<std::unique_ptr<kernels::Ops>> ops = kernels::MakeOps(options.backend, options.isa, profiler->threads_.get(), options.device);
  if (!ops.ok()) return ops.status();
  profiler->ops_ = std::move(ops).value();
  profiler->options_.in_steps = options.in_steps || profiler->ops_->on_device();
  return profiler;
}

// Not before something is to be measured: a complete profile is only read, and keys and values may take a gigabyte.
Status Profiler::MakeBuffers() {
  const ModelConfig& config = *target_.config;
  const bool in_steps = options_.in_steps;
  kv_layers_ = std::min(config.layers, in_steps ? kMostKvLayersInSteps : kMostKvLayers);
  const int64_t positions = in_steps ? kKvPositionsInSteps : kKvPositions;
  Result<std::unique_ptr<KvCache>> cache = KvCache::Create({kv_layers_, config.kv_heads, config.head_dim}, positions);
  if (!cache.ok()) return cache.status();
  cache_ = std::move(cache).value();
  KvSequence all;
  THERMOE_RETURN_IF_ERROR(cache_->Reserve(&all, static_cast<int32_t>(positions)));
  kv_blocks_ = all.blocks;
  Random random(3);
  for (int32_t l = 0; l < kv_layers_ && !in_steps; ++l) {  // pages that were never written are all one page
    const KvLayer layer = cache_->layer(l);
    const int64_t floats = static_cast<int64_t>(kv_blocks_.size()) * layer.kv_heads * kKvBlock * layer.head_dim;
    for (int64_t i = 0; i < floats; ++i) {
      layer.keys[i] = static_cast<float>(random.Uniform() - 0.5);
      layer.values[i] = static_cast<float>(random.Uniform() - 0.5);
    }
  }
  int64_t floats = 1, rows = 1, widest = 1, step_rows = 1;
  for (const PlannedPoint& point : PlanProfile(model_, options_.quick, in_steps)) {
    const OperationShape& shape = point.shape;
    const int64_t width = IsAttention(shape.family)        ? shape.matrix.rows * shape.matrix.cols
                          : shape.family == Family::kEmbed ? shape.matrix.cols
                                                           : std::max(shape.matrix.rows, shape.matrix.cols);
    floats = std::max(floats, width * shape.tokens);
    rows = std::max(rows, shape.tokens);
    widest = std::max(widest, width);
    if (shape.family != Family::kNorm) step_rows = std::max(step_rows, shape.tokens);  // a norm's may be heads
  }
  FillUniform(&in_, floats, 4);
  FillUniform(&out_, floats, 5);
  FillUniform(&third_, floats, 6);
  ones_.assign(static_cast<size_t>(widest), 1.0f);
  cosines_.assign(static_cast<size_t>(rows * config.attention.rope_dim / 2),
                  0.8f);  // turns keep their length, however often
  sines_.assign(cosines_.size(), 0.6f);
  inverse_frequency_.assign(static_cast<size_t>(config.attention.rope_dim / 2), 0.01f);
  ids_.resize(static_cast<size_t>(rows));
  for (int32_t& id : ids_) id = static_cast<int32_t>(random.Below(static_cast<uint64_t>(config.vocab)));
  kinds_.assign(static_cast<size_t>(rows), kernels::RowKind::kDecode);
  records_.resize(static_cast<size_t>(config.layers));
  return in_steps ? MakeStepBuffers(step_rows) : Status::Ok();
}

std::string Profiler::Describe() const { return kernels::Describe(*ops_, *threads_); }

Profiler::Call Profiler::RowCall(const OperationShape& shape) {
  const int64_t rows = shape.tokens, width = shape.matrix.cols;
  const MutRows in{in_.data(), rows, width}, out{out_.data(), rows, width}, third{third_.data(), rows, width};
  switch (shape.family) {
    case Family::kNorm:
      return [=, this](size_t) { ops_->RmsNorm({in, std::span(ones_).first(static_cast<size_t>(width)), 1e-5f, out}); };
    case Family::kClamp: return [=, this](size_t) { ops_->Clamp(in, 1.0f); };
    case Family::kSwiGlu: return [=, this](size_t) { ops_->SwiGlu({in, third, out}); };
    case Family::kAdd: return [=, this](size_t) { ops_->Add({in, {}, out}); };
    case Family::kRope: {
      const ModelConfig& config = *target_.config;
      const int64_t half = config.attention.rope_dim / 2;
      const ConstRows cosines{cosines_.data(), rows, half}, sines{sines_.data(), rows, half};
      const RopeKind kind = config.attention.rope;
      const int32_t head_dim = config.head_dim, rope_dim = config.attention.rope_dim;
      return [=, this](size_t) { ops_->Rope({in, head_dim, rope_dim, kind, cosines, sines}); };
    }
    case Family::kSample:
      if (!target_.sample) return {};
      return [=, this](size_t) {
        for (int64_t t = 0; t < rows; ++t) target_.sample({in.row(t), static_cast<size_t>(width)});
      };
    default: return {};
  }
}

Profiler::Call Profiler::LinearCall(const OperationShape& shape) {
  std::vector<const WeightMatrix*> matrices;
  for (const LayerWeights& layer : target_.weights->layers) {
    const WeightMatrix* matrix = MatrixOfRole(*target_.weights, layer, shape.family, shape.matrix);
    if (matrix != nullptr && ShapeOf(*matrix) == shape.matrix) matrices.push_back(matrix);
  }
  if (matrices.empty()) return {};
  if (shape.family == Family::kEmbed) {
    const MutRows out{out_.data(), shape.tokens, shape.matrix.cols};
    return [=, this](size_t) {
      ops_->Embed(*matrices.front(), std::span(ids_).first(static_cast<size_t>(shape.tokens)), out);
    };
  }
  // Products of the same rows may be done together where operations are a step: turns have rows of their own there.
  const ConstRows x{in_.data(), shape.tokens, shape.matrix.cols}, odd{options_.in_steps ? third_.data() : in_.data(), x.rows, x.cols};
  const MutRows out{out_.data(), shape.tokens, shape.matrix.rows};
  return [=, this](size_t turn) { ops_->Linear({turn % 2 == 0 ? x : odd, *matrices[turn % matrices.size()], {}, out}); };
}

// Prefill and stored rows: one sequence. Decode: one for each row, with blocks of its own while there are some.
void Profiler::PlaceRows(const OperationShape& shape) {
  kv_rows_.clear();
  const int64_t rows = shape.tokens;
  if (shape.family == Family::kAttentionDecode) {
    const int64_t context = shape.positions / rows, blocks = (context + kKvBlock - 1) / kKvBlock;
    const int64_t sequences = std::max<int64_t>(1, static_cast<int64_t>(kv_blocks_.size()) / blocks);
    for (int64_t t = 0; t < rows; ++t) {
      kv_rows_.push_back({kv_blocks_.data() + t % sequences * blocks, static_cast<int32_t>(context - 1)});
    }
    ops_->SetRows(kv_rows_);
    return;
  }
  const int64_t past = IsAttention(shape.family) ? shape.distinct_positions - rows : 0;
  for (int64_t t = 0; t < rows; ++t) kv_rows_.push_back({kv_blocks_.data(), static_cast<int32_t>(past + t)});
  ops_->SetRows(kv_rows_);
}

Profiler::Call Profiler::KvCall(const OperationShape& shape) {
  PlaceRows(shape);
  const auto layers = static_cast<size_t>(kv_layers_);
  if (shape.family == Family::kStoreKv) {
    const ConstRows k{in_.data(), shape.tokens, shape.matrix.cols}, v{third_.data(), shape.tokens, shape.matrix.cols};
    return [=, this](size_t turn) {
      ops_->StoreKv({k, v, kv_rows_, cache_->layer(static_cast<int32_t>(turn % layers))});
    };
  }
  if (shape.distinct_positions > static_cast<int64_t>(kv_blocks_.size()) * kKvBlock && shape.family != Family::kAttentionDecode) return {};
  const auto heads = static_cast<int32_t>(shape.matrix.rows);
  const int64_t width = shape.matrix.rows * shape.matrix.cols;
  const ConstRows q{in_.data(), shape.tokens, width};
  const MutRows out{out_.data(), shape.tokens, width};
  const float scale = 1.0f / std::sqrt(static_cast<float>(shape.matrix.cols));
  if (shape.family == Family::kAttentionBackward) {
    const int64_t kv_width = int64_t{shape.kv_heads} * shape.matrix.cols;
    fourth_.resize(static_cast<size_t>(2 * shape.tokens * kv_width));
    const ConstRows dout{third_.data(), shape.tokens, width};
    const MutRows dk{fourth_.data(), shape.tokens, kv_width}, dv{dk.data + dk.size(), shape.tokens, kv_width};
    return [=, this](size_t turn) {
      const KvLayer cache = cache_->layer(static_cast<int32_t>(turn % layers));
      ops_->AttentionBackward({q, kv_rows_, cache, heads, scale, q, dout, out, dk, dv});
    };
  }
  return [=, this](size_t turn) {
    ops_->Attention({q, kv_rows_, cache_->layer(static_cast<int32_t>(turn % layers)), heads, scale, out});
  };
}

// Room for the slots of `shape`'s rows; jobs and order are empty.
void Profiler::PlaceSlots(const OperationShape& shape) {
  const int64_t rows = shape.tokens, slots = target_.config->slots, all = target_.config->experts;
  const auto count = static_cast<size_t>(rows * slots);
  slot_expert_.assign(count, -1);
  slot_weight_.assign(count, 0.25f);
  slot_planes_.assign(count, Planes::kBoth);
  order_.assign(count, 0);
  scores_.resize(static_cast<size_t>(rows * all));
  jobs_.assign(static_cast<size_t>(2 * all), {});
  selection_ = {};
  selection_.slots = static_cast<int32_t>(slots);
  selection_.scores = {scores_.data(), rows, all};
  selection_.expert = {slot_expert_.data(), rows, slots};
  selection_.weight = {slot_weight_.data(), rows, slots};
  selection_.planes = {slot_planes_.data(), rows, slots};
  selection_.jobs = jobs_;
  selection_.order = order_;
  selection_.record = records_.data();
}

// What the host wrote of the slots, to a device that has them too.
void Profiler::PublishSlots() const {
  for (const std::span<const std::byte> bytes :
       {std::as_bytes(std::span(slot_expert_)), std::as_bytes(std::span(slot_weight_)), std::as_bytes(std::span(slot_planes_)),
        std::as_bytes(std::span(order_)), std::as_bytes(std::span(jobs_)), std::as_bytes(std::span(&selection_.job_count, 1))}) {
    ops_->Publish(bytes);
  }
}

Profiler::Call Profiler::SelectCall(const OperationShape& shape) {
  PlaceSlots(shape);
  const ConstRows logits{in_.data(), shape.tokens, shape.matrix.cols};
  return [=, this](size_t) {
    ops_->Select({logits, target_.config->gate, target_.config->slots, model_.nested, nullptr,
                  std::span(kinds_).first(static_cast<size_t>(shape.tokens)), &selection_});
  };
}

// Full jobs on the first experts, hi jobs on the last, the slots of each kind spread evenly.
Profiler::Call Profiler::ExpertCall(const OperationShape& shape) {
  std::vector<int32_t> layers;
  for (size_t l = 0; l < model_.layers.size(); ++l) {
    const LayerShape& layer = model_.layers[l];
    if (layer.expert_gate == shape.matrix && layer.expert_down.type == shape.down_type)
      layers.push_back(static_cast<int32_t>(l));
  }
  const int64_t slots = shape.slots_full + shape.slots_hi;
  if (layers.empty() || shape.experts > target_.config->experts || slots > shape.tokens * target_.config->slots)
    return {};
  PlaceSlots(shape);
  int32_t next = 0;
  // Slot index, index + of, index + 2 of, ... of `all`: tokens far apart, as experts meet them.
  const auto add_job = [&](int64_t expert, Planes planes, int64_t index, int64_t of, int64_t all, int64_t first) {
    const auto count = static_cast<int32_t>((all - index + of - 1) / of);
    jobs_[static_cast<size_t>(selection_.job_count++)] = {static_cast<int32_t>(expert), planes, next, count};
    for (int64_t slot = index; slot < all; slot += of)
      order_[static_cast<size_t>(next++)] = static_cast<int32_t>(first + slot);
  };
  for (int64_t e = 0; e < shape.experts; ++e) {
    if (e < shape.experts_full) add_job(e, Planes::kBoth, e, shape.experts_full, shape.slots_full, 0);
    const int64_t hi = e - (shape.experts - shape.experts_hi);
    if (hi >= 0) add_job(e, Planes::kHi, hi, shape.experts_hi, shape.slots_hi, shape.slots_full);
  }
  for (int64_t i = 0; i < slots; ++i) slot_expert_[static_cast<size_t>(i)] = 0;
  const int64_t all = shape.tokens * target_.config->slots, width = target_.config->expert_width,
                hidden = target_.config->hidden;
  PublishSlots();
  if (!ops_->on_device()) {  // which has its own
    inner_.resize(static_cast<size_t>(all * width));
    slot_out_.resize(static_cast<size_t>(all * hidden));
  }
  if (IsExpertBackward(shape.family)) return ExpertBackwardCall(shape, std::move(layers));
  const ConstRows x{in_.data(), shape.tokens, hidden};
  const MutRows inner{inner_.data(), all, width}, slot_out{slot_out_.data(), all, hidden},
      out{out_.data(), shape.tokens, hidden};
  return [=, this](size_t turn) {
    ops_->ExpertFfn({x, target_.experts->layer(layers[turn % layers.size()]), &selection_, inner, slot_out, out});
  };
}

Profiler::Call Profiler::CallOf(const OperationShape& shape) {
  if (IsExpert(shape.family)) return ExpertCall(shape);
  if (IsAttention(shape.family) || shape.family == Family::kStoreKv) return KvCall(shape);
  if (shape.family == Family::kSelect) return SelectCall(shape);
  if (Call call = RowCall(shape)) return call;
  if (Call call = BackwardCall(shape)) return call;
  return LinearCall(shape);
}

double Profiler::Visit(const Call& call) {
  using Clock = std::chrono::steady_clock;
  size_t turn = 0;
  const auto batch_us = [&](int calls) {
    const auto start = Clock::now();
    for (int i = 0; i < calls; ++i) call(turn++);
    return std::chrono::duration<double, std::micro>(Clock::now() - start).count() / calls;
  };
  batch_us(1);
  const int calls = std::clamp(static_cast<int>(kBatch_us / std::max(batch_us(2), 1e-3)) + 1, 1, 1000);
  batch_us(calls);
  double least = batch_us(calls);
  for (int batch = 1; batch < kBatches; ++batch) least = std::min(least, batch_us(calls));
  return least;
}

CostPoint Profiler::PointOf(const PlannedPoint& planned, std::vector<double> visits_us) {
  CostPoint point;
  point.shape = planned.shape;
  point.held_out = planned.held_out;
  const kernels::OpCost cost = CostOf(point.shape);
  point.bytes = BytesOf(cost);
  point.flops = cost.flops;
  std::sort(visits_us.begin(), visits_us.end());
  const size_t count = visits_us.size();
  point.latency_us = visits_us[count / 4];
  point.spread_frac = (visits_us[count * 3 / 4] - visits_us[count / 4]) / 2 / point.latency_us;
  if (options_.energy_j) {
    size_t turn = 0;
    const Call call = CallOf(point.shape);
    point.energy_j = EnergyOf([&] { call(turn++); }, point.latency_us);
  }
  return point;
}

std::optional<double> Profiler::EnergyOf(const std::function<void()>& call, double latency_us) const {
  using Clock = std::chrono::steady_clock;
  // Between readings calls run for a while: a reading costs some 15 us.
  const int calls = std::max(1, static_cast<int>(kReading_us / latency_us));
  const auto start = Clock::now();
  auto from = start, last = start;  // when the first and the newest change were seen
  std::optional<double> from_j, last_j = options_.energy_j();
  int changes = 0;
  while (last_j && changes < kCounterChanges &&
         std::chrono::duration<double>(Clock::now() - start).count() < kMostEnergy_s) {
    for (int i = 0; i < calls; ++i) call();
    const std::optional<double> now_j = options_.energy_j();
    if (now_j == last_j) continue;
    last_j = now_j;
    last = Clock::now();
    if (from_j) {
      ++changes;
    } else {
      from_j = now_j;
      from = last;
    }
  }
  if (changes < kLeastChanges || !last_j || *last_j <= *from_j) return std::nullopt;
  // Power times latency: what held some calls up does not count as theirs.
  return (*last_j - *from_j) / std::chrono::duration<double>(last - from).count() * latency_us * 1e-6;
}

Status Profiler::Run(const std::vector<CostPoint>& known, const std::function<Status(const CostPoint& point)>& on_point,
                     const std::function<bool(double done_frac)>& go_on) {
  std::set<std::string> have;
  for (const CostPoint& point : known) have.insert(TextOf(point.shape));
  const std::vector<PlannedPoint> plan = PlanProfile(model_, options_.quick, options_.in_steps);
  std::vector<const PlannedPoint*> missing;
  for (const PlannedPoint& point : plan) {
    if (have.count(TextOf(point.shape)) == 0) missing.push_back(&point);
  }
  if (missing.empty()) return Status::Ok();
  if (cache_ == nullptr) THERMOE_RETURN_IF_ERROR(MakeBuffers());
  const size_t visits = options_.quick ? kQuickVisits : kVisits, all = plan.size();
  if (options_.in_steps) return RunInSteps(missing, all, on_point, go_on);
  const Status stopped = ProfileStopped();
  for (size_t first = 0; first < missing.size();) {
    std::vector<std::vector<double>> round_us;  // [points of the round][visits]
    double round_s = 0;
    size_t made = 0;
    for (size_t visit = 0; visit < visits; ++visit) {
      for (size_t i = 0; first + i < missing.size(); ++i) {
        if (visit == 0 && round_s > kRound_s) break;
        if (visit == 0) round_us.emplace_back();
        if (i == round_us.size()) break;
        const auto start = std::chrono::steady_clock::now();
        // No call: nothing to run it on, as a model without a sampler.
        if (const Call call = CallOf(missing[first + i]->shape)) round_us[i].push_back(Visit(call));
        round_s += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        const double before = static_cast<double>(all - missing.size() + first);
        if (!go_on((before + static_cast<double>(++made) / static_cast<double>(visits)) / static_cast<double>(all)))
          return stopped;
      }
    }
    for (size_t i = 0; i < round_us.size(); ++i) {
      if (round_us[i].empty()) continue;
      THERMOE_RETURN_IF_ERROR(on_point(PointOf(*missing[first + i], std::move(round_us[i]))));
      const double done = static_cast<double>(all - missing.size() + first + i + 1);
      if (options_.energy_j && !go_on(done / static_cast<double>(all))) return stopped;  // which takes a while each
    }
    first += round_us.size();
  }
  return Status::Ok();
}

}  // namespace thermoe
