// SPDX-License-Identifier: Apache-2.0
// Selection by a team of warps, a row or two a warp at a time, and the lists of the dispatch: kept slots grouped by (expert, planes), tokens rising
// inside a group. A row has an expert once, so the rows of a turn that are in a group are the bits of a word.
#pragma once

#include "kernels/cuda/choose.cuh"

namespace thermoe::cuda {

// All warps of a block. Made by whole warps.
class BlockTeam {
 public:
  __device__ int thread() const { return static_cast<int>(threadIdx.x); }
  __device__ int threads() const { return static_cast<int>(blockDim.x); }
  __device__ int warp() const { return warp_; }
  __device__ int warps() const { return threads() / 32; }
  __device__ void Meet() const { __syncthreads(); }

 private:
  // The compiler knows what a shuffle gives to be the same in all lanes, and that branches by it do not part them.
  int warp_ = WarpNumber();
};

// What rows lost.
struct RowTotals {
  float lost;
  int32_t dropped;
};
struct SumOfTotals {
  double lost;
  int32_t dropped, unused;
};

// Warps of a team, at most. More experts than 256 take more registers.
template <int kLane>
inline constexpr int kTeamWarps = kLane <= 8 ? 32 : 8;

// What a team shares. E is padded to 32 kLane.
template <int kLane>
struct TeamRoom {
  alignas(16) uint32_t rows_of[64 * kLane];  // [2 E] group: bit j * warps + w: row j of warp w is in it
  union {
    alignas(16) uint32_t start[64 * kLane];  // [2 E] where the rows of this turn begin in `order`
    float2 gain[32 * kLane];                 // [E] before that, as Together has it
  };
  uint32_t both_hi[32 * kLane];              // [E] SlotCounts of all rows
  uint32_t job[32 * kLane];                  // [E] its first job
  WarpRoom warps[kTeamWarps<kLane>];         // a row each
  RowTotals totals[32];  // [warps]
  Batch batch;
};

// Before anything is known but the shape.
template <int kLane>
__device__ void ClearRoom(const BlockTeam& team, int experts, TeamRoom<kLane>* room) {
#pragma unroll 1
  for (int i = team.thread(); i < 64 * kLane; i += team.threads()) room->rows_of[i] = 0;
#pragma unroll 1
  for (int i = team.thread(); i < experts; i += team.threads()) room->batch.holders[i] = 0;
  if (team.thread() < 32) room->totals[team.thread()] = {}, room->batch.guaranteed[team.thread()] = 0;
}
static_assert(kWords == 32);

// Slots per expert, experts l * kLane + i in lane l: those that read both planes, and those of the hi plane alone in the upper half.
// A launch has less than 65,536 rows.
template <int kLane>
struct SlotCounts {
  uint32_t both_hi[kLane] = {};
  __device__ void Add(const SlotCounts& more) {
#pragma unroll
    for (int i = 0; i < kLane; ++i) both_hi[i] += more.both_hi[i];
  }
};

// Puts the rows of every turn into their groups. group_of(t): of the lane's slot of row t. count(counts): warp 0 is told of each turn.
// Returns the group of the last turn, whose rows are left in room->rows_of. rows_of is clear.
template <int kLane, typename GroupAt, typename Count>
__device__ int GroupSlots(const BlockTeam& team, int first, int end, TeamRoom<kLane>* room, GroupAt&& group_of, Count&& count) {
#pragma unroll 1
  for (int turn = 0;; ++turn) {
    const int t = first + turn * team.warps() + team.warp();
    const bool more = first + (turn + 1) * team.warps() < end;
    const int group = t < end ? group_of(t) : -1;
    if (group >= 0) atomicOr(&room->rows_of[group], 1u << team.warp());
    team.Meet();
    if (team.warp() == 0) {
      SlotCounts<kLane> counts;
      uint32_t* rows = &room->rows_of[2 * Lane() * kLane];
#pragma unroll
      for (int i = 0; i < kLane; ++i) counts.both_hi[i] = static_cast<uint32_t>(__popc(rows[2 * i])) | static_cast<uint32_t>(__popc(rows[2 * i + 1])) << 16;
      count(counts);
      if (more) {
#pragma unroll
        for (int i = 0; i < 2 * kLane; ++i) rows[i] = 0;
      }
    }
    if (!more) return group;
    team.Meet();
  }
}

// What a warp has counted of all rows: the lane's experts', and up to them.
struct ListTotals {
  uint32_t slots_upto = 0, jobs_upto = 0;  // jobs: of the hi plane alone in the upper half
  uint32_t hi_slots = 0, distinct = 0;
};

// Where groups and their jobs begin, by a warp. before: added to each group's.
template <int kLane>
__device__ ListTotals FindStarts(const SlotCounts<kLane>& counts, const SlotCounts<kLane>& before, TeamRoom<kLane>* room) {
  ListTotals totals;
  uint32_t slots = 0, jobs = 0;
#pragma unroll
  for (int i = 0; i < kLane; ++i) {
    const uint32_t both = counts.both_hi[i] & 0xffffu, hi = counts.both_hi[i] >> 16;
    slots += both + hi, totals.hi_slots += hi;
    jobs += (both > 0 ? 1u : 0u) | (hi > 0 ? 0x10000u : 0u);
    totals.distinct += both + hi > 0;
  }
  totals.slots_upto = SumUpTo(Lane(), slots), totals.jobs_upto = SumUpTo(Lane(), jobs);
  const uint32_t jobs_below = totals.jobs_upto - jobs;
  uint32_t at = totals.slots_upto - slots, job = (jobs_below & 0xffffu) + (jobs_below >> 16);
  uint32_t* start = room->start + 2 * Lane() * kLane;
#pragma unroll
  for (int i = 0; i < kLane; ++i) {
    const uint32_t both = counts.both_hi[i] & 0xffffu, hi = counts.both_hi[i] >> 16;
    start[2 * i] = at + (before.both_hi[i] & 0xffffu), start[2 * i + 1] = at + both + (before.both_hi[i] >> 16);
    room->both_hi[Lane() * kLane + i] = counts.both_hi[i], room->job[Lane() * kLane + i] = job;
    at += both + hi, job += (both > 0) + (hi > 0);
  }
  return totals;
}

// By the same warp.
__device__ inline void WriteCounts(const SelectLaunch& l, const ListTotals& totals) {
  const auto hi_slots = static_cast<int32_t>(__reduce_add_sync(kAllLanes, totals.hi_slots));
  const auto distinct = static_cast<int32_t>(__reduce_add_sync(kAllLanes, totals.distinct));
  if (Lane() < 31) return;
  const auto both_jobs = static_cast<int32_t>(totals.jobs_upto & 0xffffu), hi_jobs = static_cast<int32_t>(totals.jobs_upto >> 16);
  *l.job_count = both_jobs + hi_jobs;
  l.counts->slots_full = static_cast<int32_t>(totals.slots_upto) - hi_slots, l.counts->slots_hi = hi_slots;
  l.counts->distinct = distinct, l.counts->distinct_full = both_jobs, l.counts->distinct_hi = hi_jobs;
}

// Jobs and slots of experts, by a team for which groups begin where the jobs do. Warp 0 has other work.
template <int kLane>
__device__ void WriteJobs(const SelectLaunch& l, const BlockTeam& team, const TeamRoom<kLane>& room) {
#pragma unroll 1
  for (int expert = team.thread() - 32 + (team.warp() == 0 ? team.threads() : 0); expert < l.experts; expert += team.threads()) {
    const auto both = static_cast<int32_t>(room.both_hi[expert] & 0xffffu), hi = static_cast<int32_t>(room.both_hi[expert] >> 16);
    Job* job = l.jobs + room.job[expert];
    if (both > 0) *job++ = {expert, Planes::kBoth, static_cast<int32_t>(room.start[2 * expert]), both};
    if (hi > 0) *job = {expert, Planes::kHi, static_cast<int32_t>(room.start[2 * expert + 1]), hi};
    l.expert_slots[expert] = both + hi;
  }
}

// Adds up `count` totals, by a warp, in an order that is always the same.
template <typename TotalsAt>
__device__ SumOfTotals AddTotals(int count, TotalsAt&& at) {
  SumOfTotals sum{};
#pragma unroll 1
  for (int i = Lane(); i < count; i += 32) {
    const auto other = at(i);
    sum.lost += static_cast<double>(other.lost), sum.dropped += other.dropped;
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) sum.lost += __shfl_xor_sync(kAllLanes, sum.lost, offset);
  sum.dropped = __reduce_add_sync(kAllLanes, sum.dropped);
  return sum;
}
__device__ inline void WriteTotals(const SumOfTotals& sum, SelectCounts* counts, bool dry = false) {
  if (Lane() == 0 && !dry) counts->mass_lost = sum.lost, counts->slots_dropped = sum.dropped;
}

// Which slots a lane has of a turn: slot `slot` of rows `row`, `row` + stride and so on, of so many rows of a turn.
struct Seat {
  int row, stride, slot, rows_of_turn;
};
// A warp has kEach rows, one after team.warps() others.
template <int kEach>
__device__ Seat SeatOf(const BlockTeam& team) { return {team.warp(), team.warps(), Lane(), kEach * team.warps()}; }

// The group of the lane's slot of a row that was written, maybe by another block.
__device__ inline int GroupOf(const SelectLaunch& l, int64_t t, int slot) {
  const int64_t at = t * l.slots + slot;
  const int expert = slot < l.slots ? __ldcg(l.expert + at) : -1;
  if (expert < 0) return -1;
  return 2 * expert + (static_cast<Planes>(__ldcg(reinterpret_cast<const uint8_t*>(l.planes) + at)) == Planes::kHi ? 1 : 0);
}

// Slots to their places. last: the groups of the lane's slots in the last turn, which is left in room->rows_of. room->start is where the rows of `first` begin.
template <int kEach, int kLane>
__device__ void PutInOrder(const SelectLaunch& l, const BlockTeam& team, const Seat& seat, int first, int end, const int (&last)[kEach], TeamRoom<kLane>* room) {
  const auto put = [&](int turn, const int(&group)[kEach]) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      if (group[j] < 0) continue;
      const int row = seat.row + j * seat.stride;
      const auto before = static_cast<uint32_t>(__popc(room->rows_of[group[j]] & ((1u << row) - 1)));
      l.order[room->start[group[j]] + before] = (turn + row) * l.slots + seat.slot;
    }
  };
  if (first + seat.rows_of_turn >= end) return put(first, last);
#pragma unroll 1
  for (int i = team.thread(); i < 64 * kLane; i += team.threads()) room->rows_of[i] = 0;
  team.Meet();
#pragma unroll 1
  for (int turn = first; turn < end; turn += seat.rows_of_turn) {
    int group[kEach];
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int row = seat.row + j * seat.stride, t = turn + row;
      group[j] = row < seat.rows_of_turn && t < end ? GroupOf(l, t, seat.slot) : -1;
      if (group[j] >= 0) atomicOr(&room->rows_of[group[j]], 1u << row);
    }
    team.Meet();
    put(turn, group);
    team.Meet();
#pragma unroll 1
    for (int i = team.thread(); i < 64 * kLane; i += team.threads()) {
      room->start[i] += static_cast<uint32_t>(__popc(room->rows_of[i]));
      room->rows_of[i] = 0;
    }
    team.Meet();
  }
}

// By the team, which has met since the batch was there.
template <int kLane>
__device__ Together MakeTogether(const SelectLaunch& l, const SelectRules& rules, const BlockTeam& team, TeamRoom<kLane>* room) {
  if (rules.soft_batch > 0) {
#pragma unroll 1
    for (int e = team.thread(); e < l.experts; e += team.threads()) {
      const int holders = room->batch.holders[e];
      room->gain[e] = {Gain(rules, holders), Gain(rules, holders - 1)};
    }
    team.Meet();
  }
  return {&room->batch, room->gain};
}

// Chooses for rows [first, end) and groups their slots. input: of this warp's first row, as ReadRow leaves it.
// share(batch): makes what rows of all teams hold out of what this one's do. count, and what is returned: as of GroupSlots.
template <int kLane, typename Share, typename Count>
__device__ int ChooseRows(const SelectLaunch& l, const SelectRules& rules, const BlockTeam& team, int first, int end, RowInput<kLane>* input, TeamRoom<kLane>* room,
                          Share&& share, Count&& count) {
  WarpRoom* warp_room = &room->warps[team.warp()];
  const int mine = first + team.warp();
  const bool once = first + team.warps() >= end;  // a warp has one row
  ReadKnobs(l, rules, input);
  RowTotals totals{};
  const auto keep = [&](const RowResult& result) {
    totals.lost += result.lost, totals.dropped += result.dropped;
    if (Lane() == 0) room->totals[team.warp()] = totals;
    return result.group;
  };
  if (!BatchAware(l, rules)) {
    return GroupSlots(team, first, end, room, [&](int t) {
      if (t != mine) ReadRow(l, t, input);
      return keep(ChooseRow(l, rules, t, *input, warp_room));
    }, count);
  }
  // First what the rows hold, then the rest; a row is prepared once where its warp has no other.
  OwnChoice<kLane> own;
  RowRules row{};
  const auto prepare = [&](int t) {
    row = RulesOf(l, rules, input->kind);
    if (input->kind != kernels::RowKind::kPadding) own = ChooseAlone(l, rules, *input, warp_room);
  };
#pragma unroll 1
  for (int t = mine; t < end; t += team.warps()) {
    if (t != mine) ReadRow(l, t, input);
    prepare(t);
    if (input->kind == kernels::RowKind::kDecode) JoinBatch(row, own.biased, &room->batch);
  }
  team.Meet();
  share(&room->batch);
  const Together together = MakeTogether(l, rules, team, room);
  return GroupSlots(team, first, end, room, [&](int t) {
    if (!once) ReadRow(l, t, input), prepare(t);
    return keep(input->kind == kernels::RowKind::kPadding ? EmptyRow(l, t) : FinishRow(l, rules, row, t, *input, own, together, warp_room));
  }, count);
}

}  // namespace thermoe::cuda
