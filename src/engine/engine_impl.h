// SPDX-License-Identifier: Apache-2.0
// The engine: sessions, the queue, and the step that joins them. engine.cc: making, submitting, results;
// sessions.cc: contexts; step.cc: one step; step_ahead.cc: the next one begun; control.cc: the control loop.
#pragma once

#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "control/adapt/adapt_pricer.h"
#include "control/cost/step_pricer.h"
#include "control/loop.h"
#include "engine/model_impl.h"
#include "engine/session.h"
#include "engine/supervisor.h"
#include "forward/sample.h"
#include "forward/step.h"
#include "runtime/threads.h"
#include "thermoe/engine.h"

namespace thermoe {

class EngineImpl final : public Engine, private LogitSink {
 public:
  EngineImpl(std::shared_ptr<const Model> model, const EngineOptions& options, int context, std::unique_ptr<ThreadPool> threads,
             std::unique_ptr<kernels::Ops> ops, std::unique_ptr<KvCache> cache, std::unique_ptr<Supervisor> supervisor);

  Result<RequestId> Submit(Request request) override;
  Result<bool> Step(std::vector<Event>* events) override;
  Status Cancel(RequestId request) override;
  Result<RequestResult> TakeResult(RequestId request) override;
  Result<RequestResult> Run(Request request) override;
  Result<SessionId> OpenSession() override;
  Result<SessionId> ForkSession(SessionId session) override;
  Status TruncateSession(SessionId session, int tokens) override;
  Result<int> SessionLength(SessionId session) const override;
  Status CloseSession(SessionId session) override;
  Status SetTtt(SessionId session, const TttOptions& options) override;
  Result<TttStats> SessionTtt(SessionId session) const override;
  Status SaveDeltas(SessionId session, const std::string& path) const override;
  Status LoadDeltas(SessionId session, const std::string& path) override;
  Status SetSteering(std::shared_ptr<const Steering> steering) override;
  Status SetTelemetry(const std::string& telemetry) override;
  const TelemetryInfo& telemetry() const override { return supervisor_->info(); }
  double now_s() const override { return supervisor_->now_s(); }
  EnergyTotals energy() override { return supervisor_->Totals(); }
  void SettleEnergy(double most_s) override { supervisor_->Settle(most_s); }
  ControlView control_view() override;
  CostView cost_view() const override;
  DeviceLoad device_load() const override;
  double MeasureDeviceReadGbps() override { return 1e-9 * ops_->MeasureReadSpeed(); }
  Status SaveControl() override;
  const StepRecord& last_step() const override { return record_; }
  std::string Describe() const override;
  const Model& model() const override { return *model_; }
  int context() const override { return context_; }

  friend class Engine;  // Create

  // For tests and the control loop.
  Supervisor& supervisor() { return *supervisor_; }
  void SetSupervisor(std::unique_ptr<Supervisor> supervisor);
  void SetOps(std::unique_ptr<kernels::Ops> ops) { ops_ = std::move(ops); }  // of the host
  ControlLoop* control_loop() { return loop_; }

 private:
  using RequestList = std::vector<std::unique_ptr<ActiveRequest>>;

  // sessions.cc
  Session* FindSession(SessionId id);
  Result<Session*> IdleSession(SessionId id);
  int OpenSessions() const;  // that callers opened; temporary ones not counted
  Session* NewSession(bool temporary);
  void DropSession(Session* session);

  // engine.cc
  Status CheckRequest(const Request& request, const Session* session) const;

  void KeepEnergy();

  // adapt.cc
  Status CheckTtt(const TttOptions& options) const;
  // Positions that the context of a session may have before it restarts.
  int32_t WindowOf(const TttOptions& options) const { return options.window > 0 ? options.window : context_; }
  // Checks options and reads the statistics that they name; null where they name none.
  Result<std::shared_ptr<const FeatureStatistics>> PrepareTtt(const TttOptions& options) const;
  void StartTtt(Session* session, const TttOptions& options, std::shared_ptr<const FeatureStatistics> features);
  // Cuts a session's tokens and its context. Where restarts let go of what was in the context then, the newest tokens are read again.
  void CutSession(Session* session, size_t tokens);
  // The next rows of a prompt that is read in segments: part of a restart, or a whole segment. At most one segment a step is learnt
  // from; others wait. Takes what it adds from *budget.
  Status AddSegment(ActiveRequest* active, int32_t* budget);
  void PrepareTape(Session* session, int64_t first_row, int64_t rows, int32_t position, const DeltaScope& scope);
  void BeginLearning(ActiveRequest* active, int64_t first_row, int64_t rows, int64_t seen, const DeltaScope& scope);
  void RestartContext(Session* session);
  // After the forward pass over a segment: backward, update, and further steps where the tier has them.
  void Learn(StepContext& step);
  void Update(StepRecord* record);
  void PassAgain();
  void LearnAgain(int32_t first_layer);
  // A pass over again_ beside the step's own, added to its record; learns where `learning` is given.
  void PassExtra(Learning* learning, LogitSink& sink, int32_t first_layer);
  void CountTtt(double seconds);
  void SettleTtt(ActiveRequest* active);

  // adapt_auto.cc: where the engine decides (docs/adaptation-control.md).
  // What was decided for the segment that this step reads, and what became of it.
  struct SegmentPlan {
    ActiveRequest* active = nullptr;  // null: no automatic session reads a segment in this step
    int64_t first_row = 0, rows = 0;  // of batch_
    int32_t targets = 0;              // rows that have a next token
    AdaptInput input;
    AdaptDecision decision;
    bool guards = false;  // the decision's guard, where something scores the segment
    double guard_us = 0;  // of the machine's own time
    std::vector<float> plain_nats, nats;  // [targets] by the guard; before the update
  };
  void BeginPricing(const Adaptation& ttt);
  // What an update of a session's own tier should take, where a profile can say; then what it took.
  void PriceFixed(const Adaptation& ttt, int64_t rows, int64_t position);
  AdaptInput PriceSegment(const ActiveRequest& active, int64_t rows, int64_t position);
  void PlanSegment(ActiveRequest* active, int64_t first_row, int64_t rows);
  void PickTokens(const TttOptions& options, const AdaptDecision& decision);
  void GuardPass();
  // After the step's own passes: tells the controller, acts on what it says, and learns from a segment that was put off.
  void FinishPlan();
  void TellOutcome(AdaptOutcome* outcome);
  void LogAdaptation(const Session& session, const AdaptInput& input, const AdaptDecision& decision, const AdaptOutcome& outcome);
  bool CatchUp(ActiveRequest* active);
  void ResetDeltas(Session* session);
  // What a session that ends has shown of adapting counts for those that follow.
  void KeepBenefit(const Session& session);
  Status LoadBenefit();

  // control.cc
  // The cost model, from a profile where there is one.
  void StartPricing();
  // A loop for `supervisor`, handed to it; nothing without ControlOptions. Errors: as Engine::Create.
  Status StartControl(Supervisor* supervisor);

  // step.cc
  Result<bool> TakeStep(std::vector<Event>* events);
  void Admit();
  Status Schedule();
  Status AddRows(ActiveRequest* active, int32_t count, int32_t seen = 0);
  void WantDraws(std::span<const size_t> rows, std::vector<kernels::TokenDraw>* draws) override;
  void OnLogits(size_t row, LogitRow* logits) override;
  int32_t AskedOf(const ActiveRequest& active, size_t index) const;
  void Generate(ActiveRequest* active, LogitRow* logits);
  void CommitRows();
  void Finish(ActiveRequest* active, FinishReason reason);
  void StampTimes();
  void RetireFinished();
  StepContext ContextOf(const Batch& batch, StepRecord& record);
  void StartRecord(uint64_t step, StepRecord* record) const;

  // step_ahead.cc: decode steps that are begun before the results of the one before have come.
  bool MayBeginAhead(const StepContext& step) const;
  void BeginAhead();
  void TakeAhead();  // the step begun ahead is this one
  void DropAhead() { ahead_.begun = beginning_ahead_ = false; }
  void LeaveAhead(const ActiveRequest* active);  // a request has ended: nobody reads its row of the step begun ahead

  std::shared_ptr<const Model> model_;
  const ModelConfig& config_;
  EngineOptions options_;
  int context_;
  std::unique_ptr<ThreadPool> threads_;
  std::unique_ptr<kernels::Ops> ops_;
  std::unique_ptr<KvCache> cache_;
  Workspace workspace_;
  Sampler sampler_;
  std::shared_ptr<const Steering> steering_;
  bool batch_aware_ = false;  // what a row gets depends on the decode rows beside it
  std::unique_ptr<Supervisor> supervisor_;
  ControlLoop* loop_ = nullptr;  // the supervisor's; null: none
  Supervisor::DeviceFacts facts_;  // when the loop was made
  std::optional<StepPricer> pricer_;  // set by StartPricing()
  CostView cost_view_;                // what is known of the profile

  std::unordered_map<SessionId, std::unique_ptr<Session>> sessions_;
  RequestList queue_, running_;  // in order of submission
  struct Finished {
    RequestResult result;
    EnergyAccountant::Account account = -1;  // its joules may still change
  };
  std::unordered_map<RequestId, Finished> results_;
  uint64_t next_id_ = 1;  // requests and sessions share the count

  Batch batch_;
  std::vector<ActiveRequest*> row_owner_;  // [T] whose row each is; null: a request's that has ended since the step was begun
  std::vector<StepPart> parts_;            // whose rows, together; set by Schedule
  // Test-time training: of the segment that this step learns from.
  std::unique_ptr<Tape> tape_;
  std::unique_ptr<BackwardWorkspace> backward_;
  std::optional<Learning> learning_;
  ActiveRequest* learner_ = nullptr;
  int64_t learner_first_row_ = 0;  // of batch_
  int64_t learner_seen_ = 0;       // of its rows, those before the segment
  int64_t restart_rows_ = 0;       // of batch_, those that a restart computes again
  size_t learner_part_ = 0;        // of parts_
  Batch again_;                    // the segment's rows alone, for further steps
  StepRecord again_record_;
  struct WorkCount {
    double weight_bytes = 0, kv_bytes = 0, flops = 0;
  };
  WorkCount learnt_;  // of this step's totals
  void CountOwn(const WorkCount& before, double expert_bytes_before);
  SegmentPlan plan_;
  AdaptPricer adapt_pricer_;
  AdaptTier fixed_tier_ = AdaptTier::kSkip;  // of the segment that this step learns from, where it was priced
  double fixed_s_ = 0;                       // as predicted
  BenefitState benefit_ = MeasuredBenefit();  // what sessions start from
  AdaptView adapt_view_;
  StepRecord record_;
  struct Ahead {
    bool begun = false;
    Batch batch;
    std::vector<ActiveRequest*> row_owner;
    std::vector<StepPart> parts;  // [T]
    StepRecord record;
    LogitTile inside;
  };
  Ahead ahead_;  // of the step after batch_'s
  bool beginning_ahead_ = false;
  double ended_s_ = 0;  // the newest step
  std::vector<Event>* events_ = nullptr;  // of the running step
  bool finite_ = true;                    // every logit so far was a finite number
  bool diverged_ = false;                 // those that were not are of a session that has learnt
};

}  // namespace thermoe
