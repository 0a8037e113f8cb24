// SPDX-License-Identifier: Apache-2.0
// Deltas of the sessions whose rows are in the batch. Rows of one session stand together, so each operation is launched once a
// session; what a row gets does not depend on the other rows.
#include "forward/step.h"

namespace thermoe {
namespace {

template <typename T>
Rows<T> Part(Rows<T> rows, int64_t first, int64_t count) {
  return {rows.row(first), count, rows.cols};
}

// body(first, count, deltas) for runs of neighbouring rows with the same deltas. row_of(i): the batch row of row i.
template <typename RowOf, typename Body>
void ForEachRun(const StepContext& step, int64_t rows, RowOf&& row_of, Body&& body) {
  const auto deltas_of = [&](int64_t i) { return step.batch.rows[row_of(i)].deltas; };
  for (int64_t first = 0, end = 0; first < rows; first = end) {
    const Deltas* deltas = deltas_of(first);
    for (end = first + 1; end < rows && deltas_of(end) == deltas;) ++end;
    if (deltas != nullptr) body(first, end - first, *deltas);
  }
}

template <typename Body>
void ForEachRun(const StepContext& step, Body&& body) {
  ForEachRun(step, step.tokens(), [](int64_t i) { return static_cast<size_t>(i); }, body);
}

void LowRankRun(StepContext& step, const Deltas& deltas, DeltaGroup group, int32_t layer, MutRows x, MutRows y) {
  const DeltaTensor* a = deltas.layout->Find(group, layer, DeltaPart::kA);
  if (a == nullptr) return;
  const DeltaTensor* b = deltas.layout->Find(group, layer, DeltaPart::kB);
  step.ops.LowRank({x, deltas.matrix(*a), deltas.matrix(*b), Workspace::View(step.ws.low_rank, x.rows, a->rows), y});
  step.record.flops += 2.0 * static_cast<double>(x.rows) * static_cast<double>(a->size() + b->size());
}

}  // namespace

void ApplyGain(StepContext& step, DeltaGroup group, int32_t layer, MutRows rows) {
  ForEachRun(step, [&](int64_t first, int64_t count, const Deltas& deltas) {
    if (const DeltaTensor* gain = deltas.layout->Find(group, layer)) step.ops.Gain({deltas.of(*gain), Part(rows, first, count)});
  });
}

void ApplyBias(StepContext& step, DeltaGroup group, int32_t layer, MutRows rows) {
  ForEachRun(step, [&](int64_t first, int64_t count, const Deltas& deltas) {
    if (const DeltaTensor* bias = deltas.layout->Find(group, layer)) step.ops.AddRow({deltas.of(*bias), Part(rows, first, count)});
  });
}

void ApplyLowRank(StepContext& step, DeltaGroup group, int32_t layer, MutRows x, MutRows y) {
  ForEachRun(step, [&](int64_t first, int64_t count, const Deltas& deltas) {
    LowRankRun(step, deltas, group, layer, Part(x, first, count), Part(y, first, count));
  });
}

void ApplyScale(StepContext& step, int32_t layer) {
  const kernels::Selection& selection = step.ws.selection;
  ForEachRun(step, [&](int64_t first, int64_t count, const Deltas& deltas) {
    const DeltaTensor* scale = deltas.layout->Find(DeltaGroup::kExpertScale, layer);
    if (scale == nullptr) return;
    step.ops.ScaleSlots({deltas.of(*scale), Part<const int32_t>(selection.expert, first, count), Part(selection.weight, first, count)});
  });
}

void ApplyToOutput(StepContext& step, std::span<const size_t> batch_rows, MutRows h) {
  ForEachRun(step, h.rows, [&](int64_t i) { return batch_rows[static_cast<size_t>(i)]; },
             [&](int64_t first, int64_t count, const Deltas& deltas) {
               const DeltaTensor* gain = deltas.layout->Find(DeltaGroup::kOutputGain, 0);
               if (gain != nullptr) step.ops.Gain({deltas.of(*gain), Part(h, first, count)});
               const DeltaTensor* bias = deltas.layout->Find(DeltaGroup::kHiddenBias, 0);
               if (bias != nullptr) step.ops.AddRow({deltas.of(*bias), Part(h, first, count)});
             });
}

void ApplyToLogits(StepContext& step, std::span<const size_t> batch_rows, MutRows h, MutRows logits) {
  ForEachRun(step, h.rows, [&](int64_t i) { return batch_rows[static_cast<size_t>(i)]; },
             [&](int64_t first, int64_t count, const Deltas& deltas) {
               const MutRows out = Part(logits, first, count);
               LowRankRun(step, deltas, DeltaGroup::kLowRankOutput, 0, Part(h, first, count), out);
               const DeltaTensor* bias = deltas.layout->Find(DeltaGroup::kOutputBias, 0);
               if (bias != nullptr) step.ops.AddRow({deltas.of(*bias), out});
             });
}

}  // namespace thermoe
