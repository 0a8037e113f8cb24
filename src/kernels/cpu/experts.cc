// SPDX-License-Identifier: Apache-2.0
// The routed experts of a layer in three phases: gate, up and SwiGLU; down; the weighted sum of each token's slots.
// A task is a tile of rows of one job, so one expert's weights are read once for all of its tokens.
#include <algorithm>

#include "base/check.h"
#include "kernels/cpu/cpu_ops.h"
#include "model/interleave.h"

namespace thermoe::kernels::cpu {
namespace {

int64_t LargestJob(const Selection& selection) {
  int32_t most = 0;
  for (int32_t j = 0; j < selection.job_count; ++j) most = std::max(most, selection.jobs[static_cast<size_t>(j)].count);
  return most;
}

int64_t KeptSlots(const Selection& selection) {
  int64_t kept = 0;
  for (int32_t j = 0; j < selection.job_count; ++j) kept += selection.jobs[static_cast<size_t>(j)].count;
  return kept;
}

const WeightMatrix& AnyMatrix(const ExpertFfnArgs& args, WeightMatrix FfnWeights::*role) {
  return args.experts[static_cast<size_t>(args.selection->jobs[0].expert)].*role;
}

// All experts of a layer have the same shapes.
void CheckShapes(const ExpertFfnArgs& args, const FfnWeights& expert) {
  THERMOE_CHECK(expert.gate.cols == args.x.cols && expert.gate.rows == args.inner.cols);
  THERMOE_CHECK(expert.up.cols == args.x.cols && expert.up.rows == args.inner.cols);
  THERMOE_CHECK(expert.down.cols == args.inner.cols && expert.down.rows == args.slot_out.cols);
}

}  // namespace

void CpuOps::ExpertFfn(const ExpertFfnArgs& args) const {
  const Selection& selection = *args.selection;
  const int64_t slots = args.x.rows * selection.slots;
  THERMOE_CHECK(args.inner.rows >= slots && args.slot_out.rows >= slots && args.slot_out.cols == args.out.cols);
  THERMOE_CHECK(args.out.rows == args.x.rows && selection.expert.rows == args.x.rows && selection.slots <= kMaxSlots);
  if (selection.job_count == 0) return;
  for (int32_t j = 0; j < selection.job_count; ++j) {
    CheckShapes(args, args.experts[static_cast<size_t>(selection.jobs[static_cast<size_t>(j)].expert)]);
  }
  rows_.Reserve(slots);
  if (IsInterleaved(AnyMatrix(args, &FfnWeights::gate).type)) {
    IntGateAndUp(args);
  } else {
    GateAndUp(args);
  }
  if (IsInterleaved(AnyMatrix(args, &FfnWeights::down).type)) {
    IntDown(args);
  } else {
    Down(args);
  }
  Combine(args);
}

// inner[i] = silu(gate x) * (up x) for the i-th kept slot of `order`.
void CpuOps::GateAndUp(const ExpertFfnArgs& args) const {
  const Selection& selection = *args.selection;
  const int64_t kept = KeptSlots(selection), most = LargestJob(selection);
  const WeightMatrix& any = AnyMatrix(args, &FfnWeights::gate);
  const TilePlan plan = PlanTiles(*kernels_, threads_->size(), any, 2 * int64_t{selection.job_count});
  for (ThreadScratch& scratch : scratch_) {
    scratch.up.Reserve(most * plan.rows);
    if (static_cast<int64_t>(scratch.up_rows.size()) < most) scratch.up_rows.resize(static_cast<size_t>(most));
  }
  for (int64_t i = 0; i < kept; ++i) {
    const auto at = static_cast<size_t>(i);
    rows_.x[at] = args.x.row(selection.order[at] / selection.slots);
    rows_.y[at] = args.inner.row(i);
  }
  const bool fork = 2 * kept * any.rows * any.cols >= kForkMultiplyAdds;
  ForEach(selection.job_count * plan.tiles, fork, [&](int64_t task, int thread) {
    const Selection::Job& job = selection.jobs[static_cast<size_t>(task / plan.tiles)];
    const FfnWeights& expert = args.experts[static_cast<size_t>(job.expert)];
    ThreadScratch& own = scratch(thread);
    const int64_t first = task % plan.tiles * plan.rows;
    for (int32_t i = 0; i < job.count; ++i) own.up_rows[static_cast<size_t>(i)] = own.up.data() + i * plan.rows;
    DotArgs dot;
    dot.weight = TileOf(expert.gate, job.planes, first, plan.rows);
    dot.x = rows_.x.data() + job.first;
    dot.y = rows_.y.data() + job.first;
    dot.y_at = first;
    dot.tokens = job.count;
    dot.scratch = own.dot.data();
    kernels_->dot(dot);
    dot.weight = TileOf(expert.up, job.planes, first, plan.rows);
    dot.y = own.up_rows.data();
    dot.y_at = 0;
    kernels_->dot(dot);
    for (int32_t i = 0; i < job.count; ++i) {
      float* gate = args.inner.row(job.first + i) + first;
      kernels_->swiglu(gate, own.up_rows[static_cast<size_t>(i)], dot.weight.rows, gate);
    }
  });
}

// slot_out[token * K + slot] = down inner.
void CpuOps::Down(const ExpertFfnArgs& args) const {
  const Selection& selection = *args.selection;
  const int64_t kept = KeptSlots(selection);
  const WeightMatrix& any = AnyMatrix(args, &FfnWeights::down);
  const TilePlan plan = PlanTiles(*kernels_, threads_->size(), any, selection.job_count);
  for (int64_t i = 0; i < kept; ++i) {
    const auto at = static_cast<size_t>(i);
    rows_.x[at] = args.inner.row(i);
    rows_.y[at] = args.slot_out.row(selection.order[at]);
  }
  const bool fork = kept * any.rows * any.cols >= kForkMultiplyAdds;
  ForEach(selection.job_count * plan.tiles, fork, [&](int64_t task, int thread) {
    const Selection::Job& job = selection.jobs[static_cast<size_t>(task / plan.tiles)];
    DotArgs dot;
    dot.y_at = task % plan.tiles * plan.rows;
    dot.weight = TileOf(args.experts[static_cast<size_t>(job.expert)].down, job.planes, dot.y_at, plan.rows);
    dot.x = rows_.x.data() + job.first;
    dot.y = rows_.y.data() + job.first;
    dot.tokens = job.count;
    dot.scratch = scratch(thread).dot.data();
    kernels_->dot(dot);
  });
}

// As GateAndUp, from the tokens' codes: each token's row is quantised once, whatever the number of its slots.
void CpuOps::IntGateAndUp(const ExpertFfnArgs& args) const {
  const Selection& selection = *args.selection;
  const int64_t kept = KeptSlots(selection), most = LargestJob(selection);
  const WeightMatrix& any = AnyMatrix(args, &FfnWeights::gate);
  const TilePlan plan = PlanTiles(*kernels_, threads_->size(), any, 2 * int64_t{selection.job_count});
  for (ThreadScratch& scratch : scratch_) {
    scratch.up.Reserve(most * plan.rows);
    if (static_cast<int64_t>(scratch.up_rows.size()) < most) scratch.up_rows.resize(static_cast<size_t>(most));
  }
  Quantise(args.x, &quant_);
  quant_.rows.resize(std::max(quant_.rows.size(), static_cast<size_t>(kept)));
  for (int64_t i = 0; i < kept; ++i) {
    const auto at = static_cast<size_t>(i);
    quant_.rows[at] = quant_.row(selection.order[at] / selection.slots);
    rows_.y[at] = args.inner.row(i);
  }
  ForEach(selection.job_count * plan.tiles, 2 * kept * any.rows * any.cols, [&](int64_t task, int thread) {
    const Selection::Job& job = selection.jobs[static_cast<size_t>(task / plan.tiles)];
    const FfnWeights& expert = args.experts[static_cast<size_t>(job.expert)];
    ThreadScratch& own = scratch(thread);
    const int64_t first = task % plan.tiles * plan.rows;
    for (int32_t i = 0; i < job.count; ++i) own.up_rows[static_cast<size_t>(i)] = own.up.data() + i * plan.rows;
    IntDotArgs dot = IntTileOf(expert.gate, job.planes, first, plan.rows);
    dot.x = quant_.rows.data() + job.first;
    dot.y = rows_.y.data() + job.first;
    dot.y_at = first;
    dot.tokens = job.count;
    kernels_->int_dot(dot);
    dot = IntTileOf(expert.up, job.planes, first, plan.rows);
    dot.x = quant_.rows.data() + job.first;
    dot.y = own.up_rows.data();
    dot.tokens = job.count;
    kernels_->int_dot(dot);
    for (int32_t i = 0; i < job.count; ++i) {
      float* gate = args.inner.row(job.first + i) + first;
      kernels_->swiglu(gate, own.up_rows[static_cast<size_t>(i)], dot.groups * kInterleave, gate);
    }
  });
}

void CpuOps::IntDown(const ExpertFfnArgs& args) const {
  const Selection& selection = *args.selection;
  const int64_t kept = KeptSlots(selection);
  const WeightMatrix& any = AnyMatrix(args, &FfnWeights::down);
  const TilePlan plan = PlanTiles(*kernels_, threads_->size(), any, selection.job_count);
  Quantise({args.inner.data, kept, args.inner.cols}, &quant_);
  quant_.rows.resize(std::max(quant_.rows.size(), static_cast<size_t>(kept)));
  for (int64_t i = 0; i < kept; ++i) {
    const auto at = static_cast<size_t>(i);
    quant_.rows[at] = quant_.row(i);
    rows_.y[at] = args.slot_out.row(selection.order[at]);
  }
  ForEach(selection.job_count * plan.tiles, kept * any.rows * any.cols, [&](int64_t task, int) {
    const Selection::Job& job = selection.jobs[static_cast<size_t>(task / plan.tiles)];
    const int64_t first = task % plan.tiles * plan.rows;
    IntDotArgs dot = IntTileOf(args.experts[static_cast<size_t>(job.expert)].down, job.planes, first, plan.rows);
    dot.x = quant_.rows.data() + job.first;
    dot.y = rows_.y.data() + job.first;
    dot.y_at = first;
    dot.tokens = job.count;
    kernels_->int_dot(dot);
  });
}

void CpuOps::Combine(const ExpertFfnArgs& args) const {
  const Selection& selection = *args.selection;
  ForEachRow(args.out.rows, args.out.cols * selection.slots, [&](int64_t t) {
    const float* slot_rows[kMaxSlots];
    int32_t kept = 0;
    for (; kept < selection.slots && selection.expert.row(t)[kept] >= 0; ++kept) {
      slot_rows[kept] = args.slot_out.row(t * selection.slots + kept);
    }
    if (kept > 0) kernels_->add_weighted(slot_rows, selection.weight.row(t), kept, args.out.cols, args.out.row(t));
  });
}

}  // namespace thermoe::kernels::cpu
