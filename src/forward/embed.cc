// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "forward/step.h"

namespace thermoe {
namespace {

void SetRopeAngles(StepContext& step) {
  Workspace& ws = step.ws;
  const size_t half = ws.inverse_frequency.size();
  for (size_t t = 0; t < step.batch.rows.size(); ++t) {
    const auto position = static_cast<float>(step.batch.rows[t].position);
    for (size_t i = 0; i < half; ++i) {
      const float angle = position * ws.inverse_frequency[i];
      ws.cosines[t * half + i] = std::cos(angle);
      ws.sines[t * half + i] = std::sin(angle);
    }
  }
}

}  // namespace

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
  SetRopeAngles(step);
  const size_t rows = step.batch.rows.size(), angles = rows * ws.inverse_frequency.size();
  const kernels::Ops& ops = step.ops;
  ops.Publish(std::as_bytes(std::span(ws.ids).first(rows)));
  ops.Publish(std::as_bytes(std::span(ws.kinds).first(rows)));
  ops.Publish(std::as_bytes(std::span(ws.cosines).first(angles)));
  ops.Publish(std::as_bytes(std::span(ws.sines).first(angles)));
  ops.SetRows(std::span(ws.kv_rows).first(rows));
  ops.SetSteering(step.steering, step.record.layers);
}

void Embed(StepContext& step) {
  StageTimer timer(&step.record.times.embed_us);
  Workspace& ws = step.ws;
  step.ops.Embed(step.weights.embedding, std::span(ws.ids).first(step.batch.rows.size()), step.x());
  step.Count(kernels::EmbedCost(step.weights.embedding, step.tokens()));
}

}  // namespace thermoe
