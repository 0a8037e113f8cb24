// SPDX-License-Identifier: Apache-2.0
// Many prompts as one batch: JSON Lines in, JSON Lines out, in input order.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <optional>
#include <string_view>
#include <utility>

#include "base/errors.h"
#include "interrupt.h"
#include "output.h"
#include "run.h"
#include "terminal.h"

namespace thermoe {
namespace {

struct Job {
  Json id;
  bool has_id = false;
  std::vector<TokenId> prompt;
  SamplingFlags sampling;
  uint64_t seed = 0;
};

Result<Job> ParseJob(const RunContext& context, const std::string& line, const std::string& source, size_t index) {
  Result<Json> json = ParseJson(line, source);
  if (!json.ok()) return InvalidArgument("{}: not valid JSON; each line is an object with a \"prompt\"", source);
  if (!json->is_object() || !json->contains("prompt") || !(*json)["prompt"].is_string()) {
    return InvalidArgument("{}: must be an object with a string \"prompt\"", source);
  }
  Job job;
  job.sampling = context.flags.sampling;
  job.sampling.seed.reset();
  std::optional<std::string> system = context.flags.system;
  for (const auto& [key, value] : json->items()) {
    if (key == "prompt") continue;
    if (key == "id") {
      job.id = value;
      job.has_id = true;
    } else if (key == "system") {
      if (context.chat == nullptr) return InvalidArgument("{}: \"system\" needs --chat", source);
      if (!value.is_string()) return InvalidArgument("{}: \"system\" must be a string", source);
      system = value.get<std::string>();
    } else if (Status status = SetSamplingField(key, value, &job.sampling); !status.ok()) {
      return InvalidArgument("{}: {}", source, status.message());
    }
  }
  job.seed = job.sampling.seed.value_or(context.seed + index);
  Result<std::vector<TokenId>> ids = EncodePrompt(context, (*json)["prompt"].get<std::string>(), source, system);
  if (!ids.ok()) return ids.status();
  job.prompt = std::move(*ids);
  return job;
}

// Every line is checked before the first one runs.
Result<std::vector<Job>> ParseJobs(const RunContext& context, std::string_view lines) {
  std::vector<Job> jobs;
  for (int number = 1; !lines.empty(); ++number) {
    const size_t end = std::min(lines.find('\n'), lines.size());
    const std::string line(lines.substr(0, end));
    lines.remove_prefix(std::min(end + 1, lines.size()));
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    Result<Job> job = ParseJob(context, line, fmt::format("{} line {}", context.flags.prompts, number), jobs.size());
    if (!job.ok()) return job.status();
    jobs.push_back(std::move(*job));
  }
  if (jobs.empty()) return InvalidArgument("{}: holds no prompts; write one JSON object a line", context.flags.prompts);
  return jobs;
}

class Batch {
 public:
  Batch(RunContext* context, std::vector<Job> jobs) : context_(*context), jobs_(std::move(jobs)) {}

  Status Run() {
    const int parallel = context_.flags.parallel.value_or(kDefaultParallel);
    ProgressBar bar("prompts");
    std::vector<Event> events;
    while (printed_ < jobs_.size()) {
      if (Interrupted()) return InterruptedStatus();
      while (static_cast<int>(running_.size()) < parallel && submitted_ < jobs_.size()) {
        THERMOE_RETURN_IF_ERROR(SubmitNext());
      }
      events.clear();
      const Result<bool> stepped = context_.engine->Step(&events);
      if (!stepped.ok()) return stepped.status();
      if (context_.live != nullptr) Show(events);
      if (!*stepped && !running_.empty() && events.empty()) {
        return {StatusCode::kInternal, "the engine stopped before all prompts were done"};
      }
      for (const Event& event : events) {
        if (event.finish != FinishReason::kNone) THERMOE_RETURN_IF_ERROR(Finish(event.request, &bar));
      }
      if (context_.live == nullptr) bar.Update(static_cast<double>(done_) / static_cast<double>(jobs_.size()));
    }
    return Status::Ok();
  }

  Status PrintHeld() {
    for (const Json& json : held_) THERMOE_RETURN_IF_ERROR(PrintJsonLine(json));
    return Status::Ok();
  }
  size_t size() const { return jobs_.size(); }
  int64_t generated() const { return generated_; }

 private:
  Status SubmitNext() {
    const Job& job = jobs_[submitted_];
    Request request = MakeRequest(context_, job.sampling, job.seed, job.prompt);
    request.ttt = context_.ttt;
    const Result<RequestId> id = context_.engine->Submit(std::move(request));
    if (!id.ok()) return id.status();
    running_[*id] = submitted_++;
    return Status::Ok();
  }

  // The live view shows the text of one request, then of another.
  void Show(const std::vector<Event>& events) {
    context_.live->AfterStep();
    if (!context_.live->drawing()) return;
    if (!running_.contains(shown_) && !running_.empty()) {
      shown_ = running_.begin()->first;
      const Job& job = jobs_[running_.begin()->second];
      stream_.emplace(StreamAfter(context_, job.prompt));
      context_.live->ClearText();
      if (context_.chat == nullptr) context_.live->AddText(TextAfter(context_, {}, job.prompt));
    }
    for (const Event& event : events) {
      if (event.request == shown_ && event.token != kNoToken && stream_) context_.live->AddText(stream_->Push(event.token));
    }
  }

  // Keeps the result until all before it are printed.
  Status Finish(RequestId request, ProgressBar* bar) {
    const auto found = running_.find(request);
    if (found == running_.end()) return Status::Ok();
    const size_t index = found->second;
    running_.erase(found);
    Result<RequestResult> result = context_.engine->TakeResult(request);
    if (!result.ok()) return result.status();
    ++done_;
    generated_ += static_cast<int64_t>(result->generated.size());
    const Job& job = jobs_[index];
    Json json = NewDocument();
    json["index"] = index;
    if (job.has_id) json["id"] = job.id;
    AddResult(context_, job.prompt, *result, job.seed, &json);
    waiting_[index] = std::move(json);
    while (!waiting_.empty() && waiting_.begin()->first == printed_) {
      if (IsTerminal(STDOUT_FILENO)) bar->Clear();
      // On a terminal under a picture they come after it.
      if (context_.live != nullptr && context_.live->drawing() && IsTerminal(STDOUT_FILENO)) {
        held_.push_back(std::move(waiting_.begin()->second));
      } else {
        THERMOE_RETURN_IF_ERROR(PrintJsonLine(waiting_.begin()->second));
      }
      waiting_.erase(waiting_.begin());
      ++printed_;
    }
    return Status::Ok();
  }

  RunContext& context_;
  std::vector<Job> jobs_;
  std::map<RequestId, size_t> running_;  // to its job
  std::map<size_t, Json> waiting_;       // finished, not printed
  std::vector<Json> held_;
  RequestId shown_ = 0;  // in the live view
  std::optional<TextStream> stream_;
  size_t submitted_ = 0, done_ = 0, printed_ = 0;
  int64_t generated_ = 0;
};

}  // namespace

Status RunPrompts(RunContext* context, const std::string& lines) {
  Result<std::vector<Job>> jobs = ParseJobs(*context, lines);
  if (!jobs.ok()) return jobs.status();
  Batch batch(context, std::move(*jobs));
  Engine& engine = *context->engine;
  const double start_s = engine.now_s();
  const Status ran = batch.Run();
  if (context->live != nullptr) context->live->Finish();
  THERMOE_RETURN_IF_ERROR(batch.PrintHeld());
  THERMOE_RETURN_IF_ERROR(ran);
  const double passed_ms = 1e3 * (engine.now_s() - start_s);
  if (!context->flags.quiet && !context->flags.json) {
    engine.SettleEnergy(kSettle_s);
    const EnergyTotals totals = engine.energy();
    std::string energy;
    if (totals.source != EnergySource::kNone) {
      const std::string label = EnergyLabel(totals.source);
      energy = fmt::format("; {}{}, idle {:.0f} %{}", totals.source == EnergySource::kEstimate ? "about " : "",
                           JoulesText(totals.total_j()), totals.total_j() > 0 ? 100 * totals.idle_j / totals.total_j() : 0.0,
                           label.empty() ? "" : " (" + label + ")");
    }
    const std::string line = fmt::format(
        "[{}{} prompts; generated {} tokens, {:.1f}/s together{}; seed {}]",
        engine.telemetry().simulated ? fmt::format("simulated on {}: ", engine.telemetry().name) : "", batch.size(),
        WithCommas(batch.generated()), TokensPerSecond(static_cast<double>(batch.generated()), passed_ms), energy, context->seed);
    PrintNote(Dim(line, STDERR_FILENO) + "\n");
  }
  return Status::Ok();
}

}  // namespace thermoe
