// SPDX-License-Identifier: Apache-2.0
// Selection by a team of warps, a row a warp at a time, and the lists of the dispatch: kept slots grouped by (expert, planes), tokens rising
// inside a group. A row has an expert once, so the rows of a turn (a warp each) that are in a group are the bits of a word.
#pragma once

#include "kernels/cuda/choose.cuh"

namespace thermoe::cuda {

// Whole warps that can wait for each other. Another kind of team has the same members.
struct BlockTeam {
  __device__ int thread() const { return static_cast<int>(threadIdx.x); }
  __device__ int threads() const { return static_cast<int>(blockDim.x); }
  __device__ int warp() const { return thread() / 32; }
  __device__ int warps() const { return threads() / 32; }
  __device__ void Meet() const { __syncthreads(); }
};

// What rows lost.
struct RowTotals {
  double lost;
  int32_t dropped, unused;
};

// What a team shares. E is padded to 32 kLane.
template <int kLane>
struct TeamRoom {
  Batch batch;
  uint32_t rows_of[64 * kLane];  // [2 E] group: bit w: the row of warp w is in it
  uint32_t start[64 * kLane];    // [2 E] where the rows of this turn begin in `order`
  RowTotals totals[32];          // [warps]
};

// Before the rules are known.
template <int kLane, typename Team>
__device__ void ClearRoom(const Team& team, TeamRoom<kLane>* room) {
  for (int i = team.thread(); i < 64 * kLane; i += team.threads()) room->rows_of[i] = 0;
  if (team.thread() < 32) room->totals[team.thread()] = {};
}
template <typename Team>
__device__ void ClearBatch(const Team& team, int experts, Batch* batch) {
  for (int i = team.thread(); i < kWords; i += team.threads()) batch->guaranteed[i] = 0;
  for (int i = team.thread(); i < experts; i += team.threads()) batch->holders[i] = 0;
}

// Slots per expert, experts l * kLane + i in lane l: those that read both planes, and those of the hi plane alone in the upper half.
// A launch has less than 65,536 rows.
template <int kLane>
struct SlotCounts {
  uint32_t both_hi[kLane] = {};
};

// Puts the rows of every turn into their groups and counts them, by warp 0. group_of(t): of the lane's slot of row t.
// Returns the group of the last turn, whose rows are left in room->rows_of. rows_of is clear.
template <int kLane, typename Team, typename GroupOf>
__device__ int CountSlots(const Team& team, int first, int end, TeamRoom<kLane>* room, SlotCounts<kLane>* counts, GroupOf&& group_of) {
  for (int turn = first;; turn += team.warps()) {
    const bool more = turn + team.warps() < end;
    const int t = turn + team.warp(), group = t < end ? group_of(t) : -1;
    if (group >= 0) atomicOr(&room->rows_of[group], 1u << team.warp());
    team.Meet();
    if (team.warp() == 0) {
#pragma unroll
      for (int i = 0; i < kLane; ++i) {
        uint32_t* rows = &room->rows_of[2 * (Lane() * kLane + i)];
        counts->both_hi[i] += static_cast<uint32_t>(__popc(rows[0])) | static_cast<uint32_t>(__popc(rows[1])) << 16;
        if (more) rows[0] = 0, rows[1] = 0;
      }
    }
    if (!more) return group;
    team.Meet();
  }
}

// The sum over lanes below.
__device__ inline uint32_t Below(uint32_t value, uint32_t* all) {
  uint32_t upto = value;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const uint32_t lower = __shfl_up_sync(kAllLanes, upto, offset);
    if (Lane() >= offset) upto += lower;
  }
  *all = __shfl_sync(kAllLanes, upto, 31);
  return upto - value;
}

// Where groups begin, by a warp. With `write` also jobs and counts.
template <int kLane>
__device__ void MakeLists(const SelectLaunch& l, const SlotCounts<kLane>& counts, bool write, uint32_t* start) {
  uint32_t slots = 0, jobs = 0, distinct = 0, all_slots, all_jobs;  // jobs and distinct: of the hi plane alone in the upper half
#pragma unroll
  for (int i = 0; i < kLane; ++i) {
    const uint32_t both = counts.both_hi[i] & 0xffffu, hi = counts.both_hi[i] >> 16;
    slots += both + hi;
    jobs += (both > 0 ? 1u : 0u) | (hi > 0 ? 0x10000u : 0u);
    distinct += both + hi > 0;
  }
  uint32_t at = Below(slots, &all_slots);
  if (!write) {
#pragma unroll
    for (int i = 0; i < kLane; ++i) {
      uint32_t* to = start + 2 * (Lane() * kLane + i);
      to[0] = at, to[1] = at += counts.both_hi[i] & 0xffffu;
      at += counts.both_hi[i] >> 16;
    }
    return;
  }
  const uint32_t jobs_below = Below(jobs, &all_jobs);
  uint32_t job = (jobs_below & 0xffffu) + (jobs_below >> 16), hi_slots = 0;
#pragma unroll
  for (int i = 0; i < kLane; ++i) {
    const int expert = Lane() * kLane + i;
    const uint32_t both = counts.both_hi[i] & 0xffffu, hi = counts.both_hi[i] >> 16;
    start[2 * expert] = at, start[2 * expert + 1] = at + both;
    if (both > 0) l.jobs[job++] = {expert, Planes::kBoth, static_cast<int32_t>(at), static_cast<int32_t>(both)};
    if (hi > 0) l.jobs[job++] = {expert, Planes::kHi, static_cast<int32_t>(at + both), static_cast<int32_t>(hi)};
    if (expert < l.experts) l.expert_slots[expert] = static_cast<int32_t>(both + hi);
    at += both + hi;
    hi_slots += hi;
  }
  hi_slots = __reduce_add_sync(kAllLanes, hi_slots);
  distinct = __reduce_add_sync(kAllLanes, distinct);
  if (Lane() == 0) {
    *l.job_count = static_cast<int32_t>((all_jobs & 0xffffu) + (all_jobs >> 16));
    l.counts->slots_full = static_cast<int32_t>(all_slots - hi_slots), l.counts->slots_hi = static_cast<int32_t>(hi_slots);
    l.counts->distinct = static_cast<int32_t>(distinct);
    l.counts->distinct_full = static_cast<int32_t>(all_jobs & 0xffffu), l.counts->distinct_hi = static_cast<int32_t>(all_jobs >> 16);
  }
}

// Adds up `count` totals, by a warp, in an order that is always the same; lane 0 has them.
template <typename TotalsAt>
__device__ RowTotals AddTotals(int count, TotalsAt&& at) {
  RowTotals sum{};
  for (int i = Lane(); i < count; i += 32) {
    const RowTotals other = at(i);
    sum.lost += other.lost, sum.dropped += other.dropped;
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) sum.lost += __shfl_xor_sync(kAllLanes, sum.lost, offset);
  sum.dropped = __reduce_add_sync(kAllLanes, sum.dropped);
  return sum;
}
__device__ inline void WriteTotals(const RowTotals& sum, SelectCounts* counts) {
  if (Lane() == 0) counts->mass_lost = sum.lost, counts->slots_dropped = sum.dropped;
}

// The group of the lane's slot of a row that was written, maybe by another block.
__device__ inline int GroupOf(const SelectLaunch& l, int64_t t) {
  const int64_t at = t * l.slots + Lane();
  const int expert = Lane() < l.slots ? __ldcg(l.expert + at) : -1;
  if (expert < 0) return -1;
  return 2 * expert + (static_cast<Planes>(__ldcg(reinterpret_cast<const uint8_t*>(l.planes) + at)) == Planes::kHi ? 1 : 0);
}

// Slots to their places. group: what CountSlots returned. room->start is where the rows of `first` begin.
template <int kLane, typename Team>
__device__ void PutInOrder(const SelectLaunch& l, const Team& team, int first, int end, int group, TeamRoom<kLane>* room) {
  const auto put = [&](int t) {
    if (group < 0) return;
    const auto before = static_cast<uint32_t>(__popc(room->rows_of[group] & ((1u << team.warp()) - 1)));
    l.order[room->start[group] + before] = t * l.slots + Lane();
  };
  if (first + team.warps() >= end) return put(first + team.warp());
  for (int i = team.thread(); i < 64 * kLane; i += team.threads()) room->rows_of[i] = 0;
  team.Meet();
  for (int turn = first; turn < end; turn += team.warps()) {
    const int t = turn + team.warp();
    group = t < end ? GroupOf(l, t) : -1;
    if (group >= 0) atomicOr(&room->rows_of[group], 1u << team.warp());
    team.Meet();
    put(t);
    team.Meet();
    for (int i = team.thread(); i < 64 * kLane; i += team.threads()) {
      room->start[i] += static_cast<uint32_t>(__popc(room->rows_of[i]));
      room->rows_of[i] = 0;
    }
    team.Meet();
  }
}

// The lists of one row, by its warp. Its slots are in different groups, and experts rise with groups.
__device__ inline void ListOneRow(const SelectLaunch& l, const RowResult& row) {
  const int lane = Lane();
  for (int e = lane; e < l.experts; e += 32) l.expert_slots[e] = 0;
  __syncwarp();
  const uint32_t here = __ballot_sync(kAllLanes, row.group >= 0), hi = __ballot_sync(kAllLanes, row.group >= 0 && row.group % 2 == 1);
  int place = 0;
  for (int first = 0; first < l.slots; first += kAtOnce) {
#pragma unroll
    for (int i = first; i < first + kAtOnce; ++i) {
      const int other = __shfl_sync(kAllLanes, row.group, i);
      place += other >= 0 && other < row.group;
    }
  }
  if (row.group >= 0) {
    l.jobs[place] = {row.group / 2, row.group % 2 == 0 ? Planes::kBoth : Planes::kHi, place, 1};
    l.order[place] = lane;
    l.expert_slots[row.group / 2] = 1;
  }
  if (lane == 0) {
    const int kept = __popc(here), kept_hi = __popc(hi);
    *l.job_count = kept;
    *l.counts = {row.lost, kept - kept_hi, kept_hi, row.dropped, kept, kept - kept_hi, kept_hi};
  }
}

// Chooses for rows [first, end) and counts their slots. share(batch): makes what rows of all teams hold out of what this one's do.
// Returns as CountSlots.
template <int kLane, typename Team, typename Share>
__device__ int ChooseRows(const SelectLaunch& l, const SelectRules& rules, const Team& team, int first, int end, TeamRoom<kLane>* room, SlotCounts<kLane>* counts,
                          Share&& share) {
  const auto keep = [&](const RowResult& result) {
    if (Lane() == 0) room->totals[team.warp()].lost += result.lost, room->totals[team.warp()].dropped += result.dropped;
    return result.group;
  };
  if (!BatchAware(l, rules)) {
    return CountSlots(team, first, end, room, counts, [&](int t) { return keep(ChooseRow(l, rules, t, ReadRow<kLane>(l, rules, t), nullptr)); });
  }
  // First what the rows hold, then the rest; a row is prepared once where its warp has no other.
  ClearBatch(team, l.experts, &room->batch);
  team.Meet();
  RowInput<kLane> input;
  OwnChoice<kLane> own;
  RowRules row{};
  const auto prepare = [&](int t) {
    input = ReadRow<kLane>(l, rules, t);
    row = RulesOf(l, rules, input.kind);
    if (input.kind != kernels::RowKind::kPadding) own = ChooseAlone(l, rules, row, input);
  };
  for (int t = first + team.warp(); t < end; t += team.warps()) {
    prepare(t);
    if (input.kind == kernels::RowKind::kDecode) JoinBatch(row, own, &room->batch);
  }
  team.Meet();
  share(&room->batch);
  return CountSlots(team, first, end, room, counts, [&](int t) {
    if (first + team.warps() < end) prepare(t);
    return keep(input.kind == kernels::RowKind::kPadding ? EmptyRow(l, t) : FinishRow(l, rules, row, t, input, own, &room->batch));
  });
}

// Lists and totals of all rows by one team, after CountSlots.
template <int kLane, typename Team>
__device__ void FinishLists(const SelectLaunch& l, const Team& team, int group, const SlotCounts<kLane>& counts, TeamRoom<kLane>* room) {
  if (team.warp() == team.warps() - 1) WriteTotals(AddTotals(team.warps(), [&](int i) { return room->totals[i]; }), l.counts);
  if (team.warp() == 0) MakeLists(l, counts, true, room->start);
  team.Meet();
  PutInOrder(l, team, 0, l.rows, group, room);
}

// The selection of all rows by one team, whose room is clear.
template <int kLane, typename Team>
__device__ void SelectByTeam(const SelectLaunch& l, const SelectRules& rules, const Team& team, TeamRoom<kLane>* room) {
  if (l.rows == 1 && !BatchAware(l, rules)) {
    if (team.warp() == 0) ListOneRow(l, ChooseRow(l, rules, 0, ReadRow<kLane>(l, rules, 0), nullptr));
    return;
  }
  SlotCounts<kLane> counts;
  const int group = ChooseRows(l, rules, team, 0, l.rows, room, &counts, [](Batch*) {});
  FinishLists(l, team, group, counts, room);
}

}  // namespace thermoe::cuda
