// SPDX-License-Identifier: Apache-2.0
// One block a multiprocessor works through units of up to 128 rows of weights. A few of its warps bring tiles by bulk copies into a ring
// that runs ahead across the ends of units and kernels, so memory is never idle; the others multiply their tiles of every stage of the
// ring. Activations are halves in the order of half_rows.cuh in shared memory: of a linear all, of experts the rows that a unit meets. An
// expert that some rows want with both planes and others with the hi plane alone is read once. Hopper only (bulk copies).
#include <climits>

#include "kernels/cuda/half_rows.cuh"
#include "kernels/cuda/launch_early.cuh"
#include "kernels/cuda/stream_rows.h"
#include "kernels/cuda/tile_product.cuh"
#include "kernels/cuda/warp.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace thermoe::cuda {
namespace {

constexpr int kWarps = 16;     // that multiply
constexpr int kTileWarps = 3;  // that copy tiles; one more copies rows
constexpr int kThreads = 32 * (kWarps + kTileWarps + 1);
constexpr int kMostStages = 12;
constexpr int kSharedRoom = 226 * 1024;
// Rows that meet an expert's tiles at once are 8 NT, their columns in shared memory at once these:
template <int NT>
inline constexpr int kSliceCols = 2048 / NT;
constexpr int kRowPad = 64;          // bytes between rows there: two of them fall into different banks
constexpr int kPartialBytes = kWarps * 4 * 32 * static_cast<int>(sizeof(float));

enum class Stage { kLinear, kGateUp, kDown };

// Rows that meet one expert's weights together.
struct Item {
  int32_t expert, first, both, count;  // first into `order`; the first `both` of `count` read both planes
};

struct StreamArgs {
  // Linears: matrices side by side.
  DeviceMatrix linear[kMostTogether];
  const float* bias[kMostTogether];
  float* out[kMostTogether];
  int32_t linears;
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
  int32_t slots, most_jobs, most_items, kept;  // kept: the most slots there may be
  int32_t matrix_rows;         // of an expert's matrix
  // Both.
  const __half* x;             // [rows, cols] or, of inner products, [slots by order, cols]
  int32_t rows, cols, k_tiles;
  int32_t row_bytes;           // of rows in shared memory, with the pad
  int32_t rows_place;          // experts: bytes of one of the two places for rows
  int32_t ring_bytes;
};

// Jobs as items of at most kMost rows each, by one warp. An expert's job for the hi plane follows that for both.
template <int kMost, bool kPlanes>
__device__ int MakeItems(const StreamArgs& args, Item* items, bool* some_lo) {
  const int lane = static_cast<int>(threadIdx.x % 32), jobs = __ldcg(args.job_count);
  const auto job_at = [&](int j) {  // does not wait for the number of jobs
    const int4 job = j >= 0 && j < args.most_jobs ? __ldcg(reinterpret_cast<const int4*>(args.jobs) + j) : int4{-1, 0, 0, 0};
    return j < jobs ? job : int4{-1, 0, 0, 0};
  };
  const auto of_hi = [](const int4& job) { return kPlanes && static_cast<Planes>(job.y & 255) == Planes::kHi; };
  int made = 0;
  for (int begin = 0; begin < jobs; begin += 32) {
    const int4 before = job_at(begin + lane - 1), job = job_at(begin + lane), after = job_at(begin + lane + 1);
    const bool joined = of_hi(job) && before.x == job.x, joins = !of_hi(job) && of_hi(after) && after.x == job.x;
    const int both = of_hi(job) ? 0 : job.w, total = job.w + (joins ? after.w : 0);
    const int mine = joined ? 0 : (total + kMost - 1) / kMost;
    int upto = mine;
    for (int offset = 1; offset < 32; offset *= 2) {
      const int below = __shfl_up_sync(kAllLanes, upto, offset);
      if (lane >= offset) upto += below;
    }
    for (int i = 0; i < mine; ++i) {
      const int count = min(kMost, total - i * kMost);
      items[made + upto - mine + i] = {job.x, job.z + i * kMost, min(max(both - i * kMost, 0), count), count};
    }
    made += __shfl_sync(kAllLanes, upto, 31);
    *some_lo = *some_lo || __any_sync(kAllLanes, both > 0);
  }
  return made;
}

// Tiles of a warp in a stage of the ring: their products do not wait for each other.
template <Packing kPacking, bool kExperts>
inline constexpr int kDepth = Ring<kPacking, false>::kTile <= 576 && kExperts ? 4 : Ring<kPacking, false>::kTile <= 1152 ? 2 : 1;

// The ring as this launch uses it: without room for lo planes where nobody reads them. A stage has a place of at least `place_bytes`.
template <Packing kPacking, bool kExperts>
struct RingShape {
  using R = Ring<kPacking, false>;
  static constexpr int kStageTiles = kWarps * kDepth<kPacking, kExperts>, kStageBytes = kStageTiles * R::kTile;
  int lo_bytes, tile_bytes, stage_bytes, stages;
  __device__ RingShape(int ring_bytes, bool all_hi, int place_bytes) {
    lo_bytes = all_hi ? 0 : R::kLo, tile_bytes = R::kCodes + lo_bytes + R::kScales;
    stage_bytes = all_hi ? kStageTiles * (R::kCodes + R::kScales) : place_bytes;
    stages = all_hi ? ring_bytes / (kStageTiles * (R::kCodes + R::kScales)) : ring_bytes / place_bytes;
    if (stages > kMostStages) stages = kMostStages;
  }
};

// How the work is cut: units of `tiles` row tiles, each tile by `share` (a power of two) warps with every share-th column tile.
struct Cut {
  int tiles, tiles_log, share, share_log, steps, units;  // steps: stages of the ring that a unit takes
};

// A unit: row tiles of one matrix, or of gate and up of an expert.
template <int kMats>
struct Unit {
  DeviceMatrix m[kMats];
  int which, tile;  // the first
  Item item;
};

template <Packing kPacking, int NT, Stage kStage>
struct Work {
  static constexpr int kMats = kStage == Stage::kGateUp ? 2 : 1;
  static constexpr bool kExperts = kStage != Stage::kLinear;
  static constexpr int kTiles = kDepth<kPacking, kExperts>;  // of a warp in a stage
  const StreamArgs& args;
  const RingShape<kPacking, kExperts>& ring;
  const Item* items;
  int item_count;
  Cut cut;

  // Units of 2^tiles_log tiles.
  __device__ int UnitsOf(int rows, int tiles_log) const { return (rows + (kTileRows << tiles_log) - 1) / kTileRows >> tiles_log; }
  __device__ int Units(int tiles_log) const {
    if constexpr (kStage != Stage::kLinear) return item_count * UnitsOf(args.matrix_rows, tiles_log);
    int units = 0;
    for (int i = 0; i < args.linears; ++i) units += UnitsOf(args.linear[i].rows, tiles_log);
    return units;
  }
  __device__ int StepsOf(int share_log, int depth) const { return (args.k_tiles + (depth << share_log) - 1) / depth >> share_log; }
  // For the least time of the busiest block, in stages; what a unit's end costs is about one. Lanes try the ways to cut side by side.
  __device__ void MakeCut() {
    constexpr int kFirstShare = kMats == 2 ? 0 : 1, kMostTiles = 3, kWays = 4;
    static_assert(kWarps == 2 * kGroupTiles && kGroupTiles == 1 << kMostTiles);
    // A slice of an expert's rows is a whole number of stages, and a lane has at most one piece of a stage to copy.
    constexpr int kSliceStages = kSliceCols<NT> / kTileCols / kTiles;
    const int way = static_cast<int>(threadIdx.x) % kWays, tiles_log = kMostTiles - way, share_log = kFirstShare + way;
    const int units = Units(tiles_log), steps = StepsOf(share_log, kTiles);
    const uint32_t turns = (static_cast<uint32_t>(units) + gridDim.x - 1) / gridDim.x;
    const bool may = (!kExperts || kSliceStages >> share_log > 0) && (kMats * kTiles << share_log) <= 32;
    const uint32_t cost = may ? turns * static_cast<uint32_t>(steps + 1) * kWays + static_cast<uint32_t>(way) : UINT32_MAX;
    const int best = static_cast<int>(__reduce_min_sync(kAllLanes, cost)) % kWays;
    cut = {1 << (kMostTiles - best), kMostTiles - best, 1 << (kFirstShare + best), kFirstShare + best, StepsOf(kFirstShare + best, kTiles),
           __shfl_sync(kAllLanes, units, best)};
  }
  __device__ Unit<kMats> Open(int unit) const {
    Unit<kMats> u;
    if constexpr (kStage == Stage::kLinear) {
      u.which = 0;
      for (int here = UnitsOf(args.linear[0].rows, cut.tiles_log); unit >= here; here = UnitsOf(args.linear[u.which].rows, cut.tiles_log)) unit -= here, ++u.which;
      u.tile = unit * cut.tiles;
      u.m[0] = args.linear[u.which];
      u.item = {0, 0, args.rows, args.rows};
    } else {
      const int of_item = UnitsOf(args.matrix_rows, cut.tiles_log);
      u.which = 0, u.tile = unit % of_item * cut.tiles;
      u.item = items[unit / of_item];
      u.m[0] = ExpertMatrix(args.first, args.base[0], args.stride, u.item.expert);
      if constexpr (kMats == 2) u.m[1] = ExpertMatrix(args.second, args.base[1], args.stride, u.item.expert);
    }
    return u;
  }
};

// Barriers of the ring and of the rows' two places.
struct Barriers {
  uint64_t full[kMostStages], empty[kMostStages], rows_full[2], rows_empty[2];
};

// Where things are in shared memory.
struct Places {
  std::byte *ring, *rows;
  float* partial;  // [warps][4][32]
  int32_t* order;
  Barriers* barriers;
};

#if __CUDA_ARCH_FEAT_SM90_ALL

// Position in a ring of `size`: the place, and how often it has been round.
struct Turn {
  int at = 0;
  uint32_t phase = 0;
  bool again = false;  // the place has been used
  __device__ void Next(int size) {
    if (++at == size) at = 0, phase ^= 1, again = true;
  }
};

// What a lane copies of the stages of a unit: the row tiles of one matrix and column tile (of each, in a stage: codes, lo planes, scales).
template <Packing kPacking, int NT, Stage kStage>
struct Copier {
  using R = Ring<kPacking, false>;
  static constexpr int kMats = Work<kPacking, NT, kStage>::kMats;
  const std::byte *codes, *lo, *scales;
  int tiles, k, step_tiles, k_tiles, lo_bytes, chunk_place;
  uint32_t chunk_bytes;
  bool hi;

  __device__ Copier(const Work<kPacking, NT, kStage>& work, const Unit<kMats>& unit) {
    const Cut& cut = work.cut;
    const int lane = static_cast<int>(threadIdx.x % 32), part = lane & ((kMats << cut.share_log) - 1);
    const DeviceMatrix m = kMats == 2 && part >> cut.share_log != 0 ? unit.m[kMats - 1] : unit.m[0];
    tiles = cut.tiles, k_tiles = work.args.k_tiles, step_tiles = cut.share * Work<kPacking, NT, kStage>::kTiles;
    lo_bytes = work.ring.lo_bytes, chunk_place = lane * tiles * work.ring.tile_bytes;
    k = lane < kMats * step_tiles ? lane / (kMats << cut.share_log) * cut.share + (part & (cut.share - 1)) : k_tiles;
    hi = kPacking == Packing::kPlanes8 && kStage != Stage::kLinear && unit.item.both == 0;
    chunk_bytes = static_cast<uint32_t>(tiles * (R::kTile - (hi ? R::kLo : 0)));
    const int64_t tile = (int64_t{unit.tile / kGroupTiles} * k_tiles + k) * kGroupTiles + unit.tile % kGroupTiles;
    codes = m.hi + tile * R::kCodes, lo = m.lo + tile * R::kLo, scales = m.scales + tile * R::kScales;
  }
  __device__ void Copy(int step, std::byte* ring_stage, uint64_t* full) const {
    const int lane = static_cast<int>(threadIdx.x % 32), before = step * step_tiles;
    if (lane == 0) ExpectBytes(full, chunk_bytes * static_cast<uint32_t>(kMats * min(step_tiles, k_tiles - before)));
    __syncwarp();
    if (before + k >= k_tiles) return;
    const int64_t tile = int64_t{before} * kGroupTiles;
    std::byte* to = ring_stage + chunk_place;
    BulkCopy(to, codes + tile * R::kCodes, static_cast<uint32_t>(tiles * R::kCodes), full);
    if (R::kLo > 0 && !hi) BulkCopy(to + tiles * R::kCodes, lo + tile * R::kLo, static_cast<uint32_t>(tiles * R::kLo), full);
    if (R::kScales > 0) BulkCopy(to + tiles * (R::kCodes + lo_bytes), scales + tile * R::kScales, static_cast<uint32_t>(tiles * R::kScales), full);
  }
};

// By one of the warps that copy tiles: every kTileWarps-th place of the ring. (A place is always the same warp's, so none can be a round
// ahead.) First those that may begin before the kernel before has ended: how many there are of all warps.
template <Packing kPacking, int NT, Stage kStage>
__device__ int CopyAhead(const Work<kPacking, NT, kStage>& work, const Places& places, int which) {
  int ahead = 0;
  for (int unit = static_cast<int>(blockIdx.x); unit < work.cut.units && ahead < work.ring.stages; unit += static_cast<int>(gridDim.x)) {
    const Copier<kPacking, NT, kStage> copier(work, work.Open(unit));
    for (int step = 0; step < work.cut.steps && ahead < work.ring.stages; ++step, ++ahead) {
      if (ahead % kTileWarps == which) copier.Copy(step, places.ring + ahead * work.ring.stage_bytes, &places.barriers->full[ahead]);
    }
  }
  return ahead;
}

// All but the first `ahead`.
template <Packing kPacking, int NT, Stage kStage>
__device__ void CopyTiles(const Work<kPacking, NT, kStage>& work, const Places& places, int which, int ahead, Turn* stage) {
  Barriers& b = *places.barriers;
  for (int unit = static_cast<int>(blockIdx.x); unit < work.cut.units; unit += static_cast<int>(gridDim.x)) {
    const Copier<kPacking, NT, kStage> copier(work, work.Open(unit));
    for (int step = 0; step < work.cut.steps; ++step, --ahead) {
      if (ahead <= 0 && stage->at % kTileWarps == which) {
        if (stage->again) BarrierWait(&b.empty[stage->at], stage->phase ^ 1);
        copier.Copy(step, places.ring + stage->at * work.ring.stage_bytes, &b.full[stage->at]);
      }
      stage->Next(work.ring.stages);
    }
  }
}

// The rows of the units' items, a slice of the columns at a time, by one warp.
template <Packing kPacking, int NT, Stage kStage>
__device__ void CopyRows(const Work<kPacking, NT, kStage>& work, const Places& places, Turn* rows) {
  const StreamArgs& args = work.args;
  Barriers& b = *places.barriers;
  const int lane = static_cast<int>(threadIdx.x % 32);
  for (int unit = static_cast<int>(blockIdx.x); unit < work.cut.units; unit += static_cast<int>(gridDim.x)) {
    const Item item = work.Open(unit).item;
    const int64_t row = kStage == Stage::kGateUp && lane < item.count ? places.order[item.first + lane] / args.slots : item.first + lane;
    for (int begin = 0; begin < args.cols; begin += kSliceCols<NT>) {
      const auto bytes = static_cast<uint32_t>(min(kSliceCols<NT>, args.cols - begin) * static_cast<int>(sizeof(__half)));
      if (rows->again) BarrierWait(&b.rows_empty[rows->at], rows->phase ^ 1);
      if (lane == 0) ExpectBytes(&b.rows_full[rows->at], bytes * static_cast<uint32_t>(item.count));
      __syncwarp();
      if (lane < item.count) {
        BulkCopy(places.rows + rows->at * args.rows_place + lane * args.row_bytes, reinterpret_cast<const std::byte*>(args.x + row * args.cols + begin),
                 bytes, &b.rows_full[rows->at]);
      }
      rows->Next(2);
    }
  }
}

constexpr int kRowTileBytes = kTileCols * static_cast<int>(sizeof(__half));

template <Packing kPacking, int NT, Stage kStage>
__device__ void Consume(const Work<kPacking, NT, kStage>& work, const Places& places, Turn* stages, Turn* row_places) {
  using R = Ring<kPacking, false>;
  constexpr int kMats = Work<kPacking, NT, kStage>::kMats;
  constexpr bool kPlanes = kPacking == Packing::kPlanes8 && kStage != Stage::kLinear, kExperts = kStage != Stage::kLinear;
  const StreamArgs& args = work.args;
  const Cut cut = work.cut;
  Barriers& b = *places.barriers;
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  constexpr int kTiles = Work<kPacking, NT, kStage>::kTiles;
  const int together = kMats << cut.share_log, tile = warp / together, part = warp % together;  // part: matrix by matrix, share by share
  const int own_k = part & (cut.share - 1), step_k = kTiles << cut.share_log;
  // This lane's of the warp's first tile in a stage: codes, lo plane, scales; the others follow `next` bytes further on.
  const LaneOffsets<kPacking> lanes(lane);
  const RingShape<kPacking, kExperts> ring = work.ring;
  const std::byte* chunk = places.ring + part * cut.tiles * ring.tile_bytes;
  const std::byte* codes = chunk + tile * R::kCodes + lanes.code;
  const std::byte* lo = chunk + cut.tiles * R::kCodes + tile * R::kLo + lanes.code;
  const std::byte* scales = chunk + cut.tiles * (R::kCodes + ring.lo_bytes) + tile * R::kScales + lanes.scale;
  const int next = together * cut.tiles * ring.tile_bytes;
  const int slice_mask = (kSliceCols<NT> / kTileCols / kTiles >> cut.share_log) - 1;
  Turn stage = *stages, rows = *row_places;
  int stage_at = stage.at * ring.stage_bytes;
  for (int unit = static_cast<int>(blockIdx.x); unit < cut.units; unit += static_cast<int>(gridDim.x)) {
    const auto u = work.Open(unit);
    const int count = u.item.count, both = u.item.both, groups = (count + 7) / 8;
    int row_at[NT];  // rows that there are not are the last once more: nobody reads what comes of them
#pragma unroll
    for (int nt = 0; nt < NT; ++nt) row_at[nt] = min(nt * 8 + lane / 4, count - 1) * args.row_bytes + lane % 4 * 16 + own_k * kRowTileBytes;
    float sum[NT][4] = {};
    const std::byte* x_rows = places.rows;
    int left = args.k_tiles - own_k;  // column tiles from this warp's next to the end
    for (int step = 0; step < cut.steps; ++step, left -= step_k, x_rows += step_k * kRowTileBytes) {
      if (kExperts && (step & slice_mask) == 0) {
        BarrierWait(&b.rows_full[rows.at], rows.phase);
        x_rows = places.rows + rows.at * args.rows_place;
      }
      BarrierWait(&b.full[stage.at], stage.phase);
      const auto multiply = [&](int h, auto&& product) {
        const int from = stage_at + h * next;
        uint4 x[2][NT];
#pragma unroll
        for (int i = 0; i < 2 * NT; ++i) {
          x[i / NT][i % NT] = *reinterpret_cast<const uint4*>(x_rows + row_at[i % NT] + (h << cut.share_log) * kRowTileBytes + i / NT * 64);
        }
        product(from, x);
      };
      const auto multiply_all = [&](auto&& product) {
        if (left > (kTiles - 1) << cut.share_log) {
#pragma unroll
          for (int h = 0; h < kTiles; ++h) multiply(h, product);  // nothing between them: they do not wait for each other
        } else {
          for (int h = 0; h < kTiles && left > h << cut.share_log; ++h) multiply(h, product);
        }
      };
      if (kPlanes && both == 0) {
        multiply_all([&](int from, const uint4(&x)[2][NT]) {
          Multiply<kPacking, kPlanes, NT>(ReadTile<kPacking, kPlanes>(codes + from, lo + from, scales + from), x, sum, groups);
        });
      } else if (kPlanes && both < count) {
        multiply_all([&](int from, const uint4(&x)[2][NT]) {
          if constexpr (kPlanes) MultiplyMixed<NT>(ReadTile<kPacking, false>(codes + from, lo + from, scales + from), x, sum, both, groups);
        });
      } else {
        multiply_all([&](int from, const uint4(&x)[2][NT]) {
          Multiply<kPacking, false, NT>(ReadTile<kPacking, false>(codes + from, lo + from, scales + from), x, sum, groups);
        });
      }
      __syncwarp();
      if (lane == 0) BarrierArrive(&b.empty[stage.at]);
      stage.Next(ring.stages);
      stage_at = stage.at == 0 ? 0 : stage_at + ring.stage_bytes;
      if (kExperts && ((step & slice_mask) == slice_mask || step == cut.steps - 1)) {
        if (lane == 0) BarrierArrive(&b.rows_empty[rows.at]);
        rows.Next(2);
      }
    }
    // The parts of a tile, added in order by the first of its warps.
#pragma unroll
    for (int nt = 0; nt < NT; ++nt) {
      if (nt >= groups) break;
      const auto meet = [&] { asm volatile("bar.sync %0, %1;" ::"r"(1 + tile), "r"(32 * together) : "memory"); };
      float total[kMats][4];
      if (part != 0) {
#pragma unroll
        for (int i = 0; i < 4; ++i) places.partial[(warp * 4 + i) * 32 + lane] = sum[nt][i];
      }
      meet();
      if (part == 0) {
#pragma unroll
        for (int j = 0; j < kMats; ++j) {
#pragma unroll
          for (int i = 0; i < 4; ++i) total[j][i] = j == 0 ? sum[nt][i] : 0.0f;
#pragma unroll 4
          for (int s = j == 0 ? 1 : 0; s < cut.share; ++s) {
#pragma unroll
            for (int i = 0; i < 4; ++i) total[j][i] += places.partial[((warp + j * cut.share + s) * 4 + i) * 32 + lane];
          }
        }
      }
      meet();
      if (part != 0) continue;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = (u.tile + tile) * kTileRows + lane / 4 + i / 2 * 8, column = nt * 8 + lane % 4 * 2 + i % 2;
        if (row >= u.m[0].rows || column >= count) continue;
        if constexpr (kPacking == Packing::kHalf) {
#pragma unroll
          for (int j = 0; j < kMats; ++j) total[j][i] *= reinterpret_cast<const float*>(u.m[j].scales)[row];
        }
        if constexpr (kStage == Stage::kLinear) {
          const float* bias = args.bias[u.which];
          args.out[u.which][int64_t{column} * u.m[0].rows + row] = total[0][i] + (bias != nullptr ? bias[row] : 0.0f);
        } else if constexpr (kStage == Stage::kGateUp) {
          StoreHalf(args.inner + int64_t{u.item.first + column} * args.matrix_rows, row, Silu(total[0][i]) * total[kMats - 1][i]);
        } else {
          args.slot_out[int64_t{places.order[u.item.first + column]} * args.matrix_rows + row] = total[0][i];
        }
      }
    }
  }
  *stages = stage, *row_places = rows;
}

// All rows of a linear, by the warps that multiply.
__device__ void LoadRows(const StreamArgs& args, std::byte* to) {
  constexpr int kTogether = 4, kLoaders = 32 * kWarps;
  const int each = args.cols / 8, pieces = args.rows * each;
  for (int begin = static_cast<int>(threadIdx.x); begin < pieces; begin += kTogether * kLoaders) {
    uint4 v[kTogether];
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const int i = begin + j * kLoaders;
      if (i < pieces) v[j] = __ldcg(reinterpret_cast<const uint4*>(args.x) + i);
    }
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const int i = begin + j * kLoaders;
      if (i < pieces) *reinterpret_cast<uint4*>(to + i / each * args.row_bytes + i % each * 16) = v[j];
    }
  }
  asm volatile("bar.sync 15, %0;" ::"n"(kLoaders) : "memory");
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

// Lays out shared memory and makes barriers; afterwards all threads must meet.
__device__ Places MakePlaces(const StreamArgs& args, std::byte* shared, int rows_bytes, Barriers* barriers, Item** items) {
  Places places;
  places.ring = shared;
  places.rows = shared + args.ring_bytes;
  places.partial = reinterpret_cast<float*>(places.rows + rows_bytes);
  *items = reinterpret_cast<Item*>(reinterpret_cast<std::byte*>(places.partial) + kPartialBytes);
  places.order = reinterpret_cast<int32_t*>(*items + args.most_items);
  places.barriers = barriers;
#if __CUDA_ARCH_FEAT_SM90_ALL
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < kMostStages) BarrierInit(&barriers->full[thread], 1), BarrierInit(&barriers->empty[thread], kWarps);
  if (thread < 2) BarrierInit(&barriers->rows_full[thread], 1), BarrierInit(&barriers->rows_empty[thread], kWarps);
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
  return places;
}

template <Packing kPacking, int NT>
__global__ void __launch_bounds__(kThreads, 1) LinearKernel(const __grid_constant__ StreamArgs args) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(128) std::byte shared[];
  __shared__ Barriers barriers;
  Item* items;
  const Places places = MakePlaces(args, shared, args.rows * args.row_bytes, &barriers, &items);
  __syncthreads();
  const RingShape<kPacking, false> ring(args.ring_bytes, false, RingShape<kPacking, false>::kStageBytes);
  Work<kPacking, NT, Stage::kLinear> work{args, ring, items, 0, {}};
  work.MakeCut();
  Turn stage, rows;
  if (const int which = static_cast<int>(threadIdx.x / 32) - kWarps; which >= 0) {
    const int ahead = which < kTileWarps ? CopyAhead(work, places, which) : 0;
    WaitForBefore();
    LetNextStart();
    if (which < kTileWarps) CopyTiles(work, places, which, ahead, &stage);
    return;
  }
  WaitForBefore();
  LoadRows(args, places.rows);
  Consume(work, places, &stage, &rows);
#endif
}

struct ExpertsArgs {
  StreamArgs up, down;
  uint32_t* met;  // [2] blocks that have done the first product, and that have ended; zero between launches
};

// Both products of experts. All blocks must run at once: the second begins where the first of all has ended, though its tiles come before.
template <Packing kUp, Packing kDown>
inline constexpr int kPlaceBytes = std::max(RingShape<kUp, true>::kStageBytes, RingShape<kDown, true>::kStageBytes);

template <Packing kUp, Packing kDown, int NT>
__global__ void __launch_bounds__(kThreads, 1) ExpertsKernel(const __grid_constant__ ExpertsArgs args) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(128) std::byte shared[];
  __shared__ Barriers barriers;
  __shared__ int32_t item_count;
  __shared__ bool all_hi;
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  Item* items;
  const Places places = MakePlaces(args.up, shared, 2 * args.up.rows_place, &barriers, &items);
  WaitForBefore();
  LetNextStart();
  if (warp == 0) {
    bool some_lo = false;
    const int made = MakeItems<8 * NT, kUp == Packing::kPlanes8>(args.up, items, &some_lo);
    if (lane == 0) item_count = made, all_hi = !some_lo;
  } else {
    for (int i = static_cast<int>(threadIdx.x) - 32; i < args.up.kept; i += kThreads - 32) places.order[i] = __ldcg(args.up.order + i);
  }
  __syncthreads();
  constexpr int kPlace = kPlaceBytes<kUp, kDown>;
  const bool compact = kUp == Packing::kPlanes8 && kDown == Packing::kPlanes8 && all_hi;
  const RingShape<kUp, true> up_ring(args.up.ring_bytes, compact, kPlace);
  const RingShape<kDown, true> down_ring(args.up.ring_bytes, compact, kPlace);
  Work<kUp, NT, Stage::kGateUp> up{args.up, up_ring, items, item_count, {}};
  Work<kDown, NT, Stage::kDown> down{args.down, down_ring, items, item_count, {}};
  up.MakeCut(), down.MakeCut();
  Turn stage, rows;
  if (warp >= kWarps + kTileWarps) {
    CopyRows(up, places, &rows);
    if (static_cast<int>(blockIdx.x) >= down.cut.units) return;  // nobody would wait for what comes then
    if (lane == 0) {
      uint32_t met = 0;
      while (met < gridDim.x) asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(met) : "l"(args.met) : "memory");
    }
    __syncwarp();
    asm volatile("fence.proxy.async;" ::: "memory");
    return CopyRows(down, places, &rows);
  }
  if (warp >= kWarps) {
    CopyTiles(up, places, warp - kWarps, 0, &stage);
    return CopyTiles(down, places, warp - kWarps, 0, &stage);
  }
  const auto meet = [] { asm volatile("bar.sync 15, %0;" ::"n"(32 * kWarps) : "memory"); };
  Consume(up, places, &stage, &rows);
  __threadfence();
  meet();
  if (threadIdx.x == 0) atomicAdd(args.met, 1);
  Consume(down, places, &stage, &rows);
  meet();
  if (threadIdx.x == 0 && atomicAdd(args.met + 1, 1) + 1 == gridDim.x) args.met[0] = 0, args.met[1] = 0;
#endif
}

// Rows of floats that nobody left as halves. grid: columns, rows.
__global__ void HalvesKernel(const float* x, __half* out, int cols) {
  WaitForBefore();
  LetNextStart();
  const int column = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int64_t row = static_cast<int64_t>(blockIdx.y) * cols;
  if (column < cols) StoreHalf(out + row, column, x[row + column]);
}

const __half* HalvesOf(const float* x, const __half* given, void* room, int32_t rows, int32_t cols, cudaStream_t stream) {
  if (given != nullptr) return given;
  auto* out = static_cast<__half*>(room);
  LaunchEarly(HalvesKernel, dim3(static_cast<unsigned>((cols + 255) / 256), static_cast<unsigned>(rows)), dim3(256), 0, stream, x, out, cols);
  return out;
}

int Multiprocessors() {
  int device = 0, count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return std::max(count, 1);
}

// Of a ring with such places beside `others` bytes of shared memory; 0: too little.
int RingBytesBeside(int others, int place_bytes) {
  const int stages = std::min((kSharedRoom - others) / place_bytes, kMostStages);
  return stages < 2 ? 0 : stages * place_bytes;
}

template <typename Arguments>
bool LaunchBlocks(void (*kernel)(Arguments), int tiles, int bytes, const Arguments& args, cudaStream_t stream) {
  const auto grid = static_cast<unsigned>(std::min(Multiprocessors(), tiles));
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) == cudaSuccess &&
         LaunchEarly(kernel, dim3(grid), dim3(kThreads), static_cast<size_t>(bytes), stream, args) == cudaSuccess;
}

template <Packing kPacking>
bool LaunchLinear(int tiles, StreamArgs args, cudaStream_t stream) {
  args.row_bytes = args.cols * static_cast<int>(sizeof(__half)) + kRowPad;
  const int others = args.rows * args.row_bytes + kPartialBytes;
  args.ring_bytes = RingBytesBeside(others, RingShape<kPacking, false>::kStageBytes);
  if (args.ring_bytes == 0) return false;
  const int bytes = others + args.ring_bytes;
  if (args.rows > 16) return LaunchBlocks(LinearKernel<kPacking, 4>, tiles, bytes, args, stream);
  if (args.rows > 8) return LaunchBlocks(LinearKernel<kPacking, 2>, tiles, bytes, args, stream);
  return LaunchBlocks(LinearKernel<kPacking, 1>, tiles, bytes, args, stream);
}

template <Packing kUp, Packing kDown, int NT>
bool LaunchExperts(ExpertsArgs args, cudaStream_t stream) {
  args.up.most_items = args.down.most_items = args.up.most_jobs + args.up.kept / (8 * NT) + 1;
  for (StreamArgs* part : {&args.up, &args.down}) {
    part->row_bytes = std::min(part->cols, kSliceCols<NT>) * static_cast<int>(sizeof(__half)) + kRowPad;
  }
  const int place = 8 * NT * std::max(args.up.row_bytes, args.down.row_bytes);
  const int others = 2 * place + kPartialBytes + args.up.most_items * static_cast<int>(sizeof(Item)) + args.up.kept * static_cast<int>(sizeof(int32_t));
  const int ring_bytes = RingBytesBeside(others, kPlaceBytes<kUp, kDown>);
  if (ring_bytes == 0) return false;
  args.up.rows_place = args.down.rows_place = place;
  args.up.ring_bytes = args.down.ring_bytes = ring_bytes;
  return LaunchBlocks(ExpertsKernel<kUp, kDown, NT>, INT_MAX, others + ring_bytes, args, stream);
}

// `launch` with the packing as its template argument.
template <typename Launch>
bool ByPacking(Packing packing, Launch&& launch) {
  switch (packing) {
    case Packing::kPlanes8: return launch.template operator()<Packing::kPlanes8>();
    case Packing::kNibble: return launch.template operator()<Packing::kNibble>();
    case Packing::kNibbleMin: return launch.template operator()<Packing::kNibbleMin>();
    case Packing::kByteMin: return launch.template operator()<Packing::kByteMin>();
    case Packing::kByte16: return launch.template operator()<Packing::kByte16>();
    case Packing::kMxfp4: return launch.template operator()<Packing::kMxfp4>();
    case Packing::kHalf: return launch.template operator()<Packing::kHalf>();
    case Packing::kF32: break;
  }
  return false;
}

int TilesOf(int rows) { return (rows + kTileRows - 1) / kTileRows; }
size_t Up(size_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace

size_t StreamedLinearScratch(int32_t rows, int32_t in) {
  return rows > kStreamRows ? 0 : static_cast<size_t>(rows) * static_cast<size_t>(in) * sizeof(__half);
}

bool LinearOfStreamedRows(std::span<const LinearLaunch> launches, cudaStream_t stream) {
  const LinearLaunch& one = launches.front();
  const int32_t cols = one.weight.cols;
  if (one.rows > kStreamRows || cols % kTileCols != 0 || launches.size() > kMostTogether) return false;
  if (!one.wgmma || one.rows * (cols * static_cast<int64_t>(sizeof(__half)) + kRowPad) > kSharedRoom) return false;
  StreamArgs args{};
  int tiles = 0;
  for (const LinearLaunch& l : launches) {
    if (l.weight.packing != one.weight.packing || l.weight.packing == Packing::kF32 || l.weight.cols != cols) return false;
    const int i = args.linears++;
    args.linear[i] = l.weight, args.bias[i] = l.bias, args.out[i] = l.out;
    tiles += TilesOf(l.weight.rows);
  }
  args.rows = one.rows, args.cols = cols, args.k_tiles = cols / kTileCols;
  args.x = HalvesOf(one.x, one.halves, one.scratch, one.rows, cols, stream);
  return ByPacking(one.weight.packing, [&]<Packing kPacking>() { return LaunchLinear<kPacking>(tiles, args, stream); });
}

// Scratch: as of few rows, whose parts these are too, and the rows as halves at its end.
bool ExpertsOfStreamedRows(const ExpertFfnLaunch& l, SlotSums* sums, cudaStream_t stream) {
  const int32_t kept = l.rows * l.slots;
  if (l.gate_packing != l.up_packing || l.gate_packing == Packing::kF32 || l.met == nullptr) return false;
  if (!l.wgmma || kept > kStreamSlots || l.hidden % kTileCols != 0 || l.width % kTileCols != 0) return false;
  auto* inner = static_cast<__half*>(l.scratch);
  auto* slot_out = reinterpret_cast<float*>(static_cast<std::byte*>(l.scratch) + Up(static_cast<size_t>(kept) * static_cast<size_t>(l.width) * sizeof(__half)));
  std::byte* room = reinterpret_cast<std::byte*>(slot_out) + Up(static_cast<size_t>(kept) * static_cast<size_t>(l.hidden) * sizeof(float));
  ExpertsArgs both{};
  StreamArgs& up = both.up;
  up.jobs = l.jobs, up.job_count = l.job_count, up.order = l.order;
  up.slots = l.slots, up.rows = l.rows, up.kept = kept;
  up.most_jobs = std::min(l.may_read_hi ? 2 * std::min(l.experts, kept) : l.experts, kept);
  both.down = up;
  up.x = HalvesOf(l.x, l.halves, room, l.rows, l.hidden, stream);
  up.cols = l.hidden, up.k_tiles = l.hidden / kTileCols, up.matrix_rows = l.width;
  up.first = l.gate, up.second = l.up, up.base[0] = l.gate_base, up.base[1] = l.up_base, up.stride = l.stride;
  up.inner = inner;
  StreamArgs& down = both.down;
  down.x = inner, down.slot_out = slot_out;
  down.cols = l.width, down.k_tiles = l.width / kTileCols, down.matrix_rows = l.hidden;
  down.first = l.down, down.base[0] = l.down_base, down.stride = l.stride;
  both.met = l.met;
  const bool many = kept > 5 * l.experts;  // many of an expert's rows would come in two items of 8
  const auto launch = [&]<Packing kUp, Packing kDown>() {
    return many ? LaunchExperts<kUp, kDown, 2>(both, stream) : LaunchExperts<kUp, kDown, 1>(both, stream);
  };
  bool done = false;
  if (l.gate_packing == l.down_packing) {
    done = ByPacking(l.gate_packing, [&]<Packing kPacking>() { return launch.template operator()<kPacking, kPacking>(); });
  } else if (l.gate_packing == Packing::kNibbleMin && l.down_packing == Packing::kByte16) {  // Q4_K and Q6_K, as files often have them
    done = launch.template operator()<Packing::kNibbleMin, Packing::kByte16>();
  } else if (l.gate_packing == Packing::kByteMin && l.down_packing == Packing::kByte16) {  // Q5_K and Q6_K
    done = launch.template operator()<Packing::kByteMin, Packing::kByte16>();
  }
  if (!done) return false;
  *sums = {slot_out, l.weight, l.expert, l.slots};
  return true;
}

}  // namespace thermoe::cuda
