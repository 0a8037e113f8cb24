// SPDX-License-Identifier: Apache-2.0
// Tasks are (tile of rows of one sequence, kv head): a tile's queries read each key and value once.
#include <algorithm>

#include "base/check.h"
#include "kernels/cpu/cpu_ops.h"

namespace thermoe::kernels::cpu {

// Neighbouring rows with one block table, at most most_rows of them.
void CpuOps::PlanRowTiles(const AttentionArgs& args, int32_t most_rows) const {
  row_tiles_.clear();
  const auto tokens = static_cast<int32_t>(args.rows.size());
  if (row_tiles_.capacity() < args.rows.size()) row_tiles_.reserve(args.rows.size());
  for (int32_t t = 0; t < tokens; ++t) {
    const bool same = !row_tiles_.empty() && row_tiles_.back().count < most_rows &&
                      args.rows[static_cast<size_t>(t)].blocks == args.rows[static_cast<size_t>(t) - 1].blocks;
    if (same) {
      ++row_tiles_.back().count;
    } else {
      row_tiles_.push_back({t, 1});
    }
  }
}

void CpuOps::AttendTile(const AttentionArgs& args, const RowTile& tile, int32_t kv_head, ThreadScratch& scratch) const {
  const KvLayer& cache = args.cache;
  const int32_t group = args.heads / cache.kv_heads;
  const float* q[kMaxQueries];
  float* out[kMaxQueries];
  int32_t positions[kMaxQueries];
  AttentionTileArgs attend;
  attend.q = q;
  attend.out = out;
  attend.rows = tile.count;
  attend.positions = positions;
  attend.blocks = args.rows[static_cast<size_t>(tile.first)].blocks;
  attend.keys = cache.keys + cache.offset(0, kv_head, 0);
  attend.values = cache.values + cache.offset(0, kv_head, 0);
  attend.block_stride = cache.offset(1, 0, 0);
  attend.head_dim = cache.head_dim;
  attend.scale = args.scale;
  attend.state = scratch.attention.data();
  for (int32_t r = 0; r < tile.count; ++r) positions[r] = args.rows[static_cast<size_t>(tile.first + r)].position;
  // A group wider than a tile is done in parts (its tiles have one row).
  for (int32_t g = 0; g < group; g += kMaxQueries) {
    attend.group = std::min<int32_t>(group - g, kMaxQueries);
    for (int32_t i = 0; i < tile.count * attend.group; ++i) {
      const int64_t head = int64_t{kv_head} * group + g + i % attend.group;
      q[i] = args.q.row(tile.first + i / attend.group) + head * cache.head_dim;
      out[i] = args.out.row(tile.first + i / attend.group) + head * cache.head_dim;
    }
    kernels_->attention_tile(attend);
  }
}

void CpuOps::Attention(const AttentionArgs& args) const {
  const KvLayer& cache = args.cache;
  const auto tokens = static_cast<int64_t>(args.rows.size());
  THERMOE_CHECK(args.heads % cache.kv_heads == 0 && args.q.rows == tokens && args.out.rows == tokens);
  THERMOE_CHECK(args.q.cols == int64_t{args.heads} * cache.head_dim && args.out.cols == args.q.cols);
  PlanRowTiles(args, std::max(1, kMaxQueries / (args.heads / cache.kv_heads)));
  for (ThreadScratch& scratch : scratch_) scratch.attention.Reserve(AttentionStateFloats(kMaxQueries, cache.head_dim));
  int64_t work = 0;
  for (const KvRow& row : args.rows) work += (int64_t{row.position} + 1) * 2 * args.q.cols;
  const auto tiles = static_cast<int64_t>(row_tiles_.size());
  // Backwards: in a prefill the last rows see most and are best started first.
  ForEach(tiles * cache.kv_heads, work >= kForkAttention, [&](int64_t task, int thread) {
    const int64_t tile = tiles - 1 - task / cache.kv_heads;
    AttendTile(args, row_tiles_[static_cast<size_t>(tile)], static_cast<int32_t>(task % cache.kv_heads),
               scratch(thread));
  });
}

}  // namespace thermoe::kernels::cpu
