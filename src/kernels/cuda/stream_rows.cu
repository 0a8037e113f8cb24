// SPDX-License-Identifier: Apache-2.0
// One block a multiprocessor works through units of up to 128 rows of weights. A few of its warps bring tiles by bulk copies into a ring
// that runs ahead across the ends of units and kernels, so memory is never idle; the others multiply their tiles of every stage of the
// ring. Activations are halves in the order of half_rows.cuh in shared memory: of a linear all, of experts the rows that a unit meets. An
// expert that some rows want with both planes and others with the hi plane alone is read once. Hopper only (bulk copies).
#include "kernels/cuda/half_rows.cuh"
#include "kernels/cuda/launch_early.cuh"
#include "kernels/cuda/stream_rows.h"
#include "kernels/cuda/tile_product.cuh"
#include "kernels/cuda/warp.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace thermoe::cuda {
namespace {

constexpr int kWarps = 16, kCopyWarps = 4, kThreads = 32 * (kWarps + kCopyWarps);  // that multiply, and that copy every fourth stage
constexpr int kMostStages = 12;
constexpr int kSharedRoom = 226 * 1024, kRingRoom = 112 * 1024;
constexpr int kRowsOfItem = 8;       // rows that meet an expert's tiles at once
constexpr int kSliceCols = 2048;     // columns of an expert's rows in shared memory at once
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
  int32_t stages;              // of the ring
};

// Jobs as items of at most kRowsOfItem rows each, by one warp. An expert's job for the hi plane follows that for both.
template <bool kPlanes>
__device__ int MakeItems(const StreamArgs& args, Item* items) {
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
    const int mine = joined ? 0 : (total + kRowsOfItem - 1) / kRowsOfItem;
    int upto = mine;
    for (int offset = 1; offset < 32; offset *= 2) {
      const int below = __shfl_up_sync(kAllLanes, upto, offset);
      if (lane >= offset) upto += below;
    }
    for (int i = 0; i < mine; ++i) {
      const int count = min(kRowsOfItem, total - i * kRowsOfItem);
      items[made + upto - mine + i] = {job.x, job.z + i * kRowsOfItem, min(max(both - i * kRowsOfItem, 0), count), count};
    }
    made += __shfl_sync(kAllLanes, upto, 31);
  }
  return made;
}

// Tiles of a warp in a stage of the ring: their products do not wait for each other.
template <Packing kPacking>
inline constexpr int kDepth = Ring<kPacking, false>::kTile <= 1152 ? 2 : 1;

// How the work is cut: units of `tiles` row tiles, each tile by `share` (a power of two) warps with every share-th column tile.
struct Cut {
  int tiles, share, share_log, steps, units;  // steps: stages of the ring that a unit takes
};

// A unit: row tiles of one matrix, or of gate and up of an expert.
template <int kMats>
struct Unit {
  DeviceMatrix m[kMats];
  int which, tile;  // the first
  Item item;
};

template <Stage kStage>
struct Work {
  static constexpr int kMats = kStage == Stage::kGateUp ? 2 : 1;
  const StreamArgs& args;
  const Item* items;
  int item_count;
  Cut cut;

  __device__ int UnitsOf(int rows, int tiles) const { return (rows + kTileRows * tiles - 1) / (kTileRows * tiles); }
  __device__ int Units(int tiles) const {
    if constexpr (kStage != Stage::kLinear) return item_count * UnitsOf(args.matrix_rows, tiles);
    int units = 0;
    for (int i = 0; i < args.linears; ++i) units += UnitsOf(args.linear[i].rows, tiles);
    return units;
  }
  // For the least time of the busiest block, in stages; what a unit's end costs is about one.
  __device__ void MakeCut(int depth) {
    int least = INT32_MAX;
    int share_log = kMats == 2 ? 0 : 1;
    static_assert(kWarps == 2 * kGroupTiles);
    for (int tiles = kGroupTiles; tiles >= 1; tiles /= 2, ++share_log) {
      const int share = 1 << share_log, steps = (args.k_tiles + share * depth - 1) / (share * depth), units = Units(tiles);
      const int time = (units + static_cast<int>(gridDim.x) - 1) / static_cast<int>(gridDim.x) * (steps + 1);
      if (time < least) least = time, cut = {tiles, share, share_log, steps, units};
    }
  }
  __device__ Unit<kMats> Open(int unit) const {
    Unit<kMats> u;
    if constexpr (kStage == Stage::kLinear) {
      u.which = 0;
      for (int here = UnitsOf(args.linear[0].rows, cut.tiles); unit >= here; here = UnitsOf(args.linear[u.which].rows, cut.tiles)) unit -= here, ++u.which;
      u.tile = unit * cut.tiles;
      u.m[0] = args.linear[u.which];
      u.item = {0, 0, args.rows, args.rows};
    } else {
      const int of_item = UnitsOf(args.matrix_rows, cut.tiles);
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

// Position in a ring of `size`: the place, and how often it has been round.
struct Turn {
  int at = 0;
  uint32_t phase = 0;
  __device__ void Next(int size) {
    if (++at == size) at = 0, phase ^= 1;
  }
};

#if __CUDA_ARCH_FEAT_SM90_ALL

// What a lane copies of the stages of a unit: the row tiles of one matrix and column tile (of each, in a stage: codes, lo planes, scales).
template <Packing kPacking, Stage kStage>
struct Copier {
  using R = Ring<kPacking, false>;
  static constexpr int kMats = Work<kStage>::kMats;
  const std::byte *codes, *lo, *scales;
  int tiles, k, step_tiles, k_tiles, chunks;
  uint32_t chunk_bytes;
  bool hi;

  __device__ Copier(const Work<kStage>& work, const Unit<kMats>& unit) {
    const Cut& cut = work.cut;
    const int lane = static_cast<int>(threadIdx.x % 32), part = lane & ((kMats << cut.share_log) - 1);
    const DeviceMatrix m = kMats == 2 && part >> cut.share_log != 0 ? unit.m[kMats - 1] : unit.m[0];
    tiles = cut.tiles, k_tiles = work.args.k_tiles, step_tiles = cut.share * kDepth<kPacking>, chunks = kMats * step_tiles;
    k = lane < chunks ? lane / (kMats << cut.share_log) * cut.share + (part & (cut.share - 1)) : k_tiles;
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
    std::byte* to = ring_stage + lane * tiles * R::kTile;
    BulkCopy(to, codes + tile * R::kCodes, static_cast<uint32_t>(tiles * R::kCodes), full);
    if (R::kLo > 0 && !hi) BulkCopy(to + tiles * R::kCodes, lo + tile * R::kLo, static_cast<uint32_t>(tiles * R::kLo), full);
    if (R::kScales > 0) BulkCopy(to + tiles * (R::kCodes + R::kLo), scales + tile * R::kScales, static_cast<uint32_t>(tiles * R::kScales), full);
  }
};

// Columns [begin, begin + cols) of an item's rows.
template <Stage kStage>
__device__ void CopyRows(const StreamArgs& args, const Item& item, const int32_t* order, int begin, int cols, std::byte* to, uint64_t* full) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const auto bytes = static_cast<uint32_t>(cols * static_cast<int>(sizeof(__half)));
  if (lane == 0) ExpectBytes(full, bytes * static_cast<uint32_t>(item.count));
  __syncwarp();
  if (lane >= item.count) return;
  const int64_t row = kStage == Stage::kGateUp ? order[item.first + lane] / args.slots : item.first + lane;
  BulkCopy(to + lane * args.row_bytes, reinterpret_cast<const std::byte*>(args.x + row * args.cols + begin), bytes, full);
}

// One of the warps that copy: every kCopyWarps-th place of the ring (a place is always the same warp's, so none can be a round ahead), and
// the first of them the rows.
template <Packing kPacking, Stage kStage>
__device__ void Produce(const Work<kStage>& work, const Places& places, int which) {
  constexpr int kStageBytes = kWarps * kDepth<kPacking> * Ring<kPacking, false>::kTile;
  const StreamArgs& args = work.args;
  const Cut cut = work.cut;
  Barriers& b = *places.barriers;
  const int first = static_cast<int>(blockIdx.x), turn = static_cast<int>(gridDim.x);
  int ahead = 0;  // stages that began before the kernel before had ended
  if constexpr (kStage != Stage::kGateUp) {
    for (int unit = first; unit < cut.units && ahead < args.stages; unit += turn) {
      const Copier<kPacking, kStage> copier(work, work.Open(unit));
      for (int step = 0; step < cut.steps && ahead < args.stages; ++step, ++ahead) {
        if (ahead % kCopyWarps == which) copier.Copy(step, places.ring + ahead * kStageBytes, &b.full[ahead]);
      }
    }
    WaitForBefore();
    LetNextStart();
  }
  Turn stage, rows;
  int number = 0;
  const int slice_mask = (kSliceCols / kTileCols / kDepth<kPacking> >> cut.share_log) - 1;
  bool rows_again = false;
  for (int unit = first; unit < cut.units; unit += turn) {
    const auto u = work.Open(unit);
    const Copier<kPacking, kStage> copier(work, u);
    for (int step = 0; step < cut.steps; ++step, ++number) {
      if (kStage != Stage::kLinear && which == 0 && (step & slice_mask) == 0) {
        if (rows_again) BarrierWait(&b.rows_empty[rows.at], rows.phase ^ 1);
        const int begin = step * cut.share * kDepth<kPacking> * kTileCols;
        CopyRows<kStage>(args, u.item, places.order, begin, min(kSliceCols, args.cols - begin), places.rows + rows.at * kRowsOfItem * args.row_bytes,
                         &b.rows_full[rows.at]);
        rows.Next(2);
        rows_again = rows_again || rows.at == 0;
      }
      if (number >= ahead && stage.at % kCopyWarps == which) {
        if (number >= args.stages) BarrierWait(&b.empty[stage.at], stage.phase ^ 1);
        copier.Copy(step, places.ring + stage.at * kStageBytes, &b.full[stage.at]);
      }
      stage.Next(args.stages);
    }
  }
}

template <Packing kPacking, int NT, Stage kStage>
__device__ void Consume(const Work<kStage>& work, const Places& places) {
  using R = Ring<kPacking, false>;
  constexpr int kMats = Work<kStage>::kMats;
  constexpr bool kPlanes = kPacking == Packing::kPlanes8 && kStage != Stage::kLinear, kExperts = kStage != Stage::kLinear;
  const StreamArgs& args = work.args;
  const Cut cut = work.cut;
  Barriers& b = *places.barriers;
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  constexpr int kTiles = kDepth<kPacking>;
  const int together = kMats << cut.share_log, tile = warp / together, part = warp % together;  // part: matrix by matrix, share by share
  // Of this warp's first tile in a stage: codes, lo plane, scales; the others follow `next` bytes further on.
  const int chunk = part * cut.tiles * R::kTile, codes = chunk + tile * R::kCodes, lo = chunk + cut.tiles * R::kCodes + tile * R::kLo;
  const int scales = chunk + cut.tiles * (R::kCodes + R::kLo) + tile * R::kScales, next = together * cut.tiles * R::kTile;
  const int slice_mask = (kSliceCols / kTileCols / kTiles >> cut.share_log) - 1;
  Turn stage, rows;
  for (int unit = static_cast<int>(blockIdx.x); unit < cut.units; unit += static_cast<int>(gridDim.x)) {
    const auto u = work.Open(unit);
    const int count = u.item.count, both = u.item.both, groups = (count + 7) / 8;
    int row_at[NT];  // rows that there are not are the last once more: nobody reads what comes of them
#pragma unroll
    for (int nt = 0; nt < NT; ++nt) row_at[nt] = min(nt * 8 + lane / 4, count - 1) * args.row_bytes;
    float sum[NT][4] = {};
    for (int step = 0; step < cut.steps; ++step) {
      const int within = kExperts ? step & slice_mask : step;
      if (kExperts && within == 0) BarrierWait(&b.rows_full[rows.at], rows.phase);
      const std::byte* x_rows = places.rows + (kExperts ? rows.at * kRowsOfItem * args.row_bytes : 0) + lane % 4 * 16;
      BarrierWait(&b.full[stage.at], stage.phase);
#pragma unroll
      for (int h = 0; h < kTiles; ++h) {
        const int k = part % cut.share + (h << cut.share_log);
        if (step * kTiles * cut.share + k >= args.k_tiles) break;
        const std::byte* from = places.ring + stage.at * kWarps * kTiles * R::kTile + h * next;
        const std::byte* x_tile = x_rows + (within * kTiles * cut.share + k) * kTileCols * 2;
        uint4 x[2][NT];
#pragma unroll
        for (int i = 0; i < 2 * NT; ++i) {
          const int nt = i % NT;
          x[i / NT][nt] = *reinterpret_cast<const uint4*>(x_tile + row_at[nt] + i / NT * 64);
        }
        if (kPlanes && both == 0) {
          Multiply<kPacking, kPlanes, NT>(ReadTile<kPacking, kPlanes>(from + codes, from + lo, from + scales, lane), x, sum, groups);
        } else {
          const Loaded<kPacking> loaded = ReadTile<kPacking, false>(from + codes, from + lo, from + scales, lane);
          bool mixed = false;
          if constexpr (kPlanes) {
            mixed = both < count;
            if (mixed) MultiplyMixed<NT>(loaded, x, sum, both, groups);
          }
          if (!mixed) Multiply<kPacking, false, NT>(loaded, x, sum, groups);
        }
      }
      __syncwarp();
      if (lane == 0) BarrierArrive(&b.empty[stage.at]);
      stage.Next(args.stages);
      if (kExperts && (within == slice_mask || step == cut.steps - 1)) {
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
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int j = 0; j < kMats; ++j) {
            total[j][i] = j == 0 ? sum[nt][i] : 0.0f;
            for (int s = j == 0 ? 1 : 0; s < cut.share; ++s) total[j][i] += places.partial[((warp + j * cut.share + s) * 4 + i) * 32 + lane];
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

template <Packing kPacking, int NT, Stage kStage>
__global__ void __launch_bounds__(kThreads, 1) StreamKernel(const __grid_constant__ StreamArgs args) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  constexpr bool kExperts = kStage != Stage::kLinear;
  extern __shared__ __align__(128) std::byte shared[];
  __shared__ Barriers barriers;
  __shared__ int32_t item_count;
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  Places places;
  places.ring = shared;
  places.rows = shared + args.stages * kWarps * kDepth<kPacking> * Ring<kPacking, false>::kTile;
  places.partial = reinterpret_cast<float*>(places.rows + (kExperts ? 2 * kRowsOfItem : args.rows) * args.row_bytes);
  auto* items = reinterpret_cast<Item*>(reinterpret_cast<std::byte*>(places.partial) + kPartialBytes);
  places.order = reinterpret_cast<int32_t*>(items + args.most_items);
  places.barriers = &barriers;
  if (static_cast<int>(threadIdx.x) < args.stages) BarrierInit(&barriers.full[threadIdx.x], 1), BarrierInit(&barriers.empty[threadIdx.x], kWarps);
  if (threadIdx.x < 2) BarrierInit(&barriers.rows_full[threadIdx.x], 1), BarrierInit(&barriers.rows_empty[threadIdx.x], kWarps);
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  if constexpr (kExperts) {
    // For the second product the jobs are there before the first has ended.
    if constexpr (kStage == Stage::kGateUp) {
      WaitForBefore();
      LetNextStart();
    }
    if (warp == 0) {
      const int made = MakeItems<kPacking == Packing::kPlanes8>(args, items);
      if (lane == 0) item_count = made;
    } else {
      for (int i = static_cast<int>(threadIdx.x) - 32; i < args.kept; i += kThreads - 32) places.order[i] = __ldcg(args.order + i);
    }
  }
  __syncthreads();
  Work<kStage> work{args, items, kExperts ? item_count : 0, {}};
  work.MakeCut(kDepth<kPacking>);
  if (warp >= kWarps) return Produce<kPacking>(work, places, warp - kWarps);
  if constexpr (kStage != Stage::kGateUp) WaitForBefore();
  if constexpr (!kExperts) LoadRows(args, places.rows);
  Consume<kPacking, NT>(work, places);
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

template <Packing kPacking, Stage kStage>
bool LaunchGroups(int rows, int tiles, StreamArgs args, cudaStream_t stream) {
  constexpr bool kExperts = kStage != Stage::kLinear;
  constexpr int kStageBytes = kWarps * kDepth<kPacking> * Ring<kPacking, false>::kTile;
  args.row_bytes = std::min(args.cols, kExperts ? kSliceCols : args.cols) * static_cast<int>(sizeof(__half)) + kRowPad;
  const int others = (kExperts ? 2 * kRowsOfItem : args.rows) * args.row_bytes + kPartialBytes + args.most_items * static_cast<int>(sizeof(Item)) +
                     args.kept * static_cast<int>(sizeof(int32_t));
  args.stages = std::min({(kSharedRoom - others) / kStageBytes, std::max(kRingRoom / kStageBytes, 2), kMostStages});
  if (args.stages < 2) return false;
  const auto grid = static_cast<unsigned>(std::min(Multiprocessors(), tiles)), bytes = static_cast<unsigned>(others + args.stages * kStageBytes);
  const auto launch = [&](auto* kernel) {
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)) == cudaSuccess &&
           LaunchEarly(kernel, dim3(grid), dim3(kThreads), bytes, stream, args) == cudaSuccess;
  };
  if constexpr (kStage == Stage::kLinear) {
    if (rows > 16) return launch(StreamKernel<kPacking, 4, kStage>);
    if (rows > 8) return launch(StreamKernel<kPacking, 2, kStage>);
  }
  return launch(StreamKernel<kPacking, 1, kStage>);
}

template <Stage kStage>
bool LaunchPacking(Packing packing, int rows, int tiles, const StreamArgs& args, cudaStream_t stream) {
  switch (packing) {
    case Packing::kPlanes8: return LaunchGroups<Packing::kPlanes8, kStage>(rows, tiles, args, stream);
    case Packing::kNibble: return LaunchGroups<Packing::kNibble, kStage>(rows, tiles, args, stream);
    case Packing::kNibbleMin: return LaunchGroups<Packing::kNibbleMin, kStage>(rows, tiles, args, stream);
    case Packing::kByteMin: return LaunchGroups<Packing::kByteMin, kStage>(rows, tiles, args, stream);
    case Packing::kByte16: return LaunchGroups<Packing::kByte16, kStage>(rows, tiles, args, stream);
    case Packing::kMxfp4: return LaunchGroups<Packing::kMxfp4, kStage>(rows, tiles, args, stream);
    case Packing::kHalf: return LaunchGroups<Packing::kHalf, kStage>(rows, tiles, args, stream);
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
  return LaunchPacking<Stage::kLinear>(one.weight.packing, one.rows, tiles, args, stream);
}

// Scratch: as of few rows, whose parts these are too, and the rows as halves at its end.
bool ExpertsOfStreamedRows(const ExpertFfnLaunch& l, SlotSums* sums, cudaStream_t stream) {
  const int32_t kept = l.rows * l.slots;
  if (l.gate_packing != l.up_packing || l.gate_packing == Packing::kF32 || l.down_packing == Packing::kF32) return false;
  if (!l.wgmma || kept > kStreamSlots || l.hidden % kTileCols != 0 || l.width % kTileCols != 0) return false;
  auto* inner = static_cast<__half*>(l.scratch);
  auto* slot_out = reinterpret_cast<float*>(static_cast<std::byte*>(l.scratch) + Up(static_cast<size_t>(kept) * static_cast<size_t>(l.width) * sizeof(__half)));
  std::byte* room = reinterpret_cast<std::byte*>(slot_out) + Up(static_cast<size_t>(kept) * static_cast<size_t>(l.hidden) * sizeof(float));
  StreamArgs args{};
  args.jobs = l.jobs, args.job_count = l.job_count, args.order = l.order;
  args.slots = l.slots, args.rows = l.rows, args.kept = kept;
  const int experts = std::min(l.experts, kept);
  args.most_jobs = std::min(l.may_read_hi ? 2 * experts : experts, kept);
  args.most_items = args.most_jobs + kept / kRowsOfItem + 1;
  args.x = HalvesOf(l.x, l.halves, room, l.rows, l.hidden, stream);
  args.cols = l.hidden, args.k_tiles = l.hidden / kTileCols, args.matrix_rows = l.width;
  args.first = l.gate, args.second = l.up, args.base[0] = l.gate_base, args.base[1] = l.up_base, args.stride = l.stride;
  args.inner = inner;
  if (!LaunchPacking<Stage::kGateUp>(l.gate_packing, l.rows, experts * TilesOf(l.width), args, stream)) return false;
  args.x = inner, args.slot_out = slot_out;
  args.cols = l.width, args.k_tiles = l.width / kTileCols, args.matrix_rows = l.hidden;
  args.first = l.down, args.second = nullptr, args.base[0] = l.down_base;
  if (!LaunchPacking<Stage::kDown>(l.down_packing, l.rows, experts * TilesOf(l.hidden), args, stream)) return false;
  *sums = {slot_out, l.weight, l.expert, l.slots};
  return true;
}

}  // namespace thermoe::cuda
