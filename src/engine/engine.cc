// SPDX-License-Identifier: Apache-2.0
#include "engine/engine_impl.h"

#include <algorithm>
#include <new>

#include "base/errors.h"
#include "engine/engine_memory.h"
#include "engine/profile_target.h"
#include "kernels/dispatch.h"

namespace thermoe {
namespace {

// Puts the model on the backend's device, where it has memory of its own.
Status HoldModel(const ModelImpl& model, int context, const EngineOptions& options, KvCache* cache, kernels::Ops* ops) {
  const ModelConfig& config = model.config();
  std::vector<std::span<const FfnWeights>> experts;
  for (int32_t l = 0; l < config.layers; ++l) experts.push_back(model.experts().layer(l));
  cache->SetCopy([ops](float* to, const float* from, int64_t floats) { ops->CopyKv(to, from, floats); });
  return ops->Hold({config, model.loaded().weights, experts, cache->pool(), Workspace::BytesFor(config, MaxRows(options)), MaxRows(options),
                    options.max_sequences, context, model.loaded().files});
}

Status CheckOptions(const EngineOptions& options, const ModelConfig& config) {
  if (options.threads < 0 || options.threads > 1024) return InvalidArgument("threads is {}; give 1 to 1024, or 0 for all cores", options.threads);
  if (options.context < 0 || options.context > config.context) {
    return InvalidArgument("context is {}; the model was made for up to {} tokens (0: all of it)", options.context, config.context);
  }
  if (options.max_sequences < 1 || options.max_sequences > 4096) {
    return InvalidArgument("{} parallel sequences; give 1 to 4096", options.max_sequences);
  }
  if (options.prefill_chunk < 1 || options.prefill_chunk > 8192) {
    return InvalidArgument("prefill chunk is {}; give 1 to 8192 tokens", options.prefill_chunk);
  }
  return Status::Ok();
}

}  // namespace

const char* FinishReasonName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone: return "running";
    case FinishReason::kEnd: return "end";
    case FinishReason::kLength: return "length";
    case FinishReason::kContext: return "context";
    case FinishReason::kCancelled: return "cancelled";
  }
  return "running";
}

Result<std::unique_ptr<Engine>> Engine::Create(std::shared_ptr<const Model> model, const EngineOptions& options) try {
  const ModelConfig& config = model->impl().config();
  THERMOE_RETURN_IF_ERROR(CheckOptions(options, config));
  const int context = options.context > 0 ? options.context : config.context;
  auto threads = std::make_unique<ThreadPool>(options.threads);
  Result<std::unique_ptr<kernels::Ops>> ops = kernels::MakeOps(options.backend, options.isa, threads.get(), options.device);
  if (!ops.ok()) return ops.status();
  const bool on_device = ops.value()->on_device();
  const LoadedModel& loaded = model->impl().loaded();
  THERMOE_RETURN_IF_ERROR(
      CheckMemory(**ops, loaded, model->impl().experts().storage(), {options.max_sequences, context, options.prefill_chunk}));
  Result<std::unique_ptr<KvCache>> cache = KvCache::Create(KvShapeOf(config), KvPositions(context, options.max_sequences));
  if (!cache.ok()) return cache.status();
  if (on_device) THERMOE_RETURN_IF_ERROR(HoldModel(model->impl(), context, options, cache->get(), ops->get()));
  Result<std::unique_ptr<Supervisor>> supervisor = Supervisor::Create(options.telemetry, ShapeOf(ProfileTargetOf(*model)), ops.value()->sensors());
  if (!supervisor.ok()) return supervisor.status();
  auto engine = std::make_unique<EngineImpl>(std::move(model), options, context, std::move(threads), std::move(ops).value(),
                                             std::move(cache).value(), std::move(supervisor).value());
  if (on_device) engine->workspace_.AdoptBy(engine->ops_.get(), config, MaxRows(options));
  THERMOE_RETURN_IF_ERROR(engine->ops_->Health());
  engine->StartPricing();
  THERMOE_RETURN_IF_ERROR(engine->LoadBenefit());
  THERMOE_RETURN_IF_ERROR(engine->StartControl(engine->supervisor_.get()));
  return std::unique_ptr<Engine>(std::move(engine));
} catch (const std::bad_alloc&) {
  return ResourceExhausted("memory ran out while the engine was made; use a smaller context, chunk or number of sequences");
}

EngineImpl::EngineImpl(std::shared_ptr<const Model> model, const EngineOptions& options, int context,
                       std::unique_ptr<ThreadPool> threads, std::unique_ptr<kernels::Ops> ops, std::unique_ptr<KvCache> cache,
                       std::unique_ptr<Supervisor> supervisor)
    : model_(std::move(model)),
      config_(model_->impl().config()),
      options_(options),
      context_(context),
      threads_(std::move(threads)),
      ops_(std::move(ops)),
      cache_(std::move(cache)),
      workspace_(config_, MaxRows(options)),
      sampler_(config_.vocab),
      supervisor_(std::move(supervisor)) {
  record_.layers.resize(static_cast<size_t>(config_.layers));
  ahead_.record.layers.resize(record_.layers.size());
  batch_.rows.reserve(static_cast<size_t>(MaxRows(options)));
  row_owner_.reserve(batch_.rows.capacity());
  parts_.reserve(static_cast<size_t>(options.max_sequences));
  const size_t most_ahead = ops_->overlaps_steps() ? static_cast<size_t>(kernels::kMostAhead) : 0;
  ahead_.batch.rows.reserve(batch_.rows.capacity()), ahead_.row_owner.reserve(row_owner_.capacity()), ahead_.parts.reserve(most_ahead);
}

std::string EngineImpl::Describe() const {
  return kernels::Describe(*ops_, *threads_);
}

Status EngineImpl::SetSteering(std::shared_ptr<const Steering> steering) {
  if (steering != nullptr) {
    const bool nested = model_->impl().experts().storage() == ExpertStorage::kNested;
    THERMOE_RETURN_IF_ERROR(CheckSteering(*steering, {config_.layers, config_.experts, config_.slots, nested}));
  }
  DropAhead();
  steering_ = std::move(steering);
  batch_aware_ = steering_ != nullptr && std::any_of(steering_->layers.begin(), steering_->layers.end(), [this](const LayerSteering& layer) {
    return layer.soft_batch > 0 || (layer.guaranteed_slots != kAllSlots && layer.guaranteed_slots < config_.slots);
  });
  return Status::Ok();
}

Result<RequestId> EngineImpl::Submit(Request request) try {
  Session* session = nullptr;
  if (request.session != kNoSession) {
    session = FindSession(request.session);
    if (session == nullptr) return InvalidArgument("session {} is not open", request.session);
    if (session->busy) return InvalidArgument("session {} already runs a request; wait for it or fork the session", request.session);
  } else if (OpenSessions() >= options_.max_sequences) {
    return ResourceExhausted("all {} sequences are taken by open sessions; close one or raise max_sequences", options_.max_sequences);
  }
  THERMOE_RETURN_IF_ERROR(CheckRequest(request, session));
  auto active = std::make_unique<ActiveRequest>();
  if (request.ttt != nullptr) {
    Result<std::shared_ptr<const FeatureStatistics>> features = PrepareTtt(*request.ttt);
    if (!features.ok()) return features.status();
    active->features = std::move(features).value();
  }
  active->id = next_id_++;
  active->submitted_s = supervisor_->now_s();
  active->random = Random(request.sampling.seed);
  active->request = std::move(request);
  active->session = session;
  queue_.push_back(std::move(active));
  if (session != nullptr) session->busy = true;
  return queue_.back()->id;
} catch (const std::bad_alloc&) {
  return ResourceExhausted("memory ran out while a request was queued; take finished results or free some memory");
}

Status EngineImpl::CheckRequest(const Request& request, const Session* session) const {
  if (request.prompt.empty()) return InvalidArgument("the prompt is empty; give at least one token");
  const size_t held = session == nullptr ? 0 : session->tokens.size() - session->first();
  const Adaptation* reading = session == nullptr ? nullptr : session->ttt.get();
  const TttOptions* ttt = reading != nullptr ? &reading->options() : request.ttt.get();
  if (request.ttt != nullptr && session != nullptr) {
    return InvalidArgument("a request on a session brings its own test-time training; use SetTtt on the session");
  }
  const bool restarts = ttt != nullptr && ttt->keep > 0;
  const int most = ttt != nullptr ? WindowOf(*ttt) : context_;
  if (!restarts && request.prompt.size() + held > static_cast<size_t>(most)) {
    return InvalidArgument("the prompt has {} tokens{} but the {} holds {}; shorten the prompt or raise {} (the model allows {})",
                           request.prompt.size(), held > 0 ? fmt::format(" after the session's {}", held) : "",
                           most < context_ ? "window" : "context", most, most < context_ ? "it, or let it restart with keep" : "--ctx",
                           config_.context);
  }
  for (const std::vector<TokenId>* ids : {&request.prompt, &request.forced}) {
    for (const TokenId id : *ids) {
      if (id < 0 || id >= config_.vocab) return InvalidArgument("token id {} is outside the vocabulary of {}", id, config_.vocab);
    }
  }
  if (request.max_new_tokens < 0) return InvalidArgument("max_new_tokens is {}; give 0 or more", request.max_new_tokens);
  return CheckSampling(request.sampling);
}

Status EngineImpl::Cancel(RequestId request) {
  for (auto* list : {&queue_, &running_}) {
    for (auto& active : *list) {
      if (active->id != request) continue;
      Finish(active.get(), FinishReason::kCancelled);
      StampTimes();
      RetireFinished();
      return Status::Ok();
    }
  }
  return NotFound("request {} is not queued or running", request);
}

Result<RequestResult> EngineImpl::TakeResult(RequestId request) {
  const auto found = results_.find(request);
  if (found == results_.end()) return NotFound("request {} has no result to take", request);
  RequestResult result = std::move(found->second.result);
  if (found->second.account >= 0) {
    result.energy = supervisor_->accountant()->Read(found->second.account);
    supervisor_->accountant()->Release(found->second.account);
  }
  results_.erase(found);
  return result;
}

// Results that wait to be taken keep what the accountant knew of them.
void EngineImpl::KeepEnergy() {
  for (auto& [id, finished] : results_) {
    if (finished.account < 0) continue;
    finished.result.energy = supervisor_->accountant()->Read(finished.account);
    finished.account = -1;
  }
}

void EngineImpl::SetSupervisor(std::unique_ptr<Supervisor> supervisor) {
  KeepEnergy();
  if (supervisor->controller() == nullptr) loop_ = nullptr;
  supervisor_ = std::move(supervisor);
}

Status EngineImpl::SetTelemetry(const std::string& telemetry) {
  if (!queue_.empty() || !running_.empty()) return InvalidArgument("requests are running; change the telemetry when they are done");
  Result<std::unique_ptr<Supervisor>> supervisor = Supervisor::Create(telemetry, ShapeOf(ProfileTargetOf(*model_)), ops_->sensors());
  if (!supervisor.ok()) return supervisor.status();
  THERMOE_RETURN_IF_ERROR(SaveControl());
  if (loop_ != nullptr) THERMOE_RETURN_IF_ERROR(SetSteering(nullptr));  // a new loop starts plain
  THERMOE_RETURN_IF_ERROR(StartControl(supervisor->get()));
  SetSupervisor(std::move(supervisor).value());
  return Status::Ok();
}

Result<RequestResult> EngineImpl::Run(Request request) {
  const Result<RequestId> id = Submit(std::move(request));
  if (!id.ok()) return id.status();
  std::vector<Event> events;
  while (results_.find(*id) == results_.end()) {
    events.clear();
    const Result<bool> more = Step(&events);
    if (!more.ok()) return more.status();
  }
  return TakeResult(*id);
}

}  // namespace thermoe
