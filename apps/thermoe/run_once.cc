// SPDX-License-Identifier: Apache-2.0
// One prompt, text as it comes.
#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <utility>

#include "interrupt.h"
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
    fmt::print("{}", Dim(EscapeControls(prompt), STDOUT_FILENO));
    std::fflush(stdout);
  }
  TextStream stream = StreamAfter(*context, *ids);
  char last = '\n';
  const auto print = [&](const std::string& text) {
    if (!stream_text || text.empty()) return;
    fmt::print("{}", Printable(text, STDOUT_FILENO));
    std::fflush(stdout);
    last = text.back();
  };
  Request request = MakeRequest(*context, flags.sampling, context->seed, *ids);
  Result<RequestResult> result =
      Generate(context->engine.get(), std::move(request), [&](TokenId id) { print(stream.Push(id)); });
  print(stream.Finish());
  if (stream_text && terminal && last != '\n') fmt::print("\n");
  if (!result.ok()) return result.status();
  if (flags.json) {
    Json json = NewDocument();
    json["model"] = ModelJson(context->model->info());
    AddResult(*context, *ids, *result, context->seed, &json);
    json["timings"]["load_ms"] = context->load_ms;
    PrintJsonLine(json);
  } else if (!flags.quiet) {
    std::fflush(stdout);
    PrintTimings(*result, context->seed);
  }
  return Interrupted() ? InterruptedStatus() : Status::Ok();
}

}  // namespace thermoe
