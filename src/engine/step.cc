// SPDX-License-Identifier: Apache-2.0
// One step on one page: pause, admit, schedule rows, forward (the sink takes logits as they come), account, commit, retire.
#include <algorithm>
#include <cmath>
#include <new>

#include "base/errors.h"
#include "engine/engine_impl.h"

namespace thermoe {
namespace {

// Whether the logits after the session's token number `index` are of use.
bool WantsLogits(const ActiveRequest& active, size_t index) {
  const bool last = index + 1 == active.prompt_end;
  if (index + 1 > active.prompt_end) return true;  // a generated token's row
  if (last && (active.generates() || active.request.keep_logits != KeepLogits::kNone)) return true;
  if (index >= active.prompt_begin && active.request.keep_logits == KeepLogits::kAll) return true;
  return active.request.score_prompt && !last && index + 1 >= active.prompt_begin;
}

// What the penalty looks at.
std::span<const TokenId> RecentOf(const ActiveRequest& active) {
  const std::vector<TokenId>& tokens = active.session->tokens;
  return std::span(tokens).last(std::min(tokens.size(), static_cast<size_t>(active.request.sampling.repetition_window)));
}

}  // namespace

Result<bool> EngineImpl::Step(std::vector<Event>* events) {
  Result<bool> more = false;
  try {
    more = TakeStep(events);
  } catch (const std::bad_alloc&) {
    more = ResourceExhausted("memory ran out in a step; make the engine again with fewer sequences or a smaller context");
  }
  events_ = nullptr;
  if (!more.ok()) DropAhead();
  return more;
}

Result<bool> EngineImpl::TakeStep(std::vector<Event>* events) {
  if (queue_.empty() && running_.empty()) return false;
  supervisor_->BeforeStep();
  if (auto steering = supervisor_->TakeSteering(); steering != nullptr) THERMOE_RETURN_IF_ERROR(SetSteering(std::move(steering)));
  Admit();
  if (running_.empty()) return false;
  events_ = events;
  const double called_s = supervisor_->now_s();
  const bool begun = ahead_.begun, late = begun && ops_->SummariesAreThere();  // how long a step took that is there already is not known
  const double start_s = begun && !late ? ended_s_ : called_s;
  if (begun) {
    TakeAhead();
  } else {
    StartRecord(record_.step + 1, &record_);
    if (Status status = Schedule(); !status.ok()) return status;
  }
  StepContext step = ContextOf(batch_, record_);
  if (begun) step.inside = ahead_.inside;
  if (plan_.guards) GuardPass();
  if (learning_) step.learning = &*learning_;
  step.recalls = std::any_of(batch_.rows.begin(), batch_.rows.end(), [](const BatchRow& row) { return row.recall != nullptr; });
  if (!begun) BeginForward(step);
  if (MayBeginAhead(step)) BeginAhead();
  FinishForward(step);
  THERMOE_RETURN_IF_ERROR(ops_->Health());
  const double asked_s = begun ? ended_s_ : called_s;
  ended_s_ = supervisor_->now_s();
  if (ops_->on_device()) record_.times = {.total_us = 1e6 * (ended_s_ - asked_s)};  // the host's own in its stages say nothing
  if (learning_) Learn(step);
  FinishPlan();
  if (Status status = supervisor_->AfterStep(start_s, &record_, parts_, static_cast<int32_t>(queue_.size())); !status.ok()) return status;
  if (!supervisor_->info().simulated && !late) pricer_->Observe(supervisor_->now_s(), record_);
  CommitRows();
  CountTtt(record_.times.total_us * 1e-6);
  StampTimes();
  RetireFinished();
  if (diverged_) {
    return InvalidArgument("a session's deltas have grown until its logits are no finite numbers; lower the learning rates of its tier");
  }
  if (!finite_) {
    return Corrupt("{}: gives logits that are not finite numbers; its weights are damaged: download or convert it again",
                   model_->info().path);
  }
  return true;
}

// Keeps the per-layer records' memory.
void EngineImpl::StartRecord(uint64_t step, StepRecord* record) const {
  std::vector<LayerRecord> layers = std::move(record->layers);
  *record = StepRecord{};
  record->layers = std::move(layers);
  record->step = step;
  record->steering_version = steering_ == nullptr ? 0 : steering_->version;
}

StepContext EngineImpl::ContextOf(const Batch& batch, StepRecord& record) {
  return {config_, model_->impl().loaded().weights, model_->impl().experts(), *ops_, *cache_, steering_.get(), batch, workspace_, record, *this};
}

// Queued requests start while there is room, in order; one that waits for room holds up those behind it, so none starves.
void EngineImpl::Admit() {
  const auto most = static_cast<size_t>(supervisor_->MaxSequences(options_.max_sequences));
  while (!queue_.empty() && running_.size() < most) {
    ActiveRequest* active = queue_.front().get();
    if (active->session == nullptr) {
      if (static_cast<int>(sessions_.size()) >= options_.max_sequences) return;
      active->session = NewSession(true);
      active->session->busy = true;
      if (active->request.ttt != nullptr) StartTtt(active->session, *active->request.ttt, std::move(active->features));
    }
    Session* session = active->session;
    const std::vector<TokenId>& prompt = active->request.prompt;
    active->prompt_begin = session->tokens.size();
    session->tokens.insert(session->tokens.end(), prompt.begin(), prompt.end());
    active->prompt_end = session->tokens.size();
    if (active->request.score_prompt) {
      active->result.prompt_logprobs.assign(prompt.size(), 0.0f);
      // The first prompt id is scored by the position before it: compute that one again if it is there already.
      if (session->computed() == active->prompt_begin && session->kv.length > 0) {
        cache_->Truncate(&session->kv, session->kv.length - 1);
      }
    }
    const size_t held = active->prompt_end - session->first(), longest = static_cast<size_t>(context_) + 1;
    const size_t room = held < longest ? longest - held : 0;
    active->result.generated.reserve(std::min(active->target(), room));
    active->result.logprobs.reserve(std::min(active->target(), room));
    active->scheduled_s = supervisor_->now_s();
    if (EnergyAccountant* accountant = supervisor_->accountant(); accountant != nullptr) {
      accountant->Idle(active->scheduled_s);  // before it came
      active->account = accountant->Open();
    }
    active->result.timings.prompt_tokens = static_cast<int32_t>(prompt.size());
    active->result.timings.queue_ms = 1e3 * (active->scheduled_s - active->submitted_s);
    running_.push_back(std::move(queue_.front()));
    queue_.erase(queue_.begin());
  }
}

Status EngineImpl::Schedule() {
  batch_.rows.clear();
  row_owner_.clear();
  parts_.clear();
  for (const auto& active : running_) {
    if (active->prefilled()) THERMOE_RETURN_IF_ERROR(AddRows(active.get(), 1));
  }
  learning_.reset();
  learner_ = nullptr;
  learnt_ = {};
  plan_.active = nullptr;
  plan_.decision = {};
  restart_rows_ = 0;
  plan_.guards = false;
  int32_t budget = supervisor_->PrefillChunk(options_.prefill_chunk);
  for (const auto& active : running_) {
    if (active->prefilled() || budget == 0) continue;
    if (active->session->ttt != nullptr) {
      THERMOE_RETURN_IF_ERROR(AddSegment(active.get(), &budget));
      continue;
    }
    const auto left = static_cast<int32_t>(active->prompt_end - active->session->computed());
    THERMOE_RETURN_IF_ERROR(AddRows(active.get(), std::min(left, budget)));
    budget -= std::min(left, budget);
  }
  return Status::Ok();
}

// The next `count` tokens of a request's session. The first `seen` pass again: only their keys and values are wanted.
Status EngineImpl::AddRows(ActiveRequest* active, int32_t count, int32_t seen) {
  Session* session = active->session;
  const Deltas* deltas = session->ttt == nullptr ? nullptr : session->ttt->deltas();
  const int32_t begin = session->kv.length;
  THERMOE_RETURN_IF_ERROR(cache_->Reserve(&session->kv, begin + count));
  const kernels::RowKind kind = active->prefilled() ? kernels::RowKind::kDecode : kernels::RowKind::kPrefill;
  StepPart part;
  part.account = active->account;
  part.prefill = kind == kernels::RowKind::kPrefill;
  part.rows = count;
  part.first_position = begin;
  for (int32_t position = begin; position < begin + count; ++position) {
    const size_t at = session->first() + static_cast<size_t>(position);
    const bool wants_logits = position >= begin + seen && WantsLogits(*active, at);
    BatchRow row{session->tokens[at], &session->kv, position, kind, wants_logits, deltas, -1, wants_logits ? AskedOf(*active, at) : -1};
    if (Adaptation* ttt = session->ttt.get(); ttt != nullptr && ttt->recall) {
      row.recall = &*ttt->recall;
      // Rows that a segment looks back to are learnt through: their experts are computed.
      if (seen == count && ttt->moved >= 0) row.passed = position + ttt->moved;
    }
    batch_.rows.push_back(row);
    row_owner_.push_back(active);
    part.logit_rows += wants_logits ? 1 : 0;
  }
  parts_.push_back(part);
  return Status::Ok();
}

// The random number of a draw is taken once it is known to have been used: as the host would.
void EngineImpl::WantDraws(std::span<const size_t> rows, std::vector<kernels::TokenDraw>* draws) {
  const Batch& batch = beginning_ahead_ ? ahead_.batch : batch_;
  for (size_t i = 0; i < rows.size(); ++i) {
    const ActiveRequest* active = (beginning_ahead_ ? ahead_.row_owner : row_owner_)[rows[i]];
    if (active == nullptr) continue;
    const SamplingOptions& sampling = active->request.sampling;
    const size_t index = active->session->first() + static_cast<size_t>(batch.rows[rows[i]].position);
    if (index + 1 < active->prompt_end || !active->generates() || !active->request.forced.empty() || active->takes_largest()) continue;
    kernels::TokenDraw draw{static_cast<int64_t>(i), sampling.temperature,        sampling.top_k, sampling.top_p,
                            sampling.min_p,          sampling.repetition_penalty, RecentOf(*active), 0};
    if (sampling.temperature > 0) {
      Random random = active->random;
      if (beginning_ahead_) random.Uniform();  // of the step before
      draw.uniform = random.Uniform();
    }
    draws->push_back(draw);
  }
}

void EngineImpl::OnLogits(size_t row, LogitRow* logits) {
  ActiveRequest* active = row_owner_[row];
  if (active == nullptr) return;
  if (!logits->finite()) {
    finite_ = false;
    diverged_ = active->session->ttt != nullptr && active->session->ttt->stats.updates > 0;
  }
  const size_t index = active->session->first() + static_cast<size_t>(batch_.rows[row].position);
  const bool last = index + 1 == active->prompt_end;
  const KeepLogits keep = active->request.keep_logits;
  if (keep == KeepLogits::kAll ? index >= active->prompt_begin : keep == KeepLogits::kLast && last) {
    const std::span<const float> all = logits->all();
    active->result.logits.insert(active->result.logits.end(), all.begin(), all.end());
  }
  if (index + 1 < active->prompt_end) {
    if (active->request.score_prompt && index + 1 >= active->prompt_begin) {
      active->result.prompt_logprobs[index + 1 - active->prompt_begin] = logits->asked_logprob();
    }
  } else if (active->generates()) {
    Generate(active, logits);
  }
}

// The token whose log-probability OnLogits will want of the row after token number `index`.
int32_t EngineImpl::AskedOf(const ActiveRequest& active, size_t index) const {
  if (index + 1 < active.prompt_end) return active.session->tokens[index + 1];
  const size_t generated = index + 1 - active.prompt_end;
  return generated < active.request.forced.size() ? active.request.forced[generated] : -1;
}

void EngineImpl::Generate(ActiveRequest* active, LogitRow* logits) {
  const Request& request = active->request;
  RequestResult& result = active->result;
  std::vector<TokenId>& tokens = active->session->tokens;
  Event event{active->id, kNoToken, 0, FinishReason::kNone};
  if (!request.forced.empty()) {
    event.token = request.forced[result.generated.size()];
    event.logprob = logits->asked_logprob();
  } else if (const kernels::LogitSummary* summary = logits->summary(); summary != nullptr && active->takes_largest()) {
    event.token = summary->best;
    event.logprob = summary->best_logit - summary->log_sum_exp;
  } else if (const kernels::DrawnToken* drawn = logits->drawn(); drawn != nullptr) {
    if (drawn->used_uniform) active->random.Uniform();
    else if (request.sampling.temperature > 0) DropAhead();  // which took another random number than is its turn
    event.token = drawn->token;
    event.logprob = drawn->logit - logits->log_sum_exp();
  } else {
    // The penalty changes logits in place, so the model's own probability of the token needs the normaliser from
    // before.
    const float normaliser = logits->log_sum_exp();
    const TokenId token = sampler_.Sample(logits->all(), request.sampling, RecentOf(*active), &active->random, &event.logprob);
    event.token = token;
    event.logprob -= normaliser;
  }
  tokens.push_back(event.token);
  result.generated.push_back(event.token);
  result.logprobs.push_back(event.logprob);
  const auto ends = [&](const std::vector<TokenId>& ids) { return std::find(ids.begin(), ids.end(), event.token) != ids.end(); };
  if (request.forced.empty() && !request.ignore_end && (ends(model_->tokenizer().end_ids()) || ends(request.stop_ids))) {
    event.finish = FinishReason::kEnd;
  } else if (result.generated.size() >= active->target()) {
    event.finish = FinishReason::kLength;
  } else if (tokens.size() - active->session->first() > static_cast<size_t>(context_)) {
    event.finish = FinishReason::kContext;
  }
  events_->push_back(event);
  if (event.finish != FinishReason::kNone) Finish(active, event.finish);
}

void EngineImpl::CommitRows() {
  for (size_t row = 0; row < batch_.rows.size(); ++row) {
    if (row_owner_[row] != nullptr) cache_->Commit(&row_owner_[row]->session->kv, batch_.rows[row].position + 1);
  }
  for (const auto& active : running_) {
    if (active->generates() || !active->prefilled()) continue;
    events_->push_back({active->id, kNoToken, 0, FinishReason::kLength});
    Finish(active.get(), FinishReason::kLength);
  }
}

void EngineImpl::Finish(ActiveRequest* active, FinishReason reason) {
  active->result.finish = reason;
}

// Steps end for all their requests together: what a step brought is there when it returns.
void EngineImpl::StampTimes() {
  const double now_s = supervisor_->now_s();
  for (const auto& active : running_) {
    RequestTimings& timings = active->result.timings;
    timings.generated_tokens = static_cast<int32_t>(active->result.generated.size());
    const bool generated = timings.generated_tokens > 0;
    if (generated && !active->timed_first_token) {
      active->timed_first_token = true;
      active->first_token_s = now_s;
    }
    if (active->result.finish == FinishReason::kNone) continue;
    timings.prefill_ms = 1e3 * ((generated ? active->first_token_s : now_s) - active->scheduled_s);
    timings.decode_ms = generated ? 1e3 * (now_s - active->first_token_s) : 0;
  }
}

void EngineImpl::RetireFinished() {
  for (RequestList* list : {&queue_, &running_}) {
    for (auto& active : *list) {
      if (active->result.finish == FinishReason::kNone) continue;
      LeaveAhead(active.get());
      SettleTtt(active.get());
      if (active->account >= 0) supervisor_->accountant()->Finish(active->account);
      results_[active->id] = {std::move(active->result), active->account};
      if (Session* session = active->session; session != nullptr) {
        session->busy = false;
        if (session->temporary) DropSession(session);
      }
      active.reset();
    }
    std::erase(*list, nullptr);
  }
  if (queue_.empty() && running_.empty()) supervisor_->Rest();
}

}  // namespace thermoe
