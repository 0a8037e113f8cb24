// SPDX-License-Identifier: Apache-2.0
// Test-time training of sessions: reading in segments, context restarts, the streaming step (docs/test-time-training.md).
#include <algorithm>
#include <new>
#include <utility>

#include "base/errors.h"
#include "engine/engine_impl.h"
#include "engine/features.h"

namespace thermoe {
namespace {

// Tokens that a restart keeps: whole segments, at least one; half the window where `keep` leaves no room for a segment.
int32_t KeptBy(const TttOptions& options, int32_t window) {
  const int32_t keep = options.keep + options.segment > window ? window / 2 : options.keep;
  return std::max(1, keep / options.segment) * options.segment;
}

bool Recalls(const TttOptions& options) { return options.adapts() && options.recompute_share < 1 && (options.keep > 0 || options.steps > 1); }

// Positions whose experts' results are of use later: any that may be kept when the window ends; all of them for further steps.
struct Span {
  int32_t first = 0, count = 0;
};
Span RecalledPositions(const TttOptions& options, int32_t window) {
  const int32_t first = options.steps > 1 ? 0 : std::max(0, window - options.segment + 1 - KeptBy(options, window));
  return {first, window - first};
}

// Rows that a backward pass goes through.
int32_t RowsLearntThrough(const TttOptions& options) { return options.segment + options.look_back; }

}  // namespace

Status EngineImpl::CheckTtt(const TttOptions& options) const {
  THERMOE_RETURN_IF_ERROR(CheckTttOptions(options));
  if (RowsLearntThrough(options) > options_.prefill_chunk) {
    return InvalidArgument("a segment has {} tokens with those that it looks back to, but a step takes {}; shorten the segment or raise the prefill chunk",
                           RowsLearntThrough(options), options_.prefill_chunk);
  }
  const int window = WindowOf(options);
  if (window > context_) return InvalidArgument("the window of {} tokens passes the context of {}; lower it or raise --ctx", window, context_);
  if (options.keep > 0 && KeptBy(options, window) + options.segment > window) {
    return InvalidArgument("a restart keeps {} tokens, which leaves no room for a segment of {} in a window of {}; keep fewer",
                           KeptBy(options, window), options.segment, window);
  }
  if (!options.adapts()) return Status::Ok();
  if (ops_->on_device()) {
    return Unsupported("test-time training runs on the cpu backend, not on {}; use --backend cpu (or THERMOE_BACKEND=cpu), or leave --ttt out", ops_->name());
  }
  if (Recalls(options)) {
    const int32_t kept = options.keep > 0 ? KeptBy(options, window) : 0;
    if (kept > options_.prefill_chunk) {
      return InvalidArgument("a restart keeps {} tokens, which pass again in one step where recompute_share is below 1, but a step takes {}; keep fewer or raise the prefill chunk",
                             kept, options_.prefill_chunk);
    }
    const int64_t bytes = Recall::BytesFor(config_, RecalledPositions(options, window).count);
    if (bytes > options.activation_bytes) {
      return ResourceExhausted("keeping what experts gave takes {} KiB but {} are allowed; keep fewer tokens or set recompute_share to 1", (bytes >> 10) + 1,
                               options.activation_bytes >> 10);
    }
  }
  if (options.objective == TttObjective::kFeatureAlignment && options.features_path.empty()) {
    return InvalidArgument("feature alignment needs statistics of activations; measure them with thermoe calibrate --features FILE and name the file");
  }
  const DeltaLayout layout(config_, options);
  const int64_t least = LearningBytes(config_, layout.lowest_layer(), RowsLearntThrough(options), false);
  if (least > options.activation_bytes) {
    return ResourceExhausted("a backward pass through a segment of {} tokens takes {} KiB but {} are allowed; shorten the segment or adapt fewer layers",
                             RowsLearntThrough(options), (least >> 10) + 1, options.activation_bytes >> 10);
  }
  return Status::Ok();
}

Result<std::shared_ptr<const FeatureStatistics>> EngineImpl::PrepareTtt(const TttOptions& options) const {
  THERMOE_RETURN_IF_ERROR(CheckTtt(options));
  if (!options.adapts() || options.objective != TttObjective::kFeatureAlignment) return std::shared_ptr<const FeatureStatistics>();
  return ReadFeatures(options.features_path, model_->info().identity, config_.layers, config_.hidden);
}

void EngineImpl::StartTtt(Session* session, const TttOptions& options, std::shared_ptr<const FeatureStatistics> features) {
  auto fresh = std::make_unique<Adaptation>(config_, options, std::move(features));
  if (session->ttt != nullptr) {
    fresh->first = session->ttt->first;
    fresh->recompute_until = session->ttt->recompute_until;
  }
  if (Recalls(options)) {
    const Span span = RecalledPositions(options, WindowOf(options));
    fresh->recall.emplace(config_, span.first, span.count, options.recompute_share);
    fresh->stats.recall_bytes = Recall::BytesFor(config_, span.count);
  }
  if (options.automatic) fresh->automatic.emplace(options, benefit_);
  session->ttt = std::move(fresh);
}

// The newest tokens are computed again from position 0, with the deltas as they are.
void EngineImpl::RestartContext(Session* session) {
  Adaptation& ttt = *session->ttt;
  const auto kept = static_cast<size_t>(std::min(KeptBy(ttt.options(), WindowOf(ttt.options())), session->kv.length));
  ttt.first = session->computed() - kept;
  ttt.moved = session->kv.length - static_cast<int32_t>(kept);
  cache_->Truncate(&session->kv, 0);
  ttt.recompute_until = static_cast<int32_t>(kept);
  ++ttt.stats.restarts;
  ttt.stats.recomputed_tokens += static_cast<int64_t>(kept);
}

void EngineImpl::CutSession(Session* session, size_t tokens) {
  session->tokens.resize(tokens);
  Adaptation* ttt = session->ttt.get();
  if (ttt != nullptr && ttt->automatic) {
    std::erase_if(ttt->automatic->deferred, [&](const auto& segment) { return segment.first + static_cast<size_t>(segment.count) > tokens; });
  }
  if (ttt == nullptr) return cache_->Truncate(&session->kv, static_cast<int32_t>(tokens));
  if (ttt->first > 0 && tokens <= ttt->first) {
    const size_t kept = std::min(static_cast<size_t>(std::min(KeptBy(ttt->options(), WindowOf(ttt->options())), WindowOf(ttt->options()))), tokens);
    cache_->Truncate(&session->kv, 0);
    ttt->first = tokens - kept;
    ttt->moved = -1;
    ttt->recompute_until = std::max(static_cast<int32_t>(kept) - 1, 0);  // the last one is read with what comes next, which it predicts
    if (kept == 0) return;
    ++ttt->stats.restarts;
    ttt->stats.recomputed_tokens += ttt->recompute_until;
    return;
  }
  const auto length = static_cast<int32_t>(tokens - ttt->first);
  cache_->Truncate(&session->kv, std::min(length, session->kv.length));
  ttt->recompute_until = std::min(ttt->recompute_until, length);
}

Status EngineImpl::SetTtt(SessionId id, const TttOptions& options) try {
  const Result<Session*> session = IdleSession(id);
  if (!session.ok()) return session.status();
  Result<std::shared_ptr<const FeatureStatistics>> features = PrepareTtt(options);
  if (!features.ok()) return features.status();
  StartTtt(*session, options, std::move(features).value());
  return Status::Ok();
} catch (const std::bad_alloc&) {
  return ResourceExhausted("memory ran out for a session's deltas; adapt fewer groups or layers, or lower the rank");
}

Result<TttStats> EngineImpl::SessionTtt(SessionId id) const {
  const auto found = sessions_.find(id);
  if (found == sessions_.end() || found->second->temporary) return InvalidArgument("session {} is not open", id);
  return found->second->ttt == nullptr ? TttStats{} : found->second->ttt->stats;
}

Status EngineImpl::SaveDeltas(SessionId id, const std::string& path) const try {
  const auto found = sessions_.find(id);
  if (found == sessions_.end() || found->second->temporary) return InvalidArgument("session {} is not open", id);
  const Adaptation* adaptation = found->second->ttt.get();
  if (adaptation == nullptr || !adaptation->adapts()) return InvalidArgument("session {} adapts nothing, so there are no deltas to save", id);
  return WriteDeltas(path, model_->info().identity, *adaptation);
} catch (const std::bad_alloc&) {
  return ResourceExhausted("{}: memory ran out while deltas were saved; free some", path);
}

Status EngineImpl::LoadDeltas(SessionId id, const std::string& path) try {
  const Result<Session*> session = IdleSession(id);
  if (!session.ok()) return session.status();
  Adaptation* adaptation = (*session)->ttt.get();
  if (adaptation == nullptr || !adaptation->adapts()) return InvalidArgument("session {} adapts nothing; name a tier before its deltas are loaded", id);
  return ReadDeltas(path, model_->info().identity, adaptation);
} catch (const std::bad_alloc&) {
  return ResourceExhausted("{}: memory ran out while deltas were loaded; free some", path);
}

Status EngineImpl::AddSegment(ActiveRequest* active, int32_t* budget) {
  Session* session = active->session;
  Adaptation& ttt = *session->ttt;
  const TttOptions& options = ttt.options();
  int32_t before = std::max(ttt.recompute_until, session->kv.length);  // positions that were seen
  int32_t count = std::min(static_cast<int32_t>(active->prompt_end - ttt.first) - before, options.segment);
  const bool full = options.keep > 0 && before + count > WindowOf(options);
  if (session->kv.length == before && (full || (ttt.automatic && std::exchange(ttt.automatic->restart, false)))) {
    RestartContext(session);
    before = ttt.recompute_until;
  }
  // What a segment looks back to passes again with it.
  const int32_t back = ttt.adapts() ? std::min(options.look_back, before) : 0;
  // A segment is read whole, whatever the others in the step: where it is cut must not depend on them. So is what a restart keeps
  // where rows are chosen among it.
  const bool alone = batch_.rows.empty() || batch_.rows.back().kind != kernels::RowKind::kPrefill;
  if (session->kv.length < before - back) {
    count = before - back - session->kv.length;
    if (!ttt.recall) count = std::min(count, *budget);
    if (count > *budget && !alone) return Status::Ok();
    *budget -= std::min(count, *budget);
    restart_rows_ += count;
    return AddRows(active, count, count);
  }
  if (((learner_ != nullptr || plan_.active != nullptr) && ttt.adapts()) || (back + count > *budget && !alone)) return Status::Ok();
  *budget -= std::min(back + count, *budget);
  ttt.recompute_until = 0;
  ++ttt.stats.segments;
  ttt.stats.recomputed_tokens += session->kv.length - (before - back);  // a restart has counted its own
  cache_->Truncate(&session->kv, before - back);
  const auto first_row = static_cast<int64_t>(batch_.rows.size());
  THERMOE_RETURN_IF_ERROR(AddRows(active, back + count, back));
  // The rest of a prompt teaches too little where it is short.
  if (ttt.automatic) {
    PlanSegment(active, first_row, count);
  } else if (ttt.adapts() && 2 * count >= options.segment && (ttt.stats.segments - 1) % options.every == 0) {
    BeginLearning(active, first_row, back + count, back, DeltaScope{});
    PriceFixed(ttt, count, before);
  }
  return Status::Ok();
}

// A tape for rows [first_row, first_row + rows) of a batch, which stand at `position` of the session's context.
void EngineImpl::PrepareTape(Session* session, int64_t first_row, int64_t rows, int32_t position, const DeltaScope& scope) {
  Adaptation& ttt = *session->ttt;
  const TttOptions& options = ttt.options();
  const int32_t lowest = ttt.layout().lowest_layer(), most_rows = RowsLearntThrough(options);
  const bool keep_inner = LearningBytes(config_, lowest, most_rows, true) <= options.activation_bytes;
  if (tape_ == nullptr || tape_->lowest_layer() > lowest || tape_->max_rows() < most_rows || tape_->keeps_inner() != keep_inner) {
    tape_.reset();
    backward_.reset();
    tape_ = std::make_unique<Tape>(config_, lowest, most_rows, keep_inner);
    backward_ = std::make_unique<BackwardWorkspace>(config_, most_rows, keep_inner);
  }
  tape_->Begin(first_row, rows, ttt.deltas(), &session->kv, position, std::max(lowest, scope.lowest_layer));
  learning_.emplace(Learning{*tape_, *backward_, ttt.gradient(), options.objective, options.confidence, ttt.features(), options.surprise, scope});
  learning_->Begin();
}

void EngineImpl::BeginLearning(ActiveRequest* active, int64_t first_row, int64_t rows, int64_t seen, const DeltaScope& scope) {
  Session* session = active->session;
  const TttOptions& options = session->ttt->options();
  PrepareTape(session, first_row, rows, session->kv.length, scope);
  learner_ = active;
  learner_first_row_ = first_row;
  learner_seen_ = seen;
  learner_part_ = parts_.size() - 1;
  if (options.objective == TttObjective::kFeatureAlignment) return;  // learns from activations, not from logits
  for (int64_t i = seen; i < rows; ++i) {
    BatchRow& row = batch_.rows[static_cast<size_t>(first_row + i)];
    const size_t next = session->first() + static_cast<size_t>(row.position) + 1;
    // The last row has no next token yet, and sampling may have changed its logits: no objective learns from it.
    row.target = next < session->tokens.size() ? session->tokens[next] : -1;
    if (row.target >= 0 && !row.wants_logits) {
      row.wants_logits = true;
      ++parts_.back().logit_rows;
    }
  }
}

void EngineImpl::Learn(StepContext& step) {
  const WorkCount before{record_.weight_bytes - learning_->spent_bytes, record_.kv_bytes, record_.flops - learning_->spent_flops};
  const double expert_bytes = record_.expert_bytes;
  Backward(step);
  Update(&record_);
  const int steps = learner_->session->ttt->options().steps;
  if (!learner_->session->ttt->automatic && fixed_tier_ != AdaptTier::kSkip) {
    adapt_pricer_.Observe(fixed_tier_, fixed_s_, record_.times.learn_us * 1e-6);
  }
  for (int round = 1; round < steps; ++round) PassAgain();
  CountOwn(before, expert_bytes);
}

// What the record has gained since it stood so is the learner's alone.
void EngineImpl::CountOwn(const WorkCount& before, double expert_bytes_before) {
  const double weight_bytes = record_.weight_bytes - before.weight_bytes, flops = record_.flops - before.flops;
  learnt_.weight_bytes += weight_bytes;
  learnt_.kv_bytes += record_.kv_bytes - before.kv_bytes;
  learnt_.flops += flops;
  StepPart& part = parts_[learner_part_];
  part.own_bytes += weight_bytes;
  part.own_expert_bytes += record_.expert_bytes - expert_bytes_before;
  part.own_flops += flops;
}

void EngineImpl::Update(StepRecord* record) {
  StageTimer timer(&record->times.learn_us);
  if (learning_->loss_rows == 0) return;
  Adaptation& ttt = *learner_->session->ttt;
  const auto share = static_cast<float>(1.0 / learning_->loss_rows);
  ttt.scale.Begin(ttt.layout(), learning_->scope, ttt.gradient(), ttt.mutable_deltas().values);
  ttt.optimizer().Step(*ops_, ttt.gradient(), share, tape_->rows - learner_seen_, ttt.mutable_deltas().values, learning_->scope);
  ttt.scale.End(ttt.layout(), learning_->scope, ttt.mutable_deltas().values);
  ++ttt.stats.updates;
  ttt.stats.adapted_tokens += tape_->rows - learner_seen_;
}

// A further step on the same segment: its rows alone pass again, with the deltas as they are now, over their own keys and values.
void EngineImpl::PassAgain() {
  const auto first = batch_.rows.begin() + learner_first_row_;
  again_.rows.assign(first, first + tape_->rows);
  for (BatchRow& row : again_.rows) row.passed = row.recall == nullptr ? -1 : row.position;
  tape_->first = 0;
  learning_->Begin();
  LearnAgain(tape_->deltas->layout->lowest_layer());
}

// A pass over `again_` to learn from it; what it costs is added to the step's record.
void EngineImpl::LearnAgain(int32_t first_layer) {
  class NoSink final : public LogitSink {
    void OnLogits(size_t, LogitRow*) override {}
  } nobody;
  PassExtra(&*learning_, nobody, first_layer);
}

void EngineImpl::PassExtra(Learning* learning, LogitSink& sink, int32_t first_layer) {
  std::vector<LayerRecord> layers = std::move(again_record_.layers);
  again_record_ = StepRecord{};
  again_record_.layers = std::move(layers);
  again_record_.layers.resize(record_.layers.size());
  StepContext step{config_,         model_->impl().loaded().weights, model_->impl().experts(), *ops_,         *cache_,
                   steering_.get(), again_,                          workspace_,               again_record_, sink};
  step.learning = learning;
  step.recalls = again_.rows[0].recall != nullptr;
  step.first_layer = first_layer;
  Forward(step);
  if (learning != nullptr) {
    Backward(step);
    Update(&again_record_);
  }
  record_.weight_bytes += again_record_.weight_bytes;
  record_.expert_bytes += again_record_.expert_bytes;
  record_.kv_bytes += again_record_.kv_bytes;
  record_.flops += again_record_.flops;
  record_.times.learn_us += again_record_.times.total_us + again_record_.times.learn_us;
}

// What the step cost each session that reads in segments, after it: work by rows, what was learnt by the learner alone.
void EngineImpl::CountTtt(double seconds) {
  const WorkCount learnt = learner_ == nullptr ? WorkCount{} : learnt_;
  const EnergyPrices& prices = supervisor_->prices();
  const auto joules = [&prices](const WorkCount& work) {
    return (work.weight_bytes + work.kv_bytes) * prices.j_per_byte + work.flops * prices.j_per_flop;
  };
  const WorkCount shared{record_.weight_bytes - learnt.weight_bytes, record_.kv_bytes - learnt.kv_bytes, record_.flops - learnt.flops};
  const double row_frac = 1.0 / static_cast<double>(row_owner_.size());
  for (size_t row = 0; row < row_owner_.size(); ++row) {
    ActiveRequest* active = row_owner_[row];
    if (active == nullptr || active->session->ttt == nullptr) continue;
    active->session->ttt->stats.flops += shared.flops * row_frac;
    active->work_j += joules(shared) * row_frac;
  }
  if (restart_rows_ == static_cast<int64_t>(row_owner_.size())) {
    TttStats& stats = row_owner_[0]->session->ttt->stats;
    stats.recompute_expert_seconds += record_.times.experts_us * 1e-6;
    for (const LayerRecord& layer : record_.layers) {
      stats.recompute_expert_flops += 6.0 * (layer.slots_full + layer.slots_hi) * config_.hidden * config_.expert_width;
    }
  }
  if (learner_ == nullptr) return;
  TttStats& stats = learner_->session->ttt->stats;
  const double all_j = joules(shared) + joules(learnt);
  stats.flops += learnt.flops;
  learner_->work_j += joules(learnt);
  learner_->learn_j += joules(learnt);
  // Under a plant the stages' times are not known: by what they would cost.
  stats.adapt_seconds += record_.times.learn_us > 0 ? record_.times.learn_us * 1e-6 : all_j > 0 ? seconds * joules(learnt) / all_j : 0;
}

// When a request ends: its joules between reading and learning.
void EngineImpl::SettleTtt(ActiveRequest* active) {
  if (active->session == nullptr || active->session->ttt == nullptr) return;
  TttStats& stats = active->session->ttt->stats;
  EnergyAccountant* accountant = supervisor_->accountant();
  if (accountant == nullptr || active->account < 0) {
    stats.adapt_joules = stats.adapt_joules + active->learn_j;
    stats.joules_estimated = true;
  } else if (active->work_j > 0) {
    const RequestEnergy energy = accountant->Read(active->account);
    stats.joules_estimated = stats.joules_estimated || energy.source == EnergySource::kEstimate;
    stats.adapt_joules = stats.adapt_joules + (energy.prefill_j + energy.decode_j) * active->learn_j / active->work_j;
  }
  active->result.ttt = stats;
}

}  // namespace thermoe
