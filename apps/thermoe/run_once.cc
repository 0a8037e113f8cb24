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
  if (stream_text && terminal && context->chat == nullptr) {
    // A continuation makes sense only after what it continues; a pipe gets the generated text alone.
    Print(Dim(EscapeControls(prompt), STDOUT_FILENO));
    THERMOE_RETURN_IF_ERROR(FlushOutput());
  }
  TextStream stream = StreamAfter(*context, *ids);
  char last = '\n';
  const auto print = [&](const std::string& text) {
    if (!stream_text || text.empty()) return Status::Ok();
    last = text.back();
    Print(Printable(text, STDOUT_FILENO));
    return FlushOutput();
  };
  Request request = MakeRequest(*context, flags.sampling, context->seed, *ids);
  Result<RequestResult> result =
      Generate(context->engine.get(), std::move(request), [&](TokenId id) { return print(stream.Push(id)); });
  if (!result.ok()) {
    if (terminal) Print("\n");
    return result.status();
  }
  THERMOE_RETURN_IF_ERROR(print(stream.Finish()));
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
