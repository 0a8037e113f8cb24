// SPDX-License-Identifier: Apache-2.0
// Selection from logits that are there: one launch, by one block for few rows, by blocks that meet for more.
#include <type_traits>

#include "base/check.h"
#include "kernels/cuda/choose_few.cuh"
#include "kernels/cuda/launch_early.cuh"
#include "kernels/cuda/shared.cuh"

namespace thermoe::cuda {
namespace {

constexpr int kMostBlocks = 256;  // that meet
constexpr int kMostRows = 65535;  // counts of a group fit 16 bits
constexpr int kLeastWarps = 8;    // of a block, a row each at a time

// What a block tells the others.
struct BlockRoom {
  uint32_t holders[kernels::kMaxExperts];  // Batch of its rows
  uint32_t guaranteed[kWords];
  SumOfTotals totals;
};
struct ManyRooms {
  BlockRoom* blocks;  // [blocks]
  // [turns of all blocks, 32 kLane] slots of each expert in a turn that read both planes; and of the hi plane alone. At most a turn's rows: 32.
  uint8_t *both, *hi;
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
    if (team_.thread() == 0) {
      const uint32_t mine = blockIdx.x == 0 ? 0x80000000u - (gridDim.x - 1) : 1u;
      uint32_t now;
      asm volatile("fence.acq_rel.gpu;\n\tred.relaxed.gpu.global.add.u32 [%0], %1;" ::"l"(word_), "r"(mine) : "memory");
      do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(word_) : "memory");
      while (((was_ ^ now) & 0x80000000u) == 0);
      was_ = now;
    }
    team_.Meet();
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

// A byte of each of the lane's experts, in [32 kLane] of all.
template <int kLane>
struct LaneBytes {
  static constexpr int kEach = kLane < 4 ? kLane : 4;  // bytes of a word
  using Word = std::conditional_t<kEach == 1, uint8_t, std::conditional_t<kEach == 2, uint16_t, uint32_t>>;
  Word words[kLane / kEach] = {};

  __device__ uint32_t At(int i) const { return static_cast<uint32_t>(words[i / kEach]) >> (8 * (i % kEach)) & 0xffu; }
  __device__ void Add(const LaneBytes& other, bool really) {
#pragma unroll
    for (int i = 0; i < kLane / kEach; ++i) words[i] = static_cast<Word>(words[i] + (really ? other.words[i] : 0));
  }
  __device__ void Put(int i, uint32_t byte) { words[i / kEach] = static_cast<Word>(words[i / kEach] | byte << (8 * (i % kEach))); }
  __device__ void Load(const uint8_t* all) {
#pragma unroll
    for (int i = 0; i < kLane / kEach; ++i) words[i] = __ldcg(reinterpret_cast<const Word*>(all + Lane() * kLane) + i);
  }
  __device__ void Store(uint8_t* all) const {
#pragma unroll
    for (int i = 0; i < kLane / kEach; ++i) reinterpret_cast<Word*>(all + Lane() * kLane)[i] = words[i];
  }
};

// Adds up the turns' counts: of all, and of those before this block's first.
template <int kLane>
struct TurnSums {
  static constexpr int kWarps = kLane <= 4 ? 16 : kLane == 8 ? 8 : 1;  // that read, so that parts take at most 16 KiB
  uint32_t parts[2][kWarps][32 * kLane];
  uint32_t sum[2][32 * kLane];
};

// Adds up turns at, at + step, ... A turn has at most 32 rows, so four of them fit bytes.
template <int kLane>
__device__ void AddTurnsOfWarp(const uint8_t* counts, int at, int step, int turns, int before_turn, int shift, uint32_t (&all)[kLane],
                               uint32_t (&before)[kLane]) {
  constexpr int kFit = 4, kInFlight = 2 * kFit;
#pragma unroll 1
  for (; at < turns; at += kInFlight * step) {
    LaneBytes<kLane> turn[kInFlight];
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) turn[j].Load(counts + int64_t{min(at + j * step, turns - 1)} * 32 * kLane);
#pragma unroll
    for (int first = 0; first < kInFlight; first += kFit) {
      LaneBytes<kLane> sum, sum_before;
#pragma unroll
      for (int j = first; j < first + kFit; ++j) {
        const int t = at + j * step;
        sum.Add(turn[j], t < turns), sum_before.Add(turn[j], t < before_turn);
      }
#pragma unroll
      for (int i = 0; i < kLane; ++i) all[i] += sum.At(i) << shift, before[i] += sum_before.At(i) << shift;
    }
  }
}

template <int kLane>
__device__ void AddTurns(const BlockTeam& team, const ManyRooms& rooms, bool some_hi, int turns, int before_turn, TurnSums<kLane>* sums) {
  const int readers = min(TurnSums<kLane>::kWarps, team.warps());
  if (team.warp() < readers) {
    uint32_t all[kLane] = {}, before[kLane] = {};
    AddTurnsOfWarp(rooms.both, team.warp(), readers, turns, before_turn, 0, all, before);
    if (some_hi) AddTurnsOfWarp(rooms.hi, team.warp(), readers, turns, before_turn, 16, all, before);
#pragma unroll
    for (int i = 0; i < kLane; ++i) {
      sums->parts[0][team.warp()][Lane() * kLane + i] = all[i], sums->parts[1][team.warp()][Lane() * kLane + i] = before[i];
    }
  }
  team.Meet();
#pragma unroll 1
  for (int i = team.thread(); i < 64 * kLane; i += team.threads()) {
    const int which = i / (32 * kLane), e = i % (32 * kLane);
    uint32_t sum = 0;
#pragma unroll 8
    for (int w = 0; w < readers; ++w) sum += sums->parts[which][w][e];
    sums->sum[which][e] = sum;
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

// Blocks share the rows, tell each other how many slots each turn has in each group, and put their own in order.
template <int kLane, bool kVectors>
__global__ void __launch_bounds__(32 * kTeamWarps<kLane>) SelectManyKernel(SelectLaunch l, ManyRooms rooms, int turns, int turns_of_block) {
  __shared__ struct {
    TeamRoom<kLane> room;
    TurnSums<kLane> sums;
  } place;
  auto& [room, sums] = *Held(&place);
  const BlockTeam team;
  const int block = static_cast<int>(blockIdx.x), rows_of_block = turns_of_block * team.warps();
  const int first = block * rows_of_block, end = min(l.rows, first + rows_of_block);
  ClearRoom(team, l.experts, &room);
  team.Meet();
  WaitForBefore();
  LetNextStart();
  RowInput<kLane> input;
  ReadRow<kVectors>(l, first + team.warp(), &input);
  Meeting meeting(team, l.done);
  const SelectRules rules = RulesNow(l);
  const int group = ChooseRows(
      l, rules, team, first, end, &input, &room, [&](Batch* batch) { ShareBatch<kLane>(l, rules, team, rooms.blocks, &meeting, batch); },
      [&](int turn, const SlotCounts<kLane>& counts) {
        LaneBytes<kLane> both, hi;
#pragma unroll
        for (int i = 0; i < kLane; ++i) both.Put(i, counts.both_hi[i] & 0xffffu), hi.Put(i, counts.both_hi[i] >> 16);
        const int64_t at = (int64_t{block} * turns_of_block + turn) * 32 * kLane;
        both.Store(rooms.both + at), hi.Store(rooms.hi + at);
      });
  if (team.warp() == team.warps() - 1) {
    const SumOfTotals totals = AddTotals(team.warps(), [&](int i) { return room.totals[i]; });
    if (Lane() == 0) rooms.blocks[block].totals = totals;
  }
  meeting.Meet();
  const bool some_hi = rules.full < l.slots || rules.has_cap;
  AddTurns(team, rooms, some_hi, turns, block * turns_of_block, &sums);
  ListTotals list_totals;
  if (team.warp() == 0) {
    SlotCounts<kLane> all, before;
#pragma unroll
    for (int i = 0; i < kLane; ++i) all.both_hi[i] = sums.sum[0][Lane() * kLane + i], before.both_hi[i] = sums.sum[1][Lane() * kLane + i];
    list_totals = FindStarts(all, before, &room);
  }
  team.Meet();
  if (block == 0) WriteJobs(l, team, room);
  if (block == 0 && team.warp() == 0) WriteCounts(l, list_totals);
  if (block == 0 && team.warp() == team.warps() - 1) {
    WriteTotals(AddTotals(static_cast<int>(gridDim.x), [&](int i) {
      const double lost = __ldcg(&rooms.blocks[i].totals.lost);
      return SumOfTotals{lost, __ldcg(&rooms.blocks[i].totals.dropped), 0};
    }), l.counts);
  }
  PutInOrder(l, team, first, end, group, &room);
}

// At most.
int64_t TurnsOf(int64_t rows) { return (rows + kLeastWarps - 1) / kLeastWarps; }
int64_t BlocksOf(int64_t rows) { return min(int64_t{kMostBlocks}, TurnsOf(rows)); }

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
  // All blocks run together: any fits a multiprocessor. Few rows are spread over many blocks of few warps.
  const int blocks_at_once = min(kMostBlocks, Multiprocessors());
  int warps = kLeastWarps;
  while (warps < kTeamWarps<kLane> && warps * blocks_at_once < l.rows) warps *= 2;
  const int turns = (l.rows + warps - 1) / warps, turns_of_block = (turns + blocks_at_once - 1) / blocks_at_once;
  const auto blocks = static_cast<unsigned>((turns + turns_of_block - 1) / turns_of_block);
  ManyRooms rooms;
  rooms.blocks = static_cast<BlockRoom*>(l.scratch);
  rooms.both = reinterpret_cast<uint8_t*>(rooms.blocks + BlocksOf(l.rows));
  rooms.hi = rooms.both + int64_t{turns} * 32 * kLane;
  LaunchEarly(SelectManyKernel<kLane, kVectors>, dim3(blocks), dim3(static_cast<unsigned>(32 * warps)), 0, stream, l, rooms, turns, turns_of_block);
}

}  // namespace

int64_t SelectScratch(int64_t rows) {
  const int64_t of_many = BlocksOf(rows) * static_cast<int64_t>(sizeof(BlockRoom)) + TurnsOf(rows) * 2 * kernels::kMaxExperts;
  return max(of_many, min(rows, int64_t{kGatePartRows}) * kGatePartOfRow);
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
