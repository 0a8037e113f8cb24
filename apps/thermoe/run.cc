// SPDX-License-Identifier: Apache-2.0
#include "run.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "base/errors.h"
#include "interrupt.h"
#include "output.h"
#include "terminal.h"
#include "text_input.h"

namespace thermoe {

Result<std::vector<TokenId>> EncodePrompt(const RunContext& context, const std::string& text, const std::string& source,
                                          const std::optional<std::string>& system) {
  if (text.empty()) return InvalidArgument("{}: the prompt is empty; give it some text", source);
  THERMOE_RETURN_IF_ERROR(CheckUtf8(text, source));
  if (system) THERMOE_RETURN_IF_ERROR(CheckUtf8(*system, "--system"));
  const Tokenizer& tokenizer = context.model->tokenizer();
  Result<std::vector<TokenId>> ids = std::vector<TokenId>();
  if (context.chat == nullptr) {
    ids = tokenizer.Encode(text);
  } else {
    std::vector<ChatMessage> messages;
    if (system) messages.push_back({"system", *system});
    messages.push_back({"user", text});
    ids = context.chat->Encode(tokenizer, messages, /*first=*/true);
  }
  if (!ids.ok()) return Status(ids.status().code(), source + ": " + ids.status().message());
  if (ids->empty()) return InvalidArgument("{}: the prompt is empty; give it some text", source);
  THERMOE_RETURN_IF_ERROR(CheckFits(context, 0, static_cast<int64_t>(ids->size()), source));
  return ids;
}

Result<SessionId> OpenSession(RunContext* context) {
  const Result<SessionId> session = context->engine->OpenSession();
  if (!session.ok() || context->ttt == nullptr) return session;
  THERMOE_RETURN_IF_ERROR(context->engine->SetTtt(*session, *context->ttt));
  const std::string& path = context->flags.ttt.load;
  if (!path.empty()) THERMOE_RETURN_IF_ERROR(context->engine->LoadDeltas(*session, path));
  return session;
}

Status SaveDeltas(const RunContext& context, SessionId session) {
  const std::string& path = context.flags.ttt.save;
  if (path.empty()) return Status::Ok();
  THERMOE_RETURN_IF_ERROR(context.engine->SaveDeltas(session, path));
  const Result<TttStats> stats = context.engine->SessionTtt(session);
  if (!context.flags.quiet && stats.ok()) {
    PrintNote(Dim(fmt::format("[deltas of {} KiB in {}]", (stats->delta_bytes + 1023) / 1024, EscapeControls(path)), STDERR_FILENO) + "\n");
  }
  return Status::Ok();
}

Status CheckFits(const RunContext& context, int64_t held, int64_t added, const std::string& source) {
  if (context.ttt != nullptr && context.ttt->keep > 0) return Status::Ok();  // its context restarts
  const int64_t room = context.engine->context();
  if (held + added <= room) return Status::Ok();
  const int64_t model_context = context.model->info().context;
  const std::string after = held > 0 ? fmt::format(" after the {} it holds", WithCommas(held)) : "";
  const std::string remedy = room < model_context
                                 ? fmt::format("raise --ctx (this model: up to {})", WithCommas(model_context))
                                 : std::string("use a model with a longer context");
  return InvalidArgument("{}: the prompt has {} tokens but the context has room for {}{}; shorten the text or {}",
                         source, WithCommas(added), WithCommas(room - held), after, remedy);
}

Request MakeRequest(const RunContext& context, const SamplingFlags& flags, uint64_t seed, std::vector<TokenId> prompt) {
  Request request;
  request.prompt = std::move(prompt);
  ApplySampling(flags, seed, &request);
  if (context.chat != nullptr) request.stop_ids = context.chat->StopIds(context.model->tokenizer());
  return request;
}

TextStream StreamAfter(const RunContext& context, const std::vector<TokenId>& prompt) {
  TextStream stream(context.model->tokenizer());
  if (context.chat == nullptr) {
    for (const TokenId id : prompt) (void)stream.Push(id);
  }
  return stream;
}

std::string TextAfter(const RunContext& context, const std::vector<TokenId>& prompt,
                      const std::vector<TokenId>& generated) {
  TextStream stream = StreamAfter(context, prompt);
  std::string text;
  for (const TokenId id : generated) text += stream.Push(id);
  return text + stream.Finish();
}

Result<RequestResult> Generate(Engine* engine, Request request, const std::function<Status(TokenId)>& on_token, Live* live) {
  const Result<RequestId> id = engine->Submit(std::move(request));
  if (!id.ok()) return id.status();
  std::vector<Event> events;
  for (bool finished = false; !finished;) {
    if (Interrupted()) {
      THERMOE_RETURN_IF_ERROR(engine->Cancel(*id));
      break;
    }
    events.clear();
    const Result<bool> stepped = engine->Step(&events);
    if (!stepped.ok()) return stepped.status();
    if (live != nullptr) live->AfterStep();
    for (const Event& event : events) {
      if (event.request != *id) continue;
      finished = finished || event.finish != FinishReason::kNone;
      if (event.token == kNoToken) continue;
      if (Status status = on_token(event.token); !status.ok()) {
        // Nobody sees what would come; the request must not stay behind in a session.
        if (!finished) THERMOE_RETURN_IF_ERROR(engine->Cancel(*id));
        (void)engine->TakeResult(*id);
        return status;
      }
    }
    if (!*stepped && !finished) return Status(StatusCode::kInternal, "the engine stopped before the request was done");
  }
  engine->SettleEnergy(kSettle_s);
  return engine->TakeResult(*id);
}

double TokensPerSecond(double tokens, double ms) { return ms > 0 ? 1000 * tokens / ms : 0; }

Json TimingsJson(const RequestTimings& timings) {
  Json json;
  json["prompt_tokens"] = timings.prompt_tokens;
  json["generated_tokens"] = timings.generated_tokens;
  json["queue_ms"] = timings.queue_ms;
  json["prefill_ms"] = timings.prefill_ms;
  json["decode_ms"] = timings.decode_ms;
  json["prefill_tokens_per_s"] = TokensPerSecond(timings.prompt_tokens, timings.prefill_ms);
  // The first token belongs to prefill: it comes from the prompt's last position.
  json["decode_tokens_per_s"] = TokensPerSecond(std::max(0, timings.generated_tokens - 1), timings.decode_ms);
  return json;
}

void AddResult(const RunContext& context, const std::vector<TokenId>& prompt, const RequestResult& result,
               uint64_t seed, Json* json) {
  (*json)["prompt_ids"] = prompt;
  (*json)["generated_ids"] = result.generated;
  (*json)["text"] = TextAfter(context, prompt, result.generated);
  (*json)["finish"] = FinishReasonName(result.finish);
  (*json)["seed"] = seed;
  (*json)["timings"] = TimingsJson(result.timings);
  (*json)["timings"]["simulated"] = context.engine->telemetry().simulated;
  (*json)["energy"] = EnergyJson(result.energy, result.timings);
  if (!(*json)["energy"].is_null()) (*json)["energy"]["telemetry"] = context.engine->telemetry().name;
  (*json)["control"] = ControlJson(context.engine->control_view());
  (*json)["ttt"] = context.ttt == nullptr ? Json() : TttJson(*context.ttt, result.ttt);
}

void PrintTimings(const RunContext& context, const RequestResult& result, uint64_t seed) {
  const Json timings = TimingsJson(result.timings);
  const TelemetryInfo& telemetry = context.engine->telemetry();
  const std::string simulated = telemetry.simulated ? fmt::format("simulated on {}: ", telemetry.name) : "";
  const std::string energy = EnergyText(result.energy, result.timings);
  const std::string line = fmt::format("[{}prompt {} tokens, {:.1f}/s; generated {} tokens, {:.1f}/s; {}{}{}; seed {}]",
                                       simulated, result.timings.prompt_tokens, timings["prefill_tokens_per_s"].get<double>(),
                                       result.timings.generated_tokens, timings["decode_tokens_per_s"].get<double>(),
                                       energy, energy.empty() ? "" : "; ", FinishReasonName(result.finish), seed);
  std::string control = ControlText(context.engine->control_view());
  if (context.ttt != nullptr) control += (control.empty() ? "" : "; ") + TttText(*context.ttt, result.ttt);
  PrintNote(Dim(line + (control.empty() ? "" : "\n[" + control + "]"), STDERR_FILENO) + "\n");
}

}  // namespace thermoe
