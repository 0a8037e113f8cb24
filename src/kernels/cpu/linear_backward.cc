// SPDX-License-Identifier: Apache-2.0
// Products with the transposed weight. A task is some columns of a matrix, all of its rows and some tokens.
#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "kernels/cpu/cpu_ops.h"

namespace thermoe::kernels::cpu {
namespace {

// Most tokens of a pass: 256 rows of 256 sums are 256 KiB.
constexpr int64_t kMostSumRows = 256;
constexpr int64_t kTasksPerThread = 8;

// Rows of sums begin 64 bytes apart modulo a page, so that they do not fall into the same lines of L1.
int64_t SumStride(int64_t cols) { return (cols + 31) / 32 * 32 + 16; }

}  // namespace

ColumnPlan PlanColumns(int threads, const WeightMatrix& matrix, int64_t matrices) {
  const int64_t blocks = (matrix.cols + kQuantBlock - 1) / kQuantBlock;
  ColumnPlan plan;
  if (matrix.interleaved() || HasFloatKernel(matrix.type)) {
    const int64_t tasks = std::max<int64_t>(1, kTasksPerThread * threads / matrices);
    // kMostTaskBlocks share a pass over the gradient, whose chunk of 128 rows and 128 tokens (32 KiB as words) is then read from
    // L2 once for 256 columns; the sums of those (128 KiB) stay in L2.
    plan.cols = std::min((blocks + tasks - 1) / tasks, kMostTaskBlocks) * kQuantBlock;
  } else {  // every task decodes whole rows
    plan.cols = (blocks + threads - 1) / threads * kQuantBlock;
  }
  plan.tiles = (matrix.cols + plan.cols - 1) / plan.cols;
  return plan;
}

void CpuOps::PrepareGradient(int gradient, int64_t count, int64_t cols, bool as_words, int64_t words) const {
  GradientRows& rows = gradients_[gradient];
  if (static_cast<size_t>(count) > rows.x.size()) {
    rows.x.resize(static_cast<size_t>(count));
    rows.words.resize(static_cast<size_t>(count));
  }
  WordRows& view = word_rows_[gradient];
  view = {nullptr, words};
  if (!as_words) return;
  rows.codes.Reserve((cols + kChunkRows - 1) / kChunkRows * view.chunk_bytes() / static_cast<int64_t>(sizeof(float)));
  view.data = reinterpret_cast<const std::byte*>(rows.codes.data());
}

void CpuOps::SetGradient(int gradient, int64_t at, const float* x, int64_t words_row) const {
  gradients_[gradient].x[static_cast<size_t>(at)] = x;
  gradients_[gradient].words[static_cast<size_t>(at)] = static_cast<int32_t>(words_row);
}

void CpuOps::QuantiseGradient(int gradient, const float* x, int64_t cols, int64_t words_row) const {
  auto* data = reinterpret_cast<std::byte*>(gradients_[gradient].codes.data());
  kernels_->quantise_words(x, cols, word_rows_[gradient], words_row, data);
}

void CpuOps::ClearSums(int64_t tokens, int64_t cols, int thread) const {
  ThreadScratch& own = scratch(thread);
  const int64_t stride = SumStride(cols);
  own.sums.Reserve(tokens * stride);
  if (static_cast<size_t>(tokens) > own.sum_rows.size()) {
    own.sum_rows.resize(static_cast<size_t>(tokens));
    own.from.resize(static_cast<size_t>(tokens));
  }
  for (int64_t t = 0; t < tokens; ++t) own.sum_rows[static_cast<size_t>(t)] = own.sums.data() + t * stride;
  std::memset(own.sums.data(), 0, static_cast<size_t>(tokens * stride) * sizeof(float));
}

void CpuOps::MultiplyTransposed(const TransposedTile& tile, int thread) const {
  const WeightMatrix& weight = tile.weight;
  const GradientRows& dy = gradients_[tile.gradient];
  ThreadScratch& own = scratch(thread);
  if (weight.interleaved()) {
    const IntDotArgs whole = IntTileOf(weight, tile.planes, 0, weight.rows);
    IntTransposedArgs product;
    product.packing = whole.packing;
    product.groups = whole.groups;
    product.first_block = tile.first / kQuantBlock;
    product.blocks = tile.cols / kQuantBlock;
    product.matrix_blocks = whole.blocks;
    product.data = whole.data;
    product.group_bytes = whole.group_bytes;
    product.scales_at = whole.scales_at;
    product.codes_at = whole.codes_at;
    product.lo = whole.lo;
    product.lo_group_bytes = whole.lo_group_bytes;
    product.dy = word_rows_[tile.gradient];
    product.row = dy.words.data() + tile.row;
    product.out = own.sum_rows.data();
    product.tokens = tile.tokens;
    product.panel = reinterpret_cast<std::byte*>(own.dot.data());
    kernels_->int_transposed(product);
    return;
  }
  TransposedArgs product;
  product.first = tile.first;
  product.cols = tile.cols;
  product.dy = dy.x.data() + tile.row;
  product.out = own.sum_rows.data();
  product.tokens = tile.tokens;
  product.scratch = own.dot.data();
  if (HasFloatKernel(weight.type)) {
    product.weight = TileOf(weight, tile.planes, 0, weight.rows);
    kernels_->transposed(product);
    return;
  }
  product.dy = own.from.data();
  for (int64_t row = 0; row < weight.rows; row += kTransposedPanel) {
    product.weight = DecodedTile({weight, tile.planes, row, kTransposedPanel, 0, 0, nullptr, 0, nullptr}, &own.decoded);
    for (int64_t t = 0; t < tile.tokens; ++t)
      own.from[static_cast<size_t>(t)] = dy.x[static_cast<size_t>(tile.row + t)] + row;
    kernels_->transposed(product);
  }
}

void CpuOps::LinearBackward(const LinearBackwardArgs& args) const {
  const WeightMatrix& weight = args.weight;
  const int64_t tokens = args.dy.rows;
  THERMOE_CHECK(args.dy.cols == weight.rows && args.dx.cols == weight.cols && args.dx.rows == tokens);
  PrepareGradient(0, tokens, weight.rows, weight.interleaved(), tokens);
  for (int64_t t = 0; t < tokens; ++t) SetGradient(0, t, args.dy.row(t), t);
  if (weight.interleaved())
    ForEachRow(tokens, weight.rows, [&](int64_t t) { QuantiseGradient(0, args.dy.row(t), weight.rows, t); });
  const ColumnPlan plan = PlanColumns(threads_->size(), weight, 1);
  ForEach(plan.tiles, WorthForking(weight, tokens), [&](int64_t task, int thread) {
    const int64_t first = task * plan.cols, cols = std::min(plan.cols, weight.cols - first);
    for (int64_t row = 0; row < tokens; row += kMostSumRows) {
      const int64_t count = std::min(kMostSumRows, tokens - row);
      ClearSums(count, cols, thread);
      MultiplyTransposed({weight, Planes::kBoth, 0, first, cols, row, count}, thread);
      for (int64_t t = 0; t < count; ++t) {
        kernels_->add_scaled(scratch(thread).sum_rows[static_cast<size_t>(t)], 1.0f, cols,
                             args.dx.row(row + t) + first);
      }
    }
  });
}

}  // namespace thermoe::kernels::cpu
