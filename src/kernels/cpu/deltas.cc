// SPDX-License-Identifier: Apache-2.0
// A session's deltas in the forward pass, and their gradients. Sums over rows are cut by columns, so that each is in
// the order of rows.
#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "kernels/cpu/cpu_ops.h"

namespace thermoe::kernels::cpu {
namespace {

constexpr int64_t kTileColumns = 256;

}  // namespace

void CpuOps::AddRow(const AddRowArgs& args) const {
  THERMOE_CHECK(static_cast<int64_t>(args.x.size()) == args.out.cols);
  ForEachRow(args.out.rows, args.out.cols,
             [&](int64_t t) { kernels_->add_scaled(args.x.data(), 1.0f, args.out.cols, args.out.row(t)); });
}

void CpuOps::Gain(const GainArgs& args) const {
  const int64_t n = args.x.cols;
  THERMOE_CHECK(static_cast<int64_t>(args.gain.size()) == n);
  ForEachRow(args.x.rows, n, [&](int64_t t) {
    float* x = args.x.row(t);
    for (int64_t i = 0; i < n; ++i) x[i] *= 1 + args.gain[static_cast<size_t>(i)];
  });
}

void CpuOps::ScaleSlots(const ScaleSlotsArgs& args) const {
  THERMOE_CHECK(args.weight.rows == args.expert.rows && args.weight.cols == args.expert.cols);
  for (int64_t at = 0; at < args.weight.size(); ++at) {
    const int32_t e = args.expert.data[at];
    if (e >= 0) args.weight.data[at] *= std::exp(args.log_scale[static_cast<size_t>(e)]);
  }
}

void CpuOps::ScaleSlotsBackward(const ScaleSlotsBackwardArgs& args) const {
  THERMOE_CHECK(args.weight.rows == args.expert.rows && args.weight.cols == args.expert.cols);
  THERMOE_CHECK(args.dweight.size() == args.weight.size() && args.dlog_scale.size() == args.log_scale.size());
  for (int64_t at = 0; at < args.weight.size(); ++at) {
    const int32_t e = args.expert.data[at];
    if (e < 0) continue;
    const float scaled = args.dweight.data[at] * std::exp(args.log_scale[static_cast<size_t>(e)]);
    args.dlog_scale[static_cast<size_t>(e)] += scaled * args.weight.data[at];
    args.dweight.data[at] = scaled;
  }
}

void CpuOps::GainBackward(const GainBackwardArgs& args) const {
  const int64_t n = args.dy.cols;
  THERMOE_CHECK(args.x.rows == args.dy.rows && args.x.cols == n);
  THERMOE_CHECK(args.gain.empty() || static_cast<int64_t>(args.gain.size()) == n);
  THERMOE_CHECK(args.dgain.empty() || static_cast<int64_t>(args.dgain.size()) == n);
  ForEach((n + kTileColumns - 1) / kTileColumns, args.dy.size() >= kForkElements, [&](int64_t task, int) {
    const int64_t first = task * kTileColumns, last = std::min(first + kTileColumns, n);
    for (int64_t t = 0; t < args.dy.rows; ++t) {
      const float* x = args.x.row(t);
      float* dy = args.dy.row(t);
      if (!args.dgain.empty()) {
        for (int64_t i = first; i < last; ++i) args.dgain[static_cast<size_t>(i)] += x[i] * dy[i];
      }
      if (args.gain.empty()) continue;
      for (int64_t i = first; i < last; ++i) dy[i] *= 1 + args.gain[static_cast<size_t>(i)];
    }
  });
}

void CpuOps::SumRows(const SumRowsArgs& args) const {
  const int64_t n = args.x.cols;
  THERMOE_CHECK(static_cast<int64_t>(args.out.size()) == n);
  ForEach((n + kTileColumns - 1) / kTileColumns, args.x.size() >= kForkElements, [&](int64_t task, int) {
    const int64_t first = task * kTileColumns, cols = std::min(kTileColumns, n - first);
    for (int64_t t = 0; t < args.x.rows; ++t)
      kernels_->add_scaled(args.x.row(t) + first, 1.0f, cols, args.out.data() + first);
  });
}

// In lanes, which the compiler turns into vectors: a row of 2,048 takes a thousandth of what its experts take.
void CpuOps::RowChange(const RowChangeArgs& args) const {
  const int64_t n = args.x.cols;
  THERMOE_CHECK(args.old.rows == args.x.rows && args.old.cols == n && static_cast<int64_t>(args.change.size()) == args.x.rows);
  ForEachRow(args.x.rows, 2 * n, [&](int64_t t) {
    constexpr int64_t kLanes = 16;
    const float *x = args.x.row(t), *old = args.old.row(t);
    float moved[kLanes] = {}, length[kLanes] = {};
    const auto add = [&](int64_t i, int64_t lane) {
      const float step = x[i] - old[i];
      moved[lane] += step * step;
      length[lane] += old[i] * old[i];
    };
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) add(i + lane, lane);
    }
    for (; i < n; ++i) add(i, i % kLanes);
    float all_moved = 0, all_length = 1e-30f;
    for (int64_t lane = 0; lane < kLanes; ++lane) all_moved += moved[lane], all_length += length[lane];
    args.change[static_cast<size_t>(t)] = all_moved / all_length;
  });
}

}  // namespace thermoe::kernels::cpu
