// SPDX-License-Identifier: Apache-2.0
// Plain choices of four rows by a warp, eight lanes a row, for launches whose rows keep all multiprocessors busy: fewest instructions a row, where choose.cuh has the
// shortest way for one. Scores, choices and sums are the same to the bit.
#pragma once

#include "kernels/cuda/choose.cuh"

namespace thermoe::cuda {

inline constexpr int kRowLanes = 8, kWarpRows = 32 / kRowLanes;
inline constexpr int kListed = kRowLanes;  // the best of a row that its lanes know: a slot a lane, at most

// Of 128 experts at most. Lane j of a row has, as q of four parts, what lane j + 8 q of a warp has that chooses for one row.
template <int kLane>
inline constexpr int kOwn = 4 * kLane;
template <int kLane>
__device__ int OwnExpert(int i) { return (Lane() % kRowLanes + kRowLanes * (i / kLane)) * kLane + i % kLane; }

template <int kLane>
struct OwnLogits {
  kernels::RowKind kind;
  float of[kOwn<kLane>];
};

// Of row t, if there is one.
template <bool kVectors, int kLane>
__device__ void ReadOwn(const SelectLaunch& l, int t, OwnLogits<kLane>* own) {
  if (t >= l.rows) return;
  const float* row = l.logits + static_cast<int64_t>(t) * l.experts;
#pragma unroll
  for (int i = 0; i < kOwn<kLane>; i += kVectors ? kLane : 1) {
    const int e = OwnExpert<kLane>(i);
    if constexpr (kVectors) {
      static_assert(kLane == 4);
      const float4 all = e < l.experts ? __ldcg(reinterpret_cast<const float4*>(row + e)) : float4{-INFINITY, -INFINITY, -INFINITY, -INFINITY};
      own->of[i] = all.x, own->of[i + 1] = all.y, own->of[i + 2] = all.z, own->of[i + 3] = all.w;
    } else {
      own->of[i] = e < l.experts ? __ldcg(row + e) : -INFINITY;
    }
  }
  own->kind = l.kinds[t];
}

// Keys that fall as scores do: those of exponentials from 2^-31 to 1 without their last bits, and the expert in their place, the lower first.
template <int kLane>
struct ListKeys {
  static constexpr int kExpertBits = kLane == 1 ? 5 : kLane == 2 ? 6 : 7;
  static_assert(32 * kLane == 1 << kExpertBits);
  static constexpr uint32_t kLastExpert = (1u << kExpertBits) - 1;
  // Keys that are further apart are of scores that differ, and in this order.
  static constexpr uint32_t kNear = 2u << kExpertBits;
  static __device__ uint32_t Of(float exponential, int expert) {
    const uint32_t bits = max(__float_as_uint(exponential), 0x30000000u);  // the upper four are the same of all
    return (bits & ~(kLastExpert >> 4)) * 16 + (kLastExpert - static_cast<uint32_t>(expert));
  }
  static __device__ int Expert(uint32_t key) { return static_cast<int>(kLastExpert - (key & kLastExpert)); }
};

__device__ inline void SortPair(uint32_t& a, uint32_t& b) {
  const uint32_t low = min(a, b);
  a = max(a, b), b = low;
}
// Falling, of keys that rise and then fall or the other way round.
__device__ inline void SortBitonic(uint32_t (&key)[kListed]) {
#pragma unroll
  for (int step = kListed / 2; step > 0; step /= 2) {
#pragma unroll
    for (int i = 0; i < kListed; ++i) {
      if ((i & step) == 0) SortPair(key[i], key[i + step]);
    }
  }
}
// Falling (Batcher's network of 19).
__device__ inline void SortEight(uint32_t (&key)[kListed]) {
  constexpr int kPairs[19][2] = {{0, 1}, {2, 3}, {4, 5}, {6, 7}, {0, 2}, {1, 3}, {4, 6}, {5, 7}, {1, 2}, {5, 6},
                                 {0, 4}, {1, 5}, {2, 6}, {3, 7}, {2, 4}, {3, 5}, {1, 2}, {3, 4}, {5, 6}};
#pragma unroll
  for (const auto& pair : kPairs) SortPair(key[pair[0]], key[pair[1]]);
}
// The best of both lists, which fall.
__device__ inline void MergeLists(uint32_t (&key)[kListed], const uint32_t (&other)[kListed]) {
#pragma unroll
  for (int i = 0; i < kListed; ++i) key[i] = max(key[i], other[kListed - 1 - i]);
  SortBitonic(key);
}

// The best of a lane's own.
template <int kLane>
__device__ void ListOwn(const float (&e)[kOwn<kLane>], uint32_t (&list)[kListed]) {
#pragma unroll
  for (int i = 0; i < kListed; ++i) list[i] = i < kOwn<kLane> ? ListKeys<kLane>::Of(e[i % kOwn<kLane>], OwnExpert<kLane>(i % kOwn<kLane>)) : 0;
  SortEight(list);
  if constexpr (kOwn<kLane> > kListed) {
    uint32_t more[kListed];
#pragma unroll
    for (int i = 0; i < kListed; ++i) more[i] = ListKeys<kLane>::Of(e[kListed + i], OwnExpert<kLane>(kListed + i));
    SortEight(more);
    MergeLists(list, more);
  }
}

// A slot a lane.
struct ListedSlot {
  int expert;
  float score;
  bool sure;  // of the lane's slot
};

// The best `count` of a row by its lanes' exponentials, which are in `row` as well. Not sure where scores are equal or nearly so, or none is a number.
template <int kLane>
__device__ ListedSlot ListBest(int count, const float (&e)[kOwn<kLane>], const DivideBy& divide, const float* row) {
  using Keys = ListKeys<kLane>;
  uint32_t list[kListed], own[kListed];
  ListOwn<kLane>(e, list);
#pragma unroll
  for (int i = 0; i < kListed; ++i) own[i] = list[i];
#pragma unroll
  for (int offset = 1; offset < kRowLanes; offset *= 2) {
    uint32_t other[kListed];
#pragma unroll
    for (int i = 0; i < kListed; ++i) other[i] = __shfl_xor_sync(kAllLanes, list[i], offset);
    MergeLists(list, other);
  }
  const int lane = Lane() % kRowLanes;
#pragma unroll
  for (int step = kListed / 2; step > 0; step /= 2) {
#pragma unroll
    for (int i = 0; i < step; ++i) list[i] = (lane & step) != 0 ? list[i + step] : list[i];
  }
  const uint32_t key = list[0];
  ListedSlot slot;
  slot.expert = Keys::Expert(key);
  slot.score = divide(row[slot.expert]);
  const float next = __shfl_down_sync(kAllLanes, slot.score, 1, kRowLanes);
  const int next_expert = __shfl_down_sync(kAllLanes, slot.expert, 1, kRowLanes);
  const uint32_t last = __shfl_sync(kAllLanes, key, count - 1, kRowLanes);
  slot.sure = (lane + 1 >= count) | (slot.score > next) | ((slot.score == next) & (slot.expert < next_expert));
  slot.sure &= slot.score == slot.score;
#pragma unroll
  for (int i = 0; i + 1 < kListed; ++i) slot.sure &= last - 1 - own[i] >= Keys::kNear;  // those that are as good as the last wrap round
  slot.sure &= last - own[kListed - 1] > Keys::kNear;  // what this lane has not listed is below it
  return slot;
}

// The choice of one row by all lanes, slot by slot. e: its exponentials; sum: of these.
template <int kLane>
THERMOE_RARE void ChooseSurely(int count, const float* e, float sum, WarpRoom* room) {
  const DivideBy divide(sum);
  Token<kLane> scores;
#pragma unroll
  for (int i = 0; i < kLane; ++i) scores.of[i] = divide(e[Lane() * kLane + i]);
  __syncwarp();
  ExtendAsking<true>(count, ScoreKeys(scores), room, {});
  __syncwarp();
}

// What a warp of such rows shares. E is padded to 32 kLane.
template <int kLane>
struct RowsRoom {
  alignas(16) float e[kWarpRows][32 * kLane];  // exponentials of logits
  WarpRoom sure;
};

// The choice of the lane's row t by plain rules, written to the selection: the group of the lane's slot, as GroupOf has it. there: whether there is such a row.
// no_numbers: set where its scores are none.
template <int kLane>
__device__ int ChooseOwn(const SelectLaunch& l, int t, bool there, const OwnLogits<kLane>& own, RowsRoom<kLane>* room, bool* no_numbers) {
  const int lane = Lane() % kRowLanes, row = Lane() / kRowLanes;
  const bool chooses = there && own.kind != kernels::RowKind::kPadding;
  float most = -INFINITY;
#pragma unroll
  for (const float logit : own.of) most = fmaxf(most, logit);
#pragma unroll
  for (int offset = 1; offset < kRowLanes; offset *= 2) most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, offset));
  // Added as SoftmaxOf does.
  float e[kOwn<kLane>], sums[4] = {};
#pragma unroll
  for (int i = 0; i < kOwn<kLane>; ++i) e[i] = expf(own.of[i] - most), sums[i / kLane] += e[i];
  float sum = (sums[0] + sums[2]) + (sums[1] + sums[3]);
#pragma unroll
  for (int offset = kRowLanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(kAllLanes, sum, offset);
  __syncwarp();
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    float* to = &room->e[row][(lane + kRowLanes * q) * kLane];
    if constexpr (kLane == 4) *reinterpret_cast<float4*>(to) = {e[4 * q], e[4 * q + 1], e[4 * q + 2], e[4 * q + 3]};
    else if constexpr (kLane == 2) *reinterpret_cast<float2*>(to) = {e[2 * q], e[2 * q + 1]};
    else *to = e[q];
  }
  __syncwarp();
  const DivideBy divide(sum);
  ListedSlot slot = ListBest<kLane>(l.slots, e, divide, room->e[row]);
  uint32_t unsure = __ballot_sync(kAllLanes, chooses && !slot.sure);
  while (unsure != 0) [[unlikely]] {
    const int other = (__ffs(static_cast<int>(unsure)) - 1) / kRowLanes;
    ChooseSurely<kLane>(l.slots, room->e[other], __shfl_sync(kAllLanes, sum, other * kRowLanes), &room->sure);
    if (row == other && lane < l.slots) {
      slot.expert = static_cast<int>(room->sure.slot[lane].y), slot.score = __uint_as_float(room->sure.slot[lane].x & 0x7fffffffu);
    }
    unsure &= ~(0xffu << (other * kRowLanes));
  }
  float mass = 0;
#pragma unroll
  for (int i = 0; i < kListed; ++i) {
    const float score = __shfl_sync(kAllLanes, slot.score, i, kRowLanes);
    mass += i < l.slots ? score : 0.0f;
  }
  *no_numbers = chooses && mass != mass;
  const float weight = l.normalise ? DivideBy(mass)(slot.score) : slot.score;
  if (const int at = t * l.slots + lane; there && lane < l.slots) {
    l.expert[at] = chooses ? slot.expert : -1;
    l.weight[at] = chooses ? weight : 0.0f;
    l.planes[at] = Planes::kBoth;
  }
  if (l.scores != nullptr && chooses) [[unlikely]] {
#pragma unroll 1
    for (int i = 0; i < kOwn<kLane>; ++i) {
      if (const int expert = OwnExpert<kLane>(i); expert < l.experts) l.scores[static_cast<int64_t>(t) * l.experts + expert] = divide(room->e[row][expert]);
    }
  }
  return chooses && lane < l.slots ? 2 * slot.expert : -1;
}

}  // namespace thermoe::cuda
