// SPDX-License-Identifier: Apache-2.0
// One prompt, text as it comes.
#include <unistd.h>

#include <utility>

#include "base/errors.h"
#include "interrupt.h"
#include "output.h"
#include "run.h"
#include "terminal.h"

namespace thermoe {

Status RunOnce(RunContext* context, const std::string& prompt, const std::string& source) {
  const RunFlags& flags = context->flags;
  Result<std::vector<TokenId>> ids = EncodePrompt(*context, prompt, source, flags.system);
  if (!ids.ok()) return ids.status();
  const bool stream_text = !flags.json;
  const bool terminal = IsTerminal(STDOUT_FILENO);
  Live* live = context->live.get();
  const bool drawing = live != nullptr && live->drawing();
  std::string held;  // while a picture is drawn
  const auto show_prompt = [&] {
    // A continuation makes sense only after what it continues; a pipe gets the generated text alone.
    if (stream_text && terminal && context->chat == nullptr) Print(Dim(EscapeControls(prompt), STDOUT_FILENO));
    return FlushOutput();
  };
  if (live != nullptr && context->chat == nullptr) live->AddText(prompt);
  if (!drawing) THERMOE_RETURN_IF_ERROR(show_prompt());
  TextStream stream = StreamAfter(*context, *ids);
  char last = '\n';
  const auto print = [&](const std::string& text) {
    if (live != nullptr) live->AddText(text);
    if (!stream_text || text.empty()) return Status::Ok();
    last = text.back();
    if (drawing) {
      held += text;
      return Status::Ok();
    }
    Print(Printable(text, STDOUT_FILENO));
    return FlushOutput();
  };
  const Result<SessionId> session = OpenSession(context);
  if (!session.ok()) return session.status();
  Request request = MakeRequest(*context, flags.sampling, context->seed, *ids);
  request.session = *session;
  Result<RequestResult> result =
      Generate(context->engine.get(), std::move(request), [&](TokenId id) { return print(stream.Push(id)); }, live);
  const Status rest = result.ok() ? print(stream.Finish()) : Status::Ok();
  if (drawing) {
    live->Finish();
    THERMOE_RETURN_IF_ERROR(show_prompt());
    Print(Printable(held, STDOUT_FILENO));
  }
  if (!result.ok()) {
    if (terminal) Print("\n");
    return result.status();
  }
  THERMOE_RETURN_IF_ERROR(rest);
  THERMOE_RETURN_IF_ERROR(SaveDeltas(*context, *session));
  if (stream_text && terminal && last != '\n') Print("\n");
  if (flags.json) {
    Json json = NewDocument();
    json["model"] = ModelJson(context->model->info());
    AddResult(*context, *ids, *result, context->seed, &json);
    json["timings"]["load_ms"] = context->load_ms;
    THERMOE_RETURN_IF_ERROR(PrintJsonLine(json));
  } else {
    THERMOE_RETURN_IF_ERROR(FlushOutput());
    if (!flags.quiet) PrintTimings(*context, *result, context->seed);
  }
  return Interrupted() ? InterruptedStatus() : Status::Ok();
}

}  // namespace thermoe
