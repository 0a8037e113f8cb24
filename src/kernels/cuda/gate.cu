// SPDX-License-Identifier: Apache-2.0
// The product with the gate's weights and the selection in one launch, of few rows with the norm before them.
#include <cooperative_groups.h>

#include <algorithm>

#include "kernels/cuda/choose_few.cuh"
#include "kernels/cuda/launch_early.cuh"
#include "kernels/cuda/norm_row.cuh"

namespace thermoe::cuda {
namespace {

constexpr int kGateThreads = 512, kGateWarps = kGateThreads / 32, kGateCluster = 8;
constexpr int kByExpertRows = 16;  // up to here blocks by expert are faster, beyond it clusters by rows
constexpr int kGateQuads = 8;                                // float4s of a weight row that a lane holds at once
constexpr int kGateRows = kByExpertRows / kGateWarps;  // rows of a warp
constexpr uint32_t kDoneMask = 0x7fffffffu;            // meetings of blocks leave the upper bit of the counter as they like

// Logits of one expert for the rows of a warp, and of normed rows the sums of squares; w, gain and x: [quads]. Weights are read once, the first of
// them before what makes x has ended, and loads do not wait for each other.
__device__ void LogitsOfExpert(const float4* w, const float4* gain, const float* x, int quads, int rows, int first_quad, int last_quad, int first_row,
                               int row_step, float (&sums)[kGateRows], float (&squares)[kGateRows]) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  float4 a[kGateQuads];
  const auto load = [&](int begin) {
#pragma unroll
    for (int i = 0; i < kGateQuads; ++i) {
      const int at = begin + 32 * i + lane;
      a[i] = at < last_quad ? __ldg(w + at) : float4{};
      if (gain == nullptr) continue;
      const float4 by = at < last_quad ? __ldg(gain + at) : float4{};
      a[i] = {a[i].x * by.x, a[i].y * by.y, a[i].z * by.z, a[i].w * by.w};
    }
  };
  load(first_quad);
  WaitForBefore();
  LetNextStart();
#pragma unroll 1
  for (int begin = first_quad; begin < last_quad; begin += 32 * kGateQuads) {
    if (begin > first_quad) load(begin);
#pragma unroll
    for (int r = 0; r < kGateRows; ++r) {
      const int t = first_row + r * row_step;
      if (t >= rows) break;
      const float4* row = reinterpret_cast<const float4*>(x) + int64_t{t} * quads + begin + lane;
#pragma unroll
      for (int i = 0; i < kGateQuads; ++i) {
        const float4 b = begin + 32 * i + lane < last_quad ? __ldcg(row + 32 * i) : float4{};
        sums[r] += a[i].x * b.x + a[i].y * b.y + (a[i].z * b.z + a[i].w * b.w);
        squares[r] += b.x * b.x + b.y * b.y + (b.z * b.z + b.w * b.w);
      }
    }
  }
}

// Logits and selection: a block computes one expert's logits for all rows, and the last to be done selects. Where there is a norm, some blocks
// more, the first of all, leave it for what comes next.
template <int kLane>
__global__ void __launch_bounds__(kGateThreads, 1) GateByExpertKernel(const float* weights, const float* x, int hidden, float* logits, NormLaunch norm,
                                                                      SelectLaunch l) {
  __shared__ float parts[kGateWarps], part_squares[kGateWarps];
  __shared__ TeamRoom<kLane> room;
  __shared__ bool last;
  const int norm_blocks = static_cast<int>(gridDim.x) - l.experts;
  if (static_cast<int>(blockIdx.x) < norm_blocks) {
    const auto gain = ReadGain<float4>(norm);
    WaitForBefore();
    LetNextStart();
#pragma unroll 1
    for (int row = static_cast<int>(blockIdx.x); row < l.rows; row += norm_blocks) NormRow<float4, false>(norm, row, gain);
    return;
  }
  const BlockTeam team;
  ClearRoom(team, l.experts, &room);
  const int warp = team.warp(), lane = Lane(), expert = static_cast<int>(blockIdx.x) - norm_blocks;
  const float4* w = reinterpret_cast<const float4*>(weights + int64_t{expert} * hidden);
  const float4* gain = reinterpret_cast<const float4*>(norm.gain);
  const int quads = hidden / 4;
  float sums[kGateRows] = {}, squares[kGateRows] = {};
  const auto put = [&](int t, float sum, float square) {
    if (norm.gain != nullptr) sum *= rsqrtf(square / static_cast<float>(hidden) + norm.epsilon);
    logits[int64_t{t} * l.experts + expert] = sum;
  };
  if (l.rows * 2 > kGateWarps) {  // a warp has rows of its own
    LogitsOfExpert(w, gain, x, quads, l.rows, 0, quads, warp, kGateWarps, sums, squares);
#pragma unroll
    for (int r = 0; r < kGateRows; ++r) {
      const float sum = WarpSum(sums[r]), square = WarpSum(squares[r]);
      const int t = warp + r * kGateWarps;
      if (lane == 0 && t < l.rows) put(t, sum, square);
    }
  } else {  // some warps share a row
    int share = 1;
    while (2 * share * l.rows <= kGateWarps) share *= 2;
    const int t = warp / share, slice = warp % share, each = (quads + share - 1) / share;
    LogitsOfExpert(w, gain, x, quads, l.rows, slice * each, min(quads, slice * each + each), t, kByExpertRows, sums, squares);
    const float sum = WarpSum(sums[0]), square = WarpSum(squares[0]);
    if (lane == 0) parts[warp] = sum, part_squares[warp] = square;
    __syncthreads();
    if (lane == 0 && slice == 0 && t < l.rows) {
      float total = 0, total_squares = 0;
#pragma unroll 1
      for (int s = 0; s < share; ++s) total += parts[warp + s], total_squares += part_squares[warp + s];
      put(t, total, total_squares);
    }
  }
  const SelectRules rules = *l.rules;
  __syncthreads();
  if (threadIdx.x == 0) {
    last = (CountBlock(l.done) & kDoneMask) + 1 == static_cast<uint32_t>(l.experts);
    if (last) *l.done = 0;
  }
  __syncthreads();
  if (!last) return;
  RowInput<kLane> input{};
  ReadRow(l, team.warp(), &input);
  SelectFew(l, rules, team, &input, &room);
}

#if __CUDA_ARCH__ >= 900

constexpr int kGateTogether = 8;  // experts of a warp at once

// Adds eight values over the lanes; lanes 4 i have the sum of value i.
__device__ float SumOfEight(float (&v)[kGateTogether]) {
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int half = kGateTogether / 2, mask = 16; half >= 1; half /= 2, mask /= 2) {
    const bool upper = (lane & mask) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float given = upper ? v[i] : v[i + half], kept = upper ? v[i + half] : v[i];
      v[i] = kept + __shfl_xor_sync(kAllLanes, given, mask);
    }
  }
  v[0] += __shfl_xor_sync(kAllLanes, v[0], 2);
  return v[0] + __shfl_xor_sync(kAllLanes, v[0], 1);
}

// Rows were chosen by several blocks: what is left for the last of them, whose room is clear.
template <int kLane>
__device__ void FinishChoice(const SelectLaunch& l, const BlockTeam& team, const RowTotals* totals, TeamRoom<kLane>* room) {
  RowTotals sum{};
  SlotCounts<kLane> counts;
  const int group = GroupSlots(team, 0, l.rows, room, [&](int t) {
    sum.lost += __ldcg(&totals[t].lost), sum.dropped += __ldcg(&totals[t].dropped);
    if (Lane() == 0) room->totals[team.warp()] = sum;
    return GroupOf(l, t);
  }, [&](int, const SlotCounts<kLane>& turn) { counts.Add(turn); });
  FinishLists(l, team, group, counts, room);
}

#endif

// The same for more rows. Clusters of blocks share kRows rows: each block multiplies a part of the columns, the first adds up and chooses.
// The last of those that choose makes the dispatch, or, where rows know of each other, the whole choice. kQuads: float4s of a lane.
template <int kLane, int kRows, int kQuads>
__global__ void __launch_bounds__(kGateThreads, 1) GateKernel(const float* weights, const float* x, int hidden, float* logits, SelectLaunch l) {
#if __CUDA_ARCH__ >= 900
  namespace cg = cooperative_groups;
  __shared__ float parts[kGateCluster][kRows][kLane * 32];
  __shared__ TeamRoom<kLane> room;
  __shared__ bool last;
  const BlockTeam team;
  ClearRoom(team, l.experts, &room);
  const cg::cluster_group cluster = cg::this_cluster();
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int rank = static_cast<int>(cluster.block_rank()), first_row = static_cast<int>(blockIdx.x) / kGateCluster * kRows;
  const int quads = hidden / 4, each = (quads + kGateCluster - 1) / kGateCluster, begin = rank * each, end = min(quads, begin + each);
  float4 w[kGateTogether][kQuads];
  const auto load = [&](int first) {
#pragma unroll
    for (int j = 0; j < kGateTogether; ++j) {
      const int expert = first + j * kGateWarps;
      const float4* row = reinterpret_cast<const float4*>(weights) + int64_t{expert} * quads + begin + lane;
#pragma unroll
      for (int q = 0; q < kQuads; ++q) w[j][q] = expert < l.experts && begin + lane + 32 * q < end ? __ldg(row + 32 * q) : float4{};
    }
  };
  load(warp);
  WaitForBefore();
  LetNextStart();
  float4 mine[kRows][kQuads];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float4* row = reinterpret_cast<const float4*>(x) + int64_t{min(first_row + r, l.rows - 1)} * quads + begin + lane;
#pragma unroll
    for (int q = 0; q < kQuads; ++q) mine[r][q] = begin + lane + 32 * q < end ? __ldcg(row + 32 * q) : float4{};
  }
  const SelectRules rules = *l.rules;
  float* at_first = cluster.map_shared_rank(&parts[0][0][0], 0) + rank * kRows * kLane * 32;
  cluster.barrier_arrive();  // all blocks of the cluster have begun before one writes into another
  cluster.barrier_wait();
  for (int first = warp; first < l.experts; first += kGateTogether * kGateWarps) {
    if (first > warp) load(first);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float sums[kGateTogether];
#pragma unroll
      for (int j = 0; j < kGateTogether; ++j) {
        sums[j] = 0;
#pragma unroll
        for (int q = 0; q < kQuads; ++q) {
          const float4 a = w[j][q], b = mine[r][q];
          sums[j] += a.x * b.x + a.y * b.y + (a.z * b.z + a.w * b.w);
        }
      }
      const float sum = SumOfEight(sums);
      const int expert = first + lane / 4 * kGateWarps;
      if (lane % 4 == 0 && expert < l.experts) at_first[r * kLane * 32 + expert] = sum;
    }
  }
  cluster.sync();
  if (rank != 0) return;
  const bool together = BatchAware(l, rules);
  auto* totals = static_cast<RowTotals*>(l.scratch);
  if (const int t = first_row + warp; warp < kRows && t < l.rows) {
    RowInput<kLane> input;
    input.kind = l.kinds[t];
    ReadKnobs(l, rules, &input);
    float(&sum)[kLane] = input.logits;
#pragma unroll
    for (int i = 0; i < kLane; ++i) {
      const int expert = lane * kLane + i;
      sum[i] = 0;
      for (int c = 0; c < kGateCluster; ++c) sum[i] += parts[c][warp][expert];
      if (expert < l.experts) logits[int64_t{t} * l.experts + expert] = sum[i];
      else sum[i] = -INFINITY;
    }
    if (!together) {
      const RowResult result = ChooseRow(l, rules, t, input, &room.warps[warp]);
      if (lane == 0) totals[t] = {result.lost, result.dropped};
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    last = (CountBlock(l.done) & kDoneMask) + 1 == gridDim.x / kGateCluster;
    if (last) *l.done = 0;
  }
  __syncthreads();
  if (!last) return;
  if (together) SelectByTeam(l, rules, team, &room);
  else FinishChoice(l, team, totals, &room);
#endif
}

template <int kLane>
bool LaunchByExpert(const LinearLaunch& gate, const NormLaunch& norm, const SelectLaunch& l, cudaStream_t stream) {
  const bool norms = norm.gain != nullptr;
  const float* x = norms ? norm.x : gate.x;
  // All blocks at once, where that can be: a block takes a multiprocessor.
  const int spare = Multiprocessors() - l.experts;
  const dim3 grid(static_cast<unsigned>(l.experts + (!norms ? 0 : spare > 0 ? std::min(spare, l.rows) : l.rows)));
  return LaunchEarly(GateByExpertKernel<kLane>, grid, dim3(kGateThreads), 0, stream, reinterpret_cast<const float*>(gate.weight.hi), x, gate.weight.cols,
                     gate.out, norm, l) == cudaSuccess;
}

template <int kLane>
bool LaunchGate(const LinearLaunch& gate, const SelectLaunch& l, cudaStream_t stream) {
  if (l.rows <= kByExpertRows) return LaunchByExpert<kLane>(gate, {}, l, stream);
  const auto launch = [&](auto* kernel, int rows) {
    const dim3 grid(static_cast<unsigned>(kGateCluster * ((l.rows + rows - 1) / rows)));
    return LaunchEarlyInClusters(kGateCluster, kernel, grid, dim3(kGateThreads), 0, stream, reinterpret_cast<const float*>(gate.weight.hi), gate.x,
                                 gate.weight.cols, gate.out, l) == cudaSuccess;
  };
  if (!gate.wgmma) return false;  // clusters are Hopper's
  const int quads = (gate.weight.cols / 4 + kGateCluster - 1) / kGateCluster;
  if (quads <= 64) return launch(GateKernel<kLane, 2, 2>, 2);
  return quads <= 128 && launch(GateKernel<kLane, 1, 4>, 1);
}

// `launch` with as many experts a lane as its template argument as these take.
template <typename Launch>
bool ByExperts(int32_t experts, Launch&& launch) {
  if (experts <= 32) return launch.template operator()<1>();
  if (experts <= 64) return launch.template operator()<2>();
  if (experts <= 128) return launch.template operator()<4>();
  if (experts <= 256) return launch.template operator()<8>();
  return false;
}

bool Serves(const LinearLaunch& gate, const SelectLaunch& l, int32_t most_rows) {
  return gate.weight.packing == Packing::kF32 && gate.out == l.logits && gate.bias == nullptr && gate.weight.cols % 4 == 0 && l.rows > 0 && l.rows <= most_rows &&
         l.experts <= 256;
}

}  // namespace

bool GateAndSelect(const LinearLaunch& gate, const SelectLaunch& l, cudaStream_t stream) {
  return Serves(gate, l, kFusedGateRows) && ByExperts(l.experts, [&]<int kLane>() { return LaunchGate<kLane>(gate, l, stream); });
}

bool NormsBeforeGate(const NormLaunch& norm, const LinearLaunch& gate, const SelectLaunch& l) {
  return Serves(gate, l, kByExpertRows) && norm.out == gate.x && norm.out != norm.x && norm.n == gate.weight.cols && norm.rows == l.rows && norm.add == nullptr &&
         norm.slots.slot_out == nullptr;
}

bool NormGateAndSelect(const NormLaunch& norm, const LinearLaunch& gate, const SelectLaunch& l, cudaStream_t stream) {
  return NormsBeforeGate(norm, gate, l) && ByExperts(l.experts, [&]<int kLane>() { return LaunchByExpert<kLane>(gate, norm, l, stream); });
}

}  // namespace thermoe::cuda
