// SPDX-License-Identifier: Apache-2.0
// The merge loop shared by byte-pair encoding (Sennrich et al. 2016) and SentencePiece's BPE: as long as
// neighbours can be merged, merge the pair of the lowest rank, the leftmost among equals.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "thermoe/tokenizer.h"

namespace thermoe {

// A piece of the word: bytes [begin, end), and the token it is so far (kNoToken if it is none).
struct MergeSymbol {
  uint32_t begin = 0;
  uint32_t end = 0;
  TokenId id = kNoToken;
};

inline constexpr uint32_t kNoRank = UINT32_MAX;

// What merging two neighbours would give.
struct MergeOutcome {
  uint32_t rank = kNoRank;  // kNoRank: they do not merge
  TokenId id = kNoToken;
};

// Up to here the loop looks at all pairs each time, which beats a heap on the short words of ordinary text.
inline constexpr size_t kMergeScanLimit = 40;

// One thread's working space, reused from word to word.
struct MergeScratch {
  struct Candidate {
    uint32_t rank;
    uint32_t left;                 // index of the left symbol
    uint32_t left_end, right_end;  // the bytes both had when this was found: tells stale candidates
    TokenId id;
    bool operator>(const Candidate& other) const { return rank != other.rank ? rank > other.rank : left > other.left; }
  };
  std::vector<MergeSymbol> symbols;  // set by the caller, then merged in place
  std::vector<MergeOutcome> pairs;   // [symbols - 1]
  std::vector<uint32_t> previous, next;
  std::vector<Candidate> heap;
};

// `outcome(left, right)` tells what two neighbouring symbols give.
template <typename Outcome>
void MergeByScan(MergeScratch* scratch, const Outcome& outcome) {
  auto& symbols = scratch->symbols;
  auto& pairs = scratch->pairs;
  pairs.clear();
  for (size_t i = 0; i + 1 < symbols.size(); ++i) pairs.push_back(outcome(symbols[i], symbols[i + 1]));
  while (!pairs.empty()) {
    size_t best = 0;
    for (size_t i = 1; i < pairs.size(); ++i) {
      if (pairs[i].rank < pairs[best].rank) best = i;
    }
    if (pairs[best].rank == kNoRank) return;
    symbols[best].end = symbols[best + 1].end;
    symbols[best].id = pairs[best].id;
    symbols.erase(symbols.begin() + static_cast<ptrdiff_t>(best) + 1);
    pairs.erase(pairs.begin() + static_cast<ptrdiff_t>(best));
    if (best < pairs.size()) pairs[best] = outcome(symbols[best], symbols[best + 1]);
    if (best > 0) pairs[best - 1] = outcome(symbols[best - 1], symbols[best]);
  }
}

// The same in O(n log n): a linked list of symbols and a heap of candidates.
template <typename Outcome>
void MergeByHeap(MergeScratch* scratch, const Outcome& outcome) {
  auto& symbols = scratch->symbols;
  auto& heap = scratch->heap;
  auto& previous = scratch->previous;
  auto& next = scratch->next;
  const auto count = static_cast<uint32_t>(symbols.size());
  heap.clear();
  previous.resize(count);
  next.resize(count);
  const auto candidate = [&](uint32_t left, uint32_t right) {
    const MergeOutcome merged = outcome(symbols[left], symbols[right]);
    return MergeScratch::Candidate{merged.rank, left, symbols[left].end, symbols[right].end, merged.id};
  };
  const auto push = [&](uint32_t left, uint32_t right) {
    const auto c = candidate(left, right);
    if (c.rank == kNoRank) return;
    heap.push_back(c);
    std::push_heap(heap.begin(), heap.end(), std::greater<>());
  };
  for (uint32_t i = 0; i < count; ++i) {
    previous[i] = i - 1;  // wraps for the first, which is never followed
    next[i] = i + 1;      // count: none
    if (i + 1 < count) {
      const auto c = candidate(i, i + 1);
      if (c.rank != kNoRank) heap.push_back(c);
    }
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    const auto c = heap.back();
    heap.pop_back();
    MergeSymbol& left = symbols[c.left];
    const uint32_t right = next[c.left];
    // A symbol that was merged away has end == begin; one that grew has another end.
    if (left.end == left.begin || left.end != c.left_end || right == count) continue;
    if (symbols[right].end != c.right_end) continue;
    left.end = symbols[right].end;
    left.id = c.id;
    symbols[right].end = symbols[right].begin;
    next[c.left] = next[right];
    if (next[c.left] != count) {
      previous[next[c.left]] = c.left;
      push(c.left, next[c.left]);
    }
    if (c.left != 0) push(previous[c.left], c.left);
  }
  std::erase_if(symbols, [](const MergeSymbol& s) { return s.end == s.begin; });
}

template <typename Outcome>
void MergeSymbols(MergeScratch* scratch, const Outcome& outcome) {
  if (scratch->symbols.size() <= kMergeScanLimit) {
    MergeByScan(scratch, outcome);
  } else {
    MergeByHeap(scratch, outcome);
  }
}

}  // namespace thermoe
