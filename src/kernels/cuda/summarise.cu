// SPDX-License-Identifier: Apache-2.0
// What rows of logits come to, and the last words of a step to the host.
#include <algorithm>
#include <cfloat>

#include "kernels/cuda/copy_piece.cuh"
#include "kernels/cuda/launch_early.cuh"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/warp.cuh"

namespace thermoe::cuda {
namespace {

constexpr int kThreads = 256, kWarpsOfBlock = kThreads / 32;
constexpr int kEach = 8;             // logits of a thread at once, whose loads do not wait for each other
constexpr int kMostParts = kThreads; // of a row: the last block takes one a thread
constexpr int kCopyingBlocks = 16;   // of what also goes to the host

// A part of a row of logits: the largest, where it is first, and the sum of the exponentials of all less it.
struct alignas(16) Part {
  float most;
  int32_t best;
  float sum;
  int32_t bad;  // some are no finite numbers
};
constexpr Part kNothing{-FLT_MAX, INT32_MAX, 0, 0};

// Rises with the value; 0: no number.
__device__ uint32_t KeyOf(float value) {
  const uint32_t bits = __float_as_uint(value + 0.0f);  // zeros are equal
  return isnan(value) ? 0 : (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ float ValueOf(uint32_t key) { return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key); }

// A block's parts as one, the same in all threads: the largest of `key`, the first place that has it, and whether any is bad; then, with what sum(most) gives
// a thread, the sum, which is whole in warp 0.
template <typename SumOf>
__device__ Part Together(uint32_t key, int32_t at, bool bad, SumOf&& sum_of) {
  __shared__ uint32_t keys[kWarpsOfBlock];
  __shared__ int32_t places[kWarpsOfBlock];
  __shared__ float sums[kWarpsOfBlock];
  const int warp = WarpNumber(), lane = static_cast<int>(threadIdx.x % 32), other = lane % kWarpsOfBlock;
  const auto first_of_most = [](uint32_t* of, int32_t* place) {
    const uint32_t most = __reduce_max_sync(kAllLanes, *of);
    *place = __reduce_min_sync(kAllLanes, *of == most ? *place : INT32_MAX), *of = most;
  };
  first_of_most(&key, &at);
  if (lane == 0) keys[warp] = key, places[warp] = at;
  const bool some_bad = __syncthreads_or(bad) != 0;
  key = keys[other], at = places[other];
  first_of_most(&key, &at);
  Part whole{key == 0 ? -FLT_MAX : ValueOf(key), key == 0 ? INT32_MAX : at, 0, some_bad};
  const float sum = WarpSum(sum_of(whole.most));
  if (lane == 0) sums[warp] = sum;
  __syncthreads();
  if (warp == 0) {
#pragma unroll
    for (int w = 0; w < kWarpsOfBlock; ++w) whole.sum += sums[w];
  }
  return whole;
}

// Logits [begin, end) of a row, of which a thread holds kEach.
__device__ Part PartOf(const float* logits, int64_t begin, int64_t end) {
  float values[kEach];
  uint32_t key = 0;
  int32_t at = INT32_MAX;
  bool bad = false;
  const int64_t first = begin + threadIdx.x;
#pragma unroll
  for (int i = 0; i < kEach; ++i) values[i] = first + i * kThreads < end ? __ldcg(logits + first + i * kThreads) : NAN;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const uint32_t mine = KeyOf(values[i]);
    bad = bad || (first + i * kThreads < end && !isfinite(values[i]));
    if (mine > key) key = mine, at = static_cast<int32_t>(first) + i * kThreads;
  }
  return Together(key, at, bad, [&](float most) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) sum += isnan(values[i]) ? 0.0f : expf(values[i] - most);
    return sum;
  });
}

__device__ Part Merge(Part a, Part b) {
  const bool first = a.most > b.most || (a.most == b.most && a.best <= b.best);
  const float most = first ? a.most : b.most;
  const auto scaled = [most](Part p) { return p.sum == 0 ? 0.0f : p.sum * expf(p.most - most); };
  return {most, first ? a.best : b.best, scaled(a) + scaled(b), a.bad | b.bad};
}

// Of another block.
__device__ Part ReadPart(const Part* from) {
  const float4 words = __ldcg(reinterpret_cast<const float4*>(from));
  return {words.x, __float_as_int(words.y), words.z, __float_as_int(words.w)};
}

// By all threads of a block, once what it had to write is written: the launch's last block gives the host the summaries and tells it. before: launches.
__device__ void Finish(const SummariseLaunch& l, const kernels::LogitSummary* summaries, uint32_t before) {
  __shared__ bool last;
  if (threadIdx.x == 0) last = CountBlock(l.done + l.rows) + 1 == l.rows + (l.also.bytes > 0 ? kCopyingBlocks : 0);
  __syncthreads();
  if (!last) return;
  constexpr int kWords = sizeof(kernels::LogitSummary) / sizeof(uint32_t);
  const auto* from = reinterpret_cast<const uint32_t*>(summaries);
  for (int64_t i = threadIdx.x; i < l.rows * kWords; i += kThreads) reinterpret_cast<uint32_t*>(l.out)[i] = __ldcg(from + i);
  __syncthreads();
  if (threadIdx.x != 0) return;
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(l.told), "r"(before + 1) : "memory");
  l.done[l.rows] = 0;
  *l.launches = before + 1;
}

// grid: of what also goes, so many blocks; then parts of the rows. The last part of a row to be done makes the whole.
__global__ void __launch_bounds__(kThreads, 6) SummaryKernel(SummariseLaunch l, int parts) {
  __shared__ bool last;
  auto* summaries = reinterpret_cast<kernels::LogitSummary*>(static_cast<Part*>(l.scratch) + l.rows * parts);
  const int copying = l.also.bytes > 0 ? kCopyingBlocks : 0, block = static_cast<int>(blockIdx.x) - copying;
  WaitForBefore();
  LetNextStart();
  const uint32_t before = __ldcg(l.launches);
  if (block < 0) {
    CopyPiece(l.also, int64_t{blockIdx.x} * kThreads + threadIdx.x, int64_t{copying} * kThreads);
    __threadfence_system();
    __syncthreads();
    return Finish(l, summaries, before);
  }
  const int64_t row = block / parts;
  const int part = block % parts;
  const float* logits = l.logits + row * l.vocab;
  const int32_t asked = threadIdx.x == 0 ? __ldcg(l.asked + row) : -1;
  const float asked_logit = asked >= 0 ? __ldcg(logits + asked) : 0.0f;
  const int64_t each = (l.vocab + parts - 1) / parts, begin = part * each, end = min(begin + each, l.vocab);
  Part mine = PartOf(logits, begin, min(begin + kEach * kThreads, end));
  for (int64_t at = begin + kEach * kThreads; at < end; at += kEach * kThreads) {
    __syncthreads();
    mine = Merge(mine, PartOf(logits, at, min(at + kEach * kThreads, end)));
  }
  Part* of_row = static_cast<Part*>(l.scratch) + row * parts;
  if (threadIdx.x == 0) {
    of_row[part] = mine;
    last = CountBlock(l.done + row) + 1 == static_cast<uint32_t>(parts);
  }
  __syncthreads();
  if (!last) return;
  mine = static_cast<int>(threadIdx.x) < parts ? ReadPart(of_row + threadIdx.x) : kNothing;
  const Part whole = Together(mine.best == INT32_MAX ? 0 : KeyOf(mine.most), mine.best, mine.bad != 0,
                              [&](float most) { return mine.sum == 0 ? 0.0f : mine.sum * expf(mine.most - most); });
  if (threadIdx.x == 0) {
    l.done[row] = 0;
    kernels::LogitSummary summary;
    summary.log_sum_exp = whole.most + logf(whole.sum);
    summary.best = whole.best == INT32_MAX ? 0 : whole.best;
    summary.best_logit = whole.most;
    summary.asked_logit = asked_logit;
    summary.finite = whole.bad == 0;
    summaries[row] = summary;
    if (row < kernels::kMostAhead) l.largest[row] = summary.best;
  }
  Finish(l, summaries, before);
}

}  // namespace

int64_t SummaryScratch(int64_t rows) { return rows * static_cast<int64_t>(kMostParts * sizeof(Part) + sizeof(kernels::LogitSummary)); }

void Summarise(const SummariseLaunch& l, cudaStream_t stream) {
  if (l.rows == 0) return;
  constexpr int64_t kOfBlock = kEach * kThreads;
  const auto parts = static_cast<int>(std::clamp<int64_t>((l.vocab + kOfBlock - 1) / kOfBlock, 1, kMostParts));
  const int64_t blocks = l.rows * parts + (l.also.bytes > 0 ? kCopyingBlocks : 0);
  LaunchEarly(SummaryKernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream, l, parts);
}

}  // namespace thermoe::cuda
