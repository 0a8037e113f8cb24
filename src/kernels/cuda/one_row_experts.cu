// SPDX-License-Identifier: Apache-2.0
// Experts of one row. A block has up to four row tiles of gate and up, eight warps of either, and then one row tile of down, of all slots: so it adds to these
// rows of the result itself. Inner values pass from block to block in words of 16 bytes: four halves and the number of the launch.
#include "kernels/cuda/divisor.cuh"
#include "kernels/cuda/launch_early.cuh"
#include "kernels/cuda/one_row.cuh"
#include "kernels/cuda/one_row.h"
#include "kernels/cuda/stream_rows.h"
#include "kernels/cuda/wgmma.cuh"

namespace thermoe::cuda {
namespace {

using one_row::kQuad;
using one_row::kWarps;
using one_row::RowTilePlace;
constexpr int kThreads = 32 * kWarps;
[[maybe_unused]] constexpr int kRowWarps = 4;  // that bring the row before they ask for weights; those of the others are on their way by then
constexpr int kUpTiles = 4;                  // row tiles of gate, and of up, of a block, at most
constexpr int kDownQuads = 2;                // of a warp, at most
constexpr int kMostColumns = 8 * kQuad;      // column tiles of gate: eight warps have a quad each
static_assert(2 * kUpTiles + kMostPicks <= 32);

struct Args {
  ExpertFfnLaunch l;
  int up_tiles, up_columns;      // row tiles of gate, and of up; column tiles
  int down_tiles, down_columns;  // row tiles of down, each a block's; column tiles
  Divisor blocks, of_expert, of_slot;  // by blocks, up_tiles, quads of a row tile of down
};

// What the row's slots read, empty ones left out, and where: row tiles of gate and up in turn, then of down.
struct Picks {
  int32_t expert[kMostPicks], slot[kMostPicks];
  float weight[kMostPicks];
  int32_t count;
  int32_t first, tiles;  // this block's row tiles of gate, counted through all picks
  uint64_t number;       // of this launch
  RowTilePlace up[2 * kUpTiles], down[kMostPicks];
};

// By one warp: as the gate passes them, or as its dispatch has them.
[[maybe_unused]] __device__ void FindPicks(const ExpertFfnLaunch& l, uint64_t number, Picks* picks) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  int expert = -1;
  if (l.picked) {
    uint64_t word;
    do {
      word = TakeWord(l.passed + kPicksFirst + min(lane, l.slots - 1));
    } while (!__all_sync(kAllLanes, word >> kNumberShift == number));
    const auto pick = static_cast<int32_t>(word & kNoPick);
    if (lane < l.slots && pick != static_cast<int32_t>(kNoPick)) expert = pick / 2;
  } else {
    if (lane < kMostPicks) picks->expert[lane] = -1;
    __syncwarp();
    if (lane < min(__ldcg(l.job_count), min(l.jobs_room, kMostPicks))) {
      const int4 job = __ldcg(reinterpret_cast<const int4*>(l.jobs) + lane);
      const int slot = __ldcg(l.order + min(job.z, l.order_room - 1));
      if (slot >= 0 && slot < l.slots) picks->expert[slot] = job.x;
    }
    __syncwarp();
    if (lane < kMostPicks) expert = picks->expert[lane];
    __syncwarp();
  }
  const uint32_t all = __ballot_sync(kAllLanes, expert >= 0);
  const int at = __popc(all & ((1u << lane) - 1));
  if (expert >= 0) picks->expert[at] = expert, picks->slot[at] = lane;
  if (lane == 0) picks->count = __popc(all), picks->number = number;
}

// By one warp: picks, and where everything is that they need. All that need not know what is picked comes before.
template <Packing kPacking>
__device__ void Guide(const Args& args, Picks* picks) {
  const ExpertFfnLaunch& l = args.l;
  const int lane = static_cast<int>(threadIdx.x % 32), block = static_cast<int>(blockIdx.x);
  const bool of_up = lane < 2 * kUpTiles, gate = lane % 2 == 0;
  const DeviceMatrix* table = !of_up ? l.down : gate ? l.gate : l.up;
  const DeviceMatrix& base = !of_up ? l.down_base : gate ? l.gate_base : l.up_base;
  uint64_t before = l.picked ? __ldcg(l.passed) : 0;  // the launch before the gate's, which told it, has long come to its end
  int count = l.slots, pick = 0;
  int64_t tile = 0;
  bool there = false, found = false;
#pragma unroll 1
  for (;;) {
    const auto begin = [&](int of) { return static_cast<int>(args.blocks.Quotient(static_cast<uint32_t>(count * args.up_tiles * of))); };
    const int first = begin(block), tiles = begin(block + 1) - first, unit = first + lane / 2;
    if (lane == 0) picks->first = first, picks->tiles = tiles;
    pick = of_up ? static_cast<int>(args.of_expert.Quotient(static_cast<uint32_t>(unit))) : lane - 2 * kUpTiles;
    there = of_up ? lane < 2 * tiles : pick < count && block < args.down_tiles;
    tile = TileNumber(of_up ? unit - pick * args.up_tiles : block, 0, of_up ? args.up_columns : args.down_columns);
    if (found) break;
    if (!l.picked) WaitForBefore(), before = __ldcg(l.passed);
    FindPicks(l, before + 1, picks);
    __syncwarp();
    if (picks->count == count) break;
    found = true, count = picks->count;  // some are empty
  }
  if (!there) return;
  const DeviceMatrix m = ExpertMatrix(table, base, l.stride, picks->expert[pick]);
  *(of_up ? &picks->up[lane] : &picks->down[pick]) = one_row::PlaceOf<kPacking>(m, tile);
}

__device__ inline void PutQuad(uint64_t* to, uint64_t halves, uint64_t number) {
  asm volatile("{\n.reg .b128 q;\nmov.b128 q, {%1, %2};\nst.relaxed.gpu.global.b128 [%0], q;\n}" ::"l"(to), "l"(halves), "l"(number) : "memory");
}
__device__ inline void TakeQuad(const uint64_t* from, uint64_t* halves, uint64_t* number) {
  asm volatile("{\n.reg .b128 q;\nld.relaxed.gpu.global.b128 q, [%2];\nmov.b128 {%0, %1}, q;\n}" : "=l"(*halves), "=l"(*number) : "l"(from) : "memory");
}

// By one warp: adds the parts of a row tile of gate and up, and passes 16 inner values: of four columns t of half_rows.cuh, a quad.
[[maybe_unused]] __device__ void PassInner(const Args& args, const Picks& picks, const float* parts, int pick, int row_tile) {
  const int lane = static_cast<int>(threadIdx.x % 32), t = lane % 4;
  const float mine = one_row::SumParts(parts + lane / kTileRows * (kWarps / 2 * kTileRows), kWarps / 2), up = __shfl_down_sync(kAllLanes, mine, kTileRows);
  const float inner = Silu(mine) * up;
  const float v0 = __shfl_sync(kAllLanes, inner, 2 * t), v1 = __shfl_sync(kAllLanes, inner, 2 * t + 1);
  const float v2 = __shfl_sync(kAllLanes, inner, 8 + 2 * t), v3 = __shfl_sync(kAllLanes, inner, 8 + 2 * t + 1);
  if (lane >= 4) return;
  const uint32_t low = PackHalves(WithinHalf(v0), WithinHalf(v1)), high = PackHalves(WithinHalf(v2), WithinHalf(v3));
  PutQuad(args.l.passed + kQuadsFirst + 2 * (int64_t{pick} * (args.l.width / 4) + row_tile * 4 + t), low | static_cast<uint64_t>(high) << 32, picks.number);
}

// The inner values that a warp's quads of down meet, as others pass them: of a quad two words a lane.
[[maybe_unused]] __device__ void TakeInner(const Args& args, const Picks& picks, int quads, const one_row::Activations& to) {
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  constexpr int kWords = kQuad * kTileCols / 4, kLaneWords = kDownQuads * kWords / 32;
  uint64_t halves[kLaneWords], number[kLaneWords];
  bool there;
  do {
    there = true;
#pragma unroll
    for (int i = 0; i < kLaneWords; ++i) {
      const int quad = warp + (i / 2 < quads ? i / 2 : 0) * kWarps;  // quads of slots lie one after the other, as the values do
      TakeQuad(args.l.passed + kQuadsFirst + 2 * (int64_t{quad} * kWords + i % 2 * 32 + lane), &halves[i], &number[i]);
    }
#pragma unroll
    for (int i = 0; i < kLaneWords; ++i) there = there && number[i] == picks.number;
  } while (!__all_sync(kAllLanes, there));
  const one_row::Putter putter(to, 0);
#pragma unroll
  for (int i = 0; i < kLaneWords; ++i) putter.Put(2 * i, {static_cast<uint32_t>(halves[i]), static_cast<uint32_t>(halves[i] >> 32)});
  __syncwarp();
}

template <Packing kPacking>
__global__ void __launch_bounds__(kThreads, 1) ExpertsOfOneRowKernel(const __grid_constant__ Args args) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  __shared__ Picks picks;
  __shared__ uint64_t row_there;
  __shared__ float up_parts[kUpTiles][2][kWarps / 2][kTileRows], down_parts[kWarps][kTileRows];
  __shared__ __align__(16) std::byte row_room[kMostColumns * one_row::kActivationBytes], inner_room[kWarps][kDownQuads * kQuad * one_row::kActivationBytes];
  const ExpertFfnLaunch& l = args.l;
  const int warp = WarpNumber(), lane = static_cast<int>(threadIdx.x % 32), block = static_cast<int>(blockIdx.x);
  const one_row::Activations row = one_row::ActivationsAt(row_room, kMostColumns);
  if (threadIdx.x == 0) BarrierInit(&row_there, 32 * kRowWarps);
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  if (warp == 0) Guide<kPacking>(args, &picks);
  const int side = warp / (kWarps / 2), first = warp % (kWarps / 2) * kQuad;  // gate or up; column tile
  const one_row::Activations inner = one_row::ActivationsAt(inner_room[warp], kDownQuads * kQuad);
  const uint64_t policy = one_row::ReadOncePolicy();
  __syncthreads();
  LetNextStart();
  if (warp < kRowWarps) {
    WaitForBefore();
    one_row::TakeRow<kMostColumns, kRowWarps>(l.halves, l.hidden / (2 * kTileCols), row);
    if (threadIdx.x < picks.count) picks.weight[threadIdx.x] = __ldcg(l.weight + picks.slot[threadIdx.x]);
    BarrierArrive(&row_there);
  }
  const int tiles = one_row::Uniform(first < args.up_columns ? picks.tiles : 0);
  one_row::Quad<kPacking> up[kUpTiles];
#pragma unroll
  for (int i = 0; i < kUpTiles; ++i) {
    if (i < tiles) up[i].ReadScales(picks.up[2 * i + side], first, policy);
  }
#pragma unroll
  for (int tile = 0; tile < kQuad; ++tile) {
#pragma unroll
    for (int i = 0; i < kUpTiles; ++i) {
      if (i < tiles) up[i].ReadCodes(picks.up[2 * i + side], first, tile, policy);
    }
  }
  const int slot_quads = args.down_columns / kQuad;
  int down_quads = 0, down_pick[kDownQuads], down_first[kDownQuads];
#pragma unroll
  for (int i = 0; i < kDownQuads; ++i) {
    const int quad = warp + i * kWarps;
    down_pick[i] = static_cast<int>(args.of_slot.Quotient(static_cast<uint32_t>(quad)));
    down_first[i] = (quad - down_pick[i] * slot_quads) * kQuad;
    if (down_pick[i] < picks.count && block < args.down_tiles) down_quads = i + 1;
  }
  down_quads = one_row::Uniform(down_quads);
  one_row::Quad<kPacking> down[kDownQuads];
  float sums[kUpTiles][2] = {};
  BarrierWait(&row_there, 0);
#pragma unroll
  for (int tile = 0; tile < kQuad; ++tile) {
    const one_row::Met met(row, first + tile);
#pragma unroll
    for (int i = 0; i < kUpTiles; ++i) {
      if (i < tiles) one_row::AddProduct(up[i], tile, met, sums[i]);
    }
    // The place of what has been multiplied is taken by what comes next.
#pragma unroll
    for (int i = 0; i < kDownQuads; ++i) {
      if (i < down_quads) down[i].ReadCodes(picks.down[down_pick[i]], down_first[i], tile, policy);
    }
  }
#pragma unroll
  for (int i = 0; i < kDownQuads; ++i) {
    if (i < down_quads) down[i].ReadScales(picks.down[down_pick[i]], down_first[i], policy);
  }
#pragma unroll
  for (int i = 0; i < kUpTiles; ++i) {
    sums[i][0] *= one_row::kSumUnit<kPacking>, sums[i][1] *= one_row::kSumUnit<kPacking>;
    one_row::PutPart(up_parts[i][side][warp % (kWarps / 2)], sums[i]);
  }
  __syncthreads();
  if (warp < one_row::Uniform(picks.tiles)) {
    const int unit = picks.first + warp, pick = static_cast<int>(args.of_expert.Quotient(static_cast<uint32_t>(unit)));
    PassInner(args, picks, up_parts[warp][0][0], pick, unit - pick * args.up_tiles);
  }
  float total[2] = {};
  if (down_quads > 0) {
    TakeInner(args, picks, down_quads, inner);
#pragma unroll
    for (int i = 0; i < kDownQuads; ++i) {
      if (i >= down_quads) continue;
      float sum[2] = {};
#pragma unroll
      for (int tile = 0; tile < kQuad; ++tile) one_row::AddProduct(down[i], tile, one_row::Met(inner, i * kQuad + tile), sum);
      const float weight = picks.weight[down_pick[i]] * one_row::kSumUnit<kPacking>;
      total[0] += weight * sum[0], total[1] += weight * sum[1];
    }
  }
  one_row::PutPart(down_parts[warp], total);
  __syncthreads();
  if (warp == 0 && block < args.down_tiles) {
    const float half = one_row::SumParts(down_parts[lane / kTileRows * (kWarps / 2)], kWarps / 2), sum = half + __shfl_down_sync(kAllLanes, half, kTileRows);
    if (const int at = block * kTileRows + lane; lane < kTileRows && at < l.hidden) atomicAdd(l.out + at, sum);  // nobody else adds there
  }
  // The last block to have come here tells the number: all know it.
  if (threadIdx.x == kThreads - 1 && CountBlock(l.met) + 1 == gridDim.x) {
    *l.met = 0;
    *l.passed = picks.number;
  }
#endif
}

template <Packing kPacking>
bool Launch(const ExpertFfnLaunch& l, cudaStream_t stream) {
  Args args{};
  args.l = l;
  args.up_tiles = l.width / kTileRows, args.up_columns = l.hidden / kTileCols;
  args.down_tiles = l.hidden / kTileRows, args.down_columns = l.width / kTileCols;
  const int blocks = Multiprocessors(), slot_quads = args.down_columns / kQuad;
  if (args.up_columns > kMostColumns || args.down_tiles > blocks || l.slots * slot_quads > kDownQuads * kWarps || l.slots * args.up_tiles > kUpTiles * blocks) return false;
  args.blocks = Divisor(static_cast<uint32_t>(blocks));
  args.of_expert = Divisor(static_cast<uint32_t>(args.up_tiles)), args.of_slot = Divisor(static_cast<uint32_t>(slot_quads));
  args.l.halves = HalvesOf(l.x, l.halves, static_cast<std::byte*>(l.scratch) + PartsOfExpertScratch(l.hidden, l.width, l.slots, 1).rows, 1, l.hidden, stream);
  return LaunchEarly(ExpertsOfOneRowKernel<kPacking>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream, args) == cudaSuccess;
}

}  // namespace

bool ExpertsOfOneRow(const ExpertFfnLaunch& l, cudaStream_t stream) {
  if (l.rows != 1 || l.slots > kMostPicks || !MayBeHoppers(l) || l.met == nullptr || l.passed == nullptr) return false;
  if (l.hidden % (kQuad * kTileCols) != 0 || l.width % (kQuad * kTileCols) != 0 || int64_t{l.slots} * l.width > kPassedValues) return false;
  if (l.gate_packing != l.up_packing || l.gate_packing != l.down_packing) return false;
  return one_row::ByFourBits(l.gate_packing, [&]<Packing kPacking>() { return Launch<kPacking>(l, stream); });
}

}  // namespace thermoe::cuda
