// SPDX-License-Identifier: Apache-2.0
#include "eval_score.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/errors.h"
#include "interrupt.h"

namespace thermoe {
namespace {

// Steps until nothing runs; adds the records that `wanted` says.
Status StepAll(Engine* engine, const std::function<bool(const StepRecord&)>& wanted, ExpertUse* use,
               const std::function<void(const StepRecord&)>& stepped) {
  std::vector<Event> events;
  while (true) {
    if (Interrupted()) return InterruptedStatus();
    events.clear();
    const Result<bool> more = engine->Step(&events);
    if (!more.ok()) return more.status();
    if (!*more) return Status::Ok();
    if (wanted(engine->last_step())) use->Add(engine->last_step());
    stepped(engine->last_step());
  }
}

// The last `window.counted` of the log-probabilities `parts`, in order.
Result<WindowScore> SumCounted(const EvalWindow& window, std::vector<float> logprobs, const std::vector<float>& more) {
  logprobs.insert(logprobs.end(), more.begin(), more.end());
  if (logprobs.size() + 1 != window.ids.size()) {
    return Status(StatusCode::kInternal,
                  fmt::format("{} of {} predictions of a window came back", logprobs.size(), window.ids.size() - 1));
  }
  WindowScore score;
  score.counted = window.counted;
  for (size_t i = logprobs.size() - static_cast<size_t>(window.counted); i < logprobs.size(); ++i) {
    score.nll_sum -= logprobs[i];
  }
  return score;
}

}  // namespace

void ExpertUse::Add(const StepRecord& record) {
  for (const LayerRecord& layer : record.layers) {
    ++layer_steps;
    layer_tokens += record.tokens;
    distinct += layer.distinct_experts;
    distinct_full += layer.distinct_full_experts;
    slots_full += layer.slots_full;
    slots_hi += layer.slots_hi;
    slots_dropped += layer.slots_dropped;
    gate_mass_lost += layer.gate_mass_lost;
  }
}

int64_t Scores::tokens() const {
  int64_t total = 0;
  for (const WindowScore& window : windows) total += window.counted;
  return total;
}

double Scores::mean_nll() const {
  double total = 0;
  for (const WindowScore& window : windows) total += window.nll_sum;
  return total / static_cast<double>(tokens());
}

Change PairedChange(const Scores& steered, const Scores& plain) {
  const size_t count = plain.windows.size();
  std::vector<double> changes;
  double mean = 0;
  for (size_t i = 0; i < count; ++i) {
    changes.push_back(steered.windows[i].mean_nll() - plain.windows[i].mean_nll());
    mean += changes.back() / static_cast<double>(count);
  }
  double squares = 0;
  for (const double change : changes) squares += (change - mean) * (change - mean);
  const double n = static_cast<double>(count);
  return {steered.mean_nll() - plain.mean_nll(), count < 2 ? NAN : std::sqrt(squares / (n - 1) / n)};
}

Result<Scores> ScoreByPrefill(Engine* engine, const std::vector<EvalWindow>& windows, const ScoreProgress& progress) {
  Scores scores;
  int64_t done = 0;
  for (const EvalWindow& window : windows) {
    // The last id is predicted but not computed: a window may fill the context to its end.
    Request request;
    request.prompt.assign(window.ids.begin(), window.ids.end() - 1);
    request.forced = {window.ids.back()};
    request.max_new_tokens = 1;
    request.score_prompt = true;
    const Result<RequestId> id = engine->Submit(std::move(request));
    if (!id.ok()) return id.status();
    THERMOE_RETURN_IF_ERROR(StepAll(
        engine, [](const StepRecord&) { return true; }, &scores.use,
        [&](const StepRecord& record) { progress(done += record.tokens); }));
    Result<RequestResult> result = engine->TakeResult(*id);
    if (!result.ok()) return result.status();
    result->prompt_logprobs.erase(result->prompt_logprobs.begin());  // the first id has no prediction
    const Result<WindowScore> score = SumCounted(window, std::move(result->prompt_logprobs), result->logprobs);
    if (!score.ok()) return score.status();
    scores.windows.push_back(*score);
  }
  return scores;
}

Result<Scores> ScoreByDecode(Engine* engine, const std::vector<EvalWindow>& windows, int batch,
                             const ScoreProgress& progress) {
  Scores scores;
  int64_t done = 0;
  for (size_t begin = 0; begin < windows.size(); begin += static_cast<size_t>(batch)) {
    const size_t end = std::min(windows.size(), begin + static_cast<size_t>(batch));
    std::vector<RequestId> ids;
    for (size_t i = begin; i < end; ++i) {
      Request request;
      request.prompt = {windows[i].ids.front()};
      request.forced.assign(windows[i].ids.begin() + 1, windows[i].ids.end());
      request.max_new_tokens = static_cast<int>(request.forced.size());
      const Result<RequestId> id = engine->Submit(std::move(request));
      if (!id.ok()) return id.status();
      ids.push_back(*id);
    }
    THERMOE_RETURN_IF_ERROR(StepAll(
        engine, [](const StepRecord& record) { return record.prefill_tokens == 0; }, &scores.use,
        [&](const StepRecord& record) { progress(done += record.tokens); }));
    for (size_t i = begin; i < end; ++i) {
      Result<RequestResult> result = engine->TakeResult(ids[i - begin]);
      if (!result.ok()) return result.status();
      const Result<WindowScore> score = SumCounted(windows[i], {}, result->logprobs);
      if (!score.ok()) return score.status();
      scores.windows.push_back(*score);
    }
  }
  return scores;
}

}  // namespace thermoe
