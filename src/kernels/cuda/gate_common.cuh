// SPDX-License-Identifier: Apache-2.0
// What gate.cu and gate_parts.cu share: weights with the norm's gain, the norm for what comes next, logits on their way.
#pragma once

#include "kernels/cuda/choose_few.cuh"
#include "kernels/cuda/norm_row.cuh"
#include "kernels/cuda/select.h"

namespace thermoe::cuda {

constexpr int kGateThreads = 512, kGateWarps = kGateThreads / 32;

// The quads of an expert's weights, times the norm's gain where there is one.
struct GateWeights {
  const float4 *w, *gain;
  __device__ float4 Load(int at, bool there) const {
    float4 a = there ? __ldg(w + at) : float4{};
    if (gain != nullptr) {
      const float4 by = there ? __ldg(gain + at) : float4{};
      a = {a.x * by.x, a.y * by.y, a.z * by.z, a.w * by.w};
    }
    return a;
  }
};

// The quads of the norm's gain that a thread of `threads` multiplies first: a weight, which may be read before the launch before has ended.
__device__ inline void ReadGains(const NormLaunch& l, int threads, float4 (&gain)[2]) {
#pragma unroll
  for (int s = 0; s < 2; ++s) {
    const int at = static_cast<int>(threadIdx.x) + s * threads;
    gain[s] = at < l.n / 4 ? __ldg(reinterpret_cast<const float4*>(l.gain) + at) : float4{};
  }
}
// A row's norm for what comes next, rounded as NormRow's of kGateThreads threads, by a block of `threads`: as many, or half of them.
__device__ inline void NormForNext(const NormLaunch& l, int row, int threads, const float4 (&gain)[2]) {
  __shared__ float sums[kGateWarps];
  const int count = l.n / 4, thread = static_cast<int>(threadIdx.x);
  const float4* x = reinterpret_cast<const float4*>(l.x) + int64_t{row} * count;
  float4 first[2];
  float squares[2] = {};
#pragma unroll
  for (int s = 0; s < 2; ++s) first[s] = thread + s * threads < min(count, kGateThreads) ? __ldcg(x + thread + s * threads) : float4{};
#pragma unroll
  for (int s = 0; s < 2; ++s) squares[s] += Square(first[s]);
#pragma unroll 1
  for (int at = thread + kGateThreads; at < count; at += kGateThreads) {
    squares[0] += Square(__ldcg(x + at));
    if (threads < kGateThreads && at + threads < count) squares[1] += Square(__ldcg(x + at + threads));
  }
  const float sum = WarpSum(squares[0]), other = WarpSum(squares[1]);
  __syncthreads();
  if (thread % 32 == 0) {
    sums[thread / 32] = sum;
    if (threads < kGateThreads) sums[(thread + threads) / 32] = other;
  }
  __syncthreads();
  const float scale = 1.0f / sqrtf(WarpSum(thread % 32 < kGateWarps ? sums[thread % 32] : 0.0f) / static_cast<float>(l.n) + l.epsilon);
  const auto put = [&](int at, const float4& value, const float4& by) {
    const float4 normed = Times(value, scale, by);
    reinterpret_cast<float4*>(l.out)[int64_t{row} * count + at] = normed;
    if (l.halves != nullptr) StoreHalves(l.halves + int64_t{row} * l.n, at * 4, normed);
  };
#pragma unroll
  for (int s = 0; s < 2; ++s) {
    if (const int at = thread + s * threads; at < min(count, kGateThreads)) put(at, first[s], gain[s]);
  }
#pragma unroll 1
  for (int at = thread + kGateThreads; at < count; at += threads) put(at, __ldcg(x + at), reinterpret_cast<const float4*>(l.gain)[at]);
}

// The products of a quad. Their order is that of all gates.
__device__ inline float QuadDot(const float4& a, const float4& b) { return a.x * b.x + a.y * b.y + (a.z * b.z + a.w * b.w); }

// What logits are taken for as long as nothing counts: no two the same, as they mostly are.
__device__ inline float DryLogit(int expert) { return 0.01f * static_cast<float>(expert); }

// A block that selects, a row a warp. It goes through all of it once for nothing but its code, until the launch before has ended, and the second time in earnest.
// take(dry, logits): the logits of the warp's row. ready(number): before the second time, by all, who meet there; may give the number of SelectFew.
template <int kLane, typename Take, typename Ready>
__device__ void SelectRehearsed(const SelectLaunch& l, const BlockTeam& team, TeamRoom<kLane>* room, Take&& take, Ready&& ready) {
  SelectRules rules;
  rules.guaranteed = rules.most = rules.full = l.slots, rules.dry = 1;
  RowInput<kLane> input{};
  input.kind = kernels::RowKind::kDecode;
  uint64_t number = 0;
  LetNextStart();  // which the others do when it is time
#pragma unroll 1
  for (;;) {
    ClearRoom(team, l.experts, room);
    team.Meet();
    SelectFew(l, rules, team, &input, room, [&] { take(rules.dry != 0, input.logits); }, number);
    if (rules.dry == 0) return;
    WaitForBefore();
    rules = *l.rules;
    if (team.warp() < l.rows) input.kind = l.kinds[team.warp()];
    ready(&number);
  }
}

// Values on their way from block to block: 0 where nothing has come yet; a value of 0 is passed as -0.
__device__ inline void PassFloat(uint32_t* to, float value) {
  const uint32_t bits = __float_as_uint(value);
  PutWord(to, bits != 0 ? bits : 0x80000000u);
}

// gate_parts.cu's, of up to so many rows, and so many bytes of weights a block. False: not these shapes.
inline constexpr int kGatePartBytes = 64 << 10;
int GatePartBytes(int32_t experts, int32_t hidden);
bool GateInParts(const LinearLaunch& gate, const NormLaunch& norm, const SelectLaunch& l, cudaStream_t stream);

// `launch` with as many experts a lane as its template argument as these take.
template <typename Launch>
auto ByExperts(int32_t experts, Launch&& launch) -> decltype(launch.template operator()<1>()) {
  if (experts <= 32) return launch.template operator()<1>();
  if (experts <= 64) return launch.template operator()<2>();
  if (experts <= 128) return launch.template operator()<4>();
  if (experts <= 256) return launch.template operator()<8>();
  return {};
}

}  // namespace thermoe::cuda
