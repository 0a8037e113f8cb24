// SPDX-License-Identifier: Apache-2.0
// Selection from logits that are there: one launch, by one block for few rows, by blocks that pass counts for more.
#include "base/check.h"
#include "kernels/cuda/choose_few.cuh"
#include "kernels/cuda/launch_early.cuh"
#include "kernels/cuda/pass_counts.cuh"
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

// What the blocks of a launch of many rows share memory for.
template <int kLane>
struct ManyRoom {
  TeamRoom<kLane> room;
  CountSums sums[64 * kLane + kCountsOfWord];
  uint32_t no_numbers;  // rows of plain rules whose scores are none
};

template <int kLane>
__device__ void ClearMany(const BlockTeam& team, int experts, ManyRoom<kLane>* many) {
  ClearRoom(team, experts, &many->room);
#pragma unroll 1
  for (int e = team.thread(); e < experts; e += team.threads()) many->room.both_hi[e] = 0;
  if (team.thread() == 0) many->no_numbers = 0;
}

// A turn of rows that choose plainly, kRows of a warp. group: -1 where there is none.
template <int kRows, int kLane>
__device__ void ChooseTurn(const SelectLaunch& l, const BlockTeam& team, int turn, int end, bool dry, const RowInput<kLane> (&input)[2], ManyRoom<kLane>* many, int (&group)[2]) {
  int rows[kRows], groups[kRows];
  bool there[kRows];
  RowInput<kLane> of[kRows];
  WarpRoom* rooms[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int row = r * team.warps() + team.warp();
    rows[r] = turn + row, there[r] = rows[r] < end, of[r] = input[r], rooms[r] = &many->room.warps[row];
  }
  const int no_numbers = ChoosePlainRows(l, rows, there, of, dry, rooms, groups);
  if (no_numbers > 0 && Lane() == 0) [[unlikely]] atomicAdd(&many->no_numbers, static_cast<uint32_t>(no_numbers));
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    group[r] = groups[r];
    if (group[r] >= 0) atomicOr(&many->room.rows_of[group[r]], 1u << (r * team.warps() + team.warp()));
  }
}

// The rows of a block by rules that are plain, two of a warp in a turn, into their groups. Counts those of turns before the last. input: of the first turn. group: as
// PutInOrder has it. dry: one warp goes through the code.
template <bool kVectors, int kLane>
__device__ void GroupPlainRows(const SelectLaunch& l, const BlockTeam& team, int first, int end, bool dry, RowInput<kLane> (&input)[2], ManyRoom<kLane>* many,
                               int (&group)[2]) {
  TeamRoom<kLane>& room = many->room;
  const int rows_of_turn = 2 * team.warps();
  const bool two = end - first > team.warps();
#pragma unroll 1
  for (int turn = first;;) {
    group[0] = group[1] = -1;
    if (!dry || team.warp() == 0) {
      if (two) ChooseTurn<2>(l, team, turn, end, dry, input, many, group);
      else ChooseTurn<1>(l, team, turn, end, dry, input, many, group);
    }
    team.Meet();
    turn += rows_of_turn;
    if (dry || turn >= end) return;
#pragma unroll
    for (int j = 0; j < 2; ++j) ReadRow<kVectors>(l, turn + j * team.warps() + team.warp(), &input[j]);
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

// Lists of all rows, each block its part, once its rows are in their groups. count_at: as Tell has it; the count that comes last goes to write_totals, by warp 0 of the first
// block. some_hi: counts of hi planes come after those of both.
template <int kEach, int kLane, typename CountAt, typename WriteTotals>
__device__ void ListMany(const SelectLaunch& l, const BlockTeam& team, const PassedCounts& passed, bool some_hi, int first, int end, const int (&group)[kEach], bool dry,
                         ManyRoom<kLane>* many, CountAt&& count_at, WriteTotals&& write_totals) {
  const int of_experts = some_hi ? 2 * l.experts : l.experts, counts = of_experts + 1;
  passed.Tell(team, counts, dry, count_at);
  passed.AddUp(team, counts, dry, many->sums);
  team.Meet();
  ListTotals totals;
  if (team.warp() == 0) {
    SlotCounts<kLane> all, before;
#pragma unroll
    for (int i = 0; i < kLane; ++i) {
      const int e = Lane() * kLane + i;
      const CountSums both = e < l.experts ? many->sums[e] : CountSums{}, hi = some_hi && e < l.experts ? many->sums[l.experts + e] : CountSums{};
      all.both_hi[i] = both.all | hi.all << 16, before.both_hi[i] = both.before | hi.before << 16;
    }
    totals = FindStarts(all, before, &many->room);
  }
  team.Meet();
  if (blockIdx.x == 0) WriteJobs(l, team, many->room, dry);
  if (blockIdx.x == 0 && team.warp() == 0) {
    if (Lane() == 0 && !dry) passed.Leave(counts);
    WriteCounts(l, totals, dry);
    write_totals(many->sums[of_experts].all);
  }
  PutInOrder(l, team, first, end, group, &many->room, dry);
}

template <int kLane, bool kVectors>
THERMOE_RARE void SelectSteeredRows(const SelectLaunch& l, BlockRoom* rooms, int first, int end, PassedCounts passed, ManyRoom<kLane>* many) {
  const BlockTeam team;
  const SelectRules rules = RulesNow(l);
  Meeting meeting(team, l.done);
  RowInput<kLane> input;
  ReadRow<kVectors>(l, first + team.warp(), &input);
  const int group[1] = {GroupSteeredRows(l, rules, team, first, end, &input, rooms, &many->room, &meeting)};
  const bool some_hi = rules.full < l.slots || rules.has_cap;
  ListMany(l, team, passed, some_hi, first, end, group, false, many, [&](int i) {
    if (i < l.experts) return many->room.both_hi[i] & 0xffffu;
    return some_hi && i < 2 * l.experts ? many->room.both_hi[i - l.experts] >> 16 : 0;
  }, [&](uint32_t) { WriteSteeredTotals(l, rooms, &meeting); });
}

// Blocks share the rows, tell each other how many slots they have in each group, and put their own in order. They go through the code of plain rules once for nothing
// but its code, until the launch before has ended, and the second time in earnest.
template <int kLane, bool kVectors>
__global__ void __launch_bounds__(32 * kManyWarps<kLane>, kLane <= 4 ? 2 : 1) SelectManyKernel(const __grid_constant__ SelectLaunch l, BlockRoom* rooms, int rows_of_block) {
  __shared__ ManyRoom<kLane> place;
  ManyRoom<kLane>& many = *Held(&place);
  const BlockTeam team;
  const int first = static_cast<int>(blockIdx.x) * rows_of_block, end = min(l.rows, first + rows_of_block);
  if constexpr (kLane <= 8) {
    static_assert(2 * kManyWarps<kLane> <= kTeamWarps<kLane>);  // two rows a warp: bits of a word, and a WarpRoom each
    RowInput<kLane> input[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int i = 0; i < kLane; ++i) input[j].logits[i] = 0.01f * static_cast<float>(Lane() * kLane + i);
      input[j].kind = kernels::RowKind::kDecode;
    }
#if __CUDA_ARCH__ >= 900
    constexpr bool kEarly = true;
#else
    constexpr bool kEarly = false;  // there is nothing to wait for
#endif
#pragma unroll 1
    for (bool dry = kEarly;; dry = false) {
      ClearMany(team, l.experts, &many);
      team.Meet();
      SelectRules rules;
      rules.guaranteed = rules.most = rules.full = l.slots;
      uint64_t state = 0;
      if (!dry) {
        WaitForBefore();
        LetNextStart();
#pragma unroll
        for (int j = 0; j < 2; ++j) ReadRow<kVectors>(l, first + j * team.warps() + team.warp(), &input[j]);
        rules = RulesNow(l);
        state = PassedCounts::ReadState(l.counted);
      }
      const PassedCounts passed(l.counted, state);
      if (!IsPlain(l, rules)) [[unlikely]] return SelectSteeredRows<kLane, kVectors>(l, rooms, first, end, passed, &many);
      int group[2];
      GroupPlainRows<kVectors>(l, team, first, end, dry, input, &many, group);
      ListMany(l, team, passed, false, first, end, group, dry, &many, [&](int i) {
        const int e = min(i, l.experts - 1);
        const uint32_t slots = many.room.both_hi[e] + static_cast<uint32_t>(__popc(many.room.rows_of[2 * e])), no_numbers = many.no_numbers;
        return i < l.experts ? slots : no_numbers;
      }, [&](uint32_t no_numbers) { WriteTotals({no_numbers > 0 ? NAN : 0.0, 0, 0}, l.counts, dry); });
      if (!dry) return;
      team.Meet();
    }
  } else {
    ClearMany(team, l.experts, &many);
    team.Meet();
    WaitForBefore();
    LetNextStart();
    SelectSteeredRows<kLane, kVectors>(l, rooms, first, end, PassedCounts(l.counted, PassedCounts::ReadState(l.counted)), &many);
  }
}

// At most.
int64_t BlocksOf(int64_t rows) { return min(int64_t{kMostBlocks}, (rows + kLeastWarps - 1) / kLeastWarps); }

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
  const int blocks_at_once = min(kMostBlocks, Multiprocessors());
  const int rows_of_block = max(kLeastWarps, (l.rows + blocks_at_once - 1) / blocks_at_once), warps = rows_of_block <= kLeastWarps ? kLeastWarps : kManyWarps<kLane>;
  const auto blocks = static_cast<unsigned>((l.rows + rows_of_block - 1) / rows_of_block);
  LaunchEarly(SelectManyKernel<kLane, kVectors>, dim3(blocks), dim3(static_cast<unsigned>(32 * warps)), 0, stream, l, static_cast<BlockRoom*>(l.scratch),
              rows_of_block);
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
