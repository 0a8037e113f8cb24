// SPDX-License-Identifier: Apache-2.0
// How keys and values lie in memory. Positions live in fixed-size blocks; a sequence owns a table of block numbers.
#pragma once

#include <cstdint>

namespace thermoe {

// Positions per block. 16 x head_dim floats is 4 to 8 KiB a head: long enough for streaming reads and for an
// attention tile, short enough that a sequence wastes at most 15 positions.
inline constexpr int kKvBlock = 16;

// Keys and values of one layer, all blocks.
struct KvLayer {
  float* keys = nullptr;    // [blocks, kv_heads, kKvBlock, head_dim]
  float* values = nullptr;  // the same
  int32_t kv_heads = 0;
  int32_t head_dim = 0;

  int64_t offset(int32_t block, int32_t head, int32_t position_in_block) const {
    return ((static_cast<int64_t>(block) * kv_heads + head) * kKvBlock + position_in_block) * head_dim;
  }
};

// Keys and values of all layers: what a backend with memory of its own holds a copy of.
struct KvPool {
  const float* data = nullptr;  // [layers][2: keys, values][blocks, kv_heads, kKvBlock, head_dim]
  int64_t blocks = 0;
  int32_t layers = 0, kv_heads = 0, head_dim = 0;

  int64_t block_floats() const { return int64_t{kKvBlock} * kv_heads * head_dim; }
  int64_t floats() const { return 2 * layers * blocks * block_floats(); }
};

// Where a row stands: the block table of its sequence and its position there.
struct KvRow {
  const int32_t* blocks = nullptr;  // [position / kKvBlock + 1 at least]
  int32_t position = 0;
};

}  // namespace thermoe
