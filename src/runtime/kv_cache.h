// SPDX-License-Identifier: Apache-2.0
// Keys and values of many sequences in a shared pool of blocks with reference counts. A fork shares its parent's
// blocks; whoever writes into a shared block first gets a copy of it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

#include "runtime/kv_layout.h"
#include "thermoe/status.h"

namespace thermoe {

struct KvShape {
  int32_t layers = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
};

// The place of one sequence: its block table and how many positions hold keys and values.
struct KvSequence {
  std::vector<int32_t> blocks;
  int32_t length = 0;
};

class KvCache {
 public:
  // Room for `positions` positions (rounded up to blocks). Memory is touched only as it is used.
  // kResourceExhausted when the allocation fails.
  static Result<std::unique_ptr<KvCache>> Create(const KvShape& shape, int64_t positions);

  // Bytes that Create takes for this many positions.
  static int64_t BytesFor(const KvShape& shape, int64_t positions);

  // Makes positions [sequence->length, length) writable: takes blocks, copies a shared last block. The sequence's
  // length itself moves in Commit, after the keys are there. kResourceExhausted leaves the sequence as it was.
  Status Reserve(KvSequence* sequence, int32_t length);
  void Commit(KvSequence* sequence, int32_t length) { sequence->length = length; }

  // Forgets positions from `length` on; blocks beyond go back when nobody else holds them.
  void Truncate(KvSequence* sequence, int32_t length);
  // A second holder of the same positions.
  KvSequence Fork(const KvSequence& sequence);
  void Release(KvSequence* sequence) { Truncate(sequence, 0); }

  KvLayer layer(int32_t index) const;
  KvPool pool() const { return {data_.get(), total_blocks(), shape_.layers, shape_.kv_heads, shape_.head_dim}; }
  // Copies of blocks are made by `copy(to, from, floats)` from now on: where keys and values are a device's.
  using Copy = std::function<void(float* to, const float* from, int64_t floats)>;
  void SetCopy(Copy copy) { copy_ = std::move(copy); }
  int64_t free_blocks() const { return static_cast<int64_t>(free_.size()); }
  int64_t total_blocks() const { return static_cast<int64_t>(references_.size()); }

 private:
  struct FreeDeleter {
    void operator()(float* p) const { std::free(p); }
  };

  KvCache(const KvShape& shape, int64_t blocks) : shape_(shape), references_(static_cast<size_t>(blocks), 0) {}
  int64_t block_floats() const { return int64_t{kKvBlock} * shape_.kv_heads * shape_.head_dim; }
  void CopyBlock(int32_t from, int32_t to);
  void Drop(int32_t block);

  KvShape shape_;
  // [layers][2: keys, values][blocks, kv_heads, kKvBlock, head_dim]
  std::unique_ptr<float[], FreeDeleter> data_;
  std::vector<int32_t> references_;  // [blocks] sequences that hold the block
  Copy copy_ = [](float* to, const float* from, int64_t floats) { std::copy_n(from, floats, to); };
  std::vector<int32_t> free_;  // blocks nobody holds, the next to give at the back
};

}  // namespace thermoe
