// SPDX-License-Identifier: Apache-2.0
// Low-rank deltas. Where a sum is cut into parts depends on shapes alone; parts are added in rising order.
#include <algorithm>

#include "base/check.h"
#include "kernels/cpu/cpu_ops.h"

namespace thermoe::kernels::cpu {
namespace {

constexpr int64_t kDotRows = 12;      // of tokens that a task of dot products takes
constexpr int64_t kTileRows = 48;     // of tokens otherwise
constexpr int64_t kTileColumns = 128;
// Wider gradients (those of logits) are taken in pieces that stay in L2, each read once for both of its products. Rows a power of
// two apart would meet in few lines of the caches, so a piece is copied, which is a fifth faster.
constexpr int64_t kWide = 1024, kPiece = 512, kPieceStride = kPiece + 16;

int64_t TilesOf(int64_t size, int64_t tile) { return (size + tile - 1) / tile; }

// Rows of a matrix, or a part of their columns.
struct Part {
  const float* data = nullptr;
  int64_t stride = 0;
  int64_t rows = 0, cols = 0;
};

// out[t] = x[t] . w for `count` tokens.
void Dots(const KernelTable& kernels, const float* const* x, int64_t count, const Part& w, float* const* out, float* scratch) {
  DotArgs dot;
  dot.weight = {Packing::kF32, w.rows, w.cols, reinterpret_cast<const std::byte*>(w.data), w.stride * 4, nullptr, 0};
  dot.x = x;
  dot.y = out;
  dot.tokens = count;
  dot.scratch = scratch;
  kernels.dot(dot);
}

// out[i][out_at ...] += sum over rows s of w of coef[i][s * coef_step] * w[s].
void AddProducts(const KernelTable& kernels, const float* const* coef, int64_t coef_step, const Part& w, float* const* out, int64_t out_at,
                 int64_t count) {
  AddProductArgs product;
  product.coef = coef;
  product.coef_step = coef_step;
  product.steps = w.rows;
  product.w = reinterpret_cast<const std::byte*>(w.data);
  product.w_stride = w.stride * 4;
  product.out = out;
  product.out_at = out_at;
  product.rows = count;
  product.cols = w.cols;
  kernels.add_product(product);
}

// out[:, at ...] += coef^T w, the rows of both being tokens.
void AddOuter(const KernelTable& kernels, ConstRows coef, const Part& w, MutRows out, int64_t at) {
  const float* columns[kMaxRank];
  float* rows[kMaxRank];
  for (int64_t k = 0; k < out.rows; ++k) {
    columns[k] = coef.data + k;
    rows[k] = out.row(k);
  }
  AddProducts(kernels, columns, coef.cols, w, rows, at, out.rows);
}

// Columns [at, at + cols) of all rows.
Part ColumnsOf(ConstRows rows, int64_t at, int64_t cols) { return {rows.data + at, rows.cols, rows.rows, std::min(cols, rows.cols - at)}; }

// out[:, at ...] += coef w, for `cols` columns of w.
void AddColumns(const KernelTable& kernels, ConstRows coef, ConstRows w, int64_t at, int64_t cols, MutRows out, int64_t first,
                int64_t count) {
  const float* from[kTileRows];
  float* to[kTileRows];
  for (int64_t t = 0; t < count; ++t) {
    from[t] = coef.row(first + t);
    to[t] = out.row(first + t);
  }
  AddProducts(kernels, from, 1, ColumnsOf(w, at, cols), to, at, count);
}

}  // namespace

// out[t] = x[t] w^T for one task's tokens.
void CpuOps::DotTokens(ConstRows x, ConstRows w, MutRows out, int64_t task, int thread) const {
  const float* from[kDotRows];
  float* to[kDotRows];
  const int64_t first = task * kDotRows, count = std::min(kDotRows, x.rows - first);
  for (int64_t t = 0; t < count; ++t) {
    from[t] = x.row(first + t);
    to[t] = out.row(first + t);
  }
  Dots(*kernels_, from, count, {w.data, w.cols, w.rows, w.cols}, to, scratch(thread).dot.data());
}

// inner = x a^T, then out += inner b.
void CpuOps::LowRank(const LowRankArgs& args) const {
  const int64_t tokens = args.x.rows, rank = args.a.rows;
  const bool wide = args.out.cols > kWide;
  THERMOE_CHECK(rank <= kMaxRank && args.b.rows == rank && args.a.cols == args.x.cols && args.b.cols == args.out.cols);
  THERMOE_CHECK(args.inner.rows == tokens && args.inner.cols == rank && args.out.rows == tokens);
  const int64_t work = tokens * rank * (args.x.cols + (wide ? 0 : args.out.cols));
  ForEach(TilesOf(tokens, kDotRows), work >= kForkMultiplyAdds, [&](int64_t task, int thread) {
    DotTokens(args.x, args.a, args.inner, task, thread);
    const int64_t first = task * kDotRows;
    if (!wide) AddColumns(*kernels_, args.inner, args.b, 0, args.b.cols, args.out, first, std::min(kDotRows, tokens - first));
  });
  if (!wide) return;
  const int64_t columns = TilesOf(args.out.cols, kTileColumns);
  ForEach(TilesOf(tokens, kTileRows) * columns, tokens * rank * args.out.cols >= kForkMultiplyAdds, [&](int64_t task, int) {
    const int64_t first = task / columns * kTileRows;
    const int64_t at = task % columns * kTileColumns;
    AddColumns(*kernels_, args.inner, args.b, at, kTileColumns, args.out, first, std::min(kTileRows, tokens - first));
  });
}

// dinner = dy b^T and db += inner^T dy, piece by piece of dy's columns.
void CpuOps::WideLowRankBackward(const LowRankBackwardArgs& args) const {
  const int64_t tokens = args.dy.rows, rank = args.b.rows, pieces = TilesOf(args.dy.cols, kPiece);
  low_rank_parts_.Reserve(pieces * tokens * rank);
  ForEach(pieces, tokens * rank * args.dy.cols >= kForkMultiplyAdds, [&](int64_t piece, int thread) {
    const int64_t at = piece * kPiece, cols = std::min(kPiece, args.dy.cols - at);
    ThreadScratch& own = scratch(thread);
    own.decoded.Reserve(kTileRows * kPieceStride);
    const float* from[kTileRows];
    float* to[kTileRows];
    for (int64_t first = 0; first < tokens; first += kTileRows) {
      const int64_t count = std::min(kTileRows, tokens - first);
      for (int64_t t = 0; t < count; ++t) {
        std::copy_n(args.dy.row(first + t) + at, cols, own.decoded.data() + t * kPieceStride);
        from[t] = own.decoded.data() + t * kPieceStride;
        to[t] = low_rank_parts_.data() + (piece * tokens + first + t) * rank;
      }
      Dots(*kernels_, from, count, ColumnsOf(args.b, at, kPiece), to, own.dot.data());
      AddOuter(*kernels_, {args.inner.row(first), count, rank}, {own.decoded.data(), kPieceStride, count, cols}, args.db, at);
    }
  });
  std::fill_n(args.dinner.data, args.dinner.size(), 0.0f);
  for (int64_t piece = 0; piece < pieces; ++piece) {
    kernels_->add_scaled(low_rank_parts_.data() + piece * tokens * rank, 1.0f, tokens * rank, args.dinner.data);
  }
}

void CpuOps::LowRankBackward(const LowRankBackwardArgs& args) const {
  const int64_t tokens = args.x.rows, rank = args.a.rows;
  THERMOE_CHECK(rank <= kMaxRank && args.b.rows == rank && args.a.cols == args.x.cols && args.b.cols == args.dy.cols);
  THERMOE_CHECK(args.dy.rows == tokens && args.inner.rows == tokens && args.inner.cols == rank);
  THERMOE_CHECK(args.dinner.rows == tokens && args.dinner.cols == rank && args.da.rows == rank && args.da.cols == args.x.cols);
  THERMOE_CHECK(args.db.rows == rank && args.db.cols == args.dy.cols);
  THERMOE_CHECK(args.dx.data == nullptr || (args.dx.rows == tokens && args.dx.cols == args.x.cols));
  if (args.dy.cols > kWide) {
    WideLowRankBackward(args);
  } else {
    const int64_t columns = TilesOf(args.dy.cols, kTileColumns);
    ForEach(columns + TilesOf(tokens, kDotRows), tokens * rank * args.dy.cols >= kForkMultiplyAdds, [&](int64_t task, int thread) {
      if (task >= columns) return DotTokens(args.dy, args.b, args.dinner, task - columns, thread);
      const int64_t at = task * kTileColumns;
      AddOuter(*kernels_, args.inner, ColumnsOf(args.dy, at, kTileColumns), args.db, at);
    });
  }
  ForEach(TilesOf(args.x.cols, kTileColumns), tokens * rank * args.x.cols >= kForkMultiplyAdds, [&](int64_t task, int) {
    const int64_t at = task * kTileColumns;
    AddOuter(*kernels_, args.dinner, ColumnsOf(args.x, at, kTileColumns), args.da, at);
    if (args.dx.data == nullptr) return;
    for (int64_t first = 0; first < tokens; first += kTileRows) {
      AddColumns(*kernels_, args.dinner, args.a, at, kTileColumns, args.dx, first, std::min(kTileRows, tokens - first));
    }
  });
}

}  // namespace thermoe::kernels::cpu
