// SPDX-License-Identifier: Apache-2.0
// The product with the gate's weights and the selection in one launch, of few rows, and the norm before them. (Of 17 to 32 rows: gate_parts.cu.)
#include <algorithm>

#include "kernels/cuda/gate_common.cuh"
#include "kernels/cuda/launch_early.cuh"
#include "kernels/cuda/shared.cuh"

namespace thermoe::cuda {
namespace {

constexpr int kByExpertRows = 16;  // up to here blocks by expert
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
  return GateInParts(gate, {}, l, stream);
}

bool Serves(const LinearLaunch& gate, const SelectLaunch& l) {
  return gate.weight.packing == Packing::kF32 && gate.out == l.logits && gate.bias == nullptr && gate.weight.cols % 4 == 0 && l.rows > 0 &&
         l.rows <= kGatePartRows && l.experts <= 256 && l.passed != nullptr && Multiprocessors() > 1;
}

}  // namespace

bool GateAndSelect(const LinearLaunch& gate, const SelectLaunch& l, cudaStream_t stream) {
  return Serves(gate, l) && ByExperts(l.experts, [&]<int kLane>() { return LaunchGate<kLane>(gate, l, stream); });
}

bool NormsBeforeGate(const NormLaunch& norm, const LinearLaunch& gate, const SelectLaunch& l) {
  if (l.rows > kByExpertRows && GatePartBytes(l.experts, gate.weight.cols) > kGatePartBytes) return false;
  return Serves(gate, l) && norm.out == gate.x && norm.out != norm.x && norm.n == gate.weight.cols && norm.rows == l.rows && norm.add == nullptr &&
         norm.slots.slot_out == nullptr;
}

bool NormGateAndSelect(const NormLaunch& norm, const LinearLaunch& gate, const SelectLaunch& l, cudaStream_t stream) {
  if (!NormsBeforeGate(norm, gate, l)) return false;
  if (l.rows > kByExpertRows) return GateInParts(gate, norm, l, stream);
  return ByExperts(l.experts, [&]<int kLane>() { return LaunchByExpert<kLane>(gate, norm, l, stream); });
}

}  // namespace thermoe::cuda
