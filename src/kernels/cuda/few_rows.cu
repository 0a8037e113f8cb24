// SPDX-License-Identifier: Apache-2.0
// A warp has a tile of 16 rows of weights and a share of the columns; some tiles are under way to its own ring in shared memory while it
// multiplies others. Activations are fragments of halves in shared memory, for all warps of a block. With programmatic launches a
// kernel starts reading weights while the one before it still runs: weights depend on nobody.
#include <algorithm>

#include "kernels/cuda/few_rows.h"
#include "kernels/cuda/fragments.cuh"
#include "kernels/cuda/launch_early.cuh"
#include "kernels/cuda/tile_product.cuh"
#include "kernels/cuda/warp.cuh"

namespace thermoe::cuda {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kActivationRoom = 64 * 1024, kRingRoom = 72 * 1024;  // bytes of shared memory for activations and for tiles

struct FewArgs {
  // Linears: matrices side by side, tiles of 16 rows counted through. Experts: of the job's expert.
  DeviceMatrix linear[kMostTogether];
  const float* bias[kMostTogether];
  float* out[kMostTogether];
  int32_t first_tile[kMostTogether + 1];
  int32_t linears;
  const DeviceMatrix* first;   // [E] gate, or down
  const DeviceMatrix* second;  // [E] up
  const Job* jobs;
  const int32_t* job_count;
  const int32_t* order;
  const void* x;               // floats [T, cols], or halves [slots by order, cols]
  __half* inner;               // [slots by order, width]
  float* slot_out;             // [T * K, hidden]
  int32_t rows, cols, slots, splits, slice_tiles;
  DeviceMatrix base[2];        // of expert 0, where the others follow at `stride` bytes each; 0: look into the tables
  int64_t stride;
  bool hi;                     // experts: which jobs this launch is for is their planes; linears: both
};

enum class Stage { kLinear, kGateUp, kDown };

__device__ inline uint32_t HalfPair(float2 v) { return PackHalves(WithinHalf(v.x), WithinHalf(v.y)); }

// Two neighbouring columns at `column`, 8, 16 and 24 further on, of one row: what a lane has of 32 columns.
template <Stage kStage>
__device__ __forceinline__ uint4 ActivationsAt(const FewArgs& args, int row, int column) {
  if constexpr (kStage == Stage::kDown) {
    const __half* from = static_cast<const __half*>(args.x) + int64_t{row} * args.cols;
    if (args.cols % 32 != 0) {  // nothing is aligned, and the row may end anywhere
      const auto at = [&](int i) { return i < args.cols ? __half2float(from[i]) : 0.0f; };
      const auto pair = [&](int c) { return PackHalves(at(c), at(c + 1)); };
      return {pair(column), pair(column + 8), pair(column + 16), pair(column + 24)};
    }
    const auto* words = reinterpret_cast<const uint32_t*>(from + column);
    return {__ldcg(words), __ldcg(words + 4), __ldcg(words + 8), __ldcg(words + 12)};
  } else {
    const int64_t token = kStage == Stage::kGateUp ? __ldcg(args.order + row) / args.slots : row;
    const float* from = static_cast<const float*>(args.x) + token * args.cols;
    if (args.cols % 32 != 0) {
      const auto at = [&](int i) { return i < args.cols ? from[i] : 0.0f; };
      const auto pair = [&](int c) { return HalfPair({at(c), at(c + 1)}); };
      return {pair(column), pair(column + 8), pair(column + 16), pair(column + 24)};
    }
    const auto* pairs = reinterpret_cast<const float2*>(from + column);
    const float2 a = __ldcg(pairs), b = __ldcg(pairs + 4), c = __ldcg(pairs + 8), d = __ldcg(pairs + 12);
    return {HalfPair(a), HalfPair(b), HalfPair(c), HalfPair(d)};
  }
}

// Columns [64 tile0, 64 tile1) of `count` rows as fragments: [tile][2][NT][32]. Loads of a thread do not wait for each other.
template <int NT, Stage kStage>
__device__ void StageActivations(const FewArgs& args, int first, int count, int tile0, int tile1, uint4* to) {
  constexpr int kTogether = 4;
  const int pieces = (tile1 - tile0) * 2 * NT * 32;
  for (int begin = static_cast<int>(threadIdx.x); begin < pieces; begin += kTogether * kThreads) {
    uint4 v[kTogether];
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const int i = begin + j * kThreads, lane = i % 32, nt = i / 32 % NT, block = i / (32 * NT);
      const int row = nt * 8 + lane / 4, column = tile0 * kTileCols + block * 32;
      v[j] = {};
      if (i < pieces && row < count && column < args.cols) v[j] = ActivationsAt<kStage>(args, first + row, column + 2 * (lane % 4));
    }
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      if (begin + j * kThreads < pieces) to[begin + j * kThreads] = v[j];
    }
  }
}

template <Packing kPacking, bool kHi, int NT, Stage kStage>
__global__ void __launch_bounds__(kThreads, NT == 1 ? 2 : 1) FewRowsKernel(FewArgs args) {
  constexpr int kMats = kStage == Stage::kGateUp ? 2 : 1;
  using R = Ring<kPacking, kHi>;
  constexpr int kStages = R::Stages(kRingRoom, kWarps, kMats);
  extern __shared__ uint4 staged[];
  __shared__ float partial[kWarps][kMats * NT * 4][32];
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  std::byte* ring = reinterpret_cast<std::byte*>(staged + args.slice_tiles * 2 * NT * 32) + warp * kStages * kMats * R::kTile;
  const int split = warp % args.splits, tiles_of_block = kWarps / args.splits;
  int tile = static_cast<int>(blockIdx.x) * tiles_of_block + warp / args.splits;
  int which = 0, first = 0, count = args.rows;
  DeviceMatrix m[kMats];
  if constexpr (kStage == Stage::kLinear) {
    const int place = min(tile, args.first_tile[args.linears] - 1);
    while (place >= args.first_tile[which + 1]) ++which;
    m[0] = args.linear[which];
    tile -= args.first_tile[which];
  } else {
    if (kStage == Stage::kGateUp) WaitForBefore();  // the jobs; for the second product they are there
    const auto leave = [] {  // a grid must not end before the one it depends on
      if (kStage == Stage::kDown) WaitForBefore();
    };
    if (static_cast<int>(blockIdx.y) >= __ldcg(args.job_count)) return leave();
    const int4 words = __ldcg(reinterpret_cast<const int4*>(args.jobs + blockIdx.y));
    const auto planes = static_cast<Planes>(words.y & 255);
    if (kPacking == Packing::kPlanes8 && (planes == Planes::kHi) != kHi) return leave();
    first = words.z, count = words.w;
    m[0] = ExpertMatrix(args.first, args.base[0], args.stride, words.x);
    if constexpr (kMats == 2) m[1] = ExpertMatrix(args.second, args.base[1], args.stride, words.x);
  }
  const int row_tiles = (m[0].rows + kTileRows - 1) / kTileRows, k_tiles = m[0].k_tiles;
  const bool mine = tile < row_tiles;
  const int64_t base = mine ? int64_t{tile / kGroupTiles} * k_tiles * kGroupTiles + tile % kGroupTiles : 0;
  const auto number = [&](int k) { return base + int64_t{k} * kGroupTiles; };
  bool waited = kStage == Stage::kGateUp;

  const int steps = mine && split < k_tiles ? (k_tiles - split + args.splits - 1) / args.splits : 0;  // this warp's tiles
  const auto start = [&](int i) {
    if (i < steps) {
#pragma unroll
      for (int j = 0; j < kMats; ++j) {
        StartTile<kPacking, kHi>(m[j], number(split + i * args.splits), ring + (i % kStages * kMats + j) * R::kTile, lane);
      }
    }
    CommitCopies();
  };

  for (int begin = 0; begin < count; begin += 8 * NT) {
    const int here = min(8 * NT, count - begin);
    float sum[kMats][NT][4] = {};
    for (int i = 0; i < kStages; ++i) start(i);
    int step = 0;
    for (int slice = 0; slice < k_tiles; slice += args.slice_tiles) {
      const int end = min(k_tiles, slice + args.slice_tiles);
      if (!waited) {
        WaitForBefore();
        waited = true;
      }
      if (slice > 0 || begin > 0) __syncthreads();
      StageActivations<NT, kStage>(args, first + begin, here, slice, end, staged);
      __syncthreads();
      if (end == k_tiles && begin + 8 * NT >= count) LetNextStart();
      for (; step < steps && split + step * args.splits < end; ++step) {
        WaitCopies<kStages - 1>();
        __syncwarp();
        uint4 x[2][NT];
#pragma unroll
        for (int i = 0; i < 2 * NT; ++i) x[i / NT][i % NT] = staged[((split + step * args.splits - slice) * 2 * NT + i) * 32 + lane];
#pragma unroll
        for (int j = 0; j < kMats; ++j) {
          const std::byte* at = ring + (step % kStages * kMats + j) * R::kTile;
          const LaneOffsets<kPacking> mine(lane);
          const Loaded<kPacking> tile_data = ReadTile<kPacking, kHi>(at + mine.code, at + R::kCodes + mine.code, at + R::kCodes + R::kLo + mine.scale);
          Multiply<kPacking, kHi, NT>(tile_data, x, sum[j]);
        }
        __syncwarp();
        start(step + kStages);
      }
    }
    WaitCopies<0>();
    // The splits of a tile, added in order.
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kMats; ++j) {
#pragma unroll
      for (int nt = 0; nt < NT; ++nt) {
#pragma unroll
        for (int i = 0; i < 4; ++i) partial[warp][(j * NT + nt) * 4 + i][lane] = sum[j][nt][i];
      }
    }
    __syncthreads();
    if (split != 0 || !mine) continue;
#pragma unroll
    for (int nt = 0; nt < NT; ++nt) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float total[kMats];
#pragma unroll
        for (int j = 0; j < kMats; ++j) {
          total[j] = sum[j][nt][i];
          for (int s = 1; s < args.splits; ++s) total[j] += partial[warp + s][(j * NT + nt) * 4 + i][lane];
        }
        const int row = tile * kTileRows + lane / 4 + i / 2 * 8, column = nt * 8 + lane % 4 * 2 + i % 2;
        if (row >= m[0].rows || column >= here) continue;
        if constexpr (kPacking == Packing::kHalf) {
#pragma unroll
          for (int j = 0; j < kMats; ++j) total[j] *= reinterpret_cast<const float*>(m[j].scales)[row];
        }
        if constexpr (kStage == Stage::kLinear) {
          const float* bias = args.bias[which];
          args.out[which][int64_t{begin + column} * m[0].rows + row] = total[0] + (bias != nullptr ? bias[row] : 0.0f);
        } else if constexpr (kStage == Stage::kGateUp) {
          const float inner = Silu(total[0]) * total[kMats - 1];
          args.inner[int64_t{first + begin + column} * m[0].rows + row] = SaturatedHalf(inner);
        } else {
          args.slot_out[int64_t{args.order[first + begin + column]} * m[0].rows + row] = total[0];
        }
      }
    }
  }
}

template <Packing kPacking, bool kHi, Stage kStage>
cudaError_t LaunchGroups(int groups, dim3 grid, FewArgs args, cudaStream_t stream) {
  constexpr int kMats = kStage == Stage::kGateUp ? 2 : 1;
  using R = Ring<kPacking, kHi>;
  const int k_tiles = (args.cols + kTileCols - 1) / kTileCols, tile_bytes = 1024 * groups;
  args.slice_tiles = std::min(k_tiles, kActivationRoom / tile_bytes);
  const auto bytes = static_cast<size_t>(args.slice_tiles * tile_bytes + kWarps * R::Stages(kRingRoom, kWarps, kMats) * kMats * R::kTile);
  const auto launch = [&](auto* kernel) {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    return LaunchEarly(kernel, grid, dim3(kThreads), bytes, stream, args);
  };
  switch (groups) {
    case 1: return launch(FewRowsKernel<kPacking, kHi, 1, kStage>);
    case 2: return launch(FewRowsKernel<kPacking, kHi, 2, kStage>);
    default: return launch(FewRowsKernel<kPacking, kHi, 4, kStage>);
  }
}

template <Stage kStage>
bool LaunchPacking(Packing packing, int groups, dim3 grid, const FewArgs& args, cudaStream_t stream) {
  return ByPacking(packing, [&]<Packing kPacking>() {
    bool ok = LaunchGroups<kPacking, false, kStage>(groups, grid, args, stream) == cudaSuccess;
    if constexpr (kPacking == Packing::kPlanes8 && kStage != Stage::kLinear) {
      if (args.hi) ok = LaunchGroups<kPacking, true, kStage>(groups, grid, args, stream) == cudaSuccess && ok;
    }
    return ok;
  });
}

int GroupsFor(int rows) { return rows <= 8 ? 1 : rows <= 16 ? 2 : 4; }

// Warps that share a row tile, so that there are blocks for all multiprocessors; fewer blocks where each first has many rows of
// activations to bring.
int SplitsFor(int64_t tiles, int k_tiles, int groups) {
  const int64_t warps = 132 * (groups == 1 ? kWarps : 3);
  int splits = 1;
  while (splits < kWarps && tiles * splits < warps && k_tiles >= 4 * splits) splits *= 2;
  return splits;
}

}  // namespace

bool LinearOfFewRows(std::span<const LinearLaunch> launches, cudaStream_t stream) {
  const LinearLaunch& one = launches[0];
  if (launches.size() > kMostTogether) return false;
  FewArgs args{};
  for (size_t i = 0; i < launches.size(); ++i) {
    const LinearLaunch& l = launches[i];
    if (l.weight.packing != one.weight.packing || l.weight.cols != one.weight.cols || l.weight.packing == Packing::kF32) return false;
    args.linear[i] = l.weight, args.bias[i] = l.bias, args.out[i] = l.out;
    args.first_tile[i + 1] = args.first_tile[i] + (l.weight.rows + kTileRows - 1) / kTileRows;
  }
  args.linears = static_cast<int32_t>(launches.size());
  args.x = one.x, args.rows = one.rows, args.cols = one.weight.cols;
  const int tiles = args.first_tile[args.linears];
  args.splits = SplitsFor(tiles, one.weight.k_tiles, GroupsFor(one.rows));
  const int of_block = kWarps / args.splits;
  return LaunchPacking<Stage::kLinear>(one.weight.packing, GroupsFor(one.rows), dim3(static_cast<unsigned>((tiles + of_block - 1) / of_block)), args,
                                       stream);
}

ExpertScratchParts PartsOfExpertScratch(int32_t hidden, int32_t width, int32_t slots, int32_t rows) {
  const auto up = [](size_t bytes) { return (bytes + 255) / 256 * 256; };
  const auto kept = static_cast<size_t>(rows) * static_cast<size_t>(slots);
  ExpertScratchParts parts;
  parts.slot_out = up(kept * static_cast<size_t>(width) * sizeof(__half));
  parts.rows = parts.slot_out + up(kept * static_cast<size_t>(hidden) * sizeof(float));
  parts.total = parts.rows + static_cast<size_t>(rows) * static_cast<size_t>(hidden) * sizeof(__half);
  return parts;
}

bool ExpertsOfFewRows(const ExpertFfnLaunch& l, SlotSums* sums, cudaStream_t stream) {
  if (l.gate_packing != l.up_packing || l.gate_packing == Packing::kF32 || l.down_packing == Packing::kF32) return false;
  auto* inner = static_cast<__half*>(l.scratch);
  auto* slot_out = reinterpret_cast<float*>(static_cast<std::byte*>(l.scratch) + PartsOfExpertScratch(l.hidden, l.width, l.slots, l.rows).slot_out);
  FewArgs args{};
  args.jobs = l.jobs, args.job_count = l.job_count, args.order = l.order;
  args.slots = l.slots, args.rows = l.rows;
  args.hi = l.may_read_hi;
  const int experts = std::min(l.experts, l.rows * l.slots), mean = (l.rows * l.slots + l.experts - 1) / l.experts;
  const int groups = GroupsFor(mean <= 4 ? 1 : 2 * mean);
  const auto jobs = static_cast<unsigned>(l.may_read_hi ? std::min(2 * experts, l.rows * l.slots) : experts);
  const auto grid = [&](int rows, int cols) {
    const int tiles = (rows + kTileRows - 1) / kTileRows;
    args.splits = SplitsFor(int64_t{tiles} * experts, (cols + kTileCols - 1) / kTileCols, groups);
    const int of_block = kWarps / args.splits;
    args.cols = cols;
    return dim3(static_cast<unsigned>((tiles + of_block - 1) / of_block), jobs);
  };
  const dim3 up = grid(l.width, l.hidden);
  args.first = l.gate, args.second = l.up, args.x = l.x, args.inner = inner;
  args.base[0] = l.gate_base, args.base[1] = l.up_base, args.stride = l.stride;
  if (!LaunchPacking<Stage::kGateUp>(l.gate_packing, groups, up, args, stream)) return false;
  const dim3 down = grid(l.hidden, l.width);
  args.first = l.down, args.second = nullptr, args.x = inner, args.slot_out = slot_out;
  args.base[0] = l.down_base;
  if (!LaunchPacking<Stage::kDown>(l.down_packing, groups, down, args, stream)) return false;
  *sums = {slot_out, l.weight, l.expert, l.slots};
  return true;
}

}  // namespace thermoe::cuda
