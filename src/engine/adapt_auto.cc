// SPDX-License-Identifier: Apache-2.0
// Test-time training that the engine decides on: what a segment would cost, what is chosen, the guard, and segments
// that were put off (docs/adaptation-control.md).
#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "base/errors.h"
#include "control/adapt/adapt_log.h"
#include "engine/engine_impl.h"

namespace thermoe {
namespace {

constexpr size_t kMostDeferred = 64;  // segments that a session keeps for later

uint32_t GroupBits(const TttOptions& options) {
  uint32_t bits = 0;
  for (const DeltaGroupOptions& group : options.groups) bits |= 1u << static_cast<uint32_t>(group.group);
  return bits;
}

// What the tiers of that name leave out.
uint32_t GroupsOf(AdaptTier tier) {
  constexpr auto kFirstLowRank = static_cast<uint32_t>(DeltaGroup::kLowRankQ);
  constexpr uint32_t kLowRank = ~0u << kFirstLowRank, kBias = 1u << static_cast<uint32_t>(DeltaGroup::kOutputBias);
  if (tier == AdaptTier::kGains) return ~kLowRank;
  return tier == AdaptTier::kLowRank ? kLowRank | kBias : ~0u;
}

// Takes the NLL of the next tokens.
class NllSink final : public LogitSink {
 public:
  explicit NllSink(std::vector<float>* nats) : nats_(*nats) {}
  void OnLogits(size_t, LogitRow* logits) override { nats_.push_back(-logits->asked_logprob()); }

 private:
  std::vector<float>& nats_;
};

}  // namespace

void EngineImpl::BeginPricing(const Adaptation& ttt) {
  const bool keep_inner = LearningBytes(config_, ttt.layout().lowest_layer(), ttt.options().segment, true) <=
                          ttt.options().activation_bytes;
  adapt_pricer_.Begin(
      pricer_->shape(),
      {.groups = GroupBits(ttt.options()), .parameters = ttt.layout().size(), .rank = ttt.layout().rank(), .inner_kept = keep_inner});
}

void EngineImpl::PriceFixed(const Adaptation& ttt, int64_t rows, int64_t position) {
  fixed_tier_ = AdaptTier::kSkip;
  if (cost_view_.profiled_points == 0 || supervisor_->info().simulated) return;
  fixed_tier_ = AdaptTierNamed(ttt.options().tier).value_or(AdaptTier::kSkip);
  if (fixed_tier_ == AdaptTier::kSkip) return;
  BeginPricing(ttt);
  const auto costs = adapt_pricer_.Price(pricer_->profiled(), {supervisor_->prices()}, rows, position);
  fixed_s_ = costs[static_cast<size_t>(fixed_tier_)].plain_seconds;
}

AdaptInput EngineImpl::PriceSegment(const ActiveRequest& active, int64_t rows, int64_t position) {
  const Adaptation& ttt = *active.session->ttt;
  BeginPricing(ttt);
  AdaptInput input;
  EnergyPrices prices = supervisor_->prices();
  if (loop_ != nullptr) {
    const ControlStatus& status = loop_->status();
    const bool ticked = status.ticks > 0;  // before that it knows no limits
    if (status.idle_w > 0) prices = {status.idle_w, status.j_per_byte, status.j_per_flop, prices.die_j_per_c};
    input.loop = {.lambda = status.lambda_power + status.lambda_temp + status.lambda_latency,
                  .cap_w = status.cap_w,
                  .idle_w = status.idle_w,
                  .temp_limit_c = ticked ? status.limits.temp_c : options_.control.temp_limit_c,
                  .forecast_temp_c = std::max(supervisor_->Latest().temp_c.value_or(0), status.forecast_temp_c),
                  .latency_target_s = (ticked ? status.limits.latency_ms : options_.control.latency_target_ms) * 1e-3,
                  .safest = status.safest};
  }
  // Ratios of joules by the model alone, so that without limits the same text is adapted to in the same way; seconds as
  // they were learnt.
  const AdaptDevice device{prices, supervisor_->info().simulated ? facts_.bytes_per_s : 0,
                           supervisor_->info().simulated ? facts_.flops_per_s : 0};
  const KernelCostModel& costs = pricer_->profiled();
  input.tokens = static_cast<int32_t>(rows);
  input.cost = adapt_pricer_.Price(costs, device, rows, position);
  if (!supervisor_->info().simulated) {
    for (size_t tier = 1; tier < kAdaptTiers; ++tier) {
      input.cost[tier].seconds = adapt_pricer_.Corrected(static_cast<AdaptTier>(tier), input.cost[tier].plain_seconds);
    }
  }
  input.read = adapt_pricer_.PriceRead(costs, device, rows, position, active.request.score_prompt ? rows : 0);
  input.guard = adapt_pricer_.PriceRead(costs, device, rows, position, rows);
  if (!active.request.score_prompt) {  // learning needs logits that nobody else asks for
    for (size_t tier = 1; tier < kAdaptTiers; ++tier) {
      input.cost[tier].joules += input.guard.joules - input.read.joules;
      input.cost[tier].seconds += input.guard.seconds - input.read.seconds;
    }
  }
  for (const StepPart& part : parts_) input.decode_rows += part.prefill ? 0 : 1;
  input.step = input.read;
  if (input.decode_rows > 0 && loop_ != nullptr) {
    input.step.seconds += loop_->status().latency_ms * 1e-3;
    input.step.joules += loop_->status().demand_w * loop_->status().latency_ms * 1e-3;
  }
  const double spent_j = ttt.automatic->spent_j;
  if (ttt.options().budget_joules > 0) input.joules_left = ttt.options().budget_joules - spent_j;
  return input;
}

void EngineImpl::PlanSegment(ActiveRequest* active, int64_t first_row, int64_t rows) {
  Session* session = active->session;
  Adaptation& ttt = *session->ttt;
  plan_.active = active;
  plan_.first_row = first_row;
  plan_.rows = rows;
  plan_.guard_us = 0;
  plan_.nats.clear();
  plan_.plain_nats.clear();
  plan_.input = PriceSegment(*active, rows, session->kv.length);
  const size_t read = session->computed() + static_cast<size_t>(rows);
  plan_.targets =
      static_cast<int32_t>(std::min(session->tokens.size() - session->computed() - 1, static_cast<size_t>(rows)));
  plan_.input.tokens_ahead = static_cast<double>(active->prompt_end - read + active->target());
  // The rest of a prompt teaches too little where it is short.
  if (2 * rows < ttt.options().segment || plan_.targets == 0) {
    plan_.input.tokens = 0;
    ++ttt.stats.choices[0];
    return;
  }
  plan_.decision = ttt.automatic->controller.Decide(plan_.input);
  const AdaptDecision& decision = plan_.decision;
  ++ttt.stats.choices[static_cast<size_t>(decision.tier)];
  if (decision.defer) {
    std::deque<AutoAdaptation::Segment>& deferred = ttt.automatic->deferred;
    deferred.push_back({session->computed(), static_cast<int32_t>(rows)});
    ++ttt.stats.deferred;
    if (deferred.size() > kMostDeferred) {
      deferred.pop_front();
      ++ttt.stats.dropped;
    }
  }
  if (decision.tier == AdaptTier::kSkip) {
    plan_.guards = decision.guard && active->request.score_prompt;
    if (plan_.guards) learner_ = active, learner_part_ = parts_.size() - 1;
    return;
  }
  plan_.guards = decision.guard;
  BeginLearning(active, first_row, rows, 0, {GroupsOf(decision.tier), LowestLayerOf(decision.tier, config_.layers)});
  PickTokens(ttt.options(), decision);
  plan_.nats.assign(static_cast<size_t>(rows), 0.0f);
  learning_->nats = plan_.nats;
}

// Which tokens of the segment take part, and how deep.
void EngineImpl::PickTokens(const TttOptions& options, const AdaptDecision& decision) {
  learning_->least_nats = options.least_nats;
  learning_->deep_nats = decision.strained ? options.deep_nats : 0;
  learning_->Begin();
}

// The segment by the plain model, over keys and values of the context as they are; the step's own pass writes over its
// own.
void EngineImpl::GuardPass() {
  const auto first = batch_.rows.begin() + plan_.first_row;
  again_.rows.assign(first, first + plan_.rows);
  const Session& session = *plan_.active->session;
  for (int64_t i = 0; i < plan_.rows; ++i) {
    BatchRow& row = again_.rows[static_cast<size_t>(i)];
    const bool has_next = i < plan_.targets;
    row.deltas = nullptr;
    row.wants_logits = has_next;
    row.target = row.asked = has_next ? session.tokens[session.first() + static_cast<size_t>(row.position) + 1] : -1;
  }
  NllSink sink(&plan_.plain_nats);
  const WorkCount before{record_.weight_bytes, record_.kv_bytes, record_.flops};
  const double expert_bytes = record_.expert_bytes, learn_us = record_.times.learn_us;
  PassExtra(nullptr, sink, 0);
  CountOwn(before, expert_bytes);
  plan_.guard_us = record_.times.learn_us - learn_us;
  ++plan_.active->session->ttt->stats.guard_passes;
}

void EngineImpl::FinishPlan() {
  if (plan_.active != nullptr) {
    AdaptOutcome outcome;
    TellOutcome(&outcome);
    Session* session = plan_.active->session;
    AutoAdaptation& automatic = *session->ttt->automatic;
    if (automatic.controller.Observe(outcome)) ResetDeltas(session);
    LogAdaptation(*session, plan_.input, plan_.decision, outcome);
    const Benefit now = automatic.controller.benefit().Now();
    adapt_view_ = {true,
                   std::string(AdaptTierName(plan_.decision.tier)),
                   std::string(AdaptReasonName(plan_.decision.reason)),
                   session->ttt->stats.updates,
                   session->ttt->stats.segments,
                   static_cast<int64_t>(automatic.deferred.size()),
                   session->ttt->stats.reverted,
                   now.nats,
                   now.deviation_nats,
                   automatic.spent_j};
    session->ttt->stats.gain_nats = now.nats;
    session->ttt->stats.gain_deviation_nats = now.deviation_nats;
  }
  for (const auto& active : running_) {
    if (active->session->ttt != nullptr && active->session->ttt->automatic && CatchUp(active.get())) return;
  }
}

// What the step's passes did with the planned segment, and what that took.
void EngineImpl::TellOutcome(AdaptOutcome* outcome) {
  ActiveRequest* active = plan_.active;
  Adaptation& ttt = *active->session->ttt;
  const AdaptDecision& decision = plan_.decision;
  if (decision.tier == AdaptTier::kSkip && active->request.score_prompt) {
    const auto at = static_cast<long>(active->session->computed() + 1 - active->prompt_begin);
    const auto from = active->result.prompt_logprobs.begin() + at;
    plan_.nats.resize(static_cast<size_t>(plan_.targets));
    std::transform(from, from + plan_.targets, plan_.nats.begin(), [](float logprob) { return -logprob; });
  }
  const std::span<const float> nats =
      std::span(plan_.nats).first(std::min(static_cast<size_t>(plan_.targets), plan_.nats.size()));
  outcome->read_tokens = static_cast<int32_t>(plan_.rows);
  if (!nats.empty())
    outcome->mean_nats = std::accumulate(nats.begin(), nats.end(), 0.0) / static_cast<double>(nats.size());
  if (plan_.guards) {
    ttt.automatic->spent_j += plan_.input.guard.joules;
    outcome->guard_seconds = plan_.guard_us * 1e-6;
    ttt.stats.guard_seconds += outcome->guard_seconds;
    outcome->worse_nats.resize(nats.size());
    std::transform(nats.begin(), nats.end(), plan_.plain_nats.begin(), outcome->worse_nats.begin(), std::minus<>());
  }
  if (decision.tier == AdaptTier::kSkip) return;
  outcome->tier = decision.tier;
  outcome->learnt_tokens = static_cast<int32_t>(plan_.rows);
  const AdaptCost& cost = plan_.input.cost[static_cast<size_t>(decision.tier)];
  ttt.automatic->spent_j += outcome->joules = cost.joules;
  ttt.stats.left_out_tokens += learning_->left_out;
  if (supervisor_->info().simulated) return;
  outcome->seconds = (record_.times.learn_us - plan_.guard_us) * 1e-6;
  adapt_pricer_.Observe(decision.tier, cost.plain_seconds, outcome->seconds);
}

void EngineImpl::LogAdaptation(const Session& session, const AdaptInput& input, const AdaptDecision& decision,
                               const AdaptOutcome& outcome) {
  if (loop_ == nullptr || options_.control.log_path.empty()) return;
  const AutoAdaptation& automatic = *session.ttt->automatic;
  if (automatic.logged++ == 0) loop_->Log(AdaptSessionLine(session.id, automatic.controller.config(), automatic.start));
  loop_->Log(AdaptLine(session.id, input, decision, outcome));
}

void EngineImpl::KeepBenefit(const Session& session) {
  if (options_.ttt_state_path.empty() || session.ttt == nullptr || !session.ttt->automatic) return;
  const AutoAdaptation& automatic = *session.ttt->automatic;
  if (automatic.controller.updates() > 0) benefit_ = AfterSession(benefit_, automatic.controller.benefit().state());
}

Status EngineImpl::LoadBenefit() {
  if (options_.ttt_state_path.empty()) return Status::Ok();
  const Result<BenefitState> state = ReadBenefitState(options_.ttt_state_path);
  if (!state.ok()) return state.status().code() == StatusCode::kNotFound ? Status::Ok() : state.status();
  benefit_ = *state;
  return Status::Ok();
}

void EngineImpl::ResetDeltas(Session* session) {
  Adaptation& ttt = *session->ttt;
  ttt.Reset();
  ttt.automatic->deferred.clear();
  ttt.automatic->restart = true;
  ++ttt.stats.reverted;
}

// Learns from the oldest segment that was put off, if there is room for another pass over it in this step.
bool EngineImpl::CatchUp(ActiveRequest* active) {
  Session* session = active->session;
  Adaptation& ttt = *session->ttt;
  std::deque<AutoAdaptation::Segment>& deferred = ttt.automatic->deferred;
  while (!deferred.empty() && deferred.front().first < session->first()) {  // a restart let it go
    deferred.pop_front();
    ++ttt.stats.dropped;
  }
  if (deferred.empty() || session->kv.length < ttt.recompute_until || (learner_ != nullptr && learner_ != active))
    return false;
  const auto own =
      std::find_if(parts_.begin(), parts_.end(), [&](const StepPart& part) { return part.account == active->account; });
  if (own == parts_.end()) return false;
  const AutoAdaptation::Segment segment = deferred.front();
  const auto position = static_cast<int32_t>(segment.first - session->first());
  if (position + segment.count > session->kv.length) return false;  // of this step, or not computed again yet
  AdaptInput input = PriceSegment(*active, segment.count, position);
  input.deferred = true;
  for (size_t tier = 1; tier < kAdaptTiers; ++tier) {
    input.cost[tier].joules += input.read.joules;
    input.cost[tier].seconds += input.read.seconds;
  }
  const size_t at = session->computed();
  input.tokens_ahead = static_cast<double>(active->prompt_end > at ? active->prompt_end - at : 0) +
                       static_cast<double>(active->target());
  const AdaptDecision decision = ttt.automatic->controller.Decide(input);
  if (decision.tier == AdaptTier::kSkip) {
    if (!decision.defer) deferred.pop_front(), ++ttt.stats.dropped;  // no longer worth it
    return false;
  }
  deferred.pop_front();
  again_.rows.clear();
  for (int32_t i = 0; i < segment.count; ++i) {
    const size_t index = segment.first + static_cast<size_t>(i);
    const int32_t target = index + 1 < session->tokens.size() ? session->tokens[index + 1] : -1;
    again_.rows.push_back({session->tokens[index], &session->kv, position + i, kernels::RowKind::kPrefill, target >= 0,
                           ttt.deltas(), target});
  }
  if (learner_ == nullptr) learner_ = active, learner_part_ = static_cast<size_t>(own - parts_.begin());
  const WorkCount before{record_.weight_bytes, record_.kv_bytes, record_.flops};
  const double expert_bytes = record_.expert_bytes;
  PrepareTape(session, 0, segment.count, position,
              {GroupsOf(decision.tier), LowestLayerOf(decision.tier, config_.layers)});
  learner_seen_ = 0;
  PickTokens(ttt.options(), decision);
  LearnAgain(0);
  CountOwn(before, expert_bytes);
  AdaptOutcome outcome;
  outcome.tier = decision.tier;
  outcome.learnt_tokens = segment.count;
  outcome.joules = input.cost[static_cast<size_t>(decision.tier)].joules;
  ttt.automatic->spent_j += outcome.joules;
  ttt.automatic->controller.Observe(outcome);
  LogAdaptation(*session, input, decision, outcome);
  ttt.stats.left_out_tokens += learning_->left_out;
  ++ttt.stats.caught_up;
  return true;
}

}  // namespace thermoe
