// SPDX-License-Identifier: Apache-2.0
// One block a multiprocessor, whose warps each work through strips of 16 rows of weights (or a share of a strip's columns), one after
// the other. Tiles come through a ring of the warp's own that runs ahead across the ends of strips, so memory is never idle. Activations
// are halves in the order of half_rows.cuh: of a linear all of them in shared memory, of experts the rows of a tile with it in the ring
// (loads straight to registers would wait behind the ring's). A kernel starts reading weights while the one before it still runs. An
// expert that some rows want with both planes and others with the hi plane alone is read once.
#include "kernels/cuda/half_rows.cuh"
#include "kernels/cuda/launch_early.cuh"
#include "kernels/cuda/stream_rows.h"
#include "kernels/cuda/tile_product.cuh"
#include "kernels/cuda/warp.cuh"

namespace thermoe::cuda {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kRowsOfItem = 8;                     // rows that meet an expert's tile at once
constexpr int kRowBytes = kTileCols * sizeof(__half);
constexpr int kActivationRoom = 136 * 1024;        // of a linear
constexpr int kRowPad = 64;                        // bytes between rows there: two of them fall into different banks

enum class Stage { kLinear, kGateUp, kDown };

// Rows that meet one expert's weights together.
struct Item {
  int32_t expert, first, both, count;  // first into `order`; the first `both` of `count` read both planes
};

struct StreamArgs {
  // Linears: matrices side by side, strips counted through.
  DeviceMatrix linear[kMostTogether];
  const float* bias[kMostTogether];
  float* out[kMostTogether];
  int32_t first_strip[kMostTogether + 1];
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

// Warps that share a strip, for the least time of the busiest: columns of a strip, and what its end costs in columns' worth.
__device__ inline int ShareOf(int strips, int k_tiles) {
  int best = 1, least = INT32_MAX;
  for (int share = 1; share <= kWarps && 2 * share <= k_tiles; share *= 2) {
    const int at_once = static_cast<int>(gridDim.x) * (kWarps / share), turns = (strips + at_once - 1) / at_once;
    const int time = turns * ((k_tiles + share - 1) / share + 2);
    if (time < least) least = time, best = share;
  }
  return best;
}

// All warps of a share of a strip meet.
__device__ inline void MeetShare(int strip_of_block, int share) {
  asm volatile("bar.sync %0, %1;" ::"r"(1 + strip_of_block), "r"(32 * share) : "memory");
}

// Tiles of a stage of the ring, and the rows that meet them.
template <Packing kPacking, Stage kStage>
struct Stages {
  using R = Ring<kPacking, false>;
  static constexpr int kMats = kStage == Stage::kGateUp ? 2 : 1;
  static constexpr int kRows = kStage == Stage::kLinear ? 0 : kRowsOfItem * kRowBytes;
  static constexpr int kBytes = kMats * R::kTile + kRows;
  static constexpr int kRoom = (kStage == Stage::kLinear ? 72 : kStage == Stage::kGateUp ? 102 : 86) * 1024;
  static constexpr int kCount = std::clamp(kRoom / (kWarps * kBytes), 2, 8);
};

// All rows of a linear, after each other.
__device__ inline void LoadRows(const StreamArgs& args, std::byte* to) {
  constexpr int kTogether = 4;
  const int each = args.cols / 8, pieces = args.rows * each, stride = args.cols * static_cast<int>(sizeof(__half)) + kRowPad;
  for (int begin = static_cast<int>(threadIdx.x); begin < pieces; begin += kTogether * kThreads) {
    uint4 v[kTogether];
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const int i = begin + j * kThreads;
      if (i < pieces) v[j] = __ldcg(reinterpret_cast<const uint4*>(args.x) + i);
    }
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const int i = begin + j * kThreads;
      if (i < pieces) *reinterpret_cast<uint4*>(to + i / each * stride + i % each * 16) = v[j];
    }
  }
}

template <Packing kPacking, int NT, Stage kStage>
__global__ void __launch_bounds__(kThreads, NT <= 2 ? 2 : 1) StreamKernel(StreamArgs args) {
  using S = Stages<kPacking, kStage>;
  using R = typename S::R;
  constexpr int kMats = S::kMats, kStages = S::kCount;
  constexpr bool kPlanes = kPacking == Packing::kPlanes8 && kStage != Stage::kLinear, kExperts = kStage != Stage::kLinear;
  extern __shared__ uint4 shared[];
  __shared__ float partial[kWarps][kMats * NT * 4][32];
  __shared__ int32_t item_count;
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  std::byte* ring = reinterpret_cast<std::byte*>(shared) + warp * kStages * S::kBytes;
  std::byte* after_rings = reinterpret_cast<std::byte*>(shared) + kWarps * kStages * S::kBytes;  // items and order, or a linear's rows
  auto* items = reinterpret_cast<Item*>(after_rings);
  auto* order = reinterpret_cast<int32_t*>(items + args.most_items);

  int strips = 0, row_tiles = 0;
  if constexpr (!kExperts) {
    strips = args.first_strip[args.linears];
  } else {
    // For the second product the jobs are there before the first has ended.
    if constexpr (kStage == Stage::kGateUp) {
      WaitForBefore();
      LetNextStart();
    }
    if (warp == 0) {
      const int made = MakeItems<kPlanes>(args, items);
      if (lane == 0) item_count = made;
    } else {
      for (int i = static_cast<int>(threadIdx.x) - 32; i < args.kept; i += kThreads - 32) order[i] = __ldcg(args.order + i);
    }
    __syncthreads();
    row_tiles = (args.matrix_rows + kTileRows - 1) / kTileRows;
    strips = item_count * row_tiles;
  }
  const int share = ShareOf(strips, args.k_tiles), of_block = kWarps / share, part = warp % share, place = warp / share;
  const int turn = static_cast<int>(gridDim.x) * of_block, first_strip = static_cast<int>(blockIdx.x) * of_block + place;
  const int steps = (args.k_tiles - part + share - 1) / share;  // tiles of a strip that are this warp's

  // What a strip is of: its matrices, and its first tile in them.
  struct Strip {
    DeviceMatrix m[kMats];
    int64_t base;
    int which, tile;
    Item item;
  };
  const auto open = [&](int strip) {
    Strip s;
    if constexpr (!kExperts) {
      s.which = 0;
      while (strip >= args.first_strip[s.which + 1]) ++s.which;
      s.tile = strip - args.first_strip[s.which];
      s.m[0] = args.linear[s.which];
      s.item = {0, 0, args.rows, args.rows};
    } else {
      s.which = 0, s.tile = strip % row_tiles;
      s.item = items[strip / row_tiles];
      s.m[0] = ExpertMatrix(args.first, args.base[0], args.stride, s.item.expert);
      if constexpr (kMats == 2) s.m[1] = ExpertMatrix(args.second, args.base[1], args.stride, s.item.expert);
    }
    s.base = int64_t{s.tile / kGroupTiles} * args.k_tiles * kGroupTiles + s.tile % kGroupTiles;
    return s;
  };

  // Where the ring's next stages come from.
  int ahead_strip = first_strip, ahead_step = 0;
  Strip ahead;
  const __half* ahead_rows[2];  // of which this lane copies 16 bytes: lane / 8 and that plus 4
  const auto open_ahead = [&] {
    if (ahead_strip >= strips) return;
    ahead = open(ahead_strip);
    if constexpr (kExperts) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int row = lane / 8 + 4 * j;
        int64_t from = ahead.item.first + row;
        if constexpr (kStage == Stage::kGateUp) from = row < ahead.item.count ? order[from] / args.slots : 0;
        ahead_rows[j] = row < ahead.item.count ? args.x + from * args.cols + lane % 8 * 8 : nullptr;
      }
    }
  };
  const auto start = [&](int slot, bool tiles, bool rows) {
    if (ahead_strip < strips) {
      const int k = part + ahead_step * share;
      std::byte* to = ring + slot * S::kBytes;
      if (tiles) {
        const int64_t tile = ahead.base + int64_t{k} * kGroupTiles;
        const bool hi = kPlanes && ahead.item.both == 0;
#pragma unroll
        for (int j = 0; j < kMats; ++j) {
          if (hi) StartTile<kPacking, kPlanes>(ahead.m[j], tile, to + j * R::kTile, lane);
          else StartTile<kPacking, false>(ahead.m[j], tile, to + j * R::kTile, lane);
        }
      }
      if constexpr (kExperts) {
        if (rows) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const int row = lane / 8 + 4 * j, block = lane % 8 / 4 ^ row % 2;  // neighbouring rows fall into different banks
            if (ahead_rows[j] != nullptr) CopyAsync(to + kMats * R::kTile + row * kRowBytes + block * 64 + lane % 4 * 16, ahead_rows[j] + k * kTileCols);
          }
        }
      }
      if (++ahead_step == steps) {
        ahead_step = 0, ahead_strip += turn;
        open_ahead();
      }
    }
    CommitCopies();
  };
  open_ahead();
#pragma unroll 1
  for (int i = 0; i < kStages; ++i) start(i, true, kStage == Stage::kGateUp);
  if constexpr (kStage != Stage::kGateUp) {
    WaitForBefore();
    LetNextStart();
  }
  if constexpr (kStage == Stage::kDown) {  // the rows of the stages that are under way
    ahead_strip = first_strip, ahead_step = 0;
    open_ahead();
#pragma unroll 1
    for (int i = 0; i < kStages; ++i) start(i, false, true);
  }
  if constexpr (kStage == Stage::kLinear) {
    LoadRows(args, after_rings);
    __syncthreads();
  }

  int slot = 0;
#pragma unroll 1
  for (int strip = first_strip; strip < strips; strip += turn) {
    const Strip here = open(strip);
    const int count = here.item.count, groups = (count + 7) / 8;
    float sum[kMats][NT][4] = {};
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      WaitCopies<kStages - 1>();
      __syncwarp();
      const std::byte* from = ring + slot * S::kBytes;
      uint4 x[2][NT];
#pragma unroll
      for (int i = 0; i < 2 * NT; ++i) {
        const int b = i / NT, row = i % NT * 8 + lane / 4;
        const std::byte* at = kExperts ? from + kMats * R::kTile + row * kRowBytes + (b ^ row % 2) * 64
                                       : after_rings + row * (args.cols * 2 + kRowPad) + ((part + step * share) * kTileCols + b * 32) * 2;
        x[b][i % NT] = row < count ? *reinterpret_cast<const uint4*>(at + lane % 4 * 16) : uint4{};
      }
      if (kPlanes && here.item.both == 0) {
#pragma unroll
        for (int j = 0; j < kMats; ++j) Multiply<kPacking, kPlanes, NT>(ReadTile<kPacking, kPlanes>(from + j * R::kTile, lane), x, sum[j], groups);
      } else {
        bool mixed = false;
        if constexpr (kPlanes) {
          mixed = here.item.both < count;
          if (mixed) {
#pragma unroll
            for (int j = 0; j < kMats; ++j) MultiplyMixed<NT>(ReadTile<kPacking, false>(from + j * R::kTile, lane), x, sum[j], here.item.both, groups);
          }
        }
        if (!mixed) {
#pragma unroll
          for (int j = 0; j < kMats; ++j) Multiply<kPacking, false, NT>(ReadTile<kPacking, false>(from + j * R::kTile, lane), x, sum[j], groups);
        }
      }
      __syncwarp();
      start(slot, true, true);
      slot = slot + 1 == kStages ? 0 : slot + 1;
    }
    // The parts of a strip, added in order.
    if (share > 1) {
      if (part != 0) {
#pragma unroll
        for (int i = 0; i < kMats * NT * 4; ++i) partial[warp][i][lane] = sum[i / (NT * 4)][i / 4 % NT][i % 4];
      }
      MeetShare(place, share);
      if (part == 0) {
        for (int other = 1; other < share; ++other) {
#pragma unroll
          for (int i = 0; i < kMats * NT * 4; ++i) sum[i / (NT * 4)][i / 4 % NT][i % 4] += partial[warp + other][i][lane];
        }
      }
      MeetShare(place, share);
      if (part != 0) continue;
    }
#pragma unroll
    for (int i = 0; i < NT * 4; ++i) {
      const int nt = i / 4, row = here.tile * kTileRows + lane / 4 + i % 4 / 2 * 8, column = nt * 8 + lane % 4 * 2 + i % 2;
      if (row >= here.m[0].rows || column >= count) continue;
      float total[kMats];
#pragma unroll
      for (int j = 0; j < kMats; ++j) {
        total[j] = sum[j][nt][i % 4];
        if constexpr (kPacking == Packing::kHalf) total[j] *= reinterpret_cast<const float*>(here.m[j].scales)[row];
      }
      if constexpr (kStage == Stage::kLinear) {
        const float* bias = args.bias[here.which];
        args.out[here.which][int64_t{column} * here.m[0].rows + row] = total[0] + (bias != nullptr ? bias[row] : 0.0f);
      } else if constexpr (kStage == Stage::kGateUp) {
        StoreHalf(args.inner + int64_t{here.item.first + column} * args.matrix_rows, row, Silu(total[0]) * total[kMats - 1]);
      } else {
        args.slot_out[int64_t{order[here.item.first + column]} * args.matrix_rows + row] = total[0];
      }
    }
  }
  WaitCopies<0>();
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
bool LaunchGroups(int rows, int strips, const StreamArgs& args, cudaStream_t stream) {
  using S = Stages<kPacking, kStage>;
  const size_t rings = kWarps * S::kCount * S::kBytes;
  const size_t others = kStage == Stage::kLinear
                            ? static_cast<size_t>(args.rows) * (static_cast<size_t>(args.cols) * sizeof(__half) + kRowPad)
                            : static_cast<size_t>(args.most_items) * sizeof(Item) + static_cast<size_t>(args.kept) * sizeof(int32_t);
  const auto grid = static_cast<unsigned>(std::min(Multiprocessors(), strips));
  const auto launch = [&](auto* kernel) {
    if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(rings + others)) != cudaSuccess) {
      cudaGetLastError();  // too little shared memory on this device: not these
      return false;
    }
    return LaunchEarly(kernel, dim3(grid), dim3(kThreads), rings + others, stream, args) == cudaSuccess;
  };
  if constexpr (kStage == Stage::kLinear) {
    if (rows > 16) return launch(StreamKernel<kPacking, 4, kStage>);
    if (rows > 8) return launch(StreamKernel<kPacking, 2, kStage>);
  }
  return launch(StreamKernel<kPacking, 1, kStage>);
}

template <Stage kStage>
bool LaunchPacking(Packing packing, int rows, int strips, const StreamArgs& args, cudaStream_t stream) {
  switch (packing) {
    case Packing::kPlanes8: return LaunchGroups<Packing::kPlanes8, kStage>(rows, strips, args, stream);
    case Packing::kNibble: return LaunchGroups<Packing::kNibble, kStage>(rows, strips, args, stream);
    case Packing::kNibbleMin: return LaunchGroups<Packing::kNibbleMin, kStage>(rows, strips, args, stream);
    case Packing::kByteMin: return LaunchGroups<Packing::kByteMin, kStage>(rows, strips, args, stream);
    case Packing::kByte16: return LaunchGroups<Packing::kByte16, kStage>(rows, strips, args, stream);
    case Packing::kMxfp4: return LaunchGroups<Packing::kMxfp4, kStage>(rows, strips, args, stream);
    case Packing::kHalf: return LaunchGroups<Packing::kHalf, kStage>(rows, strips, args, stream);
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
  if (one.rows * (cols * static_cast<int64_t>(sizeof(__half)) + kRowPad) > kActivationRoom) return false;
  StreamArgs args{};
  for (const LinearLaunch& l : launches) {
    if (l.weight.packing != one.weight.packing || l.weight.packing == Packing::kF32 || l.weight.cols != cols) return false;
    const int i = args.linears++;
    args.linear[i] = l.weight, args.bias[i] = l.bias, args.out[i] = l.out;
    args.first_strip[i + 1] = args.first_strip[i] + TilesOf(l.weight.rows);
  }
  args.rows = one.rows, args.cols = cols, args.k_tiles = cols / kTileCols;
  args.x = HalvesOf(one.x, one.halves, one.scratch, one.rows, cols, stream);
  return LaunchPacking<Stage::kLinear>(one.weight.packing, one.rows, args.first_strip[args.linears], args, stream);
}

// Scratch: as of few rows, whose parts these are too, and the rows as halves at its end.
bool ExpertsOfStreamedRows(const ExpertFfnLaunch& l, SlotSums* sums, cudaStream_t stream) {
  const int32_t kept = l.rows * l.slots;
  if (l.gate_packing != l.up_packing || l.gate_packing == Packing::kF32 || l.down_packing == Packing::kF32) return false;
  if (kept > kStreamSlots || l.hidden % kTileCols != 0 || l.width % kTileCols != 0) return false;
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
