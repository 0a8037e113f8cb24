// SPDX-License-Identifier: Apache-2.0
#include "runtime/kv_cache.h"

#include <gtest/gtest.h>

#include <map>

#include "base/random.h"

namespace thermoe {
namespace {

constexpr KvShape kShape{2, 1, 4};

std::unique_ptr<KvCache> Make(int64_t positions) { return std::move(KvCache::Create(kShape, positions)).value(); }

float& KeyAt(const KvCache& cache, const KvSequence& sequence, int32_t layer, int32_t position) {
  const KvLayer at = cache.layer(layer);
  return at.keys[at.offset(sequence.blocks[static_cast<size_t>(position / kKvBlock)], 0, position % kKvBlock)];
}

// Appends `count` positions whose keys hold `value`.
void Append(KvCache* cache, KvSequence* sequence, int32_t count, float value) {
  ASSERT_TRUE(cache->Reserve(sequence, sequence->length + count).ok());
  for (int32_t p = sequence->length; p < sequence->length + count; ++p) {
    for (int32_t layer = 0; layer < kShape.layers; ++layer) KeyAt(*cache, *sequence, layer, p) = value + static_cast<float>(layer);
  }
  cache->Commit(sequence, sequence->length + count);
}

TEST(KvCache, ForkSharesUntilEitherWrites) {
  auto cache = Make(16 * kKvBlock);
  KvSequence parent;
  Append(cache.get(), &parent, kKvBlock + 3, 1);
  const int64_t free = cache->free_blocks();
  KvSequence child = cache->Fork(parent);
  EXPECT_EQ(cache->free_blocks(), free);
  EXPECT_EQ(child.blocks, parent.blocks);
  Append(cache.get(), &child, 2, 2);
  EXPECT_EQ(cache->free_blocks(), free - 1);
  EXPECT_EQ(child.blocks[0], parent.blocks[0]);
  EXPECT_NE(child.blocks[1], parent.blocks[1]);
  Append(cache.get(), &parent, 1, 3);  // the parent is the only holder now: no copy
  EXPECT_EQ(cache->free_blocks(), free - 1);
  for (int32_t layer = 0; layer < kShape.layers; ++layer) {
    EXPECT_EQ(KeyAt(*cache, child, layer, kKvBlock + 2), 1 + layer);
    EXPECT_EQ(KeyAt(*cache, child, layer, kKvBlock + 3), 2 + layer);
    EXPECT_EQ(KeyAt(*cache, parent, layer, kKvBlock + 3), 3 + layer);
  }
  cache->Release(&parent);
  cache->Release(&child);
  EXPECT_EQ(cache->free_blocks(), cache->total_blocks());
}

TEST(KvCache, TruncateInsideASharedBlockCopiesOnTheNextWrite) {
  auto cache = Make(8 * kKvBlock);
  KvSequence parent;
  Append(cache.get(), &parent, 10, 1);
  KvSequence child = cache->Fork(parent);
  cache->Truncate(&child, 4);
  Append(cache.get(), &child, 3, 5);
  EXPECT_EQ(KeyAt(*cache, parent, 0, 4), 1);
  EXPECT_EQ(KeyAt(*cache, child, 0, 4), 5);
  EXPECT_EQ(KeyAt(*cache, child, 0, 3), 1);
}

TEST(KvCache, RefusalLeavesTheSequenceAsItWas) {
  auto cache = Make(2 * kKvBlock);
  KvSequence sequence;
  Append(cache.get(), &sequence, 5, 1);
  const Status status = cache->Reserve(&sequence, 3 * kKvBlock);
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(sequence.length, 5);
  EXPECT_EQ(sequence.blocks.size(), 1u);
  EXPECT_EQ(cache->free_blocks(), 1);
}

// Random appends, forks, truncations and releases against a plain model: every sequence keeps its own values.
TEST(KvCache, RandomHistoriesKeepSequencesApart) {
  Random random(11);
  auto cache = Make(64 * kKvBlock);
  std::map<int, std::pair<KvSequence, std::vector<float>>> sequences;
  int next = 0;
  for (int step = 0; step < 3000; ++step) {
    const uint64_t action = random.Below(5);
    if (sequences.empty() || (action == 0 && sequences.size() < 6)) {
      sequences[next++] = {};
      continue;
    }
    auto it = std::next(sequences.begin(), static_cast<long>(random.Below(sequences.size())));
    auto& [sequence, values] = it->second;
    if (action <= 2) {
      const auto count = static_cast<int32_t>(random.Below(40));
      if (sequence.length + count > 10 * kKvBlock) continue;
      Append(cache.get(), &sequence, count, static_cast<float>(step));
      values.insert(values.end(), static_cast<size_t>(count), static_cast<float>(step));
    } else if (action == 3) {
      const auto keep = static_cast<int32_t>(random.Below(static_cast<uint64_t>(sequence.length) + 1));
      cache->Truncate(&sequence, keep);
      values.resize(static_cast<size_t>(keep));
    } else if (sequences.size() < 6) {
      sequences[next++] = {cache->Fork(sequence), values};
    } else {
      cache->Release(&sequence);
      sequences.erase(it);
    }
    for (const auto& [id, held] : sequences) {
      ASSERT_EQ(held.first.length, static_cast<int32_t>(held.second.size()));
      for (int32_t p = 0; p < held.first.length; ++p) ASSERT_EQ(KeyAt(*cache, held.first, 1, p), held.second[static_cast<size_t>(p)] + 1);
    }
  }
  for (auto& [id, held] : sequences) cache->Release(&held.first);
  EXPECT_EQ(cache->free_blocks(), cache->total_blocks());
}

}  // namespace
}  // namespace thermoe
