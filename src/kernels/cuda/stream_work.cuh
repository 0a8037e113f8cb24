// SPDX-License-Identifier: Apache-2.0
// What stream_rows.cu has to do, and how it is cut into units: plain data and arithmetic.
#pragma once

#include "kernels/cuda/divisor.cuh"
#include "kernels/cuda/expert_cuts.h"
#include "kernels/cuda/stream_rows.h"
#include "kernels/cuda/tile_product.cuh"
#include "kernels/cuda/warp.cuh"

namespace thermoe::cuda {

inline constexpr int kWarps = 16;     // that multiply
inline constexpr int kTileWarps = 3;  // that copy tiles; one more copies rows. (A warp more than these 20 leaves each thread 80 registers instead of 96.)
inline constexpr int kThreads = 32 * (kWarps + kTileWarps + 1);
static_assert(kWarps == 2 * kGroupTiles);
inline constexpr int kMostStages = 12;
// No warp that works through units is so many ahead of another: a unit is copied once those that multiply are at one that the ring still holds, and that has its rows.
inline constexpr int kUnitsAhead = 16;
static_assert(kMostStages + 2 < kUnitsAhead);
inline constexpr int kSharedRoom = 226 * 1024;
// Rows that meet an expert's tiles at once are 8 NT, their columns in shared memory at once these:
template <int NT>
inline constexpr int kSliceCols = 2048 / NT;
inline constexpr int kRowPad = 64;          // bytes between rows there: two of them fall into different banks
inline constexpr int kPartialBytes = kWarps * 4 * 32 * static_cast<int>(sizeof(float));

enum class Stage { kLinear, kGateUp, kDown };

// Rows that meet one expert's weights together.
struct Item {
  int32_t expert, first, both, count;  // first into `order`; the first `both` of `count` read both planes
};

// How the work is cut: units of `tiles` row tiles, each tile by `share` (a power of two) warps with every share-th column tile.
struct Cut {
  int tiles, tiles_log, share, share_log, steps, units;  // steps: stages of the ring that a unit takes
  int alone, light;  // units in turn: the first `alone` rounds are of the `light` blocks that had less to do before
  Divisor of_item;   // experts: units of an item
};

struct StreamArgs {
  // Linears: matrices side by side.
  DeviceMatrix linear[kMostTogether];
  const float* bias[kMostTogether];
  float* out[kMostTogether];
  int32_t linears;
  bool adds;  // to what is there
  Cut cut;    // of linears
  ExpertsAhead ahead;
  Divisor blocks, units_of_item[kWays];  // of experts' launch; by the way to cut
  // Experts.
  const DeviceMatrix* first;   // [E] gate, or down
  const DeviceMatrix* second;  // [E] up
  DeviceMatrix base[2];        // of expert 0, where the others follow at `stride` bytes each; 0: look into the tables
  int64_t stride;
  const Job* jobs;
  const int32_t* job_count;
  const int32_t* order;        // [kept slots]
  __half* inner;               // [slots by order, width], in the order of half_rows.cuh
  float* slot_out;             // [T * K, hidden]
  // Null, or where inner values go instead, a word each (warp.cuh): nobody need wait for what others wrote to be seen. [0]: launches before this; from
  // kPicksFirst on picks; from kPassedFirst on [slots by order, width].
  uint64_t* passed;
  bool picked;                 // items are what is passed, a slot each
  int32_t slots, most_jobs, most_items, kept;  // kept: the most slots there may be
  int32_t matrix_rows;         // of an expert's matrix
  // Both.
  const __half* x;             // [rows, cols] or, of inner products, [slots by order, cols]
  int32_t rows, cols, k_tiles;
  int32_t row_bytes;           // of rows in shared memory, with the pad
  int32_t rows_place;          // experts: bytes of one of the two places for rows
  int32_t ring_bytes;
};

// Where items go: the first of expert e < `fixed` to place e, the others to those left, in order.
inline constexpr int kMostFixed = 31;
struct ItemPlaces {
  int fixed = 0, fixed_before = 0;  // fixed_before: such items made so far
  int holes = 0;                    // places below `fixed` whose expert has none
  uint32_t hole_at = 0;             // which

  // By a warp, once, when it has the jobs of all those experts. holds: the lane's is one of them.
  __device__ void SetFixed(bool holds, int expert) {
    hole_at = ((1u << fixed) - 1) & ~__reduce_or_sync(kAllLanes, holds ? 1u << expert : 0u);
    holes = __popc(hole_at);
  }
  // Of item `rank` of those that are not fixed.
  __device__ int Of(int rank) const {
    if (rank >= holes) return fixed + rank - holes;
    uint32_t left = hole_at;
#pragma unroll 1
    for (int i = 0; i < rank; ++i) left &= left - 1;
    return __ffs(static_cast<int>(left)) - 1;
  }
};

// Jobs as items of at most kMost rows each, by one warp. An expert's job for the hi plane follows that for both. dry: there are none; for nothing but the code.
// fixed: experts whose first items go where their numbers say, at most kMostFixed; only where each has one job, by rising numbers. Too few jobs: none.
template <int kMost, bool kPlanes, bool kFixes>
__device__ int MakeItems(const StreamArgs& args, bool dry, int fixed, Item* items, bool* some_lo, bool* some_hi) {
  const int lane = static_cast<int>(threadIdx.x % 32), room = dry ? 0 : args.most_jobs, jobs = dry ? 0 : min(__ldcg(args.job_count), room);
  const auto of_hi = [](const int4& job) { return kPlanes && static_cast<Planes>(job.y & 255) == Planes::kHi; };
  int made = 0, begin = 0, last = -1;  // last: the expert of the job before the round's first
  ItemPlaces places{kFixes && jobs >= fixed ? fixed : 0};
  // What may be jobs: nothing waits for their number before it asks, nor for those that turn out not to be there. All blocks ask for the same few lines, so each does
  // it once; beyond: of the last lane.
  int4 ahead{}, beyond{};
  const auto ask = [&] {
    const int4* from = reinterpret_cast<const int4*>(args.jobs) + begin + lane;
    if (begin + lane < room) ahead = __ldcg(from);
    if (lane == 31 && begin + 32 < room) beyond = __ldcg(from + 1);
  };
  ask();
#pragma unroll 1
  do {
    const int4 none = {-1, 0, 0, 0}, job = begin + lane < jobs ? ahead : none;
    int4 after = begin + 32 < jobs ? beyond : none;
    begin += 32;
    ask();
    const int lower = __shfl_up_sync(kAllLanes, job.x, 1), before = lane == 0 ? last : lower;
    const int4 upper = {__shfl_down_sync(kAllLanes, job.x, 1), __shfl_down_sync(kAllLanes, job.y, 1), 0, __shfl_down_sync(kAllLanes, job.w, 1)};
    if (lane < 31) after = upper;
    last = __shfl_sync(kAllLanes, job.x, 31);
    const bool joined = of_hi(job) && before == job.x, joins = !of_hi(job) && of_hi(after) && after.x == job.x;
    const int both = of_hi(job) ? 0 : job.w, total = job.w + (joins ? after.w : 0);
    const int mine = joined ? 0 : (total + kMost - 1) / kMost;
    const int upto = SumUpTo(lane, mine);
    const bool holds = kFixes && mine > 0 && job.x < places.fixed;
    const uint32_t fixed_lanes = kFixes ? __ballot_sync(kAllLanes, holds) : 0;
    if (kFixes && begin == 32) places.SetFixed(holds, job.x);  // the first 32 jobs have all of them
    const int rank = made + upto - mine - places.fixed_before - __popc(fixed_lanes & ((1u << lane) - 1)) - (holds ? 1 : 0);
#pragma unroll 1
    for (int i = 0; i < mine; ++i) {
      const int count = min(kMost, total - i * kMost);
      items[!kFixes ? rank + i : holds && i == 0 ? job.x : places.Of(rank + i)] = {job.x, job.z + i * kMost, min(max(both - i * kMost, 0), count), count};
    }
    places.fixed_before += __popc(fixed_lanes);
    made += __shfl_sync(kAllLanes, upto, 31);
    *some_lo = *some_lo || __any_sync(kAllLanes, both > 0);
    if (kPlanes) *some_hi = *some_hi || __any_sync(kAllLanes, of_hi(job));
  } while (begin < jobs);
  return made;
}

// One row's picks as items, by one warp, as they come. dry: waits for none and leaves nothing.
template <bool kPlanes>
__device__ int TakePicks(const StreamArgs& args, uint64_t number, bool dry, Item* items, bool* some_lo, bool* some_hi) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  uint64_t word;
  do {
    word = TakeWord(args.passed + kPicksFirst + min(lane, args.kept - 1));
  } while (!__all_sync(kAllLanes, dry || word >> kNumberShift == number));
  const auto pick = static_cast<int32_t>(word & kNoPick);
  const bool there = !dry && lane < args.kept && pick != static_cast<int32_t>(kNoPick), hi = kPlanes && pick % 2 == 1;
  const uint32_t all = __ballot_sync(kAllLanes, there);
  if (there) items[__popc(all & ((1u << lane) - 1))] = {pick / 2, lane, hi ? 0 : 1, 1};
  *some_lo = __any_sync(kAllLanes, there && !hi), *some_hi = __any_sync(kAllLanes, there && hi);
  return __popc(all);
}

// Tiles of a warp in a stage of the ring: their products do not wait for each other.
template <Packing kPacking, bool kExperts>
inline constexpr int kDepth = Ring<kPacking, false>::kTile <= 576 && kExperts ? 4 : Ring<kPacking, false>::kTile <= 1152 ? 2 : 1;

template <Packing kPacking, bool kExperts>
inline constexpr int kStageBytes = kWarps * kDepth<kPacking, kExperts> * Ring<kPacking, false>::kTile;

// Places of the ring, of so many bytes each.
struct RingShape {
  int stage_bytes, stages;
  __device__ RingShape(int ring_bytes, int place_bytes) : stage_bytes(place_bytes), stages(min(ring_bytes / place_bytes, kMostStages)) {}
};

// Of linears, for the least time of the busiest of the blocks, in stages; what a unit's end costs is about one. ways: that may be taken.
inline Cut CutOfLinears(const StreamArgs& args, int blocks, int depth, int ways) {
  Cut best{};
  int least = INT32_MAX;
  for (int way = 0; way < ways; ++way) {
    const int log = kMostTiles - way, share = FirstShare(1) + way, steps = StepsOf(args.k_tiles, share, depth);
    int units = 0;
    for (int i = 0; i < args.linears; ++i) units += UnitsOf(args.linear[i].rows, log);
    const int time = (units + blocks - 1) / blocks * (steps + 1);
    if (time < least) least = time, best = {1 << log, log, 1 << share, share, steps, units, 0, 0, {}};
  }
  return best;
}

// A unit: row tiles of one matrix, or of gate and up of an expert.
template <int kMats>
struct Unit {
  DeviceMatrix m[kMats];
  int which, tile;  // linear or item; the first row tile
  Item item;
};

template <Packing kPacking, int NT, Stage kStage>
struct Work {
  static constexpr int kMats = kStage == Stage::kGateUp ? 2 : 1;
  static constexpr bool kExperts = kStage != Stage::kLinear;
  static constexpr int kTiles = kDepth<kPacking, kExperts>;  // of a warp in a stage
  const StreamArgs& args;
  RingShape ring;
  const Item* items;
  int item_count;
  Cut cut;
  int before = 0;  // units of the product before this one: what is claimed counts both's
  int first_row = 0, rows = 0;  // of a linear, that this block multiplies

  // way: of ExpertCuts. alone, light: of a second product whose units are taken in turn.
  __device__ void SetCut(int items_there, int way, int alone, int light) {
    const int log = kMostTiles - way, share = FirstShare(kMats) + way;
    item_count = items_there;
    const Divisor of_item = args.units_of_item[way];
    cut = {1 << log, log, 1 << share, share, StepsOf(args.k_tiles, share, kTiles), items_there * static_cast<int>(of_item.by), alone, light, of_item};
  }
  // This block's unit k, where they are taken in turn; beyond its last: at least cut.units.
  __device__ int UnitAt(int k) const {
    const int blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
    if constexpr (kStage != Stage::kDown) return k * blocks + block;
    const int place = blocks - 1 - block, alone = place < cut.light ? cut.alone : 0;  // those who had less to do come first
    return k < alone ? k * cut.light + place : cut.alone * cut.light + (k - alone) * blocks + place;
  }
  __device__ int ItemOf(int unit) const { return static_cast<int>(cut.of_item.Quotient(static_cast<uint32_t>(unit))); }
  __device__ Item ItemAt(int unit) const {
    if constexpr (kStage == Stage::kLinear) return {0, first_row, rows, rows};
    else return items[ItemOf(unit)];
  }
  __device__ Unit<kMats> Open(int unit) const { return Open(unit, ItemAt(unit)); }
  __device__ Unit<kMats> Open(int unit, const Item& item) const {
    Unit<kMats> u;
    u.item = item;
    if constexpr (kStage == Stage::kLinear) {
      u.which = 0;
#pragma unroll 1
      for (int here = UnitsOf(args.linear[0].rows, cut.tiles_log); unit >= here; here = UnitsOf(args.linear[u.which].rows, cut.tiles_log)) unit -= here, ++u.which;
      u.tile = unit * cut.tiles;
      u.m[0] = args.linear[u.which];
    } else {
      u.which = ItemOf(unit);
      u.tile = (unit - u.which * static_cast<int>(cut.of_item.by)) * cut.tiles;
      u.m[0] = ExpertMatrix(args.first, args.base[0], args.stride, u.item.expert);
      if constexpr (kMats == 2) u.m[1] = ExpertMatrix(args.second, args.base[1], args.stride, u.item.expert);
    }
    return u;
  }
};

}  // namespace thermoe::cuda
