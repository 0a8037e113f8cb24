// SPDX-License-Identifier: Apache-2.0
// The gradient of a layer's routed experts in four phases: down, transposed; SwiGLU; gate and up, transposed; the sum
// of each token's slots. A task is some columns of one job's matrices, so one expert's weights are read once for all of
// its tokens.
#include <algorithm>

#include "base/check.h"
#include "kernels/cpu/cpu_ops.h"

namespace thermoe::kernels::cpu {
namespace {

std::span<const Selection::Job> JobsOf(const Selection& selection) {
  return selection.jobs.first(static_cast<size_t>(selection.job_count));
}

int64_t KeptSlots(const Selection& selection) {
  int64_t kept = 0;
  for (const Selection::Job& job : JobsOf(selection)) kept += job.count;
  return kept;
}

bool AnyInterleaved(std::span<const FfnWeights> experts, const Selection& selection, WeightMatrix FfnWeights::*role) {
  const std::span<const Selection::Job> jobs = JobsOf(selection);
  return std::any_of(jobs.begin(), jobs.end(), [&](const Selection::Job& job) {
    return (experts[static_cast<size_t>(job.expert)].*role).interleaved();
  });
}

}  // namespace

void CpuOps::InnerProducts(const ExpertInnerArgs& args, WeightMatrix FfnWeights::*role, MutRows out) const {
  const Selection& selection = *args.selection;
  const int64_t kept = KeptSlots(selection);
  for (int64_t i = 0; i < kept; ++i) {
    const int32_t slot = selection.order[static_cast<size_t>(i)];
    SetRow(i, slot / selection.slots, out.row(slot));
  }
  const WeightMatrix& any = args.experts[static_cast<size_t>(selection.jobs[0].expert)].*role;
  const TilePlan plan = PlanTiles(threads_->size(), any, selection.job_count);
  ForEach(selection.job_count * plan.tiles, WorthForking(any, kept), [&](int64_t task, int thread) {
    const Selection::Job& job = selection.jobs[static_cast<size_t>(task / plan.tiles)];
    const WeightMatrix& weight = args.experts[static_cast<size_t>(job.expert)].*role;
    THERMOE_CHECK(weight.cols == args.x.cols && weight.rows == out.cols);
    const int64_t first = task % plan.tiles * plan.rows;
    Multiply({weight, job.planes, first, plan.rows, job.first, job.count, rows_.y.data() + job.first, first, nullptr},
             thread);
  });
}

void CpuOps::ExpertInner(const ExpertInnerArgs& args) const {
  const Selection& selection = *args.selection;
  THERMOE_CHECK(selection.expert.rows == args.x.rows && args.gate.rows >= args.x.rows * selection.slots);
  THERMOE_CHECK(args.up.rows >= args.x.rows * selection.slots && args.up.cols == args.gate.cols);
  if (selection.job_count == 0) return;
  rows_.Reserve(KeptSlots(selection));
  PrepareRows(args.x, AnyInterleaved(args.experts, selection, &FfnWeights::gate) ||
                          AnyInterleaved(args.experts, selection, &FfnWeights::up));
  InnerProducts(args, &FfnWeights::gate, args.gate);
  InnerProducts(args, &FfnWeights::up, args.up);
}

void CpuOps::ExpertFfnBackward(const ExpertFfnBackwardArgs& args) const {
  const Selection& selection = *args.selection;
  const int64_t tokens = args.dout.rows, slots = tokens * selection.slots;
  THERMOE_CHECK(selection.expert.rows == tokens && selection.slots <= kMaxSlots && args.dx.rows == tokens);
  THERMOE_CHECK(args.gate.rows >= slots && args.up.rows >= slots && args.up.cols == args.gate.cols &&
                args.slot_dx.rows >= slots);
  THERMOE_CHECK(args.slot_dx.cols == args.dx.cols && args.dout.cols == args.dx.cols && args.dweight.size() == slots);
  std::fill_n(args.dweight.data, slots, 0.0f);
  if (selection.job_count == 0) return;
  for (const Selection::Job& job : JobsOf(selection)) {
    const FfnWeights& expert = args.experts[static_cast<size_t>(job.expert)];
    THERMOE_CHECK(expert.gate.cols == args.dx.cols && expert.gate.rows == args.gate.cols);
    THERMOE_CHECK(expert.up.cols == args.dx.cols && expert.up.rows == args.gate.cols);
    THERMOE_CHECK(expert.down.cols == args.gate.cols && expert.down.rows == args.dx.cols);
  }
  DownBackward(args);
  SwiGluOfSlots(args);
  GateAndUpBackward(args);
  ForEachRow(tokens, args.dx.cols * selection.slots, [&](int64_t t) {
    const float* slot_rows[kMaxSlots];
    float ones[kMaxSlots];
    int32_t kept = 0;
    for (; kept < selection.slots && selection.expert.row(t)[kept] >= 0; ++kept) {
      slot_rows[kept] = args.slot_dx.row(t * selection.slots + kept);
      ones[kept] = 1;
    }
    if (kept > 0) kernels_->add_weighted(slot_rows, ones, kept, args.dx.cols, args.dx.row(t));
  });
}

// inner_gradient_[i] = down^T dout for the i-th kept slot of `order`.
void CpuOps::DownBackward(const ExpertFfnBackwardArgs& args) const {
  const Selection& selection = *args.selection;
  const int64_t kept = KeptSlots(selection), width = args.gate.cols, hidden = args.dout.cols, tokens = args.dout.rows;
  const bool as_words = AnyInterleaved(args.experts, selection, &FfnWeights::down);
  PrepareGradient(0, kept, hidden, as_words, tokens);
  if (as_words) ForEachRow(tokens, hidden, [&](int64_t t) { QuantiseGradient(0, args.dout.row(t), hidden, t); });
  for (int64_t i = 0; i < kept; ++i) {
    const int64_t token = selection.order[static_cast<size_t>(i)] / selection.slots;
    SetGradient(0, i, args.dout.row(token), token);
  }
  inner_gradient_.Reserve(kept * width);
  const WeightMatrix& any = args.experts[static_cast<size_t>(selection.jobs[0].expert)].down;
  const ColumnPlan plan = PlanColumns(threads_->size(), any, selection.job_count);
  ForEach(selection.job_count * plan.tiles, WorthForking(any, kept), [&](int64_t task, int thread) {
    const Selection::Job& job = selection.jobs[static_cast<size_t>(task / plan.tiles)];
    const WeightMatrix& down = args.experts[static_cast<size_t>(job.expert)].down;
    const int64_t first = task % plan.tiles * plan.cols, cols = std::min(plan.cols, width - first);
    ClearSums(job.count, cols, thread);
    MultiplyTransposed({down, job.planes, 0, first, cols, job.first, job.count}, thread);
    for (int32_t i = 0; i < job.count; ++i) {
      std::copy_n(scratch(thread).sum_rows[static_cast<size_t>(i)], cols,
                  inner_gradient_.data() + (job.first + i) * width + first);
    }
  });
}

// gate and up become their gradients, also as words.
void CpuOps::SwiGluOfSlots(const ExpertFfnBackwardArgs& args) const {
  const Selection& selection = *args.selection;
  const int64_t kept = KeptSlots(selection), width = args.gate.cols;
  const bool gate_words = AnyInterleaved(args.experts, selection, &FfnWeights::gate);
  const bool up_words = AnyInterleaved(args.experts, selection, &FfnWeights::up);
  PrepareGradient(0, kept, width, gate_words, kept);
  PrepareGradient(1, kept, width, up_words, kept);
  ForEachRow(kept, width * 10, [&](int64_t i) {  // an exp and a division cost about eight multiply-adds
    const int32_t slot = selection.order[static_cast<size_t>(i)];
    float *gate = args.gate.row(slot), *up = args.up.row(slot);
    args.dweight.data[slot] =
        kernels_->swiglu_backward(inner_gradient_.data() + i * width, selection.weight.data[slot], width, gate, up);
    if (gate_words) QuantiseGradient(0, gate, width, i);
    if (up_words) QuantiseGradient(1, up, width, i);
  });
}

// slot_dx[token * K + slot] = gate^T dgate + up^T dup.
void CpuOps::GateAndUpBackward(const ExpertFfnBackwardArgs& args) const {
  const Selection& selection = *args.selection;
  const int64_t kept = KeptSlots(selection), hidden = args.dx.cols;
  for (int64_t i = 0; i < kept; ++i) {
    const int32_t slot = selection.order[static_cast<size_t>(i)];
    SetGradient(0, i, args.gate.row(slot), i);
    SetGradient(1, i, args.up.row(slot), i);
  }
  const WeightMatrix& any = args.experts[static_cast<size_t>(selection.jobs[0].expert)].gate;
  const ColumnPlan plan = PlanColumns(threads_->size(), any, selection.job_count);
  ForEach(selection.job_count * plan.tiles, WorthForking(any, 2 * kept), [&](int64_t task, int thread) {
    const Selection::Job& job = selection.jobs[static_cast<size_t>(task / plan.tiles)];
    const FfnWeights& expert = args.experts[static_cast<size_t>(job.expert)];
    const int64_t first = task % plan.tiles * plan.cols, cols = std::min(plan.cols, hidden - first);
    ClearSums(job.count, cols, thread);
    MultiplyTransposed({expert.gate, job.planes, 0, first, cols, job.first, job.count}, thread);
    MultiplyTransposed({expert.up, job.planes, 1, first, cols, job.first, job.count}, thread);
    for (int32_t i = 0; i < job.count; ++i) {
      const int32_t slot = selection.order[static_cast<size_t>(job.first + i)];
      std::copy_n(scratch(thread).sum_rows[static_cast<size_t>(i)], cols, args.slot_dx.row(slot) + first);
    }
  });
}

}  // namespace thermoe::kernels::cpu
