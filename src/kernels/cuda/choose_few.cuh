// SPDX-License-Identifier: Apache-2.0
// Selection of as many rows as a team has warps, at most: code that a decode step goes through once a layer, cold, so it is short, and steering that
// is off costs a branch (launch_early.cuh says why).
#pragma once

#include "kernels/cuda/choose_lists.cuh"

namespace thermoe::cuda {

// Lists and totals of a launch of one row, by its warp. Its slots are in different groups. number: of the experts' launch that takes its picks.
__device__ inline void ListOneRow(const SelectLaunch& l, const RowResult& row, bool dry, uint64_t number) {
  const int lane = Lane();
  if (number != 0 && lane < l.slots && !dry) {
    PutWord(l.picks + kPicksFirst + lane, number << kNumberShift | (row.group < 0 ? kNoPick : static_cast<uint64_t>(row.group)));
  }
  const bool here = row.group >= 0, hi = row.group % 2 == 1;
  const int kept = __popc(__ballot_sync(kAllLanes, here)), kept_hi = __popc(__ballot_sync(kAllLanes, here && hi));
  int place = 0;
#pragma unroll 1
  for (int first = 0; first < kept; first += kAtOnce) {
#pragma unroll
    for (int i = first; i < first + kAtOnce; ++i) place += static_cast<uint32_t>(__shfl_sync(kAllLanes, row.group, i)) < static_cast<uint32_t>(row.group);
  }
  if (here && !dry) {
    l.jobs[place] = {row.group / 2, hi ? Planes::kHi : Planes::kBoth, place, 1};
    l.order[place] = lane;
    l.expert_slots[row.group / 2] = 1;
  }
  if (lane == 0 && !dry) {
    *l.job_count = kept;
    *l.counts = {row.lost, kept - kept_hi, kept_hi, row.dropped, kept, kept - kept_hi, kept_hi};
  }
}

// Jobs of 32 experts a warp and turn, and where their groups begin; what comes before them each warp counts for itself. rows_of is complete.
template <int kLane>
__device__ void ListExperts(const SelectLaunch& l, const BlockTeam& team, bool dry, TeamRoom<kLane>* room) {
#pragma unroll 1
  for (int first = 32 * team.warp(); first < l.experts; first += 32 * team.warps()) {
    const int expert = first + Lane();
    uint32_t both = 0, hi = 0, before = 0;  // before: slots, and jobs in the upper half, of the lane's experts in front; 32 rows have 1,024 slots
    uint32_t slots = 0, jobs = 0, distinct = 0;  // of hi planes alone in the upper half
#pragma unroll 1
    for (int e = Lane(); e <= expert; e += 32) {
      before = (slots & 0xffffu) + (slots >> 16) + (((jobs & 0xffffu) + (jobs >> 16)) << 16);
      const uint2 rows = *reinterpret_cast<const uint2*>(&room->rows_of[2 * e]);
      both = static_cast<uint32_t>(__popc(rows.x)), hi = static_cast<uint32_t>(__popc(rows.y));
      slots += both | hi << 16;
      jobs += (both > 0 ? 1u : 0u) | (hi > 0 ? 0x10000u : 0u);
      distinct += both + hi > 0;
    }
    const uint32_t mine = both + hi + ((both > 0 ? 0x10000u : 0u) + (hi > 0 ? 0x10000u : 0u));
    const uint32_t at = __reduce_add_sync(kAllLanes, before) + SumUpTo(Lane(), mine) - mine;
    const auto start = static_cast<int32_t>(at & 0xffffu);
    *reinterpret_cast<uint2*>(&room->start[2 * expert]) = {at & 0xffffu, (at & 0xffffu) + both};
    if (expert < l.experts && !dry) {
      Job* job = l.jobs + (at >> 16);
      if (both > 0) *job++ = {expert, Planes::kBoth, start, static_cast<int32_t>(both)};
      if (hi > 0) *job = {expert, Planes::kHi, start + static_cast<int32_t>(both), static_cast<int32_t>(hi)};
      l.expert_slots[expert] = static_cast<int32_t>(both + hi);
    }
    if (first + 32 < l.experts) continue;
    slots = __reduce_add_sync(kAllLanes, slots), jobs = __reduce_add_sync(kAllLanes, jobs), distinct = __reduce_add_sync(kAllLanes, distinct);
    if (Lane() > 0 || dry) continue;
    const auto both_jobs = static_cast<int32_t>(jobs & 0xffffu), hi_jobs = static_cast<int32_t>(jobs >> 16);
    *l.job_count = both_jobs + hi_jobs;
    l.counts->slots_full = static_cast<int32_t>(slots & 0xffffu), l.counts->slots_hi = static_cast<int32_t>(slots >> 16);
    l.counts->distinct = static_cast<int32_t>(distinct), l.counts->distinct_full = both_jobs, l.counts->distinct_hi = hi_jobs;
  }
}

// The selection of at most team.warps() rows, a row a warp, whose kind input has. take(): makes the row's logits be there. room is clear.
// kOne: of one row by one warp, known beforehand. By rules that are dry nothing is written, so that a team with time to spare has gone through the code, which
// then comes from near.
template <bool kOne = false, int kLane, typename Take>
__device__ void SelectFew(const SelectLaunch& l, const SelectRules& rules, const BlockTeam& team, RowInput<kLane>* input, TeamRoom<kLane>* room, Take&& take,
                          uint64_t number = 0) {
  const int t = kOne ? 0 : team.warp();
  WarpRoom* warp_room = &room->warps[t];
  const bool one = kOne || l.rows == 1, dry = rules.dry != 0;
  if (one) {
    if (t > 0) return;
#pragma unroll 1
    for (int e = Lane(); e < l.experts && !dry; e += 32) l.expert_slots[e] = 0;
  }
  const bool chooses = __any_sync(kAllLanes, t < l.rows && input->kind != kernels::RowKind::kPadding) != 0;  // the same in all lanes, for the compiler
  ReadKnobs(l, rules, input);
  if (t < l.rows) take();
  const RowRules row = RulesOf(l, rules, input->kind);
  OwnChoice<kLane> own;
  if (chooses) own = ChooseAlone(l, rules, *input, warp_room);
  Together together;
  if (!one && BatchAware(l, rules)) [[unlikely]] {
    if (chooses) JoinBatch(row, own.biased, &room->batch);
    team.Meet();
    together = MakeTogether(l, rules, team, room);
  }
  RowResult result;
  if (chooses) result = FinishRow(l, rules, row, t, *input, own, together, warp_room);
  else if (t < l.rows) result = EmptyRow(l, t);
  if (one) {
    __syncwarp();
    return ListOneRow(l, result, dry, number);
  }
  if (result.group >= 0) atomicOr(&room->rows_of[result.group], 1u << t);
  if (Lane() == 0) room->totals[t] = {result.lost, result.dropped};
  team.Meet();
  ListExperts(l, team, dry, room);
  if (t == team.warps() - 1) WriteTotals(AddTotals(team.warps(), [&](int i) { return room->totals[i]; }), l.counts, dry);
  team.Meet();
  if (result.group < 0 || dry) return;
  const auto before = static_cast<uint32_t>(__popc(room->rows_of[result.group] & ((1u << t) - 1)));
  l.order[room->start[result.group] + before] = t * l.slots + Lane();
}

}  // namespace thermoe::cuda
