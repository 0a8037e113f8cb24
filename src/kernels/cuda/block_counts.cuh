// SPDX-License-Identifier: Apache-2.0
// Counts of experts that the blocks of a launch tell each other while it runs, several in a word with a bit that says that they are there: every block reads
// what all tell, which takes one way to the L2 cache and back. Of rows by plain rules; others go by pass_counts.cuh.
#pragma once

#include "kernels/cuda/pass_counts.cuh"

namespace thermoe::cuda {

// Sums of two experts' counts, 16 bits each: of all blocks, and of those before this one.
struct alignas(8) PairSums {
  uint32_t all, before;
};

inline constexpr int kMostParts = 16;

// Experts are padded to 32 kLane. kOfWord: counts of a word, of 6 bits (4) or 14 (2).
template <int kLane, int kOfWord>
class BlockCounts {
 public:
  static constexpr int kColumns = 32 * kLane / kOfWord;                  // words of a block
  static constexpr int kMostRows = kOfWord == 4 ? 63 : 16383;            // of a block
  static constexpr int kPairs = 16 * kLane, kPairsOfWord = kOfWord / 2;
  static constexpr int kOfPart = kColumns < 32 ? 32 : kColumns;          // threads that make one of the parts of the sums
  static constexpr uint32_t kThere = 1u << 31, kNoNumber = 1u << 15;     // of a word; the second: of a block that has a row whose scores are no numbers

  __device__ explicit BlockCounts(const CountRoom& room) : room_(room), lines_(reinterpret_cast<uint32_t*>(room.words() + kHeadWords)) {}

  // Tells this block's counts, by its first threads. flags: kNoNumber or 0.
  template <typename CountOf>
  __device__ void Tell(const BlockTeam& team, uint32_t flags, CountOf&& count_of) const {
    const int column = team.thread();
    if (column >= kColumns) return;
    uint32_t word = kThere | flags;
#pragma unroll
    for (int i = 0; i < kOfWord; ++i) word |= count_of(column * kOfWord + i) << ShiftOf(i);
    PutWord(lines_ + Block() * kColumns + column, word);
  }

  // By a power of two of threads. Adds up what all tell: a part of the sums by each kOfPart threads, [kPairs] from their place in parts. Returns the flags that this thread has seen. Words that
  // are there are not asked for again.
  __device__ uint32_t AddUp(const BlockTeam& team, PairSums* parts) const {
    constexpr int kLines = 9;  // that a thread waits for together: 132 blocks of 16 warps
    const int column = team.thread() % kColumns, reader = team.thread() / kColumns, readers = team.threads() / kColumns;
    const int each = (Blocks() + readers - 1) >> (31 - __clz(readers)), end = min(Blocks(), (reader + 1) * each);
    const int before = Block() < Blocks() ? Block() : 0;  // for the block that has no rows: where groups begin
    PairSums sums[kPairsOfWord] = {};
    uint32_t flags = 0;
#pragma unroll 1
    for (int line = reader * each; line < reader * each + each; line += kLines) {
      const uint32_t* from = lines_ + line * kColumns + column;
      uint32_t word[kLines], all;
#pragma unroll
      for (int k = 0; k < kLines; ++k) word[k] = line + k < end ? 0 : kThere;
      do {
        all = kThere;
#pragma unroll
        for (int k = 0; k < kLines; ++k) {
          if ((word[k] & kThere) == 0) word[k] = TakeWord(from + k * kColumns);
        }
#pragma unroll
        for (int k = 0; k < kLines; ++k) all &= word[k], flags |= word[k];
      } while (!__all_sync(kAllLanes, all != 0));
      AddLines(word, before - line, sums);
    }
#pragma unroll
    for (int offset = kColumns; offset < 32; offset *= 2) {
#pragma unroll
      for (PairSums& pair : sums) {
        pair.all += __shfl_xor_sync(kAllLanes, pair.all, offset), pair.before += __shfl_xor_sync(kAllLanes, pair.before, offset);
      }
    }
    PairSums* part = parts + team.thread() / kOfPart * kPairs + column * kPairsOfWord;
    if constexpr (kPairsOfWord == 2) {
      if (kColumns >= 32 || Lane() < kColumns) *reinterpret_cast<uint4*>(part) = {sums[0].all, sums[0].before, sums[1].all, sums[1].before};
    } else {
      if (kColumns >= 32 || Lane() < kColumns) *part = sums[0];
    }
    return flags & kNoNumber;
  }

  // The sums of the lane's experts, by a warp, once all parts are there.
  static __device__ void TakeSums(const BlockTeam& team, const PairSums* parts, SlotCounts<kLane>* all, SlotCounts<kLane>* before) {
    constexpr int kMine = kLane > 1 ? kLane / 2 : 1, kTogether = 8;
    PairSums sums[kMine] = {};
    const PairSums* from = parts + Lane() * kLane / 2;
    const int count = team.threads() / kOfPart;
#pragma unroll 1
    for (int first = 0; first < count; first += kTogether, from += kTogether * kPairs) {
#pragma unroll
      for (int part = 0; part < kTogether; ++part) {
#pragma unroll
        for (int i = 0; i < kMine; ++i) {
          const uint2 more = first + part < count ? *reinterpret_cast<const uint2*>(from + part * kPairs + i) : uint2{0, 0};
          sums[i].all += more.x, sums[i].before += more.y;
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kLane; ++i) {
      const int shift = 16 * ((Lane() * kLane + i) % 2);
      all->both_hi[i] = sums[i / 2].all >> shift & 0xffffu, before->both_hi[i] = sums[i / 2].before >> shift & 0xffffu;
    }
  }

  // By one thread of all, whose block has added up.
  __device__ void Leave() const {
    static_assert(kHeadWords + kMostBlocks * kColumns / 2 <= kHalfWords);
    room_.Leave(kHeadWords + Blocks() * kColumns / 2);
  }

 private:
  static constexpr uint32_t kCounts = kOfWord == 4 ? 0x3f3f3f3fu : 0x3fff3fffu;
  static __device__ int Block() { return static_cast<int>(blockIdx.x); }
  static __device__ int Blocks() { return static_cast<int>(gridDim.x) - 1; }  // that tell; the last has no rows
  // Halves of 16 bits are pairs of neighbours.
  static constexpr __device__ int ShiftOf(int i) { return 16 * (i % 2) + 8 * (i / 2); }

  // before: so many of the lines are of blocks before this one.
  template <int kLines>
  static __device__ void AddLines(const uint32_t (&word)[kLines], int before, PairSums (&sums)[kPairsOfWord]) {
    constexpr int kTogether = 4;  // lines whose counts of 6 bits fit a byte
#pragma unroll
    for (int first = 0; first < kLines; first += kTogether) {
      uint32_t all = 0, some = 0;
#pragma unroll
      for (int k = first; k < first + kTogether && k < kLines; ++k) {
        all += word[k] & kCounts;
        if (k < before) some = all;
      }
      if constexpr (kOfWord == 4) {
        sums[0].all += all & 0xff00ffu, sums[1].all += all >> 8 & 0xff00ffu;
        sums[0].before += some & 0xff00ffu, sums[1].before += some >> 8 & 0xff00ffu;
      } else {
        sums[0].all += all, sums[0].before += some;
      }
    }
  }

  CountRoom room_;
  uint32_t* lines_;
};

}  // namespace thermoe::cuda
