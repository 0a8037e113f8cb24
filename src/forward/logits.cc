// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "forward/sample.h"
#include "forward/step.h"

namespace thermoe {

namespace {

// The rows of a tile that the segment learns from stand together; their logits become gradients.
void Learn(StepContext& step, std::span<const size_t> tile, MutRows h, MutRows logits) {
  const Tape& tape = step.learning->tape;
  const auto in_segment = [&](size_t row) {
    return static_cast<int64_t>(row) >= tape.first && static_cast<int64_t>(row) < tape.first + tape.rows;
  };
  const auto begin = std::find_if(tile.begin(), tile.end(), in_segment);
  const auto count = std::count_if(begin, tile.end(), in_segment);
  if (count == 0) return;
  const int64_t at = begin - tile.begin();
  const double weight_bytes = step.record.weight_bytes, flops = step.record.flops;
  LearnFromLogits(step, static_cast<int64_t>(*begin) - tape.first, {h.row(at), count, h.cols}, {logits.row(at), count, logits.cols});
  step.learning->spent_bytes += step.record.weight_bytes - weight_bytes;
  step.learning->spent_flops += step.record.flops - flops;
}

}  // namespace

bool LogitRow::finite() const { return summary_ != nullptr ? summary_->finite : AllFinite(logits_); }
float LogitRow::log_sum_exp() const { return summary_ != nullptr ? summary_->log_sum_exp : LogSumExp(logits_); }
float LogitRow::asked_logprob() const {
  return summary_ != nullptr ? summary_->asked_logit - summary_->log_sum_exp : LogProb(logits_, asked_);
}

std::span<float> LogitRow::all() {
  if (summary_ != nullptr && !fetched_) ops_.Fetch(std::as_writable_bytes(logits_));
  fetched_ = true;
  return logits_;
}

namespace {

// The next rows that want logits, from row *next on.
LogitTile TakeTile(StepContext& step, size_t* next) {
  const std::vector<BatchRow>& rows = step.batch.rows;
  Workspace& ws = step.ws;
  LogitTile tile;
  for (; *next < rows.size() && tile.count < kLogitTile; ++*next) {
    // A segment begins a tile of its own: sums over its tiles must not depend on the rows before it.
    if (tile.count > 0 && step.learning != nullptr && static_cast<int64_t>(*next) == step.learning->tape.first) break;
    if (!rows[*next].wants_logits) continue;
    ws.picked[tile.count] = static_cast<int32_t>(*next);
    ws.asked[tile.count] = rows[*next].asked;
    tile.rows[tile.count++] = *next;
  }
  step.ops.Publish(std::as_bytes(std::span(ws.asked).first(tile.count)));
  return tile;
}

// normed: the tile's rows, normed. Also makes their summaries, where the backend does.
void MakeLogits(StepContext& step, MutRows normed, LogitTile* tile) {
  Workspace& ws = step.ws;
  const MutRows logits = Workspace::View(ws.logits, normed.rows, step.config.vocab);
  ApplyToOutput(step, tile->all(), normed);
  step.ops.Linear({normed, step.weights.output, {}, logits});
  ApplyToLogits(step, tile->all(), normed, logits);
  tile->summarised = step.ops.Summarise({logits, std::span(ws.asked).first(tile->count), std::span(ws.summaries).first(tile->count)});
  step.Count(kernels::LinearCost(step.weights.output, normed.rows));
  step.record.logit_rows += static_cast<int32_t>(normed.rows);
}

// Has the backend draw what the sink wants, where it can, behind the summaries: both are waited for together.
void DrawTokens(StepContext& step, LogitTile* tile) {
  Workspace& ws = step.ws;
  ws.draws.clear();
  tile->draws_asked = true;
  step.sink.WantDraws(tile->all(), &ws.draws);
  if (ws.draws.empty()) return;
  tile->draws = step.ops.DrawTokens({Workspace::View(ws.logits, static_cast<int64_t>(tile->count), step.config.vocab), ws.draws, std::span(ws.drawn).first(tile->count)});
}

void TellSink(StepContext& step, LogitTile& tile) {
  StageTimer timer(&step.record.times.sample_us);
  Workspace& ws = step.ws;
  std::fill_n(ws.drawn.begin(), tile.count, kernels::DrawnToken{});
  if (tile.summarised) {
    if (!tile.draws_asked) DrawTokens(step, &tile);
    step.ops.FinishSummaries();
  }
  for (size_t i = 0; i < tile.count; ++i) {
    const auto vocab = static_cast<size_t>(step.config.vocab);
    LogitRow row(step.ops, std::span(ws.logits).subspan(i * vocab, vocab), tile.summarised ? &ws.summaries[i] : nullptr,
                 ws.drawn[i].token >= 0 ? &ws.drawn[i] : nullptr, step.batch.rows[tile.rows[i]].asked);
    step.sink.OnLogits(tile.rows[i], &row);
  }
}

}  // namespace

LogitTile WholeStep(StepContext& step) {
  const std::vector<BatchRow>& rows = step.batch.rows;
  size_t next = 0;
  const bool whole = rows.size() <= kLogitTile && std::all_of(rows.begin(), rows.end(), [](const BatchRow& row) { return row.wants_logits; });
  return whole ? TakeTile(step, &next) : LogitTile{};
}

void LogitsInside(StepContext& step) {
  StageTimer timer(&step.record.times.logits_us);
  const MutRows normed = Workspace::View(step.ws.logit_rows, step.tokens(), step.config.hidden);
  step.ops.RmsNorm({step.x(), step.weights.output_norm, step.config.norm_epsilon, normed});
  MakeLogits(step, normed, &step.inside);
}

void DrawInside(StepContext& step) {
  if (step.inside.summarised) DrawTokens(step, &step.inside);
}

void Logits(StepContext& step) {
  if (step.inside.count > 0) return TellSink(step, step.inside);
  if (step.learning != nullptr) step.learning->tape.Keep<float>(step.x(), &step.learning->tape.output);
  Workspace& ws = step.ws;
  for (size_t next = 0;;) {
    LogitTile tile = TakeTile(step, &next);
    if (tile.count == 0) return;
    const MutRows x = Workspace::View(ws.logit_rows, static_cast<int64_t>(tile.count), step.config.hidden);
    {
      StageTimer timer(&step.record.times.logits_us);
      const std::span<const int32_t> picked = std::span(ws.picked).first(tile.count);
      step.ops.Publish(std::as_bytes(picked));
      step.ops.Gather({step.x(), picked, x});
      step.ops.RmsNorm({x, step.weights.output_norm, step.config.norm_epsilon, x});
      MakeLogits(step, x, &tile);
    }
    TellSink(step, tile);
    if (step.learning == nullptr) continue;
    StageTimer timer(&step.record.times.learn_us);
    Learn(step, tile.all(), x, Workspace::View(ws.logits, x.rows, step.config.vocab));
  }
}

}  // namespace thermoe
