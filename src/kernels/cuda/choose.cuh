// SPDX-License-Identifier: Apache-2.0
// A warp chooses for a token: lane l holds experts l * kLane + i, so that the lowest lane of those whose ranks are equal has the lowest expert,
// which comes first, as on the host. What select.cu and gate.cu choose by; choose_lists.cuh makes the lists of the dispatch.
#pragma once

#include "kernels/cuda/select.h"
#include "kernels/cuda/warp.cuh"

namespace thermoe::cuda {

inline constexpr int kWords = kernels::kMaxExperts / 32;

// What rows of one decode batch know of each other.
struct Batch {
  uint32_t guaranteed[kWords];            // U: experts that are guaranteed to some decode row; bit e % 32 of word e / 32
  int32_t holders[kernels::kMaxExperts];  // decode rows whose plain choice has the expert
};

__device__ inline int Lane() { return static_cast<int>(threadIdx.x % 32); }

__device__ inline uint32_t Ordered(float value) {  // rises with value; what is not a number is least
  if (isnan(value)) return 0;
  const uint32_t bits = __float_as_uint(value);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ inline float FromOrdered(uint32_t key) {  // the least keys are of no number
  return key < 2 ? NAN : __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}

// Which of the lane's experts there are: bit i.
template <int kLane>
__device__ uint32_t Existing(int experts) {
  const int here = experts - Lane() * kLane;
  return here <= 0 ? 0 : here >= kLane ? 0xffffffffu >> (32 - kLane) : (1u << here) - 1;
}

template <int kLane>
struct Token {
  float score[kLane];
};

// e / sum for 0 <= e <= 1 <= sum, rounded as the division is (but for what is far below 1e-30): one reciprocal serves all of a row.
class DivideBy {
 public:
  __device__ explicit DivideBy(float sum) : sum_(sum) {
#if defined(__CUDA_ARCH__)
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse_) : "f"(sum));
#else
    inverse_ = 1 / sum;
#endif
    inverse_ = fmaf(inverse_, fmaf(-sum, inverse_, 1.0f), inverse_);
  }
  __device__ float operator()(float e) const {
    float ratio = e * inverse_;
    ratio = fmaf(fmaf(-sum_, ratio, e), inverse_, ratio);
    return fmaf(fmaf(-sum_, ratio, e), inverse_, ratio);
  }

 private:
  float sum_, inverse_;
};

// Scores of logits: what there is not is -inf.
template <int kLane>
__device__ Token<kLane> SoftmaxOf(const float (&logits)[kLane], int experts) {
  const uint32_t exists = Existing<kLane>(experts);
  float most = -INFINITY;
#pragma unroll
  for (int i = 0; i < kLane; ++i) most = fmaxf(most, logits[i]);
  most = FromOrdered(__reduce_max_sync(kAllLanes, Ordered(most)));
  Token<kLane> token;
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kLane; ++i) {
    token.score[i] = exists >> i & 1 ? expf(logits[i] - most) : 0.0f;
    sum += token.score[i];
  }
  const DivideBy divide(WarpSum(sum));
#pragma unroll
  for (int i = 0; i < kLane; ++i) token.score[i] = divide(token.score[i]);
  return token;
}

// What a row chooses from, read before anything waits for it.
template <int kLane>
struct RowInput {
  kernels::RowKind kind;
  float logits[kLane];  // of the lane's experts; -inf: there is none
  float bias[kLane];    // 0 without one
  uint32_t uncapped;    // bit i: expert l * kLane + i may be read with both planes
};

// All but the logits of row t.
template <int kLane>
__device__ void ReadKnobs(const SelectLaunch& l, const SelectRules& rules, int64_t t, RowInput<kLane>* input) {
  const uint32_t exists = Existing<kLane>(l.experts);
  input->kind = l.kinds[t];
  input->uncapped = ~0u;
#pragma unroll
  for (int i = 0; i < kLane; ++i) input->bias[i] = 0;
  if (rules.has_bias) {
#pragma unroll
    for (int i = 0; i < kLane; ++i) input->bias[i] = exists >> i & 1 ? l.bias[Lane() * kLane + i] : 0.0f;
  }
  if (rules.has_cap) {
    input->uncapped = 0;
#pragma unroll
    for (int i = 0; i < kLane; ++i) input->uncapped |= static_cast<uint32_t>((exists >> i & 1) && l.plane_cap[Lane() * kLane + i] > 1) << i;
  }
}

template <int kLane>
__device__ RowInput<kLane> ReadRow(const SelectLaunch& l, const SelectRules& rules, int64_t t) {
  const uint32_t exists = Existing<kLane>(l.experts);
  const float* logits = l.logits + t * l.experts + Lane() * kLane;
  RowInput<kLane> input;
#pragma unroll
  for (int i = 0; i < kLane; ++i) input.logits[i] = exists >> i & 1 ? __ldcg(logits + i) : -INFINITY;
  ReadKnobs(l, rules, t, &input);
  return input;
}

// A lane's experts by falling rank, the lower expert first among equals. Short lists are sorted once; of long ones the first is brought to the front.
template <int kLane>
struct Ranking {
  static constexpr bool kSorted = kLane <= 8;
  uint32_t key[kLane];    // Ordered of the rank, at least 1; 0: none left
  int32_t expert[kLane];
  uint32_t taken = 0;     // bit i: expert l * kLane + i was
};

// Swaps two places if the second comes before the first.
template <int kLane>
__device__ void Sort2(Ranking<kLane>* ranking, int a, int b) {
  const uint32_t key_a = ranking->key[a], key_b = ranking->key[b];
  const int32_t expert_a = ranking->expert[a], expert_b = ranking->expert[b];
  const bool swap = key_b > key_a || (!Ranking<kLane>::kSorted && key_b == key_a && expert_b < expert_a);  // sorted: only neighbours, so equals keep their order
  ranking->key[a] = swap ? key_b : key_a, ranking->key[b] = swap ? key_a : key_b;
  ranking->expert[a] = swap ? expert_b : expert_a, ranking->expert[b] = swap ? expert_a : expert_b;
}

template <int kLane>
__device__ void BringFirst(Ranking<kLane>* ranking) {
#pragma unroll
  for (int i = 1; i < kLane; ++i) Sort2(ranking, 0, i);
}

template <int kLane, typename Rank>
__device__ Ranking<kLane> RankExperts(uint32_t allowed, Rank&& rank) {
  Ranking<kLane> ranking;
#pragma unroll
  for (int i = 0; i < kLane; ++i) {
    ranking.key[i] = allowed >> i & 1 ? max(Ordered(rank(i)), 1u) : 0;
    ranking.expert[i] = Lane() * kLane + i;
  }
  if constexpr (Ranking<kLane>::kSorted) {
#pragma unroll
    for (int pass = 0; pass < kLane; ++pass) {
#pragma unroll
      for (int i = pass % 2; i + 1 < kLane; i += 2) Sort2(&ranking, i, i + 1);
    }
  } else {
    BringFirst(&ranking);
  }
  return ranking;
}

template <int kLane>
__device__ void TakeFirst(Ranking<kLane>* ranking) {
  ranking->taken |= 1u << (ranking->expert[0] % kLane);
  if constexpr (Ranking<kLane>::kSorted) {
#pragma unroll
    for (int i = 0; i + 1 < kLane; ++i) ranking->key[i] = ranking->key[i + 1], ranking->expert[i] = ranking->expert[i + 1];
    ranking->key[kLane - 1] = 0;
  } else {
    ranking->key[0] = 0;
    BringFirst(ranking);
  }
}

struct Chosen {
  int32_t expert = -1;  // lane i: the i-th slot's
  float rank = 0;       // lane i: what it was chosen by
  int count = 0;        // the same in every lane, like the next
  float mass = 0;       // ranks, added in order
};

// Extends the choice to `target` slots, or as far as the ranking goes.
template <int kLane>
__device__ void Extend(int target, Ranking<kLane>* ranking, Chosen* chosen) {
  const int lane = Lane();
  for (int place = chosen->count; place < target; ++place) {
    const uint32_t top = __reduce_max_sync(kAllLanes, ranking->key[0]);
    if (top == 0) return;
    const int winner = __ffs(static_cast<int>(__ballot_sync(kAllLanes, ranking->key[0] == top))) - 1;
    const int expert = __shfl_sync(kAllLanes, ranking->expert[0], winner);
    const float rank = FromOrdered(top);
    if (lane == place) chosen->expert = expert, chosen->rank = rank;
    if (lane == winner) TakeFirst(ranking);
    chosen->mass += rank;
    ++chosen->count;
  }
}

// What a row takes part in.
struct RowRules {
  int guaranteed;   // slots that are filled plainly
  bool hard, soft;  // the rest from what other rows hold; by what they hold
};
__device__ inline RowRules RulesOf(const SelectLaunch& l, const SelectRules& rules, kernels::RowKind kind) {
  const bool decode = kind == kernels::RowKind::kDecode, hard = decode && rules.guaranteed < l.slots;
  return {hard ? rules.guaranteed : l.slots, hard, decode && rules.soft_batch > 0};
}
__device__ inline bool BatchAware(const SelectLaunch& l, const SelectRules& rules) { return rules.guaranteed < l.slots || rules.soft_batch > 0; }

// What a row chooses by itself.
template <int kLane>
struct OwnChoice {
  Token<kLane> scores;
  Chosen plain;         // the best by score
  Chosen biased;        // the best by score, then by score and bias
  uint32_t guaranteed;  // which of the lane's experts are in the guaranteed slots of `biased`
  uint32_t held;        // and in all
};

template <int kLane>
__device__ OwnChoice<kLane> ChooseAlone(const SelectLaunch& l, const SelectRules& rules, const RowRules& row, const RowInput<kLane>& input) {
  OwnChoice<kLane> own;
  own.scores = SoftmaxOf(input.logits, l.experts);
  const auto& score = own.scores.score;
  const uint32_t exists = Existing<kLane>(l.experts);
  const auto fill = [&](Ranking<kLane>* ranking, Chosen* chosen) {
    Extend(row.guaranteed, ranking, chosen);
    own.guaranteed = ranking->taken;
    Extend(l.slots, ranking, chosen);
    own.held = ranking->taken;
  };
  Ranking<kLane> by_score = RankExperts<kLane>(exists, [&](int i) { return score[i]; });
  fill(&by_score, &own.plain);
  own.biased = own.plain;
  if (rules.has_bias == 0) return own;
  const int first = __shfl_sync(kAllLanes, own.plain.expert, 0);
  own.biased.count = 1;
  if (Lane() > 0) own.biased.expert = -1;
  const uint32_t first_bit = first / kLane == Lane() ? 1u << (first % kLane) : 0;
  Ranking<kLane> by_rank = RankExperts<kLane>(exists & ~first_bit, [&](int i) { return score[i] + input.bias[i]; });
  by_rank.taken = first_bit;
  fill(&by_rank, &own.biased);
  return own;
}

// What a decode row brings to the batch.
template <int kLane>
__device__ void JoinBatch(const RowRules& row, const OwnChoice<kLane>& own, Batch* batch) {
  if (row.hard && Lane() < row.guaranteed) atomicOr(&batch->guaranteed[own.biased.expert / 32], 1u << (own.biased.expert % 32));
  if (row.soft && Lane() < own.biased.count) atomicAdd(&batch->holders[own.biased.expert], 1);
}

// The choice of a row that knows what others hold.
template <int kLane>
__device__ Chosen ChooseTogether(const SelectLaunch& l, const SelectRules& rules, const RowRules& row, const RowInput<kLane>& input, const OwnChoice<kLane>& own,
                                 const Batch& batch) {
  Chosen chosen = own.biased;
  chosen.count = row.hard ? row.guaranteed : 1;
  if (Lane() >= chosen.count) chosen.expert = -1;
  const int first = __shfl_sync(kAllLanes, chosen.expert, 0), word = Lane() * kLane / 32, shift = Lane() * kLane % 32;
  const uint32_t held = row.hard ? own.guaranteed : first / kLane == Lane() ? 1u << (first % kLane) : 0;
  const uint32_t allowed = Existing<kLane>(l.experts) & ~held & (row.hard ? batch.guaranteed[word] >> shift : ~0u);
  Ranking<kLane> ranking = RankExperts<kLane>(allowed, [&](int i) {
    const float score = own.scores.score[i];
    if (!row.soft) return score + input.bias[i];
    const int others = batch.holders[Lane() * kLane + i] - static_cast<int>(own.held >> i & 1);  // a row is no other to itself
    const float gained = score * (expf(rules.soft_batch / 2 * log2f(1.0f + static_cast<float>(others))) - 1);
    return score + (gained + input.bias[i]);
  });
  Extend(l.slots, &ranking, &chosen);
  return chosen;
}

// The scores of a choice, slot i's in lane i.
template <int kLane>
__device__ float ScoresOf(const Token<kLane>& scores, int expert) {
  float score = 0;
#pragma unroll
  for (int i = 0; i < kLane; ++i) {
    const float other = __shfl_sync(kAllLanes, scores.score[i], max(expert, 0) / kLane);
    if (expert >= 0 && expert % kLane == i) score = other;
  }
  return score;
}

// A row's slots, slot i in lane i.
struct Slots {
  int32_t expert;
  float score;
  int count;  // the same in every lane
};

constexpr int kAtOnce = 8;  // shuffles that do not wait for each other

// By falling score, ties by rising expert.
__device__ inline Slots SortByScore(const Slots& slots) {
  const int lane = Lane();
  const uint32_t key = Ordered(slots.score);
  int place = 0;
  for (int first = 0; first < slots.count; first += kAtOnce) {
#pragma unroll
    for (int i = first; i < first + kAtOnce; ++i) {
      const uint32_t other = __shfl_sync(kAllLanes, key, i);
      const int expert = __shfl_sync(kAllLanes, slots.expert, i);
      place += i < slots.count && (other > key || (other == key && expert < slots.expert));
    }
  }
  if (lane >= slots.count) place = lane;
  int from = lane;
  for (int first = 0; first < slots.count; first += kAtOnce) {
#pragma unroll
    for (int i = first; i < first + kAtOnce; ++i) {
      if (__shfl_sync(kAllLanes, place, i) == lane) from = i;
    }
  }
  return {__shfl_sync(kAllLanes, slots.expert, from), __shfl_sync(kAllLanes, slots.score, from), slots.count};
}

// Scores of the first `count` slots, added in order.
__device__ inline float MassOf(float score, int count) {
  float mass = 0;
  for (int first = 0; first < count; first += kAtOnce) {
#pragma unroll
    for (int i = first; i < first + kAtOnce; ++i) {
      const float other = __shfl_sync(kAllLanes, score, i);
      if (i < count) mass += other;
    }
  }
  return mass;
}

// What a row gave.
struct RowResult {
  int group = -1;    // of the lane's slot: 2 expert + (1: the hi plane alone); -1: empty
  int dropped = 0;   // the same in every lane, like the next
  double lost = 0;
};

// Turns sorted slots into row t of the selection. plain: the mass of the plain model's.
__device__ inline RowResult Weigh(const SelectLaunch& l, const SelectRules& rules, int64_t t, float plain, const Slots& slots, bool may_read_lo) {
  const int lane = Lane(), most = min(slots.count, rules.most);
  const float least = rules.drop_below * __shfl_sync(kAllLanes, slots.score, 0);
  const uint32_t stay = __ballot_sync(kAllLanes, lane == 0 || (lane < most && !(slots.score < least)));
  const int kept = 32 - __clz(static_cast<int>(stay));  // every slot up to the last that stays
  const float mass = MassOf(slots.score, kept);
  const bool here = lane < kept, full = here && lane < rules.full && may_read_lo;
  if (lane < l.slots) {
    const int64_t at = t * l.slots + lane;
    l.expert[at] = here ? slots.expert : -1;
    l.weight[at] = !here ? 0.0f : l.normalise ? slots.score / mass : slots.score * (plain / mass);
    l.planes[at] = !here || full ? Planes::kBoth : Planes::kHi;
  }
  RowResult result;
  if (here) result.group = 2 * slots.expert + (full ? 0 : 1);
  result.dropped = l.slots - kept;
  if (mass != plain) result.lost = 1.0 - static_cast<double>(mass) / static_cast<double>(plain);
  return result;
}

__device__ inline RowResult EmptyRow(const SelectLaunch& l, int64_t t) {
  if (const int64_t at = t * l.slots + Lane(); Lane() < l.slots) l.expert[at] = -1, l.weight[at] = 0, l.planes[at] = Planes::kBoth;
  return {};
}

// The rest of row t, once it has chosen alone. batch: what rows hold together; null where no rule asks.
template <int kLane>
__device__ RowResult FinishRow(const SelectLaunch& l, const SelectRules& rules, const RowRules& row, int64_t t, const RowInput<kLane>& input,
                               const OwnChoice<kLane>& own, const Batch* batch) {
  const uint32_t exists = Existing<kLane>(l.experts);
#pragma unroll
  for (int i = 0; i < kLane; ++i) {
    if (exists >> i & 1) l.scores[t * l.experts + Lane() * kLane + i] = own.scores.score[i];
  }
  const bool together = row.hard || row.soft;
  Slots slots{own.plain.expert, own.plain.rank, own.plain.count};
  if (together || rules.has_bias) {
    const Chosen chosen = together ? ChooseTogether(l, rules, row, input, own, *batch) : own.biased;
    slots = {chosen.expert, ScoresOf(own.scores, chosen.expert), min(chosen.count, rules.most)};
    if (row.soft || rules.has_bias) slots = SortByScore(slots);
  }
  const int expert = max(slots.expert, 0);
  const bool may_read_lo = (__shfl_sync(kAllLanes, input.uncapped, expert / kLane) >> (expert % kLane) & 1) != 0;
  return Weigh(l, rules, t, own.plain.mass, slots, may_read_lo);
}

// The choice of row t.
template <int kLane>
__device__ RowResult ChooseRow(const SelectLaunch& l, const SelectRules& rules, int64_t t, const RowInput<kLane>& input, const Batch* batch) {
  if (input.kind == kernels::RowKind::kPadding) return EmptyRow(l, t);
  const RowRules row = RulesOf(l, rules, input.kind);
  return FinishRow(l, rules, row, t, input, ChooseAlone(l, rules, row, input), batch);
}

}  // namespace thermoe::cuda
