// SPDX-License-Identifier: Apache-2.0
// Selection from logits that are there: one launch, by one block for few rows, by blocks that meet for more.
#include "base/check.h"
#include "kernels/cuda/choose_lists.cuh"
#include "kernels/cuda/launch_early.cuh"

namespace thermoe::cuda {
namespace {

constexpr int kMostBlocks = 256;  // that meet
constexpr int kMostRows = 65535;  // counts of a group fit 16 bits
// Warps of a block, a row each at a time. More experts than 256 take more registers.
template <int kLane>
inline constexpr int kMostWarps = kLane <= 8 ? 32 : 8;
constexpr int kLeastWarps = 8;

// What a block tells the others. [kMostBlocks] in scratch.
struct alignas(16) BlockRoom {
  uint32_t both_hi[kernels::kMaxExperts];  // SlotCounts of its rows
  uint32_t holders[kernels::kMaxExperts];  // Batch of its rows
  uint32_t guaranteed[kWords];
  RowTotals totals;
};

// Waits for all blocks of a launch that are on the device together; what they wrote before is there afterwards. `word` keeps its upper bit
// from one meeting to the next and is left at 0 or 2^31.
__device__ void MeetBlocks(const BlockTeam& team, uint32_t* word) {
  team.Meet();
  if (team.thread() == 0) {
    __threadfence();
    const uint32_t mine = blockIdx.x == 0 ? 0x80000000u - (gridDim.x - 1) : 1u, old = atomicAdd(word, mine);
    uint32_t now = old;
    while (((old ^ now) & 0x80000000u) == 0) {
#if defined(__CUDA_ARCH__)
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(word) : "memory");
#else
      now = *static_cast<volatile uint32_t*>(word);
#endif
    }
  }
  team.Meet();
}

template <int kLane>
__device__ void LoadWords(const uint32_t* from, uint32_t (&to)[kLane]) {
  if constexpr (kLane % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kLane; i += 4) {
      const uint4 words = __ldcg(reinterpret_cast<const uint4*>(from + i));
      to[i] = words.x, to[i + 1] = words.y, to[i + 2] = words.z, to[i + 3] = words.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kLane; ++i) to[i] = __ldcg(from + i);
  }
}

// Makes what the decode rows of all blocks hold out of what this one's do.
template <int kLane>
__device__ void ShareBatch(const SelectLaunch& l, const SelectRules& rules, const BlockTeam& team, BlockRoom* rooms, Batch* batch) {
  BlockRoom& mine = rooms[blockIdx.x];
  if (team.thread() < kLane) mine.guaranteed[team.thread()] = batch->guaranteed[team.thread()];
  if (rules.soft_batch > 0) {
    for (int e = team.thread(); e < l.experts; e += team.threads()) mine.holders[e] = static_cast<uint32_t>(batch->holders[e]);
  }
  MeetBlocks(team, l.done);
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

// Adds up the blocks' counts: of all, and of those before this one.
template <int kLane>
struct BlockSums {
  static constexpr int kWarps = kLane <= 4 ? 16 : 64 / kLane;       // that read, so that parts take at most 16 KiB
  static constexpr int kInFlight = kLane <= 4 ? 8 : kLane == 8 ? 4 : 1;  // loads of a warp
  uint32_t parts[2][kWarps][32 * kLane];
  uint32_t all[2][32 * kLane];  // of all blocks; of those before
};

template <int kLane>
__device__ void AddBlocks(const BlockTeam& team, const BlockRoom* rooms, BlockSums<kLane>* sums) {
  using Sums = BlockSums<kLane>;
  const int blocks = static_cast<int>(gridDim.x), here = static_cast<int>(blockIdx.x), readers = min(Sums::kWarps, team.warps());
  if (team.warp() < readers) {
    uint32_t all[kLane] = {}, before[kLane] = {};
    for (int first = team.warp(); first < blocks; first += readers * Sums::kInFlight) {
      uint32_t counts[Sums::kInFlight][kLane] = {};
#pragma unroll
      for (int j = 0; j < Sums::kInFlight; ++j) {
        const int b = first + j * readers;
        if (b < blocks) LoadWords(rooms[b].both_hi + Lane() * kLane, counts[j]);
      }
#pragma unroll
      for (int j = 0; j < Sums::kInFlight; ++j) {
        const bool earlier = first + j * readers < here;
#pragma unroll
        for (int i = 0; i < kLane; ++i) all[i] += counts[j][i], before[i] += earlier ? counts[j][i] : 0;
      }
    }
#pragma unroll
    for (int i = 0; i < kLane; ++i) {
      sums->parts[0][team.warp()][Lane() * kLane + i] = all[i], sums->parts[1][team.warp()][Lane() * kLane + i] = before[i];
    }
  }
  team.Meet();
  for (int i = team.thread(); i < 64 * kLane; i += team.threads()) {
    const int which = i / (32 * kLane), e = i % (32 * kLane);
    uint32_t sum = 0;
    for (int w = 0; w < readers; ++w) sum += sums->parts[which][w][e];
    sums->all[which][e] = sum;
  }
  team.Meet();
}

template <int kLane>
__global__ void __launch_bounds__(32 * kMostWarps<kLane>) SelectKernel(SelectLaunch l) {
  __shared__ TeamRoom<kLane> room;
  const BlockTeam team;
  ClearRoom(team, &room);
  team.Meet();
  WaitForBefore();
  LetNextStart();
  SelectByTeam(l, *l.rules, team, &room);
}

// Blocks share the rows, tell each other how many slots of each group they have, and put their own in order.
template <int kLane>
__global__ void __launch_bounds__(32 * kMostWarps<kLane>) SelectManyKernel(SelectLaunch l, int rows_of_block) {
  __shared__ TeamRoom<kLane> room;
  __shared__ BlockSums<kLane> sums;
  const BlockTeam team;
  ClearRoom(team, &room);
  team.Meet();
  WaitForBefore();
  LetNextStart();
  const SelectRules rules = *l.rules;
  auto* rooms = static_cast<BlockRoom*>(l.scratch);
  const int first = static_cast<int>(blockIdx.x) * rows_of_block, end = min(l.rows, first + rows_of_block);
  SlotCounts<kLane> counts;
  const int group =
      ChooseRows(l, rules, team, first, end, &room, &counts, [&](Batch* batch) { ShareBatch<kLane>(l, rules, team, rooms, batch); });
  if (team.warp() == 0) {
#pragma unroll
    for (int i = 0; i < kLane; ++i) rooms[blockIdx.x].both_hi[Lane() * kLane + i] = counts.both_hi[i];
  }
  if (team.warp() == team.warps() - 1) {
    const RowTotals totals = AddTotals(team.warps(), [&](int i) { return room.totals[i]; });
    if (Lane() == 0) rooms[blockIdx.x].totals = totals;
  }
  MeetBlocks(team, l.done);
  AddBlocks(team, rooms, &sums);
  if (blockIdx.x == 0 && team.warp() == team.warps() - 1) {
    WriteTotals(AddTotals(static_cast<int>(gridDim.x), [&](int i) {
      const double lost = __ldcg(&rooms[i].totals.lost);
      return RowTotals{lost, __ldcg(&rooms[i].totals.dropped), 0};
    }), l.counts);
  }
  if (team.warp() == 0) {
    SlotCounts<kLane> all;
#pragma unroll
    for (int i = 0; i < kLane; ++i) all.both_hi[i] = sums.all[0][Lane() * kLane + i];
    MakeLists(l, all, blockIdx.x == 0, room.start);
#pragma unroll
    for (int i = 0; i < kLane; ++i) {
      const int expert = Lane() * kLane + i;
      const uint32_t before = sums.all[1][expert];
      room.start[2 * expert] += before & 0xffffu, room.start[2 * expert + 1] += before >> 16;
    }
  }
  team.Meet();
  PutInOrder(l, team, first, end, group, &room);
}

int Multiprocessors() {
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess || cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) return 1;
  return count;
}

template <int kLane>
void Launch(const SelectLaunch& l, cudaStream_t stream) {
  if (l.rows <= kMostWarps<kLane>) {
    LaunchEarly(SelectKernel<kLane>, dim3(1), dim3(static_cast<unsigned>(32 * l.rows)), 0, stream, l);
    return;
  }
  const int blocks_at_once = min(kMostBlocks, Multiprocessors());  // all run together: any block fits a multiprocessor
  const int rows_of_warps = kMostWarps<kLane> * blocks_at_once, turns = (l.rows + rows_of_warps - 1) / rows_of_warps;
  const int rows_of_block = kMostWarps<kLane> * turns;
  const auto blocks = static_cast<unsigned>((l.rows + rows_of_block - 1) / rows_of_block);
  LaunchEarly(SelectManyKernel<kLane>, dim3(blocks), dim3(32 * kMostWarps<kLane>), 0, stream, l, rows_of_block);
}

}  // namespace

int64_t SelectScratch(int64_t rows) {
  return min(int64_t{kMostBlocks}, (rows + kLeastWarps - 1) / kLeastWarps) * static_cast<int64_t>(sizeof(BlockRoom));
}

void Select(const SelectLaunch& l, cudaStream_t stream) {
  if (l.rows == 0) return;
  THERMOE_CHECK(l.rows <= kMostRows);
  if (l.experts <= 32) return Launch<1>(l, stream);
  if (l.experts <= 64) return Launch<2>(l, stream);
  if (l.experts <= 128) return Launch<4>(l, stream);
  if (l.experts <= 256) return Launch<8>(l, stream);
  Launch<32>(l, stream);
}

}  // namespace thermoe::cuda
