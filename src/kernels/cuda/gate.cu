// SPDX-License-Identifier: Apache-2.0
// The product with the gate's weights and the selection in one launch, of few rows with the norm before them. (Of 17 to 32 rows: gate_parts.cu.)
#include <cooperative_groups.h>

#include <algorithm>

#include "kernels/cuda/gate_common.cuh"
#include "kernels/cuda/launch_early.cuh"
#include "kernels/cuda/shared.cuh"

namespace thermoe::cuda {
namespace {

constexpr int kGateCluster = 8;
constexpr int kByExpertRows = 16;  // up to here blocks by expert are faster, beyond it clusters by rows
static_assert(kGatePassed >= kByExpertRows * 256);
constexpr int kShares = kByExpertRows;  // of an expert's block: of so many a warp each, or two a warp, has a row or a part of its columns
// Threads of an expert's block, a row of the selection a warp: of few, two blocks fit on a multiprocessor (128 registers a thread), so that those of 128
// experts begin on what the product before leaves free.
constexpr int kFewThreads = 256, kFewThreadsRows = kFewThreads / 32;
constexpr int kGateQuads = 8;  // float4s of a weight row that a lane holds at once

// What a share gave: the product, and of a normed row the sum of squares.
struct ShareSums {
  float sum, square;
};

// Adds a quad's products.
__device__ inline void AddQuad(const float4& a, const float4& b, ShareSums* to) {
  to->sum += QuadDot(a, b);
  to->square += QuadDot(b, b);
}

// One expert's logits for rows of x [rows, quads]. A row has kShares / rows shares, rounded down to a power of two, share s % that of its columns; a warp
// has shares `warp` and, in a block of few threads, `warp` + its warps, of another row, the same columns. Weights are read once, the first of them before
// what makes x has ended, and loads do not wait for each other.
__device__ inline void SumShares(const GateWeights& weights, const float* x, int quads, int rows, int of_row, int warp, int warps, ShareSums (&sums)[2]) {
  const int lane = Lane(), each = (quads + of_row - 1) / of_row, part = warp & (of_row - 1);
  const int row = warp / of_row, second = row + warps / of_row, end = row < rows ? min(quads, part * each + each) : 0;
  const bool two = warps < kShares && second < rows;
  const float4 *x0 = reinterpret_cast<const float4*>(x) + int64_t{row} * quads, *x1 = reinterpret_cast<const float4*>(x) + int64_t{second} * quads;
  bool first = true;
#pragma unroll 1
  for (int begin = part * each; begin < end || first; begin += 32 * kGateQuads) {
    float4 a[kGateQuads], b[2][kGateQuads];
    const int at = begin + lane;
#pragma unroll
    for (int i = 0; i < kGateQuads; ++i) a[i] = weights.Load(at + 32 * i, at + 32 * i < end);
    if (first) WaitForBefore(), LetNextStart();
    first = false;
#pragma unroll
    for (int i = 0; i < kGateQuads; ++i) {
      const bool there = at + 32 * i < end;
      b[0][i] = there ? __ldcg(x0 + at + 32 * i) : float4{};
      b[1][i] = there && two ? __ldcg(x1 + at + 32 * i) : float4{};
    }
#pragma unroll
    for (int i = 0; i < kGateQuads; ++i) {
      if (begin + 32 * i >= end) break;
      AddQuad(a[i], b[0][i], &sums[0]);
      if (two) AddQuad(a[i], b[1][i], &sums[1]);
    }
  }
}

// The same for one row: a warp's shares are of different columns, and short.
__device__ inline void SumSharesOfOneRow(const GateWeights& weights, const float* x, int quads, int warp, int warps, ShareSums (&sums)[2]) {
  constexpr int kQuads = 2;
  const int each = (quads + kShares - 1) / kShares;
  bool first = true;
#pragma unroll 1
  for (int begin = 0; begin < each; begin += 32 * kQuads) {
    float4 a[2][kQuads], b[2][kQuads];
    const auto at = [&](int s, int i) { return (warp + s * warps) * each + begin + 32 * i + Lane(); };
    const auto there = [&](int s, int i) { return begin + 32 * i + Lane() < each && at(s, i) < quads && (s == 0 || warps < kShares); };
    const bool more = each - begin > 32;
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      if (i > 0 && !more) break;
#pragma unroll
      for (int s = 0; s < 2; ++s) a[s][i] = weights.Load(at(s, i), there(s, i));
    }
    if (first) WaitForBefore(), LetNextStart();
    first = false;
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      if (i > 0 && !more) break;
#pragma unroll
      for (int s = 0; s < 2; ++s) b[s][i] = there(s, i) ? __ldcg(reinterpret_cast<const float4*>(x) + at(s, i)) : float4{};
    }
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      if (i > 0 && !more) break;
#pragma unroll
      for (int s = 0; s < 2; ++s) AddQuad(a[s][i], b[s][i], &sums[s]);
    }
  }
}

// Takes the lane's logits of a row, 32 kLane words, as they come, and leaves zeros. dry: waits for none.
template <int kLane>
__device__ void TakeLogits(uint32_t* row, int experts, bool dry, float (&to)[kLane]) {
  const uint32_t exists = Existing<kLane>(experts);
  row += Lane() * kLane;
  uint32_t bits[kLane];
  bool there;
  do {
    there = true;
#pragma unroll
    for (int i = 0; i < kLane; ++i) bits[i] = TakeWord(row + i);
#pragma unroll
    for (int i = 0; i < kLane; ++i) there = there && (bits[i] != 0 || (exists >> i & 1) == 0);
  } while (!__all_sync(kAllLanes, there || dry));
#pragma unroll
  for (int i = 0; i < kLane; ++i) {
    const float logit = dry ? DryLogit(Lane() * kLane + i) : __uint_as_float(bits[i]);
    to[i] = exists >> i & 1 ? logit : -INFINITY;
    if (!dry) row[i] = 0;
  }
}

// Logits and selection: the first block selects, the last ones compute one expert's logits for all rows each and pass them to it. Where there is a norm,
// some blocks between them leave it for what comes next. All others come to their end without the first, so it may wait for them wherever there is
// room for two blocks.
template <int kLane>
__global__ void __launch_bounds__(kGateThreads, 1) GateByExpertKernel(const float* weights, const float* x, int hidden, float* logits, NormLaunch norm,
                                                                      SelectLaunch l) {
  __shared__ struct {
    TeamRoom<kLane> room;  // of the first block
    ShareSums shares[kShares];
  } place;
  auto& [room, shares] = *Held(&place);
  const int norm_blocks = static_cast<int>(gridDim.x) - l.experts - 1, block = static_cast<int>(blockIdx.x) - 1;
  if (block < 0) {
    const BlockTeam team;
    return SelectRehearsed(
        l, team, &room, [&](bool dry, float(&to)[kLane]) { TakeLogits(l.passed + team.warp() * 32 * kLane, l.experts, dry, to); },
        [&](uint64_t* number) {
          if (l.picks != nullptr) *number = __ldcg(l.picks) + 1;
          team.Meet();
        });
  }
  if (block < norm_blocks) {
    float4 gain[2];
    ReadGains(norm, static_cast<int>(blockDim.x), gain);
    WaitForBefore();
    LetNextStart();
#pragma unroll 1
    for (int row = block; row < l.rows; row += norm_blocks) NormForNext(norm, row, static_cast<int>(blockDim.x), gain);
    return;
  }
  const BlockTeam team;
  const int expert = block - norm_blocks;
  const GateWeights of_expert{reinterpret_cast<const float4*>(weights + int64_t{expert} * hidden), reinterpret_cast<const float4*>(norm.gain)};
  int of_row = 1;  // shares
#pragma unroll 1
  while (2 * of_row * l.rows <= kShares) of_row *= 2;
  ShareSums sums[2] = {};
  if (l.rows == 1) SumSharesOfOneRow(of_expert, x, hidden / 4, team.warp(), team.warps(), sums);
  else SumShares(of_expert, x, hidden / 4, l.rows, of_row, team.warp(), team.warps(), sums);
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      sums[s].sum += __shfl_xor_sync(kAllLanes, sums[s].sum, offset);
      sums[s].square += __shfl_xor_sync(kAllLanes, sums[s].square, offset);
    }
  }
  if (Lane() == 0) {
    shares[team.warp()] = sums[0];
    if (team.warps() < kShares) shares[team.warp() + team.warps()] = sums[1];
  }
  __syncthreads();
  if (const int t = static_cast<int>(threadIdx.x); t < l.rows) {
    ShareSums total{};
#pragma unroll 1
    for (int s = t * of_row; s < (t + 1) * of_row; ++s) total.sum += shares[s].sum, total.square += shares[s].square;
    if (norm.gain != nullptr) total.sum *= rsqrtf(total.square / static_cast<float>(hidden) + norm.epsilon);
    PassFloat(l.passed + t * 32 * kLane + expert, total.sum);
    logits[int64_t{t} * l.experts + expert] = total.sum;
  }
}

#if __CUDA_ARCH__ >= 900

constexpr int kGateTogether = 8;  // experts of a warp at once
constexpr uint32_t kDoneMask = 0x7fffffffu;  // meetings of blocks leave the upper bit of the counter as they like

// Rows were chosen by several blocks: what is left for the last of them, whose room is clear.
template <int kLane>
__device__ void FinishChoice(const SelectLaunch& l, const BlockTeam& team, const RowTotals* totals, TeamRoom<kLane>* room) {
  RowTotals sum{};
  SlotCounts<kLane> counts;
  const int group = GroupSlots(team, 0, l.rows, room, [&](int t) {
    sum.lost += __ldcg(&totals[t].lost), sum.dropped += __ldcg(&totals[t].dropped);
    if (Lane() == 0) room->totals[team.warp()] = sum;
    return GroupOf(l, t, Lane());
  }, [&](const SlotCounts<kLane>& turn) { counts.Add(turn); });
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
  __shared__ TeamRoom<kLane> room_place;
  __shared__ bool last;
  TeamRoom<kLane>& room = *Held(&room_place);
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
          sums[j] += QuadDot(w[j][q], mine[r][q]);
        }
      }
      const float sum = SumOfSeveral(sums);
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
  // All blocks at once, where that can be, on multiprocessors of their own.
  const int spare = Multiprocessors() - l.experts - 1;
  const dim3 grid(static_cast<unsigned>(1 + l.experts + (!norms ? 0 : spare > 0 ? std::min(spare, l.rows) : l.rows)));
  const unsigned threads = l.rows <= kFewThreadsRows ? kFewThreads : kGateThreads;
  return LaunchEarly(GateByExpertKernel<kLane>, grid, dim3(threads), 0, stream, reinterpret_cast<const float*>(gate.weight.hi), x, gate.weight.cols,
                     gate.out, norm, l) == cudaSuccess;
}

template <int kLane>
bool LaunchGate(const LinearLaunch& gate, const SelectLaunch& l, cudaStream_t stream) {
  if (l.rows <= kByExpertRows) return LaunchByExpert<kLane>(gate, {}, l, stream);
  if (l.rows <= kGatePartRows && GateInParts(gate, {}, l, stream)) return true;
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

bool Serves(const LinearLaunch& gate, const SelectLaunch& l, int32_t most_rows) {
  return gate.weight.packing == Packing::kF32 && gate.out == l.logits && gate.bias == nullptr && gate.weight.cols % 4 == 0 && l.rows > 0 && l.rows <= most_rows &&
         l.experts <= 256 && (l.rows > kGatePartRows || (l.passed != nullptr && Multiprocessors() > 1));
}

}  // namespace

bool GateAndSelect(const LinearLaunch& gate, const SelectLaunch& l, cudaStream_t stream) {
  return Serves(gate, l, kFusedGateRows) && ByExperts(l.experts, [&]<int kLane>() { return LaunchGate<kLane>(gate, l, stream); });
}

bool NormsBeforeGate(const NormLaunch& norm, const LinearLaunch& gate, const SelectLaunch& l) {
  if (l.rows > kByExpertRows && GatePartBytes(l.experts, gate.weight.cols) > kGatePartBytes) return false;
  return Serves(gate, l, kGatePartRows) && norm.out == gate.x && norm.out != norm.x && norm.n == gate.weight.cols && norm.rows == l.rows && norm.add == nullptr &&
         norm.slots.slot_out == nullptr;
}

bool NormGateAndSelect(const NormLaunch& norm, const LinearLaunch& gate, const SelectLaunch& l, cudaStream_t stream) {
  if (!NormsBeforeGate(norm, gate, l)) return false;
  if (l.rows > kByExpertRows) return GateInParts(gate, norm, l, stream);
  return ByExperts(l.experts, [&]<int kLane>() { return LaunchByExpert<kLane>(gate, norm, l, stream); });
}

}  // namespace thermoe::cuda
