// SPDX-License-Identifier: Apache-2.0
// A warp chooses for a token: lane l holds the scores of experts l, l + 32, ... Ties go to the lower expert, as on the host.
// What select.cu and gate.cu choose by.
#pragma once

#include <cfloat>

#include "kernels/cuda/select.h"
#include "kernels/cuda/warp.cuh"

namespace thermoe::cuda {

inline constexpr int kOneBlockRows = 256;  // more rows are shared between blocks
inline constexpr int kWords = kernels::kMaxExperts / 32;

// What rows of one decode batch know of each other.
struct Batch {
  uint32_t guaranteed[kWords];         // U: experts that are guaranteed to some decode row; bit e % 32 of word e / 32
  int32_t holders[kernels::kMaxExperts];  // decode rows whose plain choice has the expert
};

// Scores of one token, kLane experts a lane.
template <int kLane>
struct Token {
  float score[kLane];
  uint32_t held = 0;  // bit i: expert lane + 32 i is chosen already
};

struct Chosen {
  int32_t expert = -1;  // lane i: the i-th slot's
  float score = 0;
  int count = 0;        // the same in every lane
};

__device__ inline uint32_t Ordered(float value) {  // rises with value; what is not a number is least
  if (isnan(value)) return 0;
  const uint32_t bits = __float_as_uint(value);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Which expert has the largest rank among those that are free; -1: none.
template <int kLane, typename Rank>
__device__ int Best(const Token<kLane>& token, uint32_t free, Rank&& rank) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  uint32_t most = 0;
  int at = INT32_MAX;
#pragma unroll
  for (int i = 0; i < kLane; ++i) {
    if (!(free >> i & 1)) continue;
    const uint32_t key = Ordered(rank(i));
    if (at == INT32_MAX || key > most) most = key, at = lane + 32 * i;
  }
  const uint32_t top = __reduce_max_sync(kAllLanes, at == INT32_MAX ? 0 : most);
  const uint32_t winner = __reduce_min_sync(kAllLanes, at != INT32_MAX && most == top ? static_cast<uint32_t>(at) : 0xffffffffu);
  return winner == 0xffffffffu ? -1 : static_cast<int>(winner);
}

template <int kLane>
__device__ void Take(int expert, Token<kLane>* token, Chosen* chosen) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  float mine = 0;
#pragma unroll
  for (int i = 0; i < kLane; ++i) {
    if (lane + 32 * i == expert) mine = token->score[i], token->held |= 1u << i;
  }
  mine = __shfl_sync(kAllLanes, mine, expert % 32);
  if (lane == chosen->count) chosen->expert = expert, chosen->score = mine;
  ++chosen->count;
}

// Extends the choice to `target` slots by rank; the first is the best by score itself.
template <int kLane, typename Rank>
__device__ void Extend(int target, uint32_t exists, uint32_t allowed, Rank&& rank, Token<kLane>* token, Chosen* chosen) {
  if (chosen->count == 0 && target > 0) {
    Take(Best(*token, exists, [&](int i) { return token->score[i]; }), token, chosen);
  }
  while (chosen->count < target) {
    const int next = Best(*token, allowed & ~token->held, rank);
    if (next < 0) return;
    Take(next, token, chosen);
  }
}

template <int kLane>
__device__ uint32_t Existing(int experts) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  uint32_t exists = 0;
#pragma unroll
  for (int i = 0; i < kLane; ++i) exists |= static_cast<uint32_t>(lane + 32 * i < experts) << i;
  return exists;
}

// Scores of logits, kLane a lane: what there is not is -inf.
template <int kLane>
__device__ Token<kLane> SoftmaxOf(const float (&logits)[kLane], int experts) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  Token<kLane> token;
  float most = -INFINITY;
#pragma unroll
  for (int i = 0; i < kLane; ++i) {
    token.score[i] = logits[i];
    most = fmaxf(most, token.score[i]);
  }
  most = WarpMax(most);
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kLane; ++i) {
    token.score[i] = lane + 32 * i < experts ? expf(token.score[i] - most) : 0.0f;
    sum += token.score[i];
  }
  sum = WarpSum(sum);
#pragma unroll
  for (int i = 0; i < kLane; ++i) token.score[i] /= sum;
  return token;
}

template <int kLane>
__device__ Token<kLane> Softmax(const float* logits, int experts) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  float mine[kLane];
#pragma unroll
  for (int i = 0; i < kLane; ++i) mine[i] = lane + 32 * i < experts ? __ldcg(logits + lane + 32 * i) : -INFINITY;
  return SoftmaxOf(mine, experts);
}

// Falling scores, ties by rising expert.
__device__ inline void SortByScore(int count, Chosen* chosen) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  int before = 0;
  for (int i = 0; i < count; ++i) {
    const float score = __shfl_sync(kAllLanes, chosen->score, i);
    const int expert = __shfl_sync(kAllLanes, chosen->expert, i);
    before += score > chosen->score || (score == chosen->score && expert < chosen->expert);
  }
  if (lane >= count) before = lane;
  float score = 0;
  int expert = -1;
  for (int i = 0; i < count; ++i) {
    const int to = __shfl_sync(kAllLanes, before, i);
    const float from_score = __shfl_sync(kAllLanes, chosen->score, i);
    const int from_expert = __shfl_sync(kAllLanes, chosen->expert, i);
    if (lane == to) score = from_score, expert = from_expert;
  }
  chosen->score = score, chosen->expert = expert, chosen->count = count;
}

// Of the first `count` slots, added in order.
__device__ inline float MassOf(const Chosen& chosen, int count) {
  float mass = 0;
  for (int i = 0; i < count; ++i) mass += __shfl_sync(kAllLanes, chosen.score, i);
  return mass;
}

struct RowCounts {
  int32_t full = 0, hi = 0, dropped = 0;
  double lost = 0;
};

// Turns a choice into row t of the selection.
// `groups`: where the slots' places in the dispatch are kept for it, or null. `sorted`: by falling score already.
__device__ inline RowCounts Weigh(const SelectLaunch& l, const SelectRules& rules, int64_t t, float plain, bool sorted, Chosen chosen, int16_t* groups) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  int kept = min(chosen.count, rules.most);
  if (!sorted) SortByScore(kept, &chosen);
  const float least = rules.drop_below * __shfl_sync(kAllLanes, chosen.score, 0);
  while (kept > 1 && __shfl_sync(kAllLanes, chosen.score, kept - 1) < least) --kept;
  const float mass = MassOf(chosen, kept);
  const bool here = lane < kept;
  const bool full = here && lane < rules.full && (rules.has_cap == 0 || l.plane_cap[chosen.expert] > 1);
  if (lane < l.slots) {
    const int64_t at = t * l.slots + lane;
    l.expert[at] = here ? chosen.expert : -1;
    l.weight[at] = !here ? 0.0f : l.normalise ? chosen.score / mass : chosen.score * (plain / mass);
    l.planes[at] = !here || full ? Planes::kBoth : Planes::kHi;
    if (groups != nullptr) groups[at] = static_cast<int16_t>(!here ? -1 : 2 * chosen.expert + (full ? 0 : 1));
  }
  RowCounts counts;
  counts.full = __popc(__ballot_sync(kAllLanes, full));
  counts.hi = kept - counts.full;
  counts.dropped = l.slots - kept;
  counts.lost = 1.0 - static_cast<double>(mass) / static_cast<double>(plain);
  return counts;
}

__device__ inline void EmptyRow(const SelectLaunch& l, int64_t t, int16_t* groups) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  if (lane >= l.slots) return;
  if (groups != nullptr) groups[t * l.slots + lane] = -1;
  l.expert[t * l.slots + lane] = -1;
  l.weight[t * l.slots + lane] = 0;
  l.planes[t * l.slots + lane] = Planes::kBoth;
}

__device__ inline bool BatchAware(const SelectLaunch& l, const SelectRules& rules) { return rules.guaranteed < l.slots || rules.soft_batch > 0; }

// What decode row t brings to the batch.
template <int kLane>
__device__ void JoinBatch(const SelectLaunch& l, const SelectRules& rules, int64_t t, Batch* batch) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const uint32_t exists = Existing<kLane>(l.experts);
  const Token<kLane> scores = Softmax<kLane>(l.logits + t * l.experts, l.experts);
  const auto rank_of = [&](const Token<kLane>& token) {
    return [&](int i) { return token.score[i] + (rules.has_bias ? l.bias[lane + 32 * i] : 0.0f); };
  };
  if (rules.guaranteed < l.slots) {
    Token<kLane> token = scores;
    Chosen chosen;
    Extend(rules.guaranteed, exists, exists, rank_of(token), &token, &chosen);
    if (lane < chosen.count) atomicOr(&batch->guaranteed[chosen.expert / 32], 1u << (chosen.expert % 32));
  }
  if (rules.soft_batch > 0) {
    Token<kLane> token = scores;
    Chosen chosen;
    Extend(l.slots, exists, exists, rank_of(token), &token, &chosen);
    if (lane < chosen.count) atomicAdd(&batch->holders[chosen.expert], 1);
  }
}

// The choice of row t, whose scores these are.
template <int kLane>
__device__ RowCounts ChooseRow(const SelectLaunch& l, const SelectRules& rules, int64_t t, const Token<kLane>& scores, const Batch* batch, int16_t* groups) {
  if (l.kinds[t] == kernels::RowKind::kPadding) {
    EmptyRow(l, t, groups);
    return {};
  }
  const int lane = static_cast<int>(threadIdx.x % 32);
  const uint32_t exists = Existing<kLane>(l.experts);
#pragma unroll
  for (int i = 0; i < kLane; ++i) {
    if (exists >> i & 1) l.scores[t * l.experts + lane + 32 * i] = scores.score[i];
  }
  Token<kLane> token = scores;
  Chosen plain_choice;
  Extend(l.slots, exists, exists, [&](int i) { return token.score[i]; }, &token, &plain_choice);
  const float plain = MassOf(plain_choice, plain_choice.count);
  const bool decode = l.kinds[t] == kernels::RowKind::kDecode;
  const bool hard = decode && rules.guaranteed < l.slots, soft = decode && rules.soft_batch > 0;
  if (!hard && !soft && rules.has_bias == 0) return Weigh(l, rules, t, plain, true, plain_choice, groups);

  const auto biased = [&](const Token<kLane>& of) {
    return [&](int i) { return of.score[i] + (rules.has_bias ? l.bias[lane + 32 * i] : 0.0f); };
  };
  uint32_t own = 0;  // experts of the row's plain choice under the bias: it is no other token to itself
  if (soft) {
    Token<kLane> mine = scores;
    Chosen choice;
    Extend(l.slots, exists, exists, biased(mine), &mine, &choice);
    own = mine.held;
  }
  token = scores;
  Chosen chosen;
  uint32_t allowed = exists;
  if (hard) {
    Extend(rules.guaranteed, exists, exists, biased(token), &token, &chosen);
    allowed = 0;
#pragma unroll
    for (int i = 0; i < kLane; ++i) allowed |= (batch->guaranteed[i] >> lane & 1) << i;
  }
  Extend(l.slots, exists, allowed, [&](int i) {
    const int e = lane + 32 * i;
    float rank = token.score[i];
    if (soft) {
      const int others = batch->holders[e] - static_cast<int>(own >> i & 1);
      const float bias = token.score[i] * (expf(rules.soft_batch / 2 * log2f(1.0f + static_cast<float>(others))) - 1);
      return rank + (rules.has_bias ? bias + l.bias[e] : bias);
    }
    return rank + (rules.has_bias ? l.bias[e] : 0.0f);
  }, &token, &chosen);
  return Weigh(l, rules, t, plain, false, chosen, groups);
}

// The dispatch of up to 32 slots, a lane each.
__device__ inline void DispatchByWarp(const SelectLaunch& l, const int16_t* kept) {
  for (int e = static_cast<int>(threadIdx.x); e < l.experts; e += static_cast<int>(blockDim.x)) l.expert_slots[e] = 0;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  const int lane = static_cast<int>(threadIdx.x), slots = l.rows * l.slots;
  const int group = lane < slots ? static_cast<int>(kept[lane]) : -1;
  const bool here = group >= 0;
  const uint32_t same = __match_any_sync(kAllLanes, group), below = (1u << lane) - 1;
  const bool leads = here && (same & below) == 0;
  const uint32_t leaders = __ballot_sync(kAllLanes, leads);
  int before = 0, jobs_before = 0;  // slots and jobs of lower groups
  for (int i = 0; i < slots; ++i) {
    const int other = __shfl_sync(kAllLanes, group, i);
    before += other >= 0 && other < group;
    jobs_before += (leaders >> i & 1) != 0 && other < group;
  }
  if (here) l.order[before + __popc(same & below)] = lane;
  if (leads) l.jobs[jobs_before] = {group / 2, group % 2 == 0 ? Planes::kBoth : Planes::kHi, before, __popc(same)};
  const uint32_t expert = __match_any_sync(kAllLanes, here ? group / 2 : -1);
  const bool leads_expert = here && (expert & below) == 0;
  if (leads_expert) l.expert_slots[group / 2] = __popc(expert);
  const uint32_t distinct = __ballot_sync(kAllLanes, leads_expert), hi = __ballot_sync(kAllLanes, leads && group % 2 == 1);
  if (lane == 0) {
    *l.job_count = __popc(leaders);
    l.counts->distinct = __popc(distinct), l.counts->distinct_hi = __popc(hi), l.counts->distinct_full = __popc(leaders & ~hi);
  }
}

// Kept slots grouped by (expert, planes), tokens rising inside a group: a counting sort by one block. Each warp takes a run of slots.
// `kept`: the slots' groups where Weigh kept them, or null.
__device__ inline void Dispatch(const SelectLaunch& l, uint32_t* starts /* [warps, 2 E] */, const int16_t* kept) {
  if (kept != nullptr && l.rows * l.slots <= 32) return DispatchByWarp(l, kept);
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int groups = 2 * l.experts, slots = l.rows * l.slots;
  const int warps = min(static_cast<int>(blockDim.x / 32), (slots + 63) / 64);  // that have slots
  const int each = (slots + warps * 32 - 1) / (warps * 32) * 32, begin = warp * each, end = min(slots, begin + each);
  for (int i = static_cast<int>(threadIdx.x); i < warps * groups; i += static_cast<int>(blockDim.x)) starts[i] = 0;
  __syncthreads();
  const auto group_of = [&](int at) {
    if (kept != nullptr) return at < end ? static_cast<int>(kept[at]) : -1;
    const int e = at < end ? l.expert[at] : -1;
    return e < 0 ? -1 : 2 * e + (l.planes[at] == Planes::kHi ? 1 : 0);
  };
  uint32_t* mine = starts + warp * groups;
  for (int at = begin + lane; at - lane < end; at += 32) {
    const int group = group_of(at);
    const uint32_t same = __match_any_sync(kAllLanes, group);
    if (group >= 0 && (same & ((1u << lane) - 1)) == 0) mine[group] += static_cast<uint32_t>(__popc(same));
    __syncwarp();
  }
  __syncthreads();
  // Totals of groups, their jobs, and where each warp's part of a group begins; one warp scans the groups.
  if (warp == 0) {
    uint32_t total = 0;
    int jobs = 0, distinct = 0, distinct_full = 0, distinct_hi = 0;
    for (int first = 0; first < groups; first += 32) {
      const int group = first + lane;
      uint32_t count = 0;
      for (int w = 0; w < warps && group < groups; ++w) count += starts[w * groups + group];
      uint32_t upto = count;
      for (int offset = 1; offset < 32; offset *= 2) {
        const uint32_t below = __shfl_up_sync(kAllLanes, upto, offset);
        if (lane >= offset) upto += below;
      }
      const uint32_t start = total + upto - count, busy = __ballot_sync(kAllLanes, count > 0);
      if (count > 0) {
        l.jobs[jobs + __popc(busy & ((1u << lane) - 1))] = {group / 2, group % 2 == 0 ? Planes::kBoth : Planes::kHi,
                                                            static_cast<int32_t>(start), static_cast<int32_t>(count)};
      }
      const uint32_t partner = __shfl_xor_sync(kAllLanes, count, 1);
      if (group < groups && group % 2 == 0) l.expert_slots[group / 2] = static_cast<int32_t>(count + partner);
      distinct += __popc(__ballot_sync(kAllLanes, group % 2 == 0 && count + partner > 0));
      distinct_full += __popc(busy & 0x55555555u);
      distinct_hi += __popc(busy & 0xaaaaaaaau);
      jobs += __popc(busy);
      uint32_t at = start;
      for (int w = 0; w < warps && group < groups; ++w) {
        const uint32_t part = starts[w * groups + group];
        starts[w * groups + group] = at;
        at += part;
      }
      total = __shfl_sync(kAllLanes, total + upto, 31);
    }
    if (lane == 0) {
      *l.job_count = jobs;
      l.counts->distinct = distinct, l.counts->distinct_full = distinct_full, l.counts->distinct_hi = distinct_hi;
    }
  }
  __syncthreads();
  for (int at = begin + lane; at - lane < end; at += 32) {
    const int group = group_of(at);
    const uint32_t same = __match_any_sync(kAllLanes, group), before = same & ((1u << lane) - 1);
    if (group >= 0) l.order[mine[group] + static_cast<uint32_t>(__popc(before))] = at;
    __syncwarp();
    if (group >= 0 && before == 0) mine[group] += static_cast<uint32_t>(__popc(same));
    __syncwarp();
  }
}

// Adds up what rows lost in the order of the rows. [rows] in row_lost, [rows] counts.
struct RowTotals {
  double lost;
  int32_t full, hi, dropped, unused;
};

__device__ inline void AddTotals(const RowTotals* rows, int count, SelectCounts* counts) {
  if (threadIdx.x >= 32) return;
  const int lane = static_cast<int>(threadIdx.x);
  double lost = 0;
  int full = 0, hi = 0, dropped = 0;
  for (int t = lane; t < count; t += 32) lost += rows[t].lost, full += rows[t].full, hi += rows[t].hi, dropped += rows[t].dropped;
  for (int offset = 16; offset > 0; offset /= 2) {
    lost += __shfl_xor_sync(kAllLanes, lost, offset);
    full += __shfl_xor_sync(kAllLanes, full, offset);
    hi += __shfl_xor_sync(kAllLanes, hi, offset);
    dropped += __shfl_xor_sync(kAllLanes, dropped, offset);
  }
  if (lane == 0) counts->mass_lost = lost, counts->slots_full = full, counts->slots_hi = hi, counts->slots_dropped = dropped;
}

__device__ inline void Keep(const RowCounts& counts, RowTotals* to) {
  if (threadIdx.x % 32 == 0) *to = {counts.lost, counts.full, counts.hi, counts.dropped, 0};
}

extern __shared__ uint32_t starts[];

template <int kLane>
__device__ void Join(const SelectLaunch& l, const SelectRules& rules, Batch* batch) {
  for (int i = static_cast<int>(threadIdx.x); i < kWords; i += static_cast<int>(blockDim.x)) batch->guaranteed[i] = 0;
  for (int i = static_cast<int>(threadIdx.x); i < l.experts; i += static_cast<int>(blockDim.x)) batch->holders[i] = 0;
  __syncthreads();
  for (int t = static_cast<int>(threadIdx.x / 32); t < l.rows; t += static_cast<int>(blockDim.x / 32)) {
    if (l.kinds[t] == kernels::RowKind::kDecode) JoinBatch<kLane>(l, rules, t, batch);
  }
  __syncthreads();
}

// All of it by one block.
template <int kLane>
__device__ void SelectByBlock(const SelectLaunch& l) {
  __shared__ Batch batch;
  __shared__ RowTotals totals[kOneBlockRows];
  __shared__ int16_t groups[kOneBlockRows * kMaxDeviceSlots];
  const SelectRules rules = *l.rules;
  if (BatchAware(l, rules)) Join<kLane>(l, rules, &batch);
  for (int t = static_cast<int>(threadIdx.x / 32); t < l.rows; t += static_cast<int>(blockDim.x / 32)) {
    Keep(ChooseRow(l, rules, t, Softmax<kLane>(l.logits + t * l.experts, l.experts), &batch, groups), &totals[t]);
  }
  __syncthreads();
  AddTotals(totals, l.rows, l.counts);
  Dispatch(l, starts, groups);
}

}  // namespace thermoe::cuda
