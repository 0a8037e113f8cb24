// SPDX-License-Identifier: Apache-2.0
// A conversation at the keyboard. One engine session keeps the keys and values of all turns.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <optional>
#include <utility>

#include "base/errors.h"
#include "interrupt.h"
#include "output.h"
#include "run.h"
#include "terminal.h"
#include "text_input.h"

namespace thermoe {
namespace {

constexpr const char* kHelp =
    "Type text and press Enter. A line that ends in \\ goes on in the next; an empty line lets the model go on.\n"
    "/reset  forget everything said so far\n"
    "/help   print this\n"
    "/exit   leave, as Ctrl-D does\n"
    "Ctrl-C stops the text being written, a second one leaves.\n";

void Note(const std::string& text) {
  std::string lines = Wrap(text, 0, TerminalWidth());
  if (!lines.empty()) lines.pop_back();
  PrintNote(Dim(lines, STDERR_FILENO) + "\n");
}

// Lines from the keyboard. Not stdio: its buffer would hide from WaitForInput what was typed ahead.
class Keyboard {
 public:
  // A line without its newline; nullopt at the end of input or on Ctrl-C.
  std::optional<std::string> ReadLine() {
    std::string line;
    while (true) {
      const size_t end = typed_.find('\n');
      if (end == std::string::npos) {
        if (!WaitForInput(STDIN_FILENO)) return std::nullopt;
        char buffer[4096];
        const ssize_t got = read(STDIN_FILENO, buffer, sizeof(buffer));
        if (got <= 0) return std::nullopt;
        typed_.append(buffer, static_cast<size_t>(got));
        continue;
      }
      line += typed_.substr(0, end);
      typed_.erase(0, end + 1);
      if (line.empty() || line.back() != '\\') return line;
      line.back() = '\n';
      PrintNote("... ");
    }
  }

 private:
  std::string typed_;
};

class Conversation {
 public:
  explicit Conversation(RunContext* context) : context_(*context) {}

  Status Open() {
    const Result<SessionId> session = OpenSession(&context_);
    if (!session.ok()) return session.status();
    session_ = *session;
    said_.clear();
    return Status::Ok();
  }

  Status Reset() {
    THERMOE_RETURN_IF_ERROR(context_.engine->CloseSession(session_));
    return Open();
  }

  Status Save() const { return SaveDeltas(context_, session_); }

  // Adds `line` (empty: nothing) to the conversation and streams what the model says to it.
  Status Turn(const std::string& line) {
    Result<std::vector<TokenId>> added = Encode(line);
    if (!added.ok()) return added.status();
    Result<int> held = context_.engine->SessionLength(session_);
    if (!held.ok()) return held.status();
    if (line.empty() && *held > 0) {
      // Nothing new: the newest id is taken back and given again as the prompt, so that the model goes on after it.
      THERMOE_RETURN_IF_ERROR(context_.engine->TruncateSession(session_, *held - 1));
      held = *held - 1;
    }
    // Ids that were said but that the session lacks: that one, or a prompt cancelled before it started.
    std::vector<TokenId> prompt(said_.begin() + *held, said_.end());
    prompt.insert(prompt.end(), added->begin(), added->end());
    if (prompt.empty()) return Status(StatusCode::kInvalidArgument, "there is nothing to go on from; type some text");
    THERMOE_RETURN_IF_ERROR(CheckFits(context_, *held, static_cast<int64_t>(prompt.size()), "input"));
    Request request = MakeRequest(context_, context_.flags.sampling, context_.seed, prompt);
    request.session = session_;
    // Each turn draws from its own stream; else a seed would repeat the same choices in every turn.
    request.sampling.seed = context_.seed + static_cast<uint64_t>(turns_++);
    const uint64_t seed = request.sampling.seed;

    TextStream stream = StreamAfter(context_, prompt);
    const auto print = [](const std::string& text) {
      Print(Printable(text, STDOUT_FILENO));
      return FlushOutput();
    };
    Result<RequestResult> result =
        Generate(context_.engine.get(), std::move(request), [&](TokenId id) { return print(stream.Push(id)); });
    if (!result.ok()) return result.status();
    THERMOE_RETURN_IF_ERROR(print(stream.Finish() + "\n"));
    said_.resize(*held);
    said_.insert(said_.end(), prompt.begin(), prompt.end());
    said_.insert(said_.end(), result->generated.begin(), result->generated.end());
    if (!context_.flags.quiet) PrintTimings(context_, *result, seed);
    if (result->finish == FinishReason::kContext) Note("The context is full; /reset starts a new one.");
    return Status::Ok();
  }

 private:
  Result<std::vector<TokenId>> Encode(const std::string& line) const {
    const Tokenizer& tokenizer = context_.model->tokenizer();
    if (line.empty()) return std::vector<TokenId>();
    if (said_.empty()) return EncodePrompt(context_, line, "input", context_.flags.system);
    if (Status utf8 = CheckUtf8(line, "input"); !utf8.ok()) return utf8;
    if (context_.chat == nullptr) return tokenizer.Encode(line, {.add_special = false});
    Result<std::vector<TokenId>> ids = context_.chat->Encode(tokenizer, {{"user", line}}, /*first=*/false);
    if (!ids.ok()) return ids;
    // An answer that was stopped or reached its length lacks the token that ends the assistant's turn.
    const std::vector<TokenId> stops = context_.chat->StopIds(tokenizer);
    const auto ends = [&](const std::vector<TokenId>& list) {
      return std::find(list.begin(), list.end(), said_.back()) != list.end();
    };
    if (!stops.empty() && !ends(stops) && !ends(tokenizer.end_ids())) ids->insert(ids->begin(), stops.front());
    return ids;
  }

  RunContext& context_;
  SessionId session_ = kNoSession;
  std::vector<TokenId> said_;  // every id of the conversation; the session holds a prefix of it
  int turns_ = 0;
};

}  // namespace

Status RunInteractive(RunContext* context) {
  const ModelInfo& info = context->model->info();
  Note(fmt::format("{}, {}; {}. /help explains, /exit leaves.",
                   EscapeControls(info.name.empty() ? info.path : info.name), context->engine->Describe(),
                   context->chat == nullptr ? std::string("your text is continued")
                                            : fmt::format("chat in {}", context->chat->name())));
  Conversation conversation(context);
  THERMOE_RETURN_IF_ERROR(conversation.Open());
  Keyboard keyboard;
  while (true) {
    PrintNote(Bold("> ", STDERR_FILENO));
    const std::optional<std::string> line = keyboard.ReadLine();
    if (!line || Interrupted()) {
      PrintNote("\n");
      THERMOE_RETURN_IF_ERROR(conversation.Save());
      return Interrupted() ? InterruptedStatus() : Status::Ok();
    }
    Status status;
    if (*line == "/exit" || *line == "/quit") return conversation.Save();
    if (*line == "/help") {
      PrintNote(Wrap(kHelp, 0, TerminalWidth()));
    } else if (*line == "/reset") {
      status = conversation.Reset();
    } else if (line->size() > 1 && line->front() == '/' && line->find(' ') == std::string::npos) {
      Note(fmt::format("{} is no command; /help lists them", EscapeControls(*line)));
    } else {
      status = conversation.Turn(*line);
      ClearInterrupt();  // it stopped the text, not the conversation
    }
    if (status.code() == StatusCode::kInternal) return status;
    if (!status.ok()) Note(EscapeControls(status.message()));
  }
}

}  // namespace thermoe
