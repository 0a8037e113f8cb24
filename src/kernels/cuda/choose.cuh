// SPDX-License-Identifier: Apache-2.0
// A warp chooses for a token: lane l holds experts l * kLane + i, so that the lowest lane of those whose ranks are equal has the lowest expert,
// which comes first, as on the host. What select.cu and gate.cu choose by; choose_lists.cuh makes the lists of the dispatch.
#pragma once

#include "kernels/cuda/rank_experts.cuh"
#include "kernels/cuda/select.h"

namespace thermoe::cuda {

inline constexpr int kWords = kernels::kMaxExperts / 32;

// What rows of one decode batch know of each other.
struct Batch {
  uint32_t guaranteed[kWords];            // U: experts that are guaranteed to some decode row; bit e % 32 of word e / 32
  int32_t holders[kernels::kMaxExperts];  // decode rows whose plain choice has the expert
};

// The same for those who choose: how an expert's score is multiplied for a row that does not hold it itself (x), and that does (y).
struct Together {
  const Batch* batch = nullptr;   // null: nobody asks
  const float2* gain = nullptr;   // [E], for the soft rule
};
__device__ inline float Gain(const SelectRules& rules, int others) {
  return expf(rules.soft_batch / 2 * log2f(1.0f + static_cast<float>(others)));
}

// Which of the lane's experts there are: bit i.
template <int kLane>
__device__ uint32_t Existing(int experts) {
  const int here = experts - Lane() * kLane;
  return here <= 0 ? 0 : here >= kLane ? 0xffffffffu >> (32 - kLane) : (1u << here) - 1;
}

template <int kLane>
using Token = OfLane<float, kLane>;  // scores

// e / sum for 0 <= e and 1e-4 <= sum <= 1e4, rounded as the division is (but for what is far below 1e-30): one reciprocal serves all of a row.
class DivideBy {
 public:
  __device__ explicit DivideBy(float sum) : sum_(sum) {
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse_) : "f"(sum));
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

// Integers that rise with a float that is a number, and back.
__device__ inline int32_t ToSigned(float value) {
  const int32_t bits = __float_as_int(value);
  return bits ^ (bits >> 31 & 0x7fffffff);
}
__device__ inline float FromSigned(int32_t key) { return __int_as_float(key ^ (key >> 31 & 0x7fffffff)); }

// Scores of logits, -inf where there is no expert. If one score is not a number none is.
template <int kLane>
__device__ Token<kLane> SoftmaxOf(const float (&logits)[kLane]) {
  float most = -INFINITY;
#pragma unroll
  for (int i = 0; i < kLane; ++i) most = fmaxf(most, logits[i]);
  most = FromSigned(__reduce_max_sync(kAllLanes, ToSigned(most)));  // it is a number
  Token<kLane> token;
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kLane; ++i) {
    token.of[i] = expf(logits[i] - most);
    sum += token.of[i];
  }
  const DivideBy divide(WarpSum(sum));
#pragma unroll
  for (int i = 0; i < kLane; ++i) token.of[i] = divide(token.of[i]);
  return token;
}

// Whether a lane's floats of rows of E are whole vectors.
template <int kLane>
__host__ __device__ bool WholeVectors(const float* rows, int experts) {
  return kLane == 4 && experts % 4 == 0 && reinterpret_cast<uintptr_t>(rows) % 16 == 0;
}
// Floats of the lane's experts in row `row` of E. `missing`: of what there is not. kVectors: they are whole vectors.
template <bool kVectors = false, int kLane>
__device__ void ReadExperts(const float* rows, int64_t row, int experts, float missing, float (&to)[kLane]) {
  const uint32_t exists = Existing<kLane>(experts);
  const float* from = rows + row * experts + Lane() * kLane;
  const auto whole = [&] {
    const float4 all = exists != 0 ? __ldcg(reinterpret_cast<const float4*>(from)) : float4{missing, missing, missing, missing};
    to[0] = all.x, to[1] = all.y, to[2] = all.z, to[3] = all.w;
  };
  if constexpr (kVectors) {
    whole();
  } else {
    if constexpr (kLane == 4) {
      if (WholeVectors<kLane>(rows, experts)) return whole();
    }
#pragma unroll
    for (int i = 0; i < kLane; ++i) to[i] = exists >> i & 1 ? __ldcg(from + i) : missing;
  }
}
template <int kLane>
THERMOE_RARE void WriteScores(float* rows, int64_t row, int experts, OfLane<float, kLane> values) {
  const uint32_t exists = Existing<kLane>(experts);
  float* to = rows + row * experts + Lane() * kLane;
  if constexpr (kLane == 4) {
    if (WholeVectors<kLane>(rows, experts)) {
      if (exists != 0) *reinterpret_cast<float4*>(to) = {values.of[0], values.of[1], values.of[2], values.of[3]};
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < kLane; ++i) {
    if (exists >> i & 1) to[i] = values.of[i];
  }
}

// What a row chooses from.
template <int kLane>
struct RowInput {
  kernels::RowKind kind;
  float logits[kLane];  // of the lane's experts; -inf: there is none
  OfLane<float, kLane> bias;  // 0 without one
  uint32_t uncapped;    // bit i: expert l * kLane + i may be read with both planes
};

// What does not depend on the rules, of row t if there is one; what does.
template <bool kVectors = false, int kLane>
__device__ void ReadRow(const SelectLaunch& l, int64_t t, RowInput<kLane>* input) {
  if (t >= l.rows) return;
  ReadExperts<kVectors>(l.logits, t, l.experts, -INFINITY, input->logits);
  input->kind = l.kinds[t];
}
template <int kLane>
THERMOE_RARE OfLane<float, kLane> ReadBias(const float* bias, int experts) {
  OfLane<float, kLane> values;
  ReadExperts(bias, 0, experts, 0, values.of);
  return values;
}
template <int kLane>
THERMOE_RARE uint32_t ReadUncapped(const uint8_t* plane_cap, int experts) {
  const uint32_t exists = Existing<kLane>(experts);
  uint32_t uncapped = 0;
#pragma unroll
  for (int i = 0; i < kLane; ++i) uncapped |= static_cast<uint32_t>((exists >> i & 1) && plane_cap[Lane() * kLane + i] > 1) << i;
  return uncapped;
}
template <int kLane>
__device__ void ReadKnobs(const SelectLaunch& l, const SelectRules& rules, RowInput<kLane>* input) {
  input->uncapped = ~0u;
#pragma unroll
  for (int i = 0; i < kLane; ++i) input->bias.of[i] = 0;
  if (rules.has_bias) [[unlikely]] input->bias = ReadBias<kLane>(l.bias, l.experts);
  if (rules.has_cap) [[unlikely]] input->uncapped = ReadUncapped<kLane>(l.plane_cap, l.experts);
}

// A row's slots, slot i in lane i.
struct Slots {
  int32_t expert = -1;
  float score = 0;
  int count = 0;  // the same in every lane
};

// What Extend chose. `score` is the rank.
__device__ inline Slots ReadSlots(int count, const WarpRoom& room) {
  __syncwarp();
  const uint2 slot = room.slot[Lane()];
  __syncwarp();
  if (Lane() >= count) return {-1, 0, count};
  return {static_cast<int32_t>(slot.y), FromOrdered(slot.x), count};
}

inline constexpr int kAtOnce = 8;  // shuffles that do not wait for each other

// What a row takes part in.
struct RowRules {
  bool hard, soft;  // slots from what other rows hold; by what they hold
  int stay;         // slots that are filled without asking
};
__device__ inline RowRules RulesOf(const SelectLaunch& l, const SelectRules& rules, kernels::RowKind kind) {
  const bool decode = kind == kernels::RowKind::kDecode, hard = decode && rules.guaranteed < l.slots;
  const bool soft = decode && rules.soft_batch > 0;
  return {hard, soft, hard ? rules.guaranteed : soft ? 1 : l.slots};
}
__device__ inline bool BatchAware(const SelectLaunch& l, const SelectRules& rules) { return rules.guaranteed < l.slots || rules.soft_batch > 0; }

// What a row chooses by itself.
template <int kLane>
struct OwnChoice {
  Token<kLane> scores;
  Slots plain;       // the best by score
  float plain_mass;  // of their scores
  Slots biased;      // the best by score, then by score and bias; without a bias the same
};

// The best by score, then by score and bias.
template <int kLane>
THERMOE_RARE Slots ChooseBiased(int slots, int experts, Token<kLane> scores, OfLane<float, kLane> bias, int plain_expert, float plain_score, WarpRoom* room) {
  const int first = __shfl_sync(kAllLanes, plain_expert, 0);  // it stays
  const uint32_t others = Existing<kLane>(experts) & ~(first / kLane == Lane() ? 1u << (first % kLane) : 0);
  Choice choice;
  choice.count = 1;
  Extend<true>(slots, KeysOf<kLane>(others, [&](int i) { return scores.of[i] + bias.of[i]; }), room, &choice);
  Slots chosen = ReadSlots(slots, *room);
  if (Lane() == 0) chosen.expert = plain_expert, chosen.score = plain_score;
  return chosen;
}

// Ranks of scores. Of a row all are not numbers, or none, so they are as Ordered.
template <int kLane>
__device__ OfLane<uint32_t, kLane> ScoreKeys(const Token<kLane>& scores) {
  OfLane<uint32_t, kLane> keys;
#pragma unroll
  for (int i = 0; i < kLane; ++i) keys.of[i] = __float_as_uint(scores.of[i]) | 0x80000000u;
  return keys;
}

// The best by score, and the sum of their scores, of rows side by side. asks: false of a row that nobody asks for. Experts that there are not come last among equals, and
// there are as many as slots.
template <int kUnroll, int kRows, int kLane>
__device__ void ChooseBest(int count, const Token<kLane> (&scores)[kRows], WarpRoom* const (&rooms)[kRows], const bool (&asks)[kRows], Slots (&slots)[kRows],
                           float (&mass)[kRows]) {
  Put put[kRows];
  PutBest<kUnroll>(count, scores, rooms, put);
  __syncwarp();
  uint2 slot[kRows];
  int taken[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) slot[r] = rooms[r]->slot[Lane()], taken[r] = __reduce_add_sync(kAllLanes, put[r].taken);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    mass[r] = put[r].mass;
    if (taken[r] != count && asks[r]) [[unlikely]] {
#ifdef THERMOE_RACECHECK
      __syncwarp();  // else it reports what others have just read here, and do not use
#endif
      mass[r] = ExtendAsking<true>(count, ScoreKeys(scores[r]), rooms[r], {}).mass;
      __syncwarp();
      slot[r] = rooms[r]->slot[Lane()];
    }
  }
  __syncwarp();
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    slots[r] = {-1, 0, count};
    if (Lane() < count) slots[r] = {static_cast<int32_t>(slot[r].y & 0xffu), __uint_as_float(slot[r].x & 0x7fffffffu), count};
  }
}

template <int kLane>
__device__ OwnChoice<kLane> ChooseAlone(const SelectLaunch& l, const SelectRules& rules, const RowInput<kLane>& input, WarpRoom* room) {
  OwnChoice<kLane> own;
  own.scores = SoftmaxOf(input.logits);
  if constexpr (Ranking<kLane>::kSorted) {
    Slots plain[1];
    float mass[1];
    ChooseBest<1>(l.slots, {own.scores}, {room}, {true}, plain, mass);
    own.plain = plain[0], own.plain_mass = mass[0];
  } else {
    Choice plain;
    Extend<true>(l.slots, ScoreKeys(own.scores), room, &plain);
    own.plain = ReadSlots(l.slots, *room), own.plain_mass = plain.mass;
  }
  own.biased = own.plain;
  if (rules.has_bias == 0) [[likely]] return own;
  own.biased = ChooseBiased<kLane>(l.slots, l.experts, own.scores, input.bias, own.plain.expert, own.plain.score, room);
  return own;
}

// Which of the lane's experts the first `count` slots, which are not empty, have: bit i. By the room, whose slots have been read.
template <int kLane>
__device__ uint32_t ExpertsOf(const Slots& slots, int count, WarpRoom* room) {
  room->slot[Lane()].x = 0;
  __syncwarp();
  if (Lane() < count) atomicOr(&room->slot[slots.expert / kLane].x, 1u << (slots.expert % kLane));
  __syncwarp();
  const uint32_t has = room->slot[Lane()].x;
  __syncwarp();
  return has;
}

// What a decode row brings to the batch.
__device__ inline void JoinBatch(const RowRules& row, const Slots& biased, Batch* batch) {
  if (row.hard && Lane() < row.stay) atomicOr(&batch->guaranteed[biased.expert / 32], 1u << (biased.expert % 32));
  if (row.soft && Lane() < biased.count) atomicAdd(&batch->holders[biased.expert], 1);
}

// The choice of a row that knows what others hold. `score` is the rank.
template <int kLane>
__device__ Slots ChooseTogether(const RowRules& row, int experts, int slots, const RowInput<kLane>& input, const OwnChoice<kLane>& own,
                                const Together& together, WarpRoom* room) {
  const uint32_t allowed = row.hard ? together.batch->guaranteed[Lane() * kLane / 32] >> (Lane() * kLane % 32) : ~0u;
  const uint32_t among = Existing<kLane>(experts) & allowed & ~ExpertsOf<kLane>(own.biased, row.stay, room);
  const uint32_t held = row.soft ? ExpertsOf<kLane>(own.biased, slots, room) : 0;
  const auto rank = [&](int i) {
    const float score = own.scores.of[i];
    const float2 gain = row.soft ? together.gain[Lane() * kLane + i] : float2{1, 1};
    return score + (score * ((held >> i & 1 ? gain.y : gain.x) - 1) + input.bias.of[i]);
  };
  Choice choice;
  choice.count = row.stay;
  Extend<false>(slots, KeysOf<kLane>(among, rank), room, &choice);
  Slots chosen = ReadSlots(choice.count, *room);
  if (Lane() < row.stay) chosen.expert = own.biased.expert, chosen.score = own.biased.score;
  return chosen;
}

// A choice by rank as one by score: slots by falling score, ties by rising expert.
template <int kLane>
THERMOE_RARE Slots ByScore(Token<kLane> scores, Slots slots) {
  float score = 0;
#pragma unroll
  for (int i = 0; i < kLane; ++i) {
    const float other = __shfl_sync(kAllLanes, scores.of[i], max(slots.expert, 0) / kLane);
    if (slots.expert >= 0 && slots.expert % kLane == i) score = other;
  }
  const int lane = Lane();
  const uint32_t key = Ordered(score);
  int place = 0;
#pragma unroll 1
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
#pragma unroll 1
  for (int first = 0; first < slots.count; first += kAtOnce) {
#pragma unroll
    for (int i = first; i < first + kAtOnce; ++i) {
      if (__shfl_sync(kAllLanes, place, i) == lane) from = i;
    }
  }
  return {__shfl_sync(kAllLanes, slots.expert, from), __shfl_sync(kAllLanes, score, from), slots.count};
}

// Scores of the first `count` slots, added in order.
THERMOE_RARE inline float MassOf(float score, int count) {
  float mass = 0;
#pragma unroll 1
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
  int group = -1;   // of the lane's slot: 2 expert + (1: the hi plane alone); -1: empty
  int dropped = 0;  // the same in every lane, like the next
  float lost = 0;   // mass
};

// Turns slots sorted by score into row t of the selection. plain_mass: of the plain model's slots. is_plain: these are they.
__device__ inline RowResult Weigh(const SelectLaunch& l, const SelectRules& rules, int64_t t, float plain_mass, bool is_plain, const Slots& slots,
                                  bool may_read_lo) {
  const int lane = Lane(), most = min(slots.count, rules.most);
  int kept = max(most, 1);
  if (rules.drop_below > 0) [[unlikely]] {
    const float least = rules.drop_below * __shfl_sync(kAllLanes, slots.score, 0);
    const uint32_t stay = __ballot_sync(kAllLanes, lane == 0 || (lane < most && !(slots.score < least)));
    kept = 32 - __clz(static_cast<int>(stay));  // every slot up to the last that stays
  }
  const float mass = is_plain && kept == slots.count ? plain_mass : MassOf(slots.score, kept);
  const bool here = lane < kept, full = here && lane < rules.full && may_read_lo;
  const DivideBy by_mass(mass);
  const float weight = l.normalise ? by_mass(slots.score) : slots.score * by_mass(plain_mass);
  if (lane < l.slots && rules.dry == 0) {
    const int64_t at = t * l.slots + lane;
    l.expert[at] = here ? slots.expert : -1;
    l.weight[at] = here ? weight : 0.0f;
    l.planes[at] = !here || full ? Planes::kBoth : Planes::kHi;
  }
  return {here ? 2 * slots.expert + (full ? 0 : 1) : -1, l.slots - kept, DivideBy(plain_mass)(plain_mass - mass)};
}

THERMOE_RARE inline void WriteEmptyRow(int64_t t, int slots, int32_t* expert, float* weight, Planes* planes) {
  if (const int64_t at = t * slots + Lane(); Lane() < slots) expert[at] = -1, weight[at] = 0, planes[at] = Planes::kBoth;
}
__device__ inline RowResult EmptyRow(const SelectLaunch& l, int64_t t) {
  WriteEmptyRow(t, l.slots, l.expert, l.weight, l.planes);
  return {};
}

// The rest of row t, once it has chosen alone. others.batch: null where there is no other row or no rule asks.
template <int kLane>
__device__ RowResult FinishRow(const SelectLaunch& l, const SelectRules& rules, const RowRules& row, int64_t t, const RowInput<kLane>& input,
                               const OwnChoice<kLane>& own, const Together& others, WarpRoom* room) {
  if (l.scores != nullptr && rules.dry == 0) [[unlikely]] WriteScores<kLane>(l.scores, t, l.experts, own.scores);
  const bool together = others.batch != nullptr && (row.hard || row.soft);
  const bool is_plain = !together && !row.hard && rules.has_bias == 0;
  Slots slots = own.plain;
  if (!is_plain) [[unlikely]] {
    if (together) slots = ChooseTogether(row, l.experts, l.slots, input, own, others, room);
    else slots = own.biased, slots.count = row.hard ? row.stay : slots.count;  // alone, nobody else holds what is not its own
    slots.count = min(slots.count, rules.most);
    if ((together && row.soft) || rules.has_bias) slots = ByScore(own.scores, slots);
  }
  bool may_read_lo = true;
  if (rules.has_cap) [[unlikely]] {
    const int expert = max(slots.expert, 0);
    may_read_lo = (__shfl_sync(kAllLanes, input.uncapped, expert / kLane) >> (expert % kLane) & 1) != 0;
  }
  return Weigh(l, rules, t, own.plain_mass, is_plain, slots, may_read_lo);
}

// The choice of row t, which asks no other. Its input is read.
template <int kLane>
__device__ RowResult ChooseRow(const SelectLaunch& l, const SelectRules& rules, int64_t t, const RowInput<kLane>& input, WarpRoom* room) {
  if (input.kind == kernels::RowKind::kPadding) [[unlikely]] return EmptyRow(l, t);
  return FinishRow(l, rules, RulesOf(l, rules, input.kind), t, input, ChooseAlone(l, rules, input, room), {}, room);
}

// Whether every row is the plain model's.
__device__ inline bool IsPlain(const SelectLaunch& l, const SelectRules& rules) {
  return rules.has_bias == 0 && rules.has_cap == 0 && !(rules.drop_below > 0) && rules.most >= l.slots && rules.full >= l.slots && !BatchAware(l, rules);
}

// ChooseRow by such rules, of rows side by side: their groups, and how many have scores that are no numbers. Where `there` is false is no row.
template <int kRows, int kLane>
__device__ int ChoosePlainRows(const SelectLaunch& l, const int (&rows)[kRows], const bool (&there)[kRows], const RowInput<kLane> (&input)[kRows],
                               WarpRoom* const (&rooms)[kRows], int (&group)[kRows]) {
  Token<kLane> scores[kRows];
  bool chooses[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) scores[r] = SoftmaxOf(input[r].logits), chooses[r] = there[r] && input[r].kind != kernels::RowKind::kPadding;
  Slots slots[kRows];
  float mass[kRows];
  ChooseBest<4>(l.slots, scores, rooms, chooses, slots, mass);
  int no_numbers = 0;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float weight = l.normalise ? DivideBy(mass[r])(slots[r].score) : slots[r].score;
    const bool here = chooses[r] && Lane() < l.slots;
    group[r] = here ? 2 * slots[r].expert : -1;
    no_numbers += chooses[r] && mass[r] != mass[r];
    if (const int at = rows[r] * l.slots + Lane(); here) {
      l.expert[at] = slots[r].expert;
      l.weight[at] = weight;
      l.planes[at] = Planes::kBoth;
    }
  }
  bool rest = l.scores != nullptr;
#pragma unroll
  for (int r = 0; r < kRows; ++r) rest = rest || there[r] != chooses[r];
  if (!rest) [[likely]] return no_numbers;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (there[r] && !chooses[r]) WriteEmptyRow(rows[r], l.slots, l.expert, l.weight, l.planes);
    if (l.scores != nullptr && chooses[r]) WriteScores<kLane>(l.scores, rows[r], l.experts, scores[r]);
  }
  return no_numbers;
}

}  // namespace thermoe::cuda
