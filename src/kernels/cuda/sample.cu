// SPDX-License-Identifier: Apache-2.0
// A token drawn of a row of logits as Sampler (forward/sample.h) does it, by a block a row. The row stays in device memory and is gone through as seldom as can be:
// for the largest of each thread; for the sum of probabilities, where top_p wants it; for those that are kept, where they are cut; and for the draw, where those
// that are kept do not fit a list in shared memory.
//
// Where a cut lies (top_k: after so many tokens; top_p: after so much probability) is first looked for among the threads' largest: what these come to down to one
// of them, all logits down to it come to at least, so that only those are listed, sorted and added up. Where the threads' largest come to less, or too many logits
// reach up to the one, logits are counted by bins until those of one fit the list (Narrow).
//
// Probabilities are whole numbers (draw_code.h): sums of them are the same in any order, so that atomics and lists in any order give the same token every time.
#include <climits>
#include <cmath>

#include "kernels/cuda/launch_early.cuh"
#include "kernels/cuda/sample.h"
#include "kernels/cuda/warp.cuh"

namespace thermoe::cuda {
namespace {

constexpr int kDrawThreads = 1024, kDrawWarps = kDrawThreads / 32;
constexpr int kMostListed = 4096;
constexpr int kListedEach = kMostListed / kDrawThreads;
constexpr int kBins = 1 << kDigitBits;
constexpr int kAtOnce = 8;                    // logits a lane loads before it looks at the first
constexpr int kSegment = 2 * 32 * kAtOnce;    // ids next to each other that a warp goes through
constexpr int kMostSegments = static_cast<int>(kMostDrawVocab / kSegment);
static_assert(kDrawThreads <= kMostListed && kMostDrawVocab <= kMostIds && kMostSegments <= kMostListed && kSegment <= kMostListed);

struct Shared {
  union {
    // Sums of a bin in 64 bits, of each lane's logits by itself, so that lanes never meet in a bank.
    struct {
      uint32_t low[kBins][32], high[kBins][32];
    } bins;
    uint64_t list[kMostListed];  // codes, or sums
  };
  uint64_t segments[kMostSegments];  // sums of probabilities
  uint64_t bin_sums[kBins];
  uint64_t warp_sums[kDrawWarps];
  DrawRow draw;
  int32_t count;     // of the list
  int32_t found;     // where Find ended, -1: nowhere
  uint64_t before;   // the sum of what is before it
};

struct Row {
  float* logits;
  int32_t vocab;

  __device__ float Read(int id) const { return __ldcg(logits + id); }
};

// Sum and position of a thread's value among the block's: what the threads before it have. May be called again before all have gone on.
__device__ uint64_t BlockScan(Shared& s, uint64_t value, uint64_t* total) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const uint64_t up_to = SumUpTo(lane, value);
  __syncthreads();
  if (lane == 31) s.warp_sums[threadIdx.x / 32] = up_to;
  __syncthreads();
  const uint64_t warps = SumUpTo(lane, lane < kDrawWarps ? s.warp_sums[lane] : 0);
  *total = __shfl_sync(kAllLanes, warps, 31);
  const uint64_t above = __shfl_sync(kAllLanes, warps, threadIdx.x < 32 ? 0 : static_cast<int>(threadIdx.x / 32) - 1);
  return up_to - value + (threadIdx.x < 32 ? 0 : above);
}

__device__ uint64_t BlockSum(Shared& s, uint64_t value) {
  uint64_t total;
  BlockScan(s, value, &total);
  return total;
}

__device__ uint64_t BlockMost(Shared& s, uint64_t value) {
  for (int offset = 16; offset > 0; offset /= 2) {
    const uint64_t other = __shfl_xor_sync(kAllLanes, value, offset);
    value = other > value ? other : value;
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) s.warp_sums[threadIdx.x / 32] = value;
  __syncthreads();
  for (int w = 0; w < kDrawWarps; ++w) value = s.warp_sums[w] > value ? s.warp_sums[w] : value;
  return value;
}

// See(logit, id) for each of a warp's segments; not a number beyond the row's end. End(segment) after each. kQuads: rows are aligned to 16 bytes.
template <bool kQuads, typename See, typename End>
__device__ __forceinline__ void ForSegments(const Row& row, const See& see, const End& end) {
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll 1
  for (int segment = WarpNumber(); segment * kSegment < row.vocab; segment += kDrawWarps) {
#pragma unroll 1
    for (int first = segment * kSegment; first < (segment + 1) * kSegment; first += 32 * kAtOnce) {
      float values[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; i += 4) {
        if constexpr (kQuads) {
          const int id = first + 32 * i + 4 * lane;
          const float4 quad = id < row.vocab ? __ldcg(reinterpret_cast<const float4*>(row.logits + id)) : float4{NAN, NAN, NAN, NAN};
          values[i] = quad.x, values[i + 1] = quad.y, values[i + 2] = quad.z, values[i + 3] = quad.w;
        } else {
          for (int j = i; j < i + 4; ++j) values[j] = first + 32 * j + lane < row.vocab ? row.Read(first + 32 * j + lane) : NAN;
        }
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) see(values[i], kQuads ? first + 32 * (i / 4 * 4) + 4 * lane + i % 4 : first + 32 * i + lane);
    }
    end(segment);
  }
}
template <bool kQuads, typename See>
__device__ __forceinline__ void ForAll(const Row& row, const See& see) {
  ForSegments<kQuads>(row, see, [](int) {});
}

// What a token counts: 1, or its probability relative to the largest logit's.
struct One {
  __device__ uint64_t operator()(float) const { return 1; }
};
struct Mass {
  float best;
  ExpScale scale;

  __device__ uint64_t operator()(float logit) const {
    constexpr float kNothing = -60;  // 2^ that is none of MassOf's units
    const float below = logit - best, about = below * scale.hi;
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(fmaf(below, scale.hi, below * scale.lo)));
    return about > kNothing ? MassOf(power) : 0;  // not a number: nothing
  }
};

// Sorts list[0, count), the largest first. What is behind it, up to the next power of two, is lost.
__device__ __noinline__ void SortDown(Shared& s, int count) {
  int size = 2;
  while (size < count) size *= 2;
  for (int i = count + static_cast<int>(threadIdx.x); i < size; i += kDrawThreads) s.list[i] = 0;
#pragma unroll 1
  for (int run = 2; run <= size; run *= 2) {
#pragma unroll 1
    for (int apart = run / 2; apart > 0; apart /= 2) {
      __syncthreads();
#pragma unroll 1
      for (int pair = static_cast<int>(threadIdx.x); pair < size / 2; pair += kDrawThreads) {
        const int low = 2 * pair - (pair & (apart - 1)), high = low + apart;
        const uint64_t a = s.list[low], b = s.list[high];
        if ((a < b) == ((low & run) == 0)) s.list[low] = b, s.list[high] = a;
      }
    }
  }
  __syncthreads();
}

// Of entries [0, count), that weigh(i) says the weights of, the one with which need(sum of all) is reached: s.found and what is before it. The sum.
template <typename Weigh, typename Need>
__device__ __forceinline__ uint64_t Find(Shared& s, int count, const Weigh& weigh, const Need& need) {
  const int first = static_cast<int>(threadIdx.x) * kListedEach;
  uint64_t weights[kListedEach], sum = 0, total;
#pragma unroll
  for (int i = 0; i < kListedEach; ++i) sum += weights[i] = first + i < count ? weigh(first + i) : 0;
  uint64_t before = BlockScan(s, sum, &total);
  const uint64_t needed = need(total);
  if (threadIdx.x == 0) s.found = -1;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kListedEach; ++i) {
    if (before < needed && needed <= before + weights[i]) s.found = first + i, s.before = before;
    before += weights[i];
  }
  __syncthreads();
  return total;
}

// Lists the codes of what `keeps`; the list is whole if s.count is no more than fits.
template <bool kQuads, typename Keeps>
__device__ __forceinline__ void List(Shared& s, const Row& row, const Keeps& keeps) {
  __syncthreads();
  if (threadIdx.x == 0) s.count = 0;
  __syncthreads();
  ForAll<kQuads>(row, [&](float logit, int id) {
    if (!keeps(logit, id)) return;
    const int at = atomicAdd(&s.count, 1);
    if (at < kMostListed) s.list[at] = CodeOf(logit, id);
  });
  __syncthreads();
}

// The tokens that are left: codes from `last` on. listed: the list has them, the largest first.
struct Kept {
  uint64_t last = 0;
  bool listed = false;
  int count = 0;

  __device__ bool Has(float logit, int id) const { return logit == logit && CodeOf(logit, id) >= last; }
};

// Logits by their distance from the largest, in kBins of one width.
struct Distance {
  float best, bins_each;
  __device__ int Bin(float logit) const { return static_cast<int>(fminf((best - logit) * bins_each, static_cast<float>(kBins - 1))); }
};

__device__ void AddToBin(Shared& s, int bin, uint64_t weight) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const auto low = static_cast<uint32_t>(weight);
  const uint32_t carried = atomicAdd(&s.bins.low[bin][lane], low) + low < low ? 1 : 0, high = static_cast<uint32_t>(weight >> 32) + carried;
  if (high != 0) atomicAdd(&s.bins.high[bin][lane], high);
}

__device__ void SumBins(Shared& s) {
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x % 32);
  for (int bin = WarpNumber(); bin < kBins; bin += kDrawWarps) {
    const uint64_t sum = SumUpTo(lane, uint64_t{s.bins.high[bin][lane]} << 32 | s.bins.low[bin][lane]);
    if (lane == 31) s.bin_sums[bin] = sum;
  }
  __syncthreads();
}

// Cuts after the token with which what is left comes to `needed`: by bins of distance, and by digits of the codes in the bin where that is, until those of one
// fit the list. Nothing is cut where all come to less.
template <bool kQuads, typename Weigh>
__device__ __noinline__ void Narrow(Shared& s, const Row& row, const Distance& distance, const Weigh& weigh, uint64_t needed, Kept* kept) {
  uint64_t above = 0, prefix = 0;  // prefix: of the members' codes, above `shift`
  int bin = -1, shift = kCodeBits;
#pragma unroll 1
  for (;;) {
    const auto is_member = [&](float logit, int id) {
      return kept->Has(logit, id) && (bin < 0 || (distance.Bin(logit) == bin && CodeOf(logit, id) >> shift == prefix));
    };
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kBins * 32; i += kDrawThreads) s.bins.low[i / 32][i % 32] = s.bins.high[i / 32][i % 32] = 0;
    __syncthreads();
    ForAll<kQuads>(row, [&](float logit, int id) {
      if (is_member(logit, id)) AddToBin(s, bin < 0 ? distance.Bin(logit) : static_cast<int>(DigitBin(CodeOf(logit, id), shift)), weigh(logit));
    });
    SumBins(s);
    const uint64_t left = needed - above;
    Find(s, kBins, [&](int i) { return s.bin_sums[i]; }, [&](uint64_t) { return left; });
    if (s.found < 0) return;
    above += s.before;
    if (bin < 0) {
      bin = s.found;
    } else {
      prefix = prefix << kDigitBits | static_cast<uint64_t>(kBins - 1 - s.found);
      shift -= kDigitBits;
    }
    List<kQuads>(s, row, is_member);
    if (s.count <= kMostListed) break;
  }
  const int count = s.count;
  SortDown(s, count);
  const uint64_t left = needed - above;
  Find(s, count, [&](int i) { return weigh(LogitOf(s.list[i])); }, [&](uint64_t) { return left; });
  *kept = {s.list[s.found], above == 0, s.found + 1};
}

// The same by what the threads' largest, sorted in the list, come to; false: they do not reach as far, or too many reach them.
template <bool kQuads, typename Weigh>
__device__ __noinline__ bool CutByLargest(Shared& s, const Row& row, const Weigh& weigh, uint64_t needed, Kept* kept) {
  const auto listed = [&](int i) { return s.list[i] == 0 ? 0 : weigh(LogitOf(s.list[i])); };
  const auto need = [&](uint64_t) { return needed; };
  Find(s, kDrawThreads, listed, need);
  if (s.found < 0) return false;
  const uint64_t bound = s.list[s.found];
  const float least = LogitOf(bound);
  List<kQuads>(s, row, [&](float logit, int id) { return logit >= least && CodeOf(logit, id) >= bound; });
  const int count = s.count;
  if (count > kMostListed) return false;
  SortDown(s, count);
  Find(s, count, listed, need);
  *kept = {s.list[s.found], true, s.found + 1};
  return true;
}

// How the row's logits lie, by the threads' largest, sorted: half of these are in the first quarter of the bins, which end where probabilities do at the latest.
__device__ Distance MakeDistance(const Shared& s, float best) {
  constexpr float kMostNats = 24;  // beyond, not many logits add up to much
  const uint64_t middle = s.list[kDrawThreads / 2];
  const float far = middle == 0 ? kMostNats : 4 * (best - LogitOf(middle));
  return {best, static_cast<float>(kBins) / fmaxf(fminf(far, kMostNats), 1e-6f)};
}

// top_k, then top_p. The list: the threads' largest.
template <bool kQuads>
__device__ Kept Cut(Shared& s, const Row& row, float best) {
  const DrawRow& draw = s.draw;
  Kept kept;
  const bool by_count = draw.top_k > 0 && draw.top_k < row.vocab;
  if (!by_count && draw.top_p >= 1) return kept;
  SortDown(s, kDrawThreads);
  const Distance distance = MakeDistance(s, best);
  if (by_count) {
    const auto needed = static_cast<uint64_t>(draw.top_k);
    if (!CutByLargest<kQuads>(s, row, One{}, needed, &kept)) Narrow<kQuads>(s, row, distance, One{}, needed, &kept);
  }
  if (draw.top_p >= 1) return kept;
  const Mass mass{best, ExpScale{}};
  if (kept.listed) {
    Find(s, kept.count, [&](int i) { return mass(LogitOf(s.list[i])); }, [&](uint64_t total) { return NeededOf(draw.top_p, total); });
    kept.count = s.found + 1, kept.last = s.list[s.found];
    return kept;
  }
  uint64_t sum = 0;
  ForAll<kQuads>(row, [&](float logit, int id) { sum += kept.Has(logit, id) ? mass(logit) : 0; });
  const uint64_t needed = NeededOf(draw.top_p, BlockSum(s, sum));
  if (by_count || !CutByLargest<kQuads>(s, row, mass, needed, &kept)) Narrow<kQuads>(s, row, distance, mass, needed, &kept);
  return kept;
}

// Of the tokens kept in order of their ids the one that the draw falls on.
template <bool kQuads>
__device__ int DrawOf(Shared& s, const Row& row, float best, const Kept& kept) {
  const Mass mass{best, s.draw.scale};
  const float least = best + s.draw.least;
  const double uniform = s.draw.uniform;
  const auto falls = [uniform](uint64_t total) { return DrawnAt(uniform, total); };
  if (kept.listed) {
    __syncthreads();  // all have read what the cut found
    for (int i = static_cast<int>(threadIdx.x); i < kept.count; i += kDrawThreads) s.list[i] = LogitOf(s.list[i]) >= least ? ById(s.list[i]) : 0;
    SortDown(s, kept.count);
    Find(s, kept.count, [&](int i) { return s.list[i] == 0 ? 0 : mass(LogitOf(FromById(s.list[i]))); }, falls);
    return IdOf(FromById(s.list[s.found]));
  }
  const auto weigh = [&](float logit, int id) { return kept.Has(logit, id) && logit >= least ? mass(logit) : 0; };
  const int lane = static_cast<int>(threadIdx.x % 32);
  uint64_t sum = 0;
  ForSegments<kQuads>(row, [&](float logit, int id) { sum += weigh(logit, id); },
                      [&](int segment) {
                        for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(kAllLanes, sum, offset);
                        if (lane == 0) s.segments[segment] = sum;
                        sum = 0;
                      });
  __syncthreads();
  const uint64_t total = Find(s, (row.vocab + kSegment - 1) / kSegment, [&](int i) { return s.segments[i]; }, falls);
  const int first = s.found * kSegment;
  const uint64_t left = falls(total) - s.before;
  __syncthreads();
  const auto at = [&](int i) { return first + i < row.vocab ? weigh(row.Read(first + i), first + i) : 0; };
  Find(s, kSegment, at, [&](uint64_t) { return left; });
  return first + s.found;
}

// Where no logit is more than negative infinity: the first that is a number, or 0.
template <bool kQuads>
__device__ __noinline__ int FirstNumber(Shared& s, const Row& row) {
  uint64_t code = 0;
  ForAll<kQuads>(row, [&](float logit, int id) {
    if (logit == logit && CodeOf(logit, id) > code) code = CodeOf(logit, id);
  });
  code = BlockMost(s, code);
  return code == 0 ? 0 : IdOf(code);
}

template <bool kQuads>
__device__ int Choose(Shared& s, const Row& row, bool* used_uniform) {
  float most = -INFINITY;
  int at = INT_MAX;
  ForAll<kQuads>(row, [&](float logit, int id) {
    if (logit > most) most = logit, at = id;
  });
  const uint64_t largest = at == INT_MAX ? 0 : CodeOf(most, at), code = BlockMost(s, largest);
  s.list[threadIdx.x] = largest;
  if (code == 0) return FirstNumber<kQuads>(s, row);
  const float best = LogitOf(code);
  if (s.draw.scale.hi == 0 || isinf(best)) return IdOf(code);
  *used_uniform = true;
  return DrawOf<kQuads>(s, row, best, Cut<kQuads>(s, row, best));
}

// Logits of recent tokens change, each once: all are read before the first is written, and who writes one anew writes the same.
__device__ void Penalise(const DrawRow& draw, const DrawLaunch& l, const Row& row) {
  SeenLogit* seen = l.seen + draw.recent_at;
  const int32_t* recent = l.recent + draw.recent_at;
  for (int i = static_cast<int>(threadIdx.x); i < draw.recent; i += kDrawThreads) {
    const int32_t id = __ldcv(recent + i);
    seen[i] = {id, row.Read(id)};
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < draw.recent; i += kDrawThreads) row.logits[seen[i].id] = Penalised(seen[i].logit, draw.penalty);
  __syncthreads();
}
__device__ void Restore(const DrawRow& draw, const DrawLaunch& l, const Row& row) {
  const SeenLogit* seen = l.seen + draw.recent_at;
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < draw.recent; i += kDrawThreads) row.logits[seen[i].id] = seen[i].logit;
  __syncthreads();
}

// grid: draws.
template <bool kQuads>
__global__ void __launch_bounds__(kDrawThreads, 1) DrawKernel(DrawLaunch l) {
  extern __shared__ __align__(16) std::byte memory[];
  Shared& s = *reinterpret_cast<Shared*>(memory);
  constexpr int kQuadBytes = 16;
  if (threadIdx.x < sizeof(DrawRow) / kQuadBytes) {  // the host has written it before the launch
    reinterpret_cast<uint4*>(&s.draw)[threadIdx.x] = __ldcv(reinterpret_cast<const uint4*>(l.draws + blockIdx.x) + threadIdx.x);
  }
  __syncthreads();
  WaitForBefore();
  const Row row{l.logits + s.draw.row * l.vocab, static_cast<int32_t>(l.vocab)};
  if (s.draw.recent > 0) Penalise(s.draw, l, row);
  kernels::DrawnToken drawn;
  drawn.token = Choose<kQuads>(s, row, &drawn.used_uniform);
  if (s.draw.recent > 0) Restore(s.draw, l, row);
  if (threadIdx.x != 0) return;
  drawn.logit = row.Read(drawn.token);
  l.out[blockIdx.x] = drawn;
  if (s.draw.row < kernels::kMostAhead) l.largest[s.draw.row] = drawn.token;
  __threadfence_system();
  if (CountBlock(l.done) + 1 != gridDim.x) return;
  *l.done = 0;
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(l.told), "r"(l.number) : "memory");
}

}  // namespace

ExpScale ScaleOf(float temperature) {
  constexpr double kLog2E = 1.44269504088896340736, kMost = 0x1p126;  // temperatures below that leave only logits equal to the largest all the same
  const double scale = std::fmin(kLog2E / static_cast<double>(temperature), kMost);
  const auto hi = static_cast<float>(scale);
  return {hi, static_cast<float>(scale - static_cast<double>(hi))};
}

DrawRow MakeDraw(const kernels::TokenDraw& draw, int64_t recent_at) {
  DrawRow row;
  row.uniform = draw.uniform;
  row.row = static_cast<int32_t>(draw.row);
  row.top_k = draw.top_k, row.top_p = draw.top_p;
  row.least = draw.min_p > 0 ? std::log(draw.min_p) : -INFINITY;
  row.penalty = draw.repetition_penalty;
  row.recent = draw.repetition_penalty == 1 ? 0 : static_cast<int32_t>(draw.recent.size());
  row.recent_at = recent_at;
  if (draw.temperature > 0) row.scale = ScaleOf(draw.temperature);
  return row;
}

void Draw(const DrawLaunch& l, cudaStream_t stream) {
  if (l.count == 0) return;
  const auto kernel = l.vocab % 4 == 0 ? DrawKernel<true> : DrawKernel<false>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(sizeof(Shared)));
  LaunchEarly(kernel, dim3(static_cast<unsigned>(l.count)), dim3(kDrawThreads), sizeof(Shared), stream, l);
}

}  // namespace thermoe::cuda
