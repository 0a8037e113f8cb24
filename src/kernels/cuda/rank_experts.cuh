// SPDX-License-Identifier: Apache-2.0
// A warp's experts by rank, lane l holding experts l * kLane + i, and the best of them in slots. What choose.cuh chooses by.
#pragma once

#include <cstdint>

#include "kernels/cuda/warp.cuh"

namespace thermoe::cuda {

__device__ inline int Lane() { return static_cast<int>(threadIdx.x % 32); }

// Rises with value; what is not a number is least but for 0, which is of no value.
inline constexpr uint32_t kKeyOfNaN = 1;
__device__ inline uint32_t Ordered(float value) {
  const uint32_t bits = __float_as_uint(value);
  return value != value ? kKeyOfNaN : bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000u);
}
__device__ inline float FromOrdered(uint32_t key) {
  return key <= kKeyOfNaN ? NAN : __uint_as_float(key ^ (~static_cast<uint32_t>(static_cast<int32_t>(key) >> 31) | 0x80000000u));
}

// A value of each of the lane's experts.
template <typename T, int kLane>
struct OfLane {
  T of[kLane];
};

// What steering that is off does not need is in functions of its own, not inlined, so that it does not stand in the way of the code that comes anew with every launch
// (launch_early.cuh). They take values, not addresses, which would keep what is theirs out of registers.
#define THERMOE_RARE __device__ __noinline__

// A lane's experts by falling rank, the lower expert first among equals. Short lists are sorted once; of long ones the first is brought to the front.
template <int kLane>
struct Ranking {
  static constexpr bool kSorted = kLane <= 8;
  uint32_t key[kLane];  // Ordered of the rank; 0: none left
  int32_t expert[kLane];
};

// Swaps two places if the second comes before the first.
template <int kLane>
__device__ void Sort2(Ranking<kLane>* ranking, int a, int b) {
  const uint32_t key_a = ranking->key[a], key_b = ranking->key[b];
  const int32_t expert_a = ranking->expert[a], expert_b = ranking->expert[b];
  // Sorted lists swap only neighbours, so that equals keep their order.
  const bool swap = key_b > key_a || (!Ranking<kLane>::kSorted && key_b == key_a && expert_b < expert_a);
  ranking->key[a] = swap ? key_b : key_a, ranking->key[b] = swap ? key_a : key_b;
  ranking->expert[a] = swap ? expert_b : expert_a, ranking->expert[b] = swap ? expert_a : expert_b;
}

template <int kLane>
__device__ void BringFirst(Ranking<kLane>* ranking) {
#pragma unroll
  for (int i = 1; i < kLane; ++i) Sort2(ranking, 0, i);
}

// Sorts it, anew where keys have become 0.
template <int kLane>
__device__ void SortRanking(Ranking<kLane>* ranking) {
  if constexpr (Ranking<kLane>::kSorted) {
#pragma unroll
    for (int pass = 0; pass < kLane; ++pass) {
#pragma unroll
      for (int i = pass % 2; i + 1 < kLane; i += 2) Sort2(ranking, i, i + 1);
    }
  } else {
    BringFirst(ranking);
  }
}

template <int kLane>
__device__ Ranking<kLane> RankExperts(const OfLane<uint32_t, kLane>& keys) {
  Ranking<kLane> ranking;
#pragma unroll
  for (int i = 0; i < kLane; ++i) ranking.key[i] = keys.of[i], ranking.expert[i] = Lane() * kLane + i;
  SortRanking(&ranking);
  return ranking;
}

// Removes the first if it is `taken`. Without branches where the list is short.
template <int kLane>
__device__ void RemoveFirst(bool taken, Ranking<kLane>* ranking) {
  if constexpr (Ranking<kLane>::kSorted) {
#pragma unroll
    for (int i = 0; i < kLane; ++i) {
      ranking->key[i] = !taken ? ranking->key[i] : i + 1 < kLane ? ranking->key[i + 1] : 0;
      if (i + 1 < kLane) ranking->expert[i] = taken ? ranking->expert[i + 1] : ranking->expert[i];
    }
  } else if (taken) {
    ranking->key[0] = 0;
    BringFirst(ranking);
  }
}

// Where a warp's lanes put what they choose. In shared memory.
struct WarpRoom {
  uint2 slot[32];  // rank, as Ordered or as its bits are; expert, in the lowest byte or the whole word (PutBest, others)
};

// Whether a lane puts what it has into a place. Where several would, one word by chance, it is worth nothing, and which does it does not matter; racecheck, which reports
// such writes, is given the lowest's alone.
__device__ inline bool PutsAlone(bool puts) {
#ifdef THERMOE_RACECHECK
  const uint32_t all = __ballot_sync(kAllLanes, puts);
  return puts && (all & ((1u << Lane()) - 1)) == 0;
#else
  return puts;
#endif
}

// What a warp has chosen so far.
struct Choice {
  int count = 0;   // slots in its WarpRoom
  float mass = 0;  // their ranks, added in order: meant for scores, which are not negative
};

// Fills places up to `target` by rank, as far as the ranking goes. kEndless: it goes that far. kAsks: of lanes whose best are equal the lowest comes first; without
// asking, which is quicker, all do, and what it did is worth nothing: false.
template <bool kEndless, bool kAsks, int kLane>
__device__ bool ExtendOnce(int target, Ranking<kLane>* ranking, WarpRoom* room, Choice* choice) {
  const uint32_t below = (1u << Lane()) - 1;
  uint32_t equal = 0, others = 0;
  uint2* slot = &room->slot[choice->count];
#pragma unroll 1
  for (; choice->count < target; ++choice->count, ++slot) {
    const uint32_t top = __reduce_max_sync(kAllLanes, ranking->key[0]);
    others |= equal & (equal - 1);  // of the place before, which nothing waits for here
    if (!kEndless && top == 0) break;
    const bool best = ranking->key[0] == top;
    equal = __ballot_sync(kAllLanes, best);
    const bool first = best && (!kAsks || (equal & below) == 0);
    if (PutsAlone(first)) *slot = {top, static_cast<uint32_t>(ranking->expert[0])};
    RemoveFirst(first, ranking);
    choice->mass += __uint_as_float(top & 0x7fffffffu);
  }
  return kAsks || (others | (equal & (equal - 1))) == 0;
}

template <bool kEndless, int kLane>
THERMOE_RARE Choice ExtendAsking(int target, OfLane<uint32_t, kLane> keys, WarpRoom* room, Choice choice) {
  Ranking<kLane> ranking = RankExperts(keys);
  ExtendOnce<kEndless, true>(target, &ranking, room, &choice);
  return choice;
}

// The same by the lane's keys: ranks as Ordered, 0 of what may not be chosen.
template <bool kEndless, int kLane>
__device__ void Extend(int target, const OfLane<uint32_t, kLane>& keys, WarpRoom* room, Choice* choice) {
  const Choice before = *choice;
  Ranking<kLane> ranking = RankExperts(keys);
  if (ExtendOnce<kEndless, false>(target, &ranking, room, choice)) [[likely]] return;
  __syncwarp();
  *choice = ExtendAsking<kEndless>(target, keys, room, before);
}

// The lane's experts by falling score, the lower first among equals: bits of scores, which are not negative; and a byte each, the best expert's lowest.
template <int kLane>
struct ScoreRanking {
  static_assert(Ranking<kLane>::kSorted);  // of 256 experts at most
  int32_t key[kLane];                      // -1: none left
  uint32_t experts[(kLane + 3) / 4];
};

// Swaps places a and a + 1 if the second comes before the first.
template <int kLane>
__device__ void SortNeighbours(ScoreRanking<kLane>* ranking, int a) {
  const int32_t key = ranking->key[a], next = ranking->key[a + 1];
  uint32_t &low = ranking->experts[a / 4], &high = ranking->experts[(a + 1) / 4];
  const bool swap = next > key;
  ranking->key[a] = max(key, next), ranking->key[a + 1] = min(key, next);
  if (a % 4 < 3) {
    low = swap ? __byte_perm(low, 0, a % 4 == 0 ? 0x3201 : a % 4 == 1 ? 0x3120 : 0x2310) : low;
  } else {
    const uint32_t before = low;
    low = swap ? __byte_perm(low, high, 0x4210) : low, high = swap ? __byte_perm(high, before, 0x3217) : high;
  }
}

template <int kLane>
__device__ ScoreRanking<kLane> RankScores(const OfLane<float, kLane>& scores) {
  ScoreRanking<kLane> ranking;
#pragma unroll
  for (int i = 0; i < kLane; ++i) ranking.key[i] = __float_as_int(scores.of[i]);
#pragma unroll
  for (int i = 0; i < (kLane + 3) / 4; ++i) ranking.experts[i] = 0x03020100u + static_cast<uint32_t>(Lane() * kLane + 4 * i) * 0x01010101u;
#pragma unroll
  for (int pass = 0; pass < kLane; ++pass) {
#pragma unroll
    for (int i = pass % 2; i + 1 < kLane; i += 2) SortNeighbours(&ranking, i);
  }
  return ranking;
}

// What PutBest did for a row: the scores' sum, in order; and how many this lane has put. Where that is more than `count` in all, lanes whose best are equal have put them into
// one place, and it is worth nothing.
struct Put {
  float mass = 0;
  int taken = 0;
};

// Fills slots [0, count) of each row's room with the best by score: its bits, and the expert in the lowest byte. There are as many experts. Rows wait for reductions
// side by side.
template <int kUnroll, int kRows, int kLane>
__device__ void PutBest(int count, const OfLane<float, kLane> (&scores)[kRows], WarpRoom* const (&rooms)[kRows], Put (&put)[kRows]) {
  ScoreRanking<kLane> ranking[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) ranking[r] = RankScores(scores[r]);
#pragma unroll kUnroll
  for (int i = 0; i < count; ++i) {
    int32_t top[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) top[r] = __reduce_max_sync(kAllLanes, ranking[r].key[0]);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      auto& [key, experts] = ranking[r];
      put[r].mass += __int_as_float(top[r]);
      const bool best = key[0] == top[r], puts = PutsAlone(best);
      if (!best) continue;
      if (puts) rooms[r]->slot[i] = {static_cast<uint32_t>(key[0]), experts[0]};
#pragma unroll
      for (int j = 0; j + 1 < kLane; ++j) key[j] = key[j + 1];
      key[kLane - 1] = -1;
      if constexpr (kLane > 4) experts[0] = __funnelshift_r(experts[0], experts[1], 8), experts[1] >>= 8;
      else experts[0] >>= 8;
      ++put[r].taken;
    }
  }
}

template <int kLane, typename Rank>
__device__ OfLane<uint32_t, kLane> KeysOf(uint32_t allowed, const Rank& rank) {
  OfLane<uint32_t, kLane> keys;
#pragma unroll
  for (int i = 0; i < kLane; ++i) keys.of[i] = Ordered(rank(i)) & (0u - (allowed >> i & 1));  // no branches
  return keys;
}

}  // namespace thermoe::cuda
