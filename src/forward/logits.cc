// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "forward/step.h"

namespace thermoe {

void Logits(StepContext& step) {
  const ModelConfig& config = step.config;
  Workspace& ws = step.ws;
  const std::vector<BatchRow>& rows = step.batch.rows;
  size_t tile[kLogitTile];
  for (size_t next = 0; next < rows.size();) {
    int64_t count = 0;
    {
      StageTimer timer(&step.record.times.logits_us);
      for (; next < rows.size() && count < kLogitTile; ++next) {
        if (!rows[next].wants_logits) continue;
        std::copy_n(step.x().row(static_cast<int64_t>(next)), config.hidden, ws.logit_rows.data() + count * config.hidden);
        tile[count++] = next;
      }
      if (count == 0) return;
      const MutRows x = Workspace::View(ws.logit_rows, count, config.hidden);
      step.ops.RmsNorm({x, step.weights.output_norm, config.norm_epsilon, x});
      step.ops.Linear({x, step.weights.output, {}, Workspace::View(ws.logits, count, config.vocab)});
      step.Count(kernels::LinearCost(step.weights.output, count));
      step.record.logit_rows += static_cast<int32_t>(count);
    }
    StageTimer timer(&step.record.times.sample_us);
    for (int64_t i = 0; i < count; ++i) {
      step.sink.OnLogits(tile[i], {ws.logits.data() + i * config.vocab, static_cast<size_t>(config.vocab)});
    }
  }
}

}  // namespace thermoe
