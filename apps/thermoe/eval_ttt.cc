// SPDX-License-Identifier: Apache-2.0
#include "eval_ttt.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <utility>

#include "base/errors.h"
#include "interrupt.h"
#include "table.h"
#include "terminal.h"

namespace thermoe {
namespace {

struct StreamScore {
  WindowScore score;
  TttStats stats;
  double seconds = 0;
};

Result<RequestResult> Finish(Engine* engine, RequestId id, const std::function<void(int64_t)>& read) {
  std::vector<Event> events;
  while (true) {
    if (Interrupted()) return InterruptedStatus();
    events.clear();
    const Result<bool> more = engine->Step(&events);
    if (!more.ok()) return more.status();
    if (!*more) break;
    read(engine->last_step().logit_rows);
  }
  return engine->TakeResult(id);
}

// One stream in a session of its own.
Result<StreamScore> ReadStream(Engine* engine, const EvalWindow& stream, const TttOptions& options, const TttFlags* files,
                               const std::function<void(int64_t)>& read) {
  const Result<SessionId> session = engine->OpenSession();
  if (!session.ok()) return session.status();
  THERMOE_RETURN_IF_ERROR(engine->SetTtt(*session, options));
  if (files != nullptr && !files->load.empty()) THERMOE_RETURN_IF_ERROR(engine->LoadDeltas(*session, files->load));
  Request request;
  request.prompt = stream.ids;
  request.session = *session;
  request.score_prompt = true;
  request.max_new_tokens = 0;
  const double start_s = engine->now_s();
  const Result<RequestId> id = engine->Submit(std::move(request));
  if (!id.ok()) return id.status();
  Result<RequestResult> result = Finish(engine, *id, read);
  if (!result.ok()) return result.status();
  StreamScore scored;
  scored.seconds = engine->now_s() - start_s;
  scored.stats = result->ttt;
  scored.score.counted = stream.counted;
  const std::vector<float>& logprobs = result->prompt_logprobs;
  for (size_t i = logprobs.size() - static_cast<size_t>(stream.counted); i < logprobs.size(); ++i) scored.score.nll_sum -= logprobs[i];
  if (files != nullptr && !files->save.empty()) THERMOE_RETURN_IF_ERROR(engine->SaveDeltas(*session, files->save));
  THERMOE_RETURN_IF_ERROR(engine->CloseSession(*session));
  return scored;
}

double MeanNll(const std::vector<WindowScore>& streams) {
  double sum = 0;
  int64_t counted = 0;
  for (const WindowScore& stream : streams) sum += stream.nll_sum, counted += stream.counted;
  return sum / static_cast<double>(counted);
}

// Change of the mean NLL of each stream.
std::vector<double> Changes(const TttScores& scores) {
  std::vector<double> changes;
  for (size_t i = 0; i < scores.plain.size(); ++i) changes.push_back(scores.adapted[i].mean_nll() - scores.plain[i].mean_nll());
  return changes;
}

TttStats Total(const TttScores& scores) {
  TttStats total;
  for (const TttStats& stats : scores.stats) {
    total.segments += stats.segments;
    total.updates += stats.updates;
    total.adapted_tokens += stats.adapted_tokens;
    total.restarts += stats.restarts;
    total.recomputed_tokens += stats.recomputed_tokens;
    total.flops += stats.flops;
    total.recompute_expert_seconds += stats.recompute_expert_seconds;
    total.recompute_expert_flops += stats.recompute_expert_flops;
    total.adapt_seconds += stats.adapt_seconds;
    total.adapt_joules += stats.adapt_joules;
    total.joules_estimated = total.joules_estimated || stats.joules_estimated;
    for (size_t choice = 0; choice < total.choices.size(); ++choice) total.choices[choice] += stats.choices[choice];
    total.left_out_tokens += stats.left_out_tokens;
    total.deferred += stats.deferred;
    total.caught_up += stats.caught_up;
    total.dropped += stats.dropped;
    total.guard_passes += stats.guard_passes;
    total.guard_seconds += stats.guard_seconds;
    total.reverted += stats.reverted;
    total.delta_bytes = std::max(total.delta_bytes, stats.delta_bytes);
    total.recall_bytes = std::max(total.recall_bytes, stats.recall_bytes);
  }
  return total;
}

}  // namespace

int64_t TttScores::tokens() const {
  int64_t total = 0;
  for (const WindowScore& stream : plain) total += stream.counted;
  return total;
}
double TttScores::plain_nll() const { return MeanNll(plain); }
double TttScores::adapted_nll() const { return MeanNll(adapted); }

Result<TttScores> ScoreStreams(Engine* engine, const std::vector<EvalWindow>& streams, const TttOptions& options, const TttFlags& flags,
                               const ScoreProgress& progress) {
  if (streams.size() > 1 && (!flags.save.empty() || !flags.load.empty())) {
    return InvalidArgument("--ttt-save and --ttt-load need one stream but the text has {}; give one document", streams.size());
  }
  TttOptions plain = options;
  plain.groups.clear();
  plain.automatic = false;
  TttScores scores;
  int64_t done = 0;
  const auto read = [&](int64_t rows) { progress(done += rows); };
  for (const EvalWindow& stream : streams) {
    const Result<StreamScore> without = ReadStream(engine, stream, plain, nullptr, read);
    if (!without.ok()) return without.status();
    const Result<StreamScore> with = ReadStream(engine, stream, options, &flags, read);
    if (!with.ok()) return with.status();
    scores.plain.push_back(without->score);
    scores.adapted.push_back(with->score);
    scores.stats.push_back(with->stats);
    scores.plain_seconds += without->seconds;
    scores.adapted_seconds += with->seconds;
    scores.plain_flops += without->stats.flops;
    scores.adapted_flops += with->stats.flops;
  }
  return scores;
}

Json TttScoresJson(const TttScores& scores, const TttOptions& options) {
  const TttStats total = Total(scores);
  Json json;
  json["file"] = scores.file;
  json["tokens"] = scores.tokens();
  json["plain_nll"] = scores.plain_nll();
  json["adapted_nll"] = scores.adapted_nll();
  json["stream_changes_nats"] = Changes(scores);
  json.update(TttChoicesJson(options, total));
  json["adapt_seconds"] = total.adapt_seconds;
  json["plain_seconds"] = scores.plain_seconds;
  json["adapted_seconds"] = scores.adapted_seconds;
  json["updates"] = total.updates;
  json["restarts"] = total.restarts;
  json["recomputed_tokens"] = total.recomputed_tokens;
  json["recompute_expert_seconds"] = total.recompute_expert_seconds;
  json["recompute_expert_flops"] = total.recompute_expert_flops;
  json["passes_per_token"] = scores.passes();
  json["delta_bytes"] = total.delta_bytes;
  json["recall_bytes"] = total.recall_bytes;
  return json;
}

void PrintTttTable(const std::vector<TttScores>& files) {
  Table table({"file", "tokens", "streams", "plain NLL", "adapted", "change", "worst", "passes/token", "time"});
  for (const TttScores& scores : files) {
    const std::vector<double> changes = Changes(scores);
    table.Add({std::filesystem::path(scores.file).filename().string(), WithCommas(scores.tokens()),
               WithCommas(static_cast<int64_t>(scores.plain.size())), fmt::format("{:.4f}", scores.plain_nll()),
               fmt::format("{:.4f}", scores.adapted_nll()), fmt::format("{:+.4f}", scores.adapted_nll() - scores.plain_nll()),
               fmt::format("{:+.4f}", *std::max_element(changes.begin(), changes.end())),
               fmt::format("{:.2f}", scores.passes()),
               fmt::format("x{:.2f}", scores.adapted_seconds / scores.plain_seconds)});
  }
  table.Print();
}

}  // namespace thermoe
