// SPDX-License-Identifier: Apache-2.0
#include "runtime/kv_cache.h"

#include <algorithm>
#include <limits>

#include "base/check.h"
#include "base/errors.h"
#include "base/saturating.h"

namespace thermoe {
namespace {

int64_t BlocksFor(int64_t positions) { return positions / kKvBlock + (positions % kKvBlock != 0 ? 1 : 0); }

}  // namespace

int64_t KvCache::BytesFor(const KvShape& shape, int64_t positions) {
  return SaturatingProduct(BlocksFor(positions), kKvBlock, shape.kv_heads, shape.head_dim, shape.layers, 2, sizeof(float));
}

Result<std::unique_ptr<KvCache>> KvCache::Create(const KvShape& shape, int64_t positions) {
  const int64_t blocks = BlocksFor(positions);
  const int64_t bytes = BytesFor(shape, positions);
  const auto refused = [&] {
    return ResourceExhausted("the KV cache of {} positions needs {} bytes, which this machine cannot give; use a smaller --ctx",
                             positions, bytes);
  };
  if (bytes > std::numeric_limits<int64_t>::max() - 64) return refused();
  std::unique_ptr<KvCache> cache(new KvCache(shape, blocks));
  cache->data_.reset(static_cast<float*>(std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64))));
  if (cache->data_ == nullptr) return refused();
  cache->free_.resize(static_cast<size_t>(blocks));
  for (int64_t b = 0; b < blocks; ++b) cache->free_[static_cast<size_t>(b)] = static_cast<int32_t>(blocks - 1 - b);
  return cache;
}

KvLayer KvCache::layer(int32_t index) const {
  const int64_t plane = total_blocks() * block_floats();
  float* keys = data_.get() + 2 * index * plane;
  return {keys, keys + plane, shape_.kv_heads, shape_.head_dim};
}

void KvCache::CopyBlock(int32_t from, int32_t to) {
  for (int32_t l = 0; l < shape_.layers; ++l) {
    const KvLayer at = layer(l);
    for (float* base : {at.keys, at.values})
      copy_(base + to * block_floats(), base + from * block_floats(), block_floats());
  }
}

void KvCache::Drop(int32_t block) {
  int32_t& references = references_[static_cast<size_t>(block)];
  THERMOE_CHECK(references > 0);
  if (--references == 0) free_.push_back(block);
}

Status KvCache::Reserve(KvSequence* sequence, int32_t length) {
  const auto have = static_cast<int64_t>(sequence->blocks.size());
  const int64_t want = BlocksFor(length);
  // The block that the next position falls into may be shared with a fork, or hold what a truncation left.
  const int64_t first = sequence->length / kKvBlock;
  const bool copy = first < have && length > sequence->length &&
                    references_[static_cast<size_t>(sequence->blocks[static_cast<size_t>(first)])] > 1;
  const int64_t needed = std::max<int64_t>(0, want - have) + (copy ? 1 : 0);
  if (needed > free_blocks()) {
    return ResourceExhausted("the KV cache has {} free blocks of {} positions but {} are needed; close sessions or raise max_sequences",
                             free_blocks(), kKvBlock, needed);
  }
  const auto take = [&] {
    const int32_t block = free_.back();
    free_.pop_back();
    references_[static_cast<size_t>(block)] = 1;
    return block;
  };
  if (copy) {
    const int32_t fresh = take();
    int32_t& shared = sequence->blocks[static_cast<size_t>(first)];
    CopyBlock(shared, fresh);
    Drop(shared);
    shared = fresh;
  }
  while (static_cast<int64_t>(sequence->blocks.size()) < want) sequence->blocks.push_back(take());
  return Status::Ok();
}

void KvCache::Truncate(KvSequence* sequence, int32_t length) {
  const auto keep = static_cast<size_t>(BlocksFor(length));
  while (sequence->blocks.size() > keep) {
    Drop(sequence->blocks.back());
    sequence->blocks.pop_back();
  }
  sequence->length = std::min(sequence->length, length);
}

KvSequence KvCache::Fork(const KvSequence& sequence) {
  KvSequence fork = sequence;
  fork.blocks.resize(static_cast<size_t>(BlocksFor(fork.length)));  // blocks reserved but unwritten stay with the parent
  for (const int32_t block : fork.blocks) ++references_[static_cast<size_t>(block)];
  return fork;
}

}  // namespace thermoe
