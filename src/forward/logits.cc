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

void Logits(StepContext& step) {
  const ModelConfig& config = step.config;
  if (step.learning != nullptr) step.learning->tape.Keep<float>(step.x(), &step.learning->tape.output);
  Workspace& ws = step.ws;
  const std::vector<BatchRow>& rows = step.batch.rows;
  size_t tile[kLogitTile];
  for (size_t next = 0; next < rows.size();) {
    int64_t count = 0;
    {
      StageTimer timer(&step.record.times.logits_us);
      for (; next < rows.size() && count < kLogitTile; ++next) {
        // A segment begins a tile of its own: sums over its tiles must not depend on the rows before it.
        if (count > 0 && step.learning != nullptr && static_cast<int64_t>(next) == step.learning->tape.first) break;
        if (!rows[next].wants_logits) continue;
        ws.picked[static_cast<size_t>(count)] = static_cast<int32_t>(next);
        ws.asked[static_cast<size_t>(count)] = rows[next].asked;
        tile[count++] = next;
      }
      if (count == 0) return;
      step.ops.Gather({step.x(), std::span(ws.picked).first(static_cast<size_t>(count)),
                       Workspace::View(ws.logit_rows, count, config.hidden)});
      const MutRows x = Workspace::View(ws.logit_rows, count, config.hidden);
      const MutRows logits = Workspace::View(ws.logits, count, config.vocab);
      const std::span<const size_t> picked(tile, static_cast<size_t>(count));
      step.ops.RmsNorm({x, step.weights.output_norm, config.norm_epsilon, x});
      ApplyToOutput(step, picked, x);
      step.ops.Linear({x, step.weights.output, {}, logits});
      ApplyToLogits(step, picked, x, logits);
      step.Count(kernels::LinearCost(step.weights.output, count));
      step.record.logit_rows += static_cast<int32_t>(count);
    }
    {
      StageTimer timer(&step.record.times.sample_us);
      const auto n = static_cast<size_t>(count);
      const bool summarised = step.ops.Summarise({Workspace::View(ws.logits, count, config.vocab),
                                                  std::span(ws.asked).first(n), std::span(ws.summaries).first(n)});
      for (size_t i = 0; i < n; ++i) {
        const std::span<float> all(ws.logits.data() + i * static_cast<size_t>(config.vocab),
                                   static_cast<size_t>(config.vocab));
        LogitRow row(step.ops, all, summarised ? &ws.summaries[i] : nullptr, ws.asked[i]);
        step.sink.OnLogits(tile[i], &row);
      }
    }
    if (step.learning == nullptr) continue;
    StageTimer timer(&step.record.times.learn_us);
    Learn(step, {tile, static_cast<size_t>(count)}, Workspace::View(ws.logit_rows, count, config.hidden),
          Workspace::View(ws.logits, count, config.vocab));
  }
}

}  // namespace thermoe
