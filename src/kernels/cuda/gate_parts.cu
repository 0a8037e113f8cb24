// SPDX-License-Identifier: Apache-2.0
// The gate of 17 to 32 rows: the product with the gate's weights, the selection and, where there is one, the norm before them in one launch. Blocks have some experts
// and a part of the columns each, of all rows, and pass what these come to, word by word, to one that adds the parts up and selects, a row a warp, and that has gone
// through its code before the rows are there.
#include <algorithm>

#include "kernels/cuda/choose_few.cuh"
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
// What is passed of a row: [parts][32 kLane] sums, then of each part the sum of squares.
template <int kLane>
constexpr int kRowWords = kParts * 32 * kLane + 32;
static_assert(kGatePartRows * kRowWords<8> <= kGatePassed);

// kLane words that are passed one after the other.
template <int kLane>
__device__ void TakeWords(const uint32_t* from, uint32_t (&to)[kLane]) {
  if constexpr (kLane % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kLane; i += 4) {
      asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(to[i]), "=r"(to[i + 1]), "=r"(to[i + 2]), "=r"(to[i + 3]) : "l"(from + i) : "memory");
    }
  } else {
#pragma unroll
    for (int i = 0; i < kLane; ++i) to[i] = TakeWord(from + i);
  }
}

// The lane's logits of a row out of their parts, as these come; leaves zeros. normed: by the row's squares. dry: waits for none.
template <int kLane>
__device__ void TakeParts(uint32_t* row, const NormLaunch& norm, int experts, bool dry, float (&to)[kLane]) {
  const uint32_t exists = Existing<kLane>(experts);
  const bool squares = norm.gain != nullptr && Lane() < kParts;
  uint32_t *of_lane = row + Lane() * kLane, *square_at = row + kParts * 32 * kLane + Lane() % kParts;
  uint32_t bits[kParts][kLane], square;
  bool there;
  do {
    there = true;
#pragma unroll
    for (int p = 0; p < kParts; ++p) TakeWords(of_lane + p * 32 * kLane, bits[p]);
    square = TakeWord(square_at);
#pragma unroll
    for (int i = 0; i < kParts * kLane; ++i) there = there && (bits[i / kLane][i % kLane] != 0 || (exists >> (i % kLane) & 1) == 0);
    there = there && (square != 0 || !squares);
  } while (!__all_sync(kAllLanes, there || dry));
  float scale = 1;
  if (norm.gain != nullptr) {
    float of[kParts];
#pragma unroll
    for (int p = 0; p < kParts; ++p) of[p] = __shfl_sync(kAllLanes, __uint_as_float(square), p);
    static_assert(kParts == 4);
    scale = rsqrtf(((of[0] + of[1]) + (of[2] + of[3])) / static_cast<float>(norm.n) + norm.epsilon);
  }
#pragma unroll
  for (int i = 0; i < kLane; ++i) {
    const auto part = [&](int p) { return __uint_as_float(bits[p][i]); };
    const float sum = (part(0) + part(1)) + (part(2) + part(3));
    const float logit = dry ? 0.01f * static_cast<float>(Lane() * kLane + i) : sum * scale;  // dry: no two the same, as logits mostly are
    to[i] = exists >> i & 1 ? logit : -INFINITY;
  }
  if (dry) return;
#pragma unroll
  for (int i = 0; i < kParts * kLane; ++i) of_lane[i / kLane * 32 * kLane + i % kLane] = 0;
  if (Lane() < kParts) *square_at = 0;
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
  if (block < 0) {
    SelectRules rules;
    rules.guaranteed = rules.most = rules.full = l.slots, rules.dry = 1;
    RowInput<kLane> input{};
    input.kind = kernels::RowKind::kDecode;
    LetNextStart();  // which the others do when it is time
#pragma unroll 1
    for (;;) {
      ClearRoom(team, l.experts, &room);
      team.Meet();
      SelectFew(l, rules, team, &input, &room, [&] {
        TakeParts(l.passed + team.warp() * kRowWords<kLane>, norm, l.experts, rules.dry != 0, input.logits);
#pragma unroll
        for (int i = 0; i < kLane; ++i) {
          const int expert = Lane() * kLane + i;
          if (expert < l.experts && rules.dry == 0) logits[int64_t{team.warp()} * l.experts + expert] = input.logits[i];
        }
      });
      if (rules.dry == 0) return;
      WaitForBefore();
      rules = *l.rules;
      if (team.warp() < l.rows) input.kind = l.kinds[team.warp()];
      team.Meet();
    }
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
    for (int first = 0; first < kOf; first += kAtOnce) {
      float sum[kAtOnce * kRowsOfWarp] = {}, square[kRowsOfWarp] = {};
#pragma unroll 1
      for (int q = quarter * 32 + Lane(); q - Lane() < count; q += 32 * kQuarters) {
        float4 mine[kRowsOfWarp];
#pragma unroll
        for (int j = 0; j < kRowsOfWarp; ++j) mine[j] = q < count ? __ldcg(row_at(j) + q) : float4{};
#pragma unroll
        for (int e = 0; e < kAtOnce; ++e) {
          const float4 a = q < count ? of_experts[(first + e) * quads + q] : float4{};
#pragma unroll
          for (int j = 0; j < kRowsOfWarp; ++j) {
            const float4& b = mine[j];
            sum[e * kRowsOfWarp + j] += a.x * b.x + a.y * b.y + (a.z * b.z + a.w * b.w);
          }
        }
#pragma unroll
        for (int j = 0; j < kRowsOfWarp; ++j) square[j] += Square(mine[j]);
      }
      constexpr int kSums = kAtOnce * kRowsOfWarp;
      const float total = SumOfSeveral(sum);
      if (const int i = Lane() * kSums / 32; Lane() % (32 / kSums) == 0) sums[quarter][first_row + i % kRowsOfWarp][first + i / kRowsOfWarp] = total;
      if (first_expert > 0 || first > 0 || norm.gain == nullptr) continue;
      const float of_row = SumOfSeveral(square);
      if (Lane() % (32 / kRowsOfWarp) == 0) squares[quarter][first_row + Lane() / (32 / kRowsOfWarp)] = of_row;
    }
  }
  __syncthreads();
  const auto whole = [](auto&& of) { return (of(0) + of(1)) + (of(2) + of(3)); };
  static_assert(kQuarters == 4);
#pragma unroll 1
  for (int i = team.thread(); i < l.rows * kOf; i += team.threads()) {
    const int row = i / kOf, e = i % kOf;
    if (first_expert + e >= l.experts) continue;
    PassFloat(l.passed + row * kRowWords<kLane> + part * 32 * kLane + first_expert + e, whole([&](int q) { return sums[q][row][e]; }));
  }
  if (const int row = team.threads() - 1 - team.thread(); first_expert == 0 && norm.gain != nullptr && row < l.rows) {
    PassFloat(l.passed + row * kRowWords<kLane> + kParts * 32 * kLane + part, whole([&](int q) { return squares[q][row]; }));
  }
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
