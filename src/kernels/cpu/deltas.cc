// SPDX-License-Identifier: Apache-2.0
// A session's deltas in the forward pass, and their gradients. Sums over rows are cut by columns, so that each is in
// the order of rows.
#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "kernels/cpu/cpu_ops.h"

namespace thermoe::kernels::cpu {
namespace {

constexpr int64_t kTileRows = 32;  // of tokens
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

// inner = x a^T, then out += inner b, for tiles of tokens.
void CpuOps::LowRank(const LowRankArgs& args) const {
  const int64_t tokens = args.x.rows, rank = args.a.rows;
  THERMOE_CHECK(rank <= kMaxRank && args.b.rows == rank && args.a.cols == args.x.cols && args.b.cols == args.out.cols);
  THERMOE_CHECK(args.inner.rows == tokens && args.inner.cols == rank && args.out.rows == tokens);
  const int64_t work = tokens * rank * (args.x.cols + args.out.cols);
  ForEach((tokens + kTileRows - 1) / kTileRows, work >= kForkMultiplyAdds, [&](int64_t task, int thread) {
    const float *x[kTileRows], *coef[kTileRows];
    float *inner[kTileRows], *out[kTileRows];
    const int64_t first = task * kTileRows, count = std::min(kTileRows, tokens - first);
    for (int64_t t = 0; t < count; ++t) {
      x[t] = args.x.row(first + t);
      coef[t] = inner[t] = args.inner.row(first + t);
      out[t] = args.out.row(first + t);
    }
    DotArgs dot;
    dot.weight = {Packing::kF32, rank, args.a.cols, reinterpret_cast<const std::byte*>(args.a.data), args.a.cols * 4,
                  nullptr,       0};
    dot.x = x;
    dot.y = inner;
    dot.tokens = count;
    dot.scratch = scratch(thread).dot.data();
    kernels_->dot(dot);
    AddProductArgs product;
    product.coef = coef;
    product.steps = rank;
    product.w = reinterpret_cast<const std::byte*>(args.b.data);
    product.w_stride = args.b.cols * 4;
    product.out = out;
    product.rows = count;
    product.cols = args.b.cols;
    kernels_->add_product(product);
  });
}

// out += coef^T w, rows of both being tokens.
void CpuOps::AddOuterProduct(ConstRows coef, ConstRows w, MutRows out) const {
  THERMOE_CHECK(coef.rows == w.rows && out.rows == coef.cols && out.cols == w.cols && out.rows <= kMaxRank);
  const float* columns[kMaxRank];
  float* rows[kMaxRank];
  for (int64_t k = 0; k < out.rows; ++k) {
    columns[k] = coef.data + k;
    rows[k] = out.row(k);
  }
  ForEach((w.cols + kTileColumns - 1) / kTileColumns, coef.size() * w.cols >= kForkMultiplyAdds,
          [&](int64_t task, int) {
            AddProductArgs product;
            product.coef = columns;
            product.coef_step = coef.cols;
            product.steps = coef.rows;
            product.out = rows;
            product.out_at = task * kTileColumns;
            product.w = reinterpret_cast<const std::byte*>(w.data + product.out_at);
            product.w_stride = w.cols * 4;
            product.rows = out.rows;
            product.cols = std::min(kTileColumns, w.cols - product.out_at);
            kernels_->add_product(product);
          });
}

void CpuOps::LowRankBackward(const LowRankBackwardArgs& args) const {
  const int64_t tokens = args.x.rows, rank = args.a.rows;
  THERMOE_CHECK(rank <= kMaxRank && args.b.rows == rank && args.a.cols == args.x.cols && args.b.cols == args.dy.cols);
  THERMOE_CHECK(args.dy.rows == tokens && args.inner.rows == tokens && args.inner.cols == rank);
  THERMOE_CHECK(args.dinner.rows == tokens && args.dinner.cols == rank);
  THERMOE_CHECK(args.dx.data == nullptr || (args.dx.rows == tokens && args.dx.cols == args.x.cols));
  AddOuterProduct(args.inner, args.dy, args.db);
  const int64_t work = tokens * rank * (args.x.cols + args.dy.cols);
  ForEach((tokens + kTileRows - 1) / kTileRows, work >= kForkMultiplyAdds, [&](int64_t task, int thread) {
    const float *dy[kTileRows], *coef[kTileRows];
    float *dinner[kTileRows], *dx[kTileRows];
    const int64_t first = task * kTileRows, count = std::min(kTileRows, tokens - first);
    for (int64_t t = 0; t < count; ++t) {
      dy[t] = args.dy.row(first + t);
      coef[t] = dinner[t] = args.dinner.row(first + t);
      dx[t] = args.dx.data == nullptr ? nullptr : args.dx.row(first + t);
    }
    DotArgs dot;
    dot.weight = {Packing::kF32, rank, args.b.cols, reinterpret_cast<const std::byte*>(args.b.data), args.b.cols * 4,
                  nullptr,       0};
    dot.x = dy;
    dot.y = dinner;
    dot.tokens = count;
    dot.scratch = scratch(thread).dot.data();
    kernels_->dot(dot);
    if (args.dx.data == nullptr) return;
    AddProductArgs product;
    product.coef = coef;
    product.steps = rank;
    product.w = reinterpret_cast<const std::byte*>(args.a.data);
    product.w_stride = args.a.cols * 4;
    product.out = dx;
    product.rows = count;
    product.cols = args.a.cols;
    kernels_->add_product(product);
  });
  AddOuterProduct(args.dinner, args.x, args.da);
}

}  // namespace thermoe::kernels::cpu
