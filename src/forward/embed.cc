// SPDX-License-Identifier: Apache-2.0
#include "forward/step.h"

namespace thermoe {

void SetRows(StepContext& step) {
  StageTimer timer(&step.record.times.embed_us);
  Workspace& ws = step.ws;
  for (size_t t = 0; t < step.batch.rows.size(); ++t) {
    const BatchRow& row = step.batch.rows[t];
    ws.ids[t] = row.token;
    ws.kinds[t] = row.kind;
    ws.kv_rows[t] = {row.sequence->blocks.data(), row.position};
    ++step.record.tokens;
    if (row.kind == kernels::RowKind::kPrefill) ++step.record.prefill_tokens;
    if (row.kind == kernels::RowKind::kDecode) ++step.record.decode_tokens;
  }
  const size_t rows = step.batch.rows.size();
  const kernels::Ops& ops = step.ops;
  ops.Publish(std::as_bytes(std::span(ws.ids).first(rows)));
  ops.Publish(std::as_bytes(std::span(ws.kinds).first(rows)));
  ops.SetRows(std::span(ws.kv_rows).first(rows));
  ops.SetSteering(step.steering, step.record.layers);
}

void Embed(StepContext& step) {
  StageTimer timer(&step.record.times.embed_us);
  Workspace& ws = step.ws;
  const size_t rows = step.batch.rows.size();
  step.ops.Embed(step.weights.embedding, std::span(ws.ids).first(rows), step.x());
  const auto half = static_cast<int64_t>(ws.inverse_frequency.size());
  step.ops.Angles({std::span(ws.kv_rows).first(rows), ws.inverse_frequency, step.view(ws.cosines, half), step.view(ws.sines, half)});
  step.Count(kernels::EmbedCost(step.weights.embedding, step.tokens()));
}

}  // namespace thermoe
