// SPDX-License-Identifier: Apache-2.0
// The gate of 17 to 32 rows: the product with the gate's weights, the selection and, where there is one, the norm before them in one launch. Blocks have some experts
// and a part of the columns each, of all rows; one that has gone through its code before adds up what these come to when all have told, and selects, a row a warp.
#include <algorithm>
#include <type_traits>

#include "kernels/cuda/gate_common.cuh"
#include "kernels/cuda/launch_early.cuh"
#include "kernels/cuda/shared.cuh"

namespace thermoe::cuda {
namespace {

constexpr int kParts = 4;                       // of the columns
constexpr int kGroups = 16;                     // of experts
constexpr int kRowsOfWarp = 4, kQuarters = 4;   // warps share a block's columns by quarters
constexpr int kThreads = 32 * kQuarters * kGatePartRows / kRowsOfWarp;
static_assert(kThreads == 32 * kGatePartRows);  // the block that selects has a warp a row
template <int kLane>
constexpr int kExperts = 32 * kLane / kGroups;  // of a block

// What blocks give of a row: of each part the sums of all experts, then the squares'.
template <int kLane>
struct alignas(16) RowParts {
  float sums[kParts][32 * kLane], squares[kParts];
};
static_assert(sizeof(RowParts<8>) <= kGatePartOfRow);

// Waits for all parts, by a team, whose first thread waits for the others; the counter's upper bit is not ours (select.cu).
__device__ inline void AwaitParts(const BlockTeam& team, uint32_t* counter) {
  if (team.thread() == 0) {
    uint32_t count;
    do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(count) : "l"(counter) : "memory");
    while ((count & 0x7fffffffu) != kGroups * kParts);
    *counter = count & 0x80000000u;
  }
  team.Meet();
}

__device__ inline float SumOfFour(float a, float b, float c, float d) { return (a + b) + (c + d); }
static_assert(kParts == 4 && kQuarters == 4);

// The lane's logits of a row out of their parts. normed: by the row's squares.
template <int kLane>
__device__ void TakeParts(const RowParts<kLane>& row, const NormLaunch& norm, int experts, float (&to)[kLane]) {
  constexpr int kWide = std::min(kLane, 4);
  using Several = std::conditional_t<kWide == 1, float, std::conditional_t<kWide == 2, float2, float4>>;
  alignas(sizeof(Several)) float part[kParts][kLane];
#pragma unroll
  for (int p = 0; p < kParts; ++p) {
#pragma unroll
    for (int i = 0; i < kLane; i += kWide) *reinterpret_cast<Several*>(&part[p][i]) = __ldcg(reinterpret_cast<const Several*>(&row.sums[p][Lane() * kLane + i]));
  }
  float scale = 1;
  if (norm.gain != nullptr) {
    const float4 squares = __ldcg(reinterpret_cast<const float4*>(row.squares));
    scale = rsqrtf(SumOfFour(squares.x, squares.y, squares.z, squares.w) / static_cast<float>(norm.n) + norm.epsilon);
  }
  const uint32_t exists = Existing<kLane>(experts);
#pragma unroll
  for (int i = 0; i < kLane; ++i) to[i] = exists >> i & 1 ? SumOfFour(part[0][i], part[1][i], part[2][i], part[3][i]) * scale : -INFINITY;
}

template <int kLane>
__global__ void __launch_bounds__(kThreads, 1) GateInPartsKernel(const float* weights, const float* x, int hidden, float* logits, NormLaunch norm, SelectLaunch l) {
  constexpr int kOf = kExperts<kLane>, kAtOnce = std::min(kOf, 4);
  extern __shared__ float4 of_experts[];  // [experts of the block][quads of the part]
  __shared__ struct {
    TeamRoom<kLane> room;  // of the first block
    float sums[kQuarters][kGatePartRows][kOf], squares[kQuarters][kGatePartRows];
  } place;
  auto& [room, sums, squares] = *Held(&place);
  const int block = static_cast<int>(blockIdx.x) - 1;
  const BlockTeam team;
  auto* all_parts = static_cast<RowParts<kLane>*>(l.scratch);
  if (block < 0) {
    return SelectRehearsed(
        l, team, &room,
        [&](bool dry, float(&to)[kLane]) {
          TakeParts(all_parts[team.warp()], norm, l.experts, to);
#pragma unroll
          for (int i = 0; i < kLane; ++i) {
            const int expert = Lane() * kLane + i;
            if (dry) to[i] = DryLogit(expert);
            else if (expert < l.experts) logits[int64_t{team.warp()} * l.experts + expert] = to[i];
          }
        },
        [&](uint64_t*) { AwaitParts(team, l.done); });
  }
  if (block >= kGroups * kParts) {  // last: the others have weights to read before what comes before this launch has left all multiprocessors
    if (team.thread() >= kGateThreads) return LetNextStart();
    float4 gain[2];
    ReadGains(norm, kGateThreads, gain);
    WaitForBefore();
    LetNextStart();
    return NormForNext(norm, block - kGroups * kParts, kGateThreads, gain);
  }
  const int part = block % kParts, first_expert = block / kParts * kOf;
  const int all_quads = hidden / 4, quads = (all_quads + kParts - 1) / kParts, begin = part * quads, count = max(min(quads, all_quads - begin), 0);
#pragma unroll 1
  for (int e = team.warp(); e < kOf * kQuarters; e += team.warps()) {
    const int expert = first_expert + e / kQuarters;
    const GateWeights of_expert{reinterpret_cast<const float4*>(weights) + int64_t{expert} * all_quads + begin, norm.gain == nullptr ? nullptr : reinterpret_cast<const float4*>(norm.gain) + begin};
#pragma unroll 1
    for (int q = e % kQuarters * 32 + Lane(); q < quads; q += 32 * kQuarters) of_experts[e / kQuarters * quads + q] = of_expert.Load(q, expert < l.experts && q < count);
  }
  __syncthreads();
  WaitForBefore();
  LetNextStart();
  const int quarter = team.warp() % kQuarters, first_row = team.warp() / kQuarters * kRowsOfWarp;
  if (first_row < l.rows) {
    const auto row_at = [&](int j) { return reinterpret_cast<const float4*>(x) + int64_t{min(first_row + j, l.rows - 1)} * all_quads + begin; };
#pragma unroll 1
    for (int q = quarter * 32 + Lane(); q - Lane() < count; q += 32 * kQuarters) {
      const bool there = q < count, more = q >= 32 * kQuarters;
      float4 mine[kRowsOfWarp];
#pragma unroll
      for (int j = 0; j < kRowsOfWarp; ++j) mine[j] = there ? __ldcg(row_at(j) + q) : float4{};
#pragma unroll 1
      for (int first = 0; first < kOf; first += kAtOnce) {
        constexpr int kSums = kAtOnce * kRowsOfWarp;
        float sum[kSums];
#pragma unroll
        for (int e = 0; e < kAtOnce; ++e) {
          const float4 a = there ? of_experts[(first + e) * quads + q] : float4{};
#pragma unroll
          for (int j = 0; j < kRowsOfWarp; ++j) sum[e * kRowsOfWarp + j] = QuadDot(a, mine[j]);
        }
        const float total = SumOfSeveral(sum);
        const int i = Lane() * kSums / 32;
        float& to = sums[quarter][first_row + i % kRowsOfWarp][first + i / kRowsOfWarp];
        if (Lane() % (32 / kSums) == 0) to = more ? to + total : total;
      }
      if (first_expert > 0 || norm.gain == nullptr) continue;
      float square[kRowsOfWarp];
#pragma unroll
      for (int j = 0; j < kRowsOfWarp; ++j) square[j] = Square(mine[j]);
      const float of_row = SumOfSeveral(square);
      float& to = squares[quarter][first_row + Lane() / (32 / kRowsOfWarp)];
      if (Lane() % (32 / kRowsOfWarp) == 0) to = more ? to + of_row : of_row;
    }
    if (quarter * 32 >= count) {  // of so few columns this quarter has none
#pragma unroll 1
      for (int i = Lane(); i < kRowsOfWarp * kOf; i += 32) sums[quarter][first_row + i / kOf][i % kOf] = 0;
      if (Lane() < kRowsOfWarp) squares[quarter][first_row + Lane()] = 0;
    }
  }
  __syncthreads();
#pragma unroll 1
  for (int i = team.thread(); i < l.rows * kOf; i += team.threads()) {
    const int row = i / kOf, e = i % kOf;
    all_parts[row].sums[part][first_expert + e] = SumOfFour(sums[0][row][e], sums[1][row][e], sums[2][row][e], sums[3][row][e]);
  }
  if (const int row = team.threads() - 1 - team.thread(); first_expert == 0 && norm.gain != nullptr && row < l.rows) {
    all_parts[row].squares[part] = SumOfFour(squares[0][row], squares[1][row], squares[2][row], squares[3][row]);
  }
  __syncthreads();
  if (team.thread() == 0) CountBlock(l.done);
}

}  // namespace

int GatePartBytes(int32_t experts, int32_t hidden) {
  const int of_block = ByExperts(experts, [&]<int kLane>() { return kExperts<kLane>; });
  return of_block * ((hidden / 4 + kParts - 1) / kParts) * static_cast<int>(sizeof(float4));
}

bool GateInParts(const LinearLaunch& gate, const NormLaunch& norm, const SelectLaunch& l, cudaStream_t stream) {
  const bool norms = norm.gain != nullptr;
  const dim3 grid(static_cast<unsigned>(1 + kGroups * kParts + (norms ? l.rows : 0)));
  const int bytes = GatePartBytes(l.experts, gate.weight.cols);
  return l.rows <= kGatePartRows && bytes <= kGatePartBytes && ByExperts(l.experts, [&]<int kLane>() {
    return cudaFuncSetAttribute(GateInPartsKernel<kLane>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) == cudaSuccess &&
           LaunchEarly(GateInPartsKernel<kLane>, grid, dim3(kThreads), static_cast<size_t>(bytes), stream, reinterpret_cast<const float*>(gate.weight.hi),
                       norms ? norm.x : gate.x, gate.weight.cols, gate.out, norm, l) == cudaSuccess;
  });
}

}  // namespace thermoe::cuda
