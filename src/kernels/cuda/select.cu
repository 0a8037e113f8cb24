// SPDX-License-Identifier: Apache-2.0
// Selection from logits that are there: one launch, by one block for few rows, by blocks that pass counts for more.
#include <type_traits>

#include "base/check.h"
#include "kernels/cuda/block_counts.cuh"
#include "kernels/cuda/choose_few.cuh"
#include "kernels/cuda/choose_rows.cuh"
#include "kernels/cuda/launch_early.cuh"
#include "kernels/cuda/shared.cuh"

namespace thermoe::cuda {
namespace {

constexpr int kMostRows = 65535;  // counts of a group fit 16 bits
constexpr int kLeastWarps = 8;    // of a block of many
// Of a block of many, at most: the next launch's block is on the multiprocessor before this one's has ended (64 registers a thread).
template <int kLane>
constexpr int kManyWarps = kTeamWarps<kLane> > 16 ? 16 : kTeamWarps<kLane>;

// What a block tells the others where rows are steered.
struct BlockRoom {
  uint32_t holders[kernels::kMaxExperts];  // Batch of its rows
  uint32_t guaranteed[kWords];
  SumOfTotals totals;
};

// Blocks of a launch that are on the device together. `word` keeps its upper bit from one meeting to the next and is left at 0 or 2^31.
class Meeting {
 public:
  // Before the first meeting. Thread 0 holds what the upper bit was: it changes when all have come.
  __device__ Meeting(const BlockTeam& team, uint32_t* word) : team_(team), word_(word) {
    if (team.thread() == 0) was_ = *static_cast<volatile uint32_t*>(word);
  }

  // What all blocks wrote before is there afterwards.
  __device__ void Meet() {
    team_.Meet();
    if (team_.thread() == 0) Arrive(), Await();
    team_.Meet();
  }

  // By thread 0. What it wrote before is there for whoever has awaited all.
  __device__ void Arrive() const {
    const uint32_t mine = blockIdx.x == 0 ? 0x80000000u - (gridDim.x - 1) : 1u;
    asm volatile("fence.acq_rel.gpu;\n\tred.relaxed.gpu.global.add.u32 [%0], %1;" ::"l"(word_), "r"(mine) : "memory");
  }
  __device__ void Await() {
    uint32_t now;
    do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(word_) : "memory");
    while (((was_ ^ now) & 0x80000000u) == 0);
    was_ = now;
  }

 private:
  const BlockTeam& team_;
  uint32_t* word_;
  uint32_t was_ = 0;
};

// Makes what the decode rows of all blocks hold out of what this one's do.
template <int kLane>
__device__ void ShareBatch(const SelectLaunch& l, const SelectRules& rules, const BlockTeam& team, BlockRoom* rooms, Meeting* meeting, Batch* batch) {
  BlockRoom& mine = rooms[blockIdx.x];
  if (team.thread() < kLane) mine.guaranteed[team.thread()] = batch->guaranteed[team.thread()];
  if (rules.soft_batch > 0) {
    for (int e = team.thread(); e < l.experts; e += team.threads()) mine.holders[e] = static_cast<uint32_t>(batch->holders[e]);
  }
  meeting->Meet();
  for (int word = team.warp(); word < kLane; word += team.warps()) {
    uint32_t all = 0;
    for (int b = Lane(); b < static_cast<int>(gridDim.x); b += 32) all |= __ldcg(&rooms[b].guaranteed[word]);
    all = __reduce_or_sync(kAllLanes, all);
    if (Lane() == 0) batch->guaranteed[word] = all;
  }
  if (rules.soft_batch > 0) {
    for (int e = team.thread(); e < l.experts; e += team.threads()) {
      uint32_t all = 0;
#pragma unroll 8
      for (int b = 0; b < static_cast<int>(gridDim.x); ++b) all += __ldcg(&rooms[b].holders[e]);
      batch->holders[e] = static_cast<int32_t>(all);
    }
  }
  team.Meet();
}

// Nothing is dry here.
__device__ SelectRules RulesNow(const SelectLaunch& l) {
  SelectRules rules = *l.rules;
  rules.dry = 0;
  return rules;
}

// kVectors: logits of a lane's experts are whole vectors.
template <int kLane, bool kVectors>
__global__ void __launch_bounds__(32 * kTeamWarps<kLane>) SelectKernel(SelectLaunch l) {
  __shared__ TeamRoom<kLane> room_place;
  TeamRoom<kLane>& room = *Held(&room_place);
  const BlockTeam team;
  ClearRoom(team, l.experts, &room);
  team.Meet();
  WaitForBefore();
  LetNextStart();
  RowInput<kLane> input{};
  ReadRow<kVectors>(l, team.warp(), &input);
  SelectFew(l, RulesNow(l), team, &input, &room, [] {});
}

// One row, by one warp: less code, all of which comes anew where launches follow each other.
template <int kLane, bool kVectors>
__global__ void __launch_bounds__(32) SelectOneKernel(SelectLaunch l) {
  __shared__ TeamRoom<kLane> room_place;
  TeamRoom<kLane>& room = *Held(&room_place);
  const BlockTeam team;
  WaitForBefore();
  LetNextStart();
  __builtin_assume(l.rows == 1);
  RowInput<kLane> input;
  ReadRow<kVectors>(l, 0, &input);
  SelectFew<true>(l, RulesNow(l), team, &input, &room, [] {});
}

// What RowFours shares.
template <int kLane>
struct FoursRoom {};
template <int kLane>
  requires(kLane <= 4)
struct FoursRoom<kLane> {
  static constexpr int kWarps = 32 / kWarpRows;  // the rows of a turn are the bits of a word
  RowsRoom<kLane> of[kWarps];
};

// What the blocks of a launch of many rows share memory for.
template <int kLane>
struct ManyRoom {
  TeamRoom<kLane> room;
  union {
    CountSums sums[64 * kLane + kCountsOfWord];                             // PassedCounts'
    alignas(16) PairSums parts[kMostParts * 16 * (kLane < 4 ? kLane : 4)];  // BlockCounts'
  };
  FoursRoom<kLane> fours;
  uint32_t no_number, others_no_number;  // whether a row of plain rules has scores that are none, of this block and of any
};

template <int kLane>
__device__ void ClearMany(const BlockTeam& team, int experts, ManyRoom<kLane>* many) {
  ClearRoom(team, experts, &many->room);
#pragma unroll 1
  for (int e = team.thread(); e < 32 * kLane; e += team.threads()) many->room.both_hi[e] = 0;
  if (team.thread() == 0) many->no_number = many->others_no_number = 0;
}

// Rows by plain rules, two of a warp in a turn.
template <int kLane, bool kVectors>
struct RowPairs {
  static constexpr int kEach = 2;
  RowInput<kLane> input[2];

  __device__ explicit RowPairs(ManyRoom<kLane>* many) : many_(many) {}
  static __device__ Seat Seats(const BlockTeam& team) { return SeatOf<2>(team); }

  __device__ void Read(const SelectLaunch& l, const BlockTeam& team, int turn) {
#pragma unroll
    for (int j = 0; j < 2; ++j) ReadRow<kVectors>(l, turn + j * team.warps() + team.warp(), &input[j]);
  }
  __device__ void Choose(const SelectLaunch& l, const BlockTeam& team, int turn, int end, int (&group)[2]) {
    group[0] = group[1] = -1;
    if (end - turn > team.warps()) ChooseTurn<2>(l, team, turn, end, group);
    else ChooseTurn<1>(l, team, turn, end, group);
  }

 private:
  template <int kRows>
  __device__ void ChooseTurn(const SelectLaunch& l, const BlockTeam& team, int turn, int end, int (&group)[2]) {
    int rows[kRows], groups[kRows];
    bool there[kRows];
    RowInput<kLane> of[kRows];
    WarpRoom* rooms[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int row = r * team.warps() + team.warp();
      rows[r] = turn + row, there[r] = rows[r] < end, of[r] = input[r], rooms[r] = &many_->room.warps[row];
    }
    const int no_numbers = ChoosePlainRows(l, rows, there, of, rooms, groups);
    if (no_numbers > 0) [[unlikely]] many_->no_number = 1;
#pragma unroll
    for (int r = 0; r < kRows; ++r) group[r] = groups[r];
  }

  ManyRoom<kLane>* many_;
};

// The same of up to 8 slots of up to 128 experts, four rows of a warp, as many warps as have bits in a word.
template <int kLane, bool kVectors>
struct RowFours {
  static constexpr int kEach = 1;

  __device__ explicit RowFours(ManyRoom<kLane>* many) : many_(many) {}
  static __device__ int Row(const BlockTeam& team) { return team.warp() * kWarpRows + Lane() / kRowLanes; }
  static __device__ Seat Seats(const BlockTeam& team) { return {Row(team), 0, Lane() % kRowLanes, min(32, team.warps() * kWarpRows)}; }

  __device__ void Read(const SelectLaunch& l, const BlockTeam& team, int turn) {
    if (team.warp() < kWarps) ReadOwn<kVectors>(l, turn + Row(team), &own_);
  }
  __device__ void Choose(const SelectLaunch& l, const BlockTeam& team, int turn, int end, int (&group)[1]) {
    group[0] = -1;
    if (team.warp() >= kWarps || turn + team.warp() * kWarpRows >= end) return;
    bool no_number;
    const int t = turn + Row(team);
    group[0] = ChooseOwn<kLane>(l, t, t < end, own_, &many_->fours.of[team.warp()], &no_number);
    if (no_number) [[unlikely]] many_->no_number = 1;
  }

 private:
  static constexpr int kWarps = FoursRoom<kLane>::kWarps;
  OwnLogits<kLane> own_;
  ManyRoom<kLane>* many_;
};

// A block's rows into their groups. Counts those of turns before the last. rows: has read those of the first turn. group: as PutInOrder has it.
template <int kLane, typename Rows>
__device__ void GroupPlainRows(const SelectLaunch& l, const BlockTeam& team, int first, int end, Rows* rows, ManyRoom<kLane>* many, int (&group)[Rows::kEach]) {
  TeamRoom<kLane>& room = many->room;
  const Seat seat = Rows::Seats(team);
#pragma unroll
  for (int& of_slot : group) of_slot = -1;
#pragma unroll 1
  for (int turn = first;;) {
    if (turn < end) rows->Choose(l, team, turn, end, group);
#pragma unroll
    for (int j = 0; j < Rows::kEach; ++j) {
      if (group[j] >= 0) atomicOr(&room.rows_of[group[j]], 1u << (seat.row + j * seat.stride));
    }
    team.Meet();
    turn += seat.rows_of_turn;
    if (turn >= end) return;
    rows->Read(l, team, turn);
#pragma unroll 1
    for (int e = team.thread(); e < l.experts; e += team.threads()) {
      room.both_hi[e] += static_cast<uint32_t>(__popc(room.rows_of[2 * e]));
      room.rows_of[2 * e] = 0;
    }
    team.Meet();
  }
}

// The same by any rules, a row of a warp in a turn. Thread 0 has arrived with what they lost.
template <int kLane>
__device__ int GroupSteeredRows(const SelectLaunch& l, const SelectRules& rules, const BlockTeam& team, int first, int end, RowInput<kLane>* input, BlockRoom* rooms,
                                TeamRoom<kLane>* room, Meeting* meeting) {
  SlotCounts<kLane> counts;
  const int group = ChooseRows(
      l, rules, team, first, end, input, room, [&](Batch* batch) { ShareBatch<kLane>(l, rules, team, rooms, meeting, batch); },
      [&](const SlotCounts<kLane>& turn) { counts.Add(turn); });
  if (team.warp() == 0) {
#pragma unroll
    for (int i = 0; i < kLane; ++i) room->both_hi[Lane() * kLane + i] = counts.both_hi[i];
    const SumOfTotals totals = AddTotals(team.warps(), [&](int i) { return room->totals[i]; });
    if (Lane() == 0) rooms[blockIdx.x].totals = totals, meeting->Arrive();
  }
  team.Meet();
  return group;
}

// What steered rows lost, by warp 0 of the first block.
__device__ inline void WriteSteeredTotals(const SelectLaunch& l, const BlockRoom* rooms, Meeting* meeting) {
  if (Lane() == 0) meeting->Await();
  __syncwarp();
  WriteTotals(AddTotals(static_cast<int>(gridDim.x), [&](int i) {
    const double lost = __ldcg(&rooms[i].totals.lost);
    return SumOfTotals{lost, __ldcg(&rooms[i].totals.dropped), 0};
  }), l.counts);
}

// Where groups begin, by warp 0, once the block has added up. sums_of(all, before): the lane's counts.
template <int kLane, typename SumsOf>
__device__ ListTotals StartGroups(const BlockTeam& team, ManyRoom<kLane>* many, SumsOf&& sums_of) {
  ListTotals totals;
  team.Meet();
  if (team.warp() == 0) {
    SlotCounts<kLane> all, before;
    sums_of(&all, &before);
    totals = FindStarts(all, before, &many->room);
  }
  team.Meet();
  return totals;
}

// Lists of steered rows, each block its part, once its rows are in their groups. some_hi: counts of hi planes come after those of both.
template <int kLane>
__device__ void ListSteered(const SelectLaunch& l, const BlockTeam& team, const PassedCounts& passed, bool some_hi, int first, int end, const int (&group)[1],
                            ManyRoom<kLane>* many, const BlockRoom* rooms, Meeting* meeting) {
  const int counts = some_hi ? 2 * l.experts : l.experts;
  passed.Tell(team, counts, [&](int i) {
    const int at = min(i, counts - 1);
    return at < l.experts ? many->room.both_hi[at] & 0xffffu : many->room.both_hi[at - l.experts] >> 16;
  });
  passed.AddUp(team, counts, many->sums);
  const ListTotals totals = StartGroups(team, many, [&](SlotCounts<kLane>* all, SlotCounts<kLane>* before) {
#pragma unroll
    for (int i = 0; i < kLane; ++i) {
      const int e = Lane() * kLane + i;
      const CountSums both = e < l.experts ? many->sums[e] : CountSums{}, hi = some_hi && e < l.experts ? many->sums[l.experts + e] : CountSums{};
      all->both_hi[i] = both.all | hi.all << 16, before->both_hi[i] = both.before | hi.before << 16;
    }
  });
  if (blockIdx.x == 0) WriteJobs(l, team, many->room);
  if (blockIdx.x == 0 && team.warp() == 0) {
    if (Lane() == 0) passed.Leave(counts);
    WriteCounts(l, totals);
    WriteSteeredTotals(l, rooms, meeting);
  }
  PutInOrder(l, team, SeatOf<1>(team), first, end, group, &many->room);
}

// The same of rows by plain rules. The last block has no rows but writes what is of the launch.
template <int kOfWord, int kEach, int kLane>
__device__ void ListPlain(const SelectLaunch& l, const BlockTeam& team, const Seat& seat, const CountRoom& room, int first, int end, const int (&group)[kEach],
                          ManyRoom<kLane>* many) {
  using Counts = BlockCounts<kLane, kOfWord>;
  const Counts counts(room);
  const bool lists = blockIdx.x + 1 == gridDim.x;
  if (!lists) counts.Tell(team, many->no_number != 0 ? Counts::kNoNumber : 0, [&](int e) {
    return many->room.both_hi[e] + static_cast<uint32_t>(__popc(many->room.rows_of[2 * e]));
  });
  if (counts.AddUp(team, many->parts) != 0) [[unlikely]] many->others_no_number = 1;
  const ListTotals totals = StartGroups(team, many, [&](SlotCounts<kLane>* all, SlotCounts<kLane>* before) {
    Counts::TakeSums(team, many->parts, all, before);
  });
  if (lists) WriteJobs(l, team, many->room);
  if (lists && team.warp() == 0) {
    if (Lane() == 0) counts.Leave();
    WriteCounts(l, totals);
    WriteTotals({many->others_no_number != 0 ? NAN : 0.0, 0, 0}, l.counts);
  }
  PutInOrder(l, team, seat, first, end, group, &many->room);
}

template <int kLane, bool kVectors>
THERMOE_RARE void SelectSteeredRows(const SelectLaunch& l, BlockRoom* rooms, int first, int end, CountRoom room, ManyRoom<kLane>* many) {
  const BlockTeam team;
  const SelectRules rules = RulesNow(l);
  Meeting meeting(team, l.done);
  RowInput<kLane> input;
  ReadRow<kVectors>(l, first + team.warp(), &input);
  const int group[1] = {GroupSteeredRows(l, rules, team, first, end, &input, rooms, &many->room, &meeting)};
  ListSteered(l, team, PassedCounts(room), rules.full < l.slots || rules.has_cap, first, end, group, many, rooms, &meeting);
}

// Blocks share the rows, tell each other how many slots they have in each group, and put their own in order. (Going through the code of plain rules for nothing until
// the launch before has ended took 0.5 us of 5.1.) kFours: by RowFours, not RowPairs. kOfWord: of BlockCounts.
template <int kLane, bool kVectors, bool kFours, int kOfWord>
__global__ void __launch_bounds__(32 * kManyWarps<kLane>, kLane <= 4 ? 2 : 1) SelectManyKernel(const __grid_constant__ SelectLaunch l, BlockRoom* rooms, int rows_of_block) {
  __shared__ ManyRoom<kLane> place;
  ManyRoom<kLane>& many = *Held(&place);
  const BlockTeam team;
  const int first = static_cast<int>(blockIdx.x) * rows_of_block, end = min(l.rows, first + rows_of_block);
  if constexpr (kLane <= 8) {
    static_assert(2 * kManyWarps<kLane> <= kTeamWarps<kLane>);  // two rows a warp: bits of a word, and a WarpRoom each
    std::conditional_t<kFours, RowFours<kLane, kVectors>, RowPairs<kLane, kVectors>> rows(&many);
    int group[decltype(rows)::kEach] = {};
    ClearMany(team, l.experts, &many);
    team.Meet();
    WaitForBefore();
    rows.Read(l, team, first);
    const SelectRules rules = RulesNow(l);
    const CountRoom room(l.counted, CountRoom::ReadState(l.counted));
    const bool plain = IsPlain(l, rules);
    LetNextStart();
    if (!plain) [[unlikely]] return SelectSteeredRows<kLane, kVectors>(l, rooms, first, end, room, &many);
    GroupPlainRows(l, team, first, end, &rows, &many, group);
    ListPlain<kOfWord>(l, team, decltype(rows)::Seats(team), room, first, end, group, &many);
  } else {
    ClearMany(team, l.experts, &many);
    team.Meet();
    WaitForBefore();
    LetNextStart();
    SelectSteeredRows<kLane, kVectors>(l, rooms, first, end, CountRoom(l.counted, CountRoom::ReadState(l.counted)), &many);
  }
}

// At most, with the one that has no rows.
int64_t BlocksOf(int64_t rows) { return min(int64_t{kMostBlocks}, (rows + kLeastWarps - 1) / kLeastWarps + 1); }

template <int kLane, bool kVectors = false>
void Launch(const SelectLaunch& l, cudaStream_t stream) {
  if (l.rows == 1) {
    LaunchEarly(SelectOneKernel<kLane, kVectors>, dim3(1), dim3(32), 0, stream, l);
    return;
  }
  if (l.rows <= kTeamWarps<kLane>) {
    LaunchEarly(SelectKernel<kLane, kVectors>, dim3(1), dim3(static_cast<unsigned>(32 * l.rows)), 0, stream, l);
    return;
  }
  THERMOE_CHECK(l.counted != nullptr);
  // All blocks run together: any fits a multiprocessor. Few rows are spread over many blocks of few warps.
  const int blocks_at_once = max(1, min(kMostBlocks, Multiprocessors()) - 1);
  const int rows_of_block = max(kLeastWarps, (l.rows + blocks_at_once - 1) / blocks_at_once), warps = rows_of_block <= kLeastWarps ? kLeastWarps : kManyWarps<kLane>;
  const auto blocks = static_cast<unsigned>((l.rows + rows_of_block - 1) / rows_of_block);
  const auto launch = [&](auto kernel) {
    LaunchEarly(kernel, dim3(blocks + 1), dim3(static_cast<unsigned>(32 * warps)), 0, stream, l, static_cast<BlockRoom*>(l.scratch), rows_of_block);
  };
  const auto launch_of_words = [&]<bool kFours>() {
    if (rows_of_block <= BlockCounts<kLane, 4>::kMostRows) launch(SelectManyKernel<kLane, kVectors, kFours, 4>);
    else launch(SelectManyKernel<kLane, kVectors, kFours, 2>);
  };
  if constexpr (kLane > 8) return launch(SelectManyKernel<kLane, kVectors, false, 2>);
  if constexpr (kLane <= 4) {
    if (l.slots <= kListed) return launch_of_words.template operator()<true>();
  }
  if constexpr (kLane <= 8) launch_of_words.template operator()<false>();
}

}  // namespace

int64_t SelectScratch(int64_t rows) {
  return max(BlocksOf(rows) * static_cast<int64_t>(sizeof(BlockRoom)), min(rows, int64_t{kGatePartRows}) * kGatePartOfRow);
}

void Select(const SelectLaunch& l, cudaStream_t stream) {
  if (l.rows == 0) return;
  THERMOE_CHECK(l.rows <= kMostRows);
  if (l.experts <= 32) return Launch<1>(l, stream);
  if (l.experts <= 64) return Launch<2>(l, stream);
  if (l.experts <= 128) return WholeVectors<4>(l.logits, l.experts) ? Launch<4, true>(l, stream) : Launch<4>(l, stream);
  if (l.experts <= 256) return Launch<8>(l, stream);
  Launch<32>(l, stream);
}

}  // namespace thermoe::cuda
