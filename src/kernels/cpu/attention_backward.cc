// SPDX-License-Identifier: Apache-2.0
// Tasks are kv heads: the gradients of a key and a value are sums over all rows and query heads that read them. Within
// a task tiles of 16 rows go one query head after the other; probabilities are computed again, and kept for a tile.
#include <algorithm>

#include "base/check.h"
#include "kernels/cpu/cpu_ops.h"

namespace thermoe::kernels::cpu {
namespace {

constexpr int32_t kTileRows = 16;

int64_t PaddedPositions(int64_t positions) { return (positions + kKvBlock - 1) / kKvBlock * kKvBlock + kKvBlock; }

// scores[r][j] = x[r] . keys[j] for the first `positions` of a cache.
struct BlockProduct {
  const KernelTable& kernels;
  const KvRow& row;
  const float* base;     // the kv head's first block
  int64_t block_stride;  // floats
  int32_t head_dim;
  int64_t positions;

  template <typename Body>
  void ForEachBlock(const Body& body) const {
    for (int64_t at = 0; at < positions; at += kKvBlock) {
      body(base + row.blocks[at / kKvBlock] * block_stride, at, std::min<int64_t>(kKvBlock, positions - at));
    }
  }
  void Dots(const float* const* x, int64_t tokens, float* const* out, float* scratch) const {
    DotArgs dot;
    dot.weight.cols = head_dim;
    dot.weight.row_bytes = int64_t{head_dim} * 4;
    dot.x = x;
    dot.y = out;
    dot.tokens = tokens;
    dot.scratch = scratch;
    ForEachBlock([&](const float* block, int64_t at, int64_t count) {
      dot.weight.rows = count;
      dot.weight.data = reinterpret_cast<const std::byte*>(block);
      dot.y_at = at;
      kernels.dot(dot);
    });
  }
  // out[r] += sum over positions of coef[r][j] * base[j]
  void AddTo(const float* const* coef, int64_t tokens, float* const* out) const {
    const float* from[kTileRows];
    AddProductArgs product;
    product.coef = from;
    product.w_stride = int64_t{head_dim} * 4;
    product.out = out;
    product.rows = tokens;
    product.cols = head_dim;
    ForEachBlock([&](const float* block, int64_t at, int64_t count) {
      for (int64_t r = 0; r < tokens; ++r) from[r] = coef[r] + at;
      product.steps = count;
      product.w = reinterpret_cast<const std::byte*>(block);
      kernels.add_product(product);
    });
  }
};

}  // namespace

// Rows [first, first + 16) of one query head.
void CpuOps::AttentionTileBackward(const AttentionBackwardArgs& args, int64_t first, int32_t head,
                                   ThreadScratch& scratch) const {
  const KvLayer& cache = args.cache;
  const int32_t kv_head = head / (args.heads / cache.kv_heads), dim = cache.head_dim;
  const int64_t count = std::min<int64_t>(kTileRows, args.q.rows - first), column = int64_t{head} * dim;
  const int64_t begin = args.rows[0].position, positions = begin + first + count;
  const int64_t stride = PaddedPositions(begin + args.q.rows);
  const KvRow& last = args.rows[static_cast<size_t>(first + count - 1)];
  const BlockProduct keys{*kernels_, last,     cache.keys + cache.offset(0, kv_head, 0), cache.offset(1, 0, 0),
                          dim,       positions};
  const BlockProduct values{*kernels_, last,     cache.values + cache.offset(0, kv_head, 0), cache.offset(1, 0, 0),
                            dim,       positions};
  const float *q[kTileRows], *dout[kTileRows], *ds_from[kTileRows];
  float *p[kTileRows], *ds[kTileRows], *dq[kTileRows];
  for (int64_t r = 0; r < count; ++r) {
    q[r] = args.q.row(first + r) + column;
    dout[r] = args.dout.row(first + r) + column;
    p[r] = scratch.scores.data() + r * stride;
    ds_from[r] = ds[r] = scratch.dscores.data() + r * stride;
    dq[r] = args.dq.row(first + r) + column;
    std::fill_n(dq[r], dim, 0.0f);
  }
  keys.Dots(q, count, p, scratch.dot.data());
  values.Dots(dout, count, ds, scratch.dot.data());
  for (int64_t r = 0; r < count; ++r) {
    DotArgs along;
    along.weight = {
        Packing::kF32,    1,       dim, reinterpret_cast<const std::byte*>(args.out.row(first + r) + column),
        int64_t{dim} * 4, nullptr, 0};
    float sum = 0;
    float* to = &sum;
    along.x = &dout[r];
    along.y = &to;
    along.tokens = 1;
    along.scratch = scratch.dot.data();
    kernels_->dot(along);
    const int64_t seen = begin + first + r + 1;
    kernels_->softmax_backward(p[r], ds[r], seen, args.scale, sum);
    std::fill(p[r] + seen, p[r] + positions, 0.0f);  // what later rows of the tile see
    std::fill(ds[r] + seen, ds[r] + positions, 0.0f);
  }
  keys.AddTo(ds_from, count, dq);
  // dk[j] += sum over rows of ds[r][j] q[r], dv[j] += p[r][j] dout[r], for the segment's own positions.
  const int64_t kv_column = int64_t{kv_head} * dim;
  for (int64_t at = 0; at < first + count; at += kTileRows) {
    const float *ds_column[kTileRows], *p_column[kTileRows];
    float *dk[kTileRows], *dv[kTileRows];
    AddProductArgs product;
    product.rows = std::min<int64_t>(kTileRows, first + count - at);
    for (int64_t j = 0; j < product.rows; ++j) {
      ds_column[j] = ds[0] + begin + at + j;
      p_column[j] = p[0] + begin + at + j;
      dk[j] = args.dk.row(at + j) + kv_column;
      dv[j] = args.dv.row(at + j) + kv_column;
    }
    product.coef_step = stride;
    product.steps = count;
    product.w_stride = args.q.cols * 4;
    product.cols = dim;
    product.coef = ds_column;
    product.w = reinterpret_cast<const std::byte*>(q[0]);
    product.out = dk;
    kernels_->add_product(product);
    product.coef = p_column;
    product.w = reinterpret_cast<const std::byte*>(dout[0]);
    product.out = dv;
    kernels_->add_product(product);
  }
}

void CpuOps::AttentionBackward(const AttentionBackwardArgs& args) const {
  const KvLayer& cache = args.cache;
  const auto tokens = static_cast<int64_t>(args.rows.size());
  THERMOE_CHECK(args.heads % cache.kv_heads == 0 && args.q.rows == tokens &&
                args.q.cols == int64_t{args.heads} * cache.head_dim);
  THERMOE_CHECK(args.out.size() == args.q.size() && args.dout.size() == args.q.size() &&
                args.dq.size() == args.q.size());
  THERMOE_CHECK(args.dk.rows == tokens && args.dk.cols == int64_t{cache.kv_heads} * cache.head_dim &&
                args.dv.size() == args.dk.size());
  if (tokens == 0) return;
  for (int64_t t = 0; t < tokens; ++t) {
    const KvRow& row = args.rows[static_cast<size_t>(t)];
    THERMOE_CHECK(row.blocks == args.rows[0].blocks && row.position == args.rows[0].position + t);
  }
  std::fill_n(args.dk.data, args.dk.size(), 0.0f);
  std::fill_n(args.dv.data, args.dv.size(), 0.0f);
  const int64_t positions = args.rows[0].position + tokens;
  for (ThreadScratch& scratch : scratch_) {
    scratch.scores.Reserve(kTileRows * PaddedPositions(positions));
    scratch.dscores.Reserve(kTileRows * PaddedPositions(positions));
  }
  const int32_t group = args.heads / cache.kv_heads;
  ForEach(cache.kv_heads, positions * tokens * args.q.cols >= kForkMultiplyAdds, [&](int64_t kv_head, int thread) {
    for (int64_t first = 0; first < tokens; first += kTileRows) {
      for (int32_t g = 0; g < group; ++g) {
        AttentionTileBackward(args, first, static_cast<int32_t>(kv_head) * group + g, scratch(thread));
      }
    }
  });
}

}  // namespace thermoe::kernels::cpu
