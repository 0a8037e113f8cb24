// SPDX-License-Identifier: Apache-2.0
// The routed experts of a layer in three phases: gate, up and SwiGLU; down; the weighted sum of each token's slots.
// A task is a tile of rows of one job, so one expert's weights are read once for all of its tokens.
#include <algorithm>

#include "base/check.h"
#include "kernels/cpu/cpu_ops.h"

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

// Whether some expert in use has this matrix in the integer kernels' layout.
bool AnyInterleaved(const ExpertFfnArgs& args, WeightMatrix FfnWeights::*role) {
  for (const Selection::Job& job : args.selection->jobs.first(static_cast<size_t>(args.selection->job_count))) {
    if ((args.experts[static_cast<size_t>(job.expert)].*role).interleaved()) return true;
  }
  return false;
}

// All experts of a layer have the same shapes.
void CheckShapes(const ExpertFfnArgs& args, const FfnWeights& expert) {
  THERMOE_CHECK(expert.gate.cols == args.x.cols && expert.gate.rows == args.inner.cols);
  THERMOE_CHECK(expert.up.cols == args.x.cols && expert.up.rows == args.inner.cols);
  THERMOE_CHECK(expert.down.cols == args.inner.cols && expert.down.rows == args.slot_out.cols);
}

// Columns [first, first + width) of gate x and up x of a slot go where a backward pass finds them.
void KeepInner(const ExpertFfnArgs& args, int64_t slot, int64_t first, int64_t width, const float* gate, const float* up) {
  const int64_t at = slot - args.keep_first * args.selection->slots;
  if (args.keep_gate.data == nullptr || at < 0 || at >= args.keep_rows * args.selection->slots) return;
  std::copy_n(gate, width, args.keep_gate.row(at) + first);
  std::copy_n(up, width, args.keep_up.row(at) + first);
}

}  // namespace

void CpuOps::ExpertFfn(const ExpertFfnArgs& args) const {
  const Selection& selection = *args.selection;
  const int64_t slots = args.x.rows * selection.slots;
  THERMOE_CHECK(args.inner.rows >= slots && args.slot_out.rows >= slots && args.slot_out.cols == args.out.cols);
  THERMOE_CHECK(args.out.rows == args.x.rows && selection.expert.rows == args.x.rows && selection.slots <= kMaxSlots);
  THERMOE_CHECK(args.keep_gate.data == nullptr ||
                (args.keep_gate.rows >= args.keep_rows * selection.slots && args.keep_gate.cols == args.inner.cols &&
                 args.keep_up.size() == args.keep_gate.size()));
  if (selection.job_count == 0) return;
  for (int32_t j = 0; j < selection.job_count; ++j) {
    CheckShapes(args, args.experts[static_cast<size_t>(selection.jobs[static_cast<size_t>(j)].expert)]);
  }
  rows_.Reserve(slots);
  GateAndUp(args);
  Down(args);
  Combine(args);
}

// inner[i] = silu(gate x) * (up x) for the i-th kept slot of `order`.
void CpuOps::GateAndUp(const ExpertFfnArgs& args) const {
  const Selection& selection = *args.selection;
  const int64_t kept = KeptSlots(selection), most = LargestJob(selection);
  const WeightMatrix& any = AnyMatrix(args, &FfnWeights::gate);
  const TilePlan plan = PlanTiles(threads_->size(), any, 2 * int64_t{selection.job_count});
  for (ThreadScratch& scratch : scratch_) {
    scratch.up.Reserve(most * plan.rows);
    if (static_cast<int64_t>(scratch.up_rows.size()) < most) scratch.up_rows.resize(static_cast<size_t>(most));
  }
  // Codes are made once a token, whatever the number of its slots.
  PrepareRows(args.x, AnyInterleaved(args, &FfnWeights::gate) || AnyInterleaved(args, &FfnWeights::up));
  for (int64_t i = 0; i < kept; ++i) SetRow(i, selection.order[static_cast<size_t>(i)] / selection.slots, args.inner.row(i));
  ForEach(selection.job_count * plan.tiles, WorthForking(any, 2 * kept), [&](int64_t task, int thread) {
    const Selection::Job& job = selection.jobs[static_cast<size_t>(task / plan.tiles)];
    const FfnWeights& expert = args.experts[static_cast<size_t>(job.expert)];
    ThreadScratch& own = scratch(thread);
    const int64_t first = task % plan.tiles * plan.rows;
    for (int32_t i = 0; i < job.count; ++i) own.up_rows[static_cast<size_t>(i)] = own.up.data() + i * plan.rows;
    Multiply({expert.gate, job.planes, first, plan.rows, job.first, job.count, rows_.y.data() + job.first, first, nullptr}, thread);
    Multiply({expert.up, job.planes, first, plan.rows, job.first, job.count, own.up_rows.data(), 0, nullptr}, thread);
    const int64_t width = std::min(plan.rows, any.rows - first);
    for (int32_t i = 0; i < job.count; ++i) {
      float* gate = args.inner.row(job.first + i) + first;
      KeepInner(args, selection.order[static_cast<size_t>(job.first + i)], first, width, gate, own.up_rows[static_cast<size_t>(i)]);
      kernels_->swiglu(gate, own.up_rows[static_cast<size_t>(i)], width, gate);
    }
  });
}

// slot_out[token * K + slot] = down inner.
void CpuOps::Down(const ExpertFfnArgs& args) const {
  const Selection& selection = *args.selection;
  const int64_t kept = KeptSlots(selection);
  const WeightMatrix& any = AnyMatrix(args, &FfnWeights::down);
  const TilePlan plan = PlanTiles(threads_->size(), any, selection.job_count);
  PrepareRows({args.inner.data, kept, args.inner.cols}, AnyInterleaved(args, &FfnWeights::down));
  for (int64_t i = 0; i < kept; ++i) SetRow(i, i, args.slot_out.row(selection.order[static_cast<size_t>(i)]));
  ForEach(selection.job_count * plan.tiles, WorthForking(any, kept), [&](int64_t task, int thread) {
    const Selection::Job& job = selection.jobs[static_cast<size_t>(task / plan.tiles)];
    const WeightMatrix& down = args.experts[static_cast<size_t>(job.expert)].down;
    const int64_t first = task % plan.tiles * plan.rows;
    Multiply({down, job.planes, first, plan.rows, job.first, job.count, rows_.y.data() + job.first, first, nullptr}, thread);
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
