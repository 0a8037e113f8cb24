// SPDX-License-Identifier: Apache-2.0
// Counts of steered rows (block_counts.cuh has plain ones') that the blocks of a launch tell each other while it runs, in words that say how many blocks are in them: whoever reads one sees whether all is there, which
// takes one way to the L2 cache and back; counts behind a barrier take three.
#pragma once

#include "kernels/cuda/choose_lists.cuh"

namespace thermoe::cuda {

// Blocks are in sections. A block adds its counts to its section's and leaves them for those of its section that come after it.
inline constexpr int kSection = 16;
inline constexpr int kMostBlocks = kSection * kSection;
inline constexpr int kCountsOfWord = 3;  // of 16 bits; the upper ones are the number of blocks
inline constexpr int kBlocksShift = 16 * kCountsOfWord;
inline constexpr int kMostCounts = 2 * kernels::kMaxExperts;
inline constexpr int kMostColumns = (kMostCounts + kCountsOfWord - 1) / kCountsOfWord;
// In memory: the state, then two halves: a word that counts blocks, then, of PassedCounts, words of sections [columns, sections, even], then of blocks [sections, columns, kSection].
inline constexpr int kHeadWords = 16, kHalfWords = kHeadWords + kMostColumns * (kSection + kMostBlocks);
static_assert(kSelectCounted == kHeadWords + 2 * kHalfWords);

// Counts of all blocks, and of those before this one.
struct CountSums {
  uint32_t all, before;
};

// A launch has one half, whose words are 0 when it begins, and clears what the launch before used of the other.
class CountRoom {
 public:
  // After the launch before has ended. state: what ReadState gave.
  static __device__ uint64_t ReadState(const uint64_t* counted) { return __ldcg(counted); }
  __device__ CountRoom(uint64_t* counted, uint64_t state) : counted_(counted), half_(static_cast<int>(state & 1)) {
    const int used = static_cast<int>(state >> 1);
    uint64_t* others = Half(1 - half_);
#pragma unroll 1
    for (int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); i < used; i += static_cast<int>(gridDim.x * blockDim.x)) others[i] = 0;
  }
  __device__ uint64_t* words() const { return Half(half_); }

  // What the next launch has to know, by one thread of all, whose block has added up. used: words of the half, from its first one.
  __device__ void Leave(int used) const { *counted_ = static_cast<uint64_t>(used) << 1 | static_cast<uint64_t>(1 - half_); }

 private:
  __device__ uint64_t* Half(int half) const { return counted_ + kHeadWords + half * kHalfWords; }

  uint64_t* counted_;
  int half_;
};

class PassedCounts {
 public:
  __device__ explicit PassedCounts(const CountRoom& room) : room_(room), words_(room.words()) {}

  // Tells this block's counts [0, counts), by all of its threads. count_at: of what there is not it may say anything.
  template <typename CountAt>
  __device__ void Tell(const BlockTeam& team, int counts, CountAt&& count_at) const {
    uint64_t* const of_section = OfSections() + Block() / kSection;
    uint64_t* const of_block = OfBlocks(counts) + Block() % kSection;
#pragma unroll 1
    for (int column = team.thread(); column < Columns(counts); column += team.threads()) {
      uint64_t word = uint64_t{1} << kBlocksShift;
#pragma unroll
      for (int k = 0; k < kCountsOfWord; ++k) {
        const int i = column * kCountsOfWord + k;
        const uint32_t count = count_at(i);
        word += static_cast<uint64_t>(i < counts ? count : 0) << (16 * k);
      }
      Add(of_section + column * Sections(), word);
      PutWord(of_block + column * kSection, word);
    }
    if (team.thread() == 0) Add(words_, 1);
  }

  // Adds up what all tell, into sums [counts, rounded up to whole words]. Nobody looks for words before most are there: all would look at the same
  // ones, over and over, and stand in the way of those that come.
  __device__ void AddUp(const BlockTeam& team, int counts, CountSums* sums) const {
    constexpr int kReaders = kSection / 2;  // lanes of a column, of two sections and two blocks each
    if (team.warp() == team.warps() - 1) {
      while (TakeWord(words_) < static_cast<uint64_t>(Blocks())) {
      }
    }
    team.Meet();
    const int reader = Lane() % kReaders, section = Block() / kSection, place = Block() % kSection;
    uint32_t here[2];  // blocks
#pragma unroll
    for (int j = 0; j < 2; ++j) here[j] = static_cast<uint32_t>(min(max(Blocks() - (2 * reader + j) * kSection, 0), kSection));
#pragma unroll 1
    for (int first = team.warp() * (32 / kReaders); first < Columns(counts); first += team.threads() / kReaders) {
      const int column = first + Lane() / kReaders, from = min(column, Columns(counts) - 1);
      const uint64_t* of_sections = OfSections() + from * Sections() + 2 * reader;
      const uint64_t* of_blocks = OfBlocks(counts) + from * kSection + 2 * reader;
      uint64_t sums_of[2] = {}, of[2] = {};
      bool there;
      do {
        if (here[0] > 0) TakeTwo(of_sections, sums_of);
        if (2 * reader < place) TakeTwo(of_blocks, of);
        there = sums_of[0] >> kBlocksShift == here[0] && sums_of[1] >> kBlocksShift == here[1] && (2 * reader >= place || of[0] != 0) &&
                (2 * reader + 1 >= place || of[1] != 0);
      } while (!__all_sync(kAllLanes, there));
      uint64_t all = sums_of[0] + sums_of[1], before = 0;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        before += 2 * reader + j < section ? sums_of[j] : 0;
        before += 2 * reader + j < place ? of[j] : 0;
      }
      const auto all_third = static_cast<uint32_t>(all >> 32) & 0xffffu, before_third = static_cast<uint32_t>(before >> 32) & 0xffffu;
      uint32_t parts[3] = {static_cast<uint32_t>(all), static_cast<uint32_t>(before), all_third | before_third << 16};
#pragma unroll
      for (int offset = kReaders / 2; offset > 0; offset /= 2) {
#pragma unroll
        for (uint32_t& part : parts) part += __shfl_xor_sync(kAllLanes, part, offset);
      }
      if (reader < kCountsOfWord && column < Columns(counts)) {
        sums[column * kCountsOfWord + reader] = reader == 0   ? CountSums{parts[0] & 0xffffu, parts[1] & 0xffffu}
                                                : reader == 1 ? CountSums{parts[0] >> 16, parts[1] >> 16}
                                                              : CountSums{parts[2] & 0xffffu, parts[2] >> 16};
      }
    }
  }

  // By one thread of all, whose block has added up.
  __device__ void Leave(int counts) const {
    room_.Leave(kHeadWords + Columns(counts) * Sections() + (Blocks() + kSection - 1) / kSection * Columns(counts) * kSection);
  }

 private:
  static __device__ int Block() { return static_cast<int>(blockIdx.x); }
  static __device__ int Blocks() { return static_cast<int>(gridDim.x); }
  static __device__ int Columns(int counts) { return (counts + kCountsOfWord - 1) / kCountsOfWord; }
  static __device__ int Sections() { return (Blocks() + 2 * kSection - 1) / (2 * kSection) * 2; }  // even
  __device__ uint64_t* OfSections() const { return words_ + kHeadWords; }
  // Of this block's section.
  __device__ uint64_t* OfBlocks(int counts) const { return OfSections() + Columns(counts) * (Sections() + Block() / kSection * kSection); }
  static __device__ void Add(uint64_t* to, uint64_t word) { asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(to), "l"(word) : "memory"); }
  static __device__ void TakeTwo(const uint64_t* from, uint64_t (&to)[2]) {
    asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(to[0]), "=l"(to[1]) : "l"(from) : "memory");
  }

  CountRoom room_;
  uint64_t* words_;
};

}  // namespace thermoe::cuda
