// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <iterator>

#include "kernels/cuda/fragments.cuh"
#include "kernels/cuda/launch_early.cuh"
#include "kernels/cuda/project.h"
#include "kernels/cuda/shared.cuh"
#include "kernels/cuda/warp.cuh"
#include "runtime/kv_layout.h"

namespace thermoe::cuda {
namespace {

constexpr int kThreads = 512;

struct Part {
  float* x;           // [T, heads * head_dim]
  const float* gain;  // or null
  int width, norm;    // norm: elements normalised together
  float epsilon;
  bool turns;
  __half* cache;      // or null: back to x
};

struct FinishArgs {
  Part parts[3];  // q, k, v
  float limit;
  const float *cosines, *sines;
  int head_dim, rope_dim, kv_heads;
  bool halves;
  RowTable rows;
};

__device__ inline float Limited(const FinishArgs& args, float value) {
  return args.limit > 0 ? (value > args.limit ? args.limit : value < -args.limit ? -args.limit : value) : value;
}

// Heads of kDim that turn whole, in halves: a warp has of a strip of columns every fourth unit of 128, a lane of a unit every 32nd column, so that it has both
// columns of a pair. Sums are FinishKernel's, to the bit: its thread t of 512 has every 512th column.
constexpr int kStripWarps = 4, kUnit = 128, kUnits = 4, kStrip = kStripWarps * kUnits * kUnit;
using StripValues = float[kUnits][kUnit / 32];
static_assert(kStripWarps * kUnit == kThreads);

__host__ __device__ constexpr int StripsOf(int width) { return (width + kStrip - 1) / kStrip; }

template <int kDim>
__device__ void NormHeads(const FinishArgs& args, const Part& part, StripValues& v) {
  constexpr int kOfHead = kDim / 32;
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
#pragma unroll
    for (int h = 0; h < kUnit / kDim; ++h) {
      float squares = 0;
#pragma unroll
      for (int j = 0; j < kOfHead; ++j) squares += v[i][h * kOfHead + j] * v[i][h * kOfHead + j];
      const float scale = 1.0f / sqrtf(WarpSum(squares) / static_cast<float>(kDim) + part.epsilon);
#pragma unroll
      for (int j = 0; j < kOfHead; ++j) v[i][h * kOfHead + j] = Limited(args, v[i][h * kOfHead + j] * scale * part.gain[lane + 32 * j]);
    }
  }
}

// All columns of a strip together. By all threads of the block.
__device__ void NormStrip(const FinishArgs& args, const Part& part, StripValues& v) {
  __shared__ float sums[kThreads / 32];
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int j = 0; j < kUnit / 32; ++j) {
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kUnits; ++i) squares += v[i][j] * v[i][j];  // zero where no column is
    const float sum = WarpSum(squares);
    if (lane == 0) sums[warp * (kUnit / 32) + j] = sum;
  }
  __syncthreads();
  const float scale = 1.0f / sqrtf(WarpSum(lane < kThreads / 32 ? sums[lane] : 0.0f) / static_cast<float>(part.width) + part.epsilon);
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    const int first = (warp + kStripWarps * i) * kUnit;
    if (first >= part.width) break;
#pragma unroll
    for (int j = 0; j < kUnit / 32; ++j) v[i][j] = Limited(args, v[i][j] * scale * part.gain[first + 32 * j + lane]);
  }
}

template <int kDim>
__device__ void Turn(const FinishArgs& args, int64_t t, StripValues& v) {
  constexpr int kHalf = kDim / 64;  // of a head's values in a lane
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int p = 0; p < kHalf; ++p) {
    const float cosine = __ldg(args.cosines + t * (kDim / 2) + 32 * p + lane), sine = __ldg(args.sines + t * (kDim / 2) + 32 * p + lane);
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
#pragma unroll
      for (int h = 0; h < kUnit / kDim; ++h) {
        float &a = v[i][h * 2 * kHalf + p], &b = v[i][h * 2 * kHalf + p + kHalf];
        const float u = a, w = b;
        a = u * cosine - w * sine;
        b = w * cosine + u * sine;
      }
    }
  }
}

// grid: strips of q, k and v, rows.
template <int kDim>
__global__ void __launch_bounds__(32 * kStripWarps) FinishStripsKernel(const __grid_constant__ FinishArgs args) {
  int which = 0, strip = static_cast<int>(blockIdx.x);
  for (; strip >= StripsOf(args.parts[which].width); ++which) strip -= StripsOf(args.parts[which].width);
  const Part& part = args.parts[which];
  const int64_t t = blockIdx.y;
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32), begin = strip * kStrip + warp * kUnit;
  float* x = part.x + t * part.width + begin + lane;
  WaitForBefore();
  LetNextStart();
  StripValues v;
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    const bool there = begin + i * kStripWarps * kUnit < part.width;
#pragma unroll
    for (int j = 0; j < kUnit / 32; ++j) v[i][j] = there ? __ldcs(x + i * kStripWarps * kUnit + 32 * j) : 0.0f;
  }
  if (part.gain == nullptr) {
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
#pragma unroll
      for (int j = 0; j < kUnit / 32; ++j) v[i][j] = Limited(args, v[i][j]);
    }
  } else if (part.norm == part.width) {
    NormStrip(args, part, v);
  } else {
    NormHeads<kDim>(args, part, v);
  }
  if (part.turns) Turn<kDim>(args, t, v);
  __half* cache = nullptr;  // the row's column of this lane, of head 0
  const int64_t head = int64_t{kKvBlock} * kDim;
  if (part.cache != nullptr) {
    const int position = args.rows.position[t];
    const int64_t block = args.rows.tables[int64_t{args.rows.sequence[t]} * args.rows.stride + position / kKvBlock];
    cache = part.cache + block * args.kv_heads * head + position % kKvBlock * kDim + lane;
  }
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    const int first = begin + i * kStripWarps * kUnit;
    if (first >= part.width) break;
#pragma unroll
    for (int j = 0; j < kUnit / 32; ++j) {
      if (cache == nullptr) x[first - begin + 32 * j] = v[i][j];
      else cache[(first + 32 * j) / kDim * head + 32 * j % kDim] = SaturatedHalf(v[i][j]);
    }
  }
}

// grid: parts, rows. Any heads.
__global__ void __launch_bounds__(kThreads) FinishKernel(FinishArgs args) {
  extern __shared__ float row_place[];
  float* row = Held(row_place);
  WaitForBefore();
  LetNextStart();
  const Part part = args.parts[blockIdx.x];
  const int64_t t = blockIdx.y;
  const int n = part.width, thread = static_cast<int>(threadIdx.x);
  float* x = part.x + t * n;
  const auto limited = [&](float value) { return Limited(args, value); };
  if (part.gain == nullptr) {
    for (int i = thread; i < n; i += kThreads) row[i] = limited(x[i]);
  } else if (part.norm == n) {
    float squares = 0;
    for (int i = thread; i < n; i += kThreads) {
      row[i] = x[i];
      squares += row[i] * row[i];
    }
    const float scale = 1.0f / sqrtf(BlockSum(squares) / static_cast<float>(n) + part.epsilon);
    for (int i = thread; i < n; i += kThreads) row[i] = limited(row[i] * scale * part.gain[i]);
  } else {
    for (int head = thread / 32; head < n / part.norm; head += kThreads / 32) {
      float squares = 0;
      for (int i = thread % 32; i < part.norm; i += 32) {
        const float value = x[head * part.norm + i];
        row[head * part.norm + i] = value;
        squares += value * value;
      }
      const float scale = 1.0f / sqrtf(WarpSum(squares) / static_cast<float>(part.norm) + part.epsilon);
      for (int i = thread % 32; i < part.norm; i += 32) row[head * part.norm + i] = limited(row[head * part.norm + i] * scale * part.gain[i]);
    }
  }
  __syncthreads();
  const int half = args.rope_dim / 2, pairs = part.turns ? n / args.head_dim * half : 0;
  for (int i = thread; i < pairs; i += kThreads) {
    const int p = i % half;
    float* a = row + i / half * args.head_dim + (args.halves ? p : 2 * p);
    float* b = a + (args.halves ? half : 1);
    const float cosine = args.cosines[t * half + p], sine = args.sines[t * half + p], u = *a, v = *b;
    *a = u * cosine - v * sine;
    *b = v * cosine + u * sine;
  }
  __syncthreads();
  if (part.cache == nullptr) {
    for (int i = thread; i < n; i += kThreads) x[i] = row[i];
    return;
  }
  const int position = args.rows.position[t];
  const int32_t block = args.rows.tables[int64_t{args.rows.sequence[t]} * args.rows.stride + position / kKvBlock];
  for (int i = thread; i < n; i += kThreads) {
    const int head = i / args.head_dim, d = i % args.head_dim;
    part.cache[((int64_t{block} * args.kv_heads + head) * kKvBlock + position % kKvBlock) * args.head_dim + d] =
        SaturatedHalf(row[i]);
  }
}

// Whether strips serve them.
bool OfStrips(const FinishLaunch& l, const FinishArgs& args) {
  const bool whole = args.halves && args.rope_dim == args.head_dim && (args.head_dim == 64 || args.head_dim == 128) && l.store.cache.head_dim == args.head_dim;
  return whole && std::all_of(std::begin(args.parts), std::end(args.parts), [&](const Part& p) {
    return p.width % kUnit == 0 && (p.gain == nullptr || (p.norm == p.width ? p.width <= kStrip : p.norm == args.head_dim));
  });
}

}  // namespace

bool FinishProjections(const FinishLaunch& l, cudaStream_t stream) {
  const int q_width = l.q_rope.heads * l.q_rope.head_dim, kv_width = l.k_rope.heads * l.k_rope.head_dim;
  FinishArgs args;
  const auto part = [](float* x, const std::optional<NormLaunch>& norm, int width, bool turns, __half* cache) {
    return Part{x, norm ? norm->gain : nullptr, width, norm ? norm->n : 0, norm ? norm->epsilon : 0.0f, turns, cache};
  };
  args.parts[0] = part(l.q_rope.x, l.q_norm, q_width, true, nullptr);
  args.parts[1] = part(l.k_rope.x, l.k_norm, kv_width, true, l.store.cache.keys);
  args.parts[2] = part(const_cast<float*>(l.store.v), std::nullopt, kv_width, false, l.store.cache.values);
  args.limit = l.limit;
  args.cosines = l.q_rope.cosines, args.sines = l.q_rope.sines;
  args.head_dim = l.q_rope.head_dim, args.rope_dim = l.q_rope.rope_dim, args.kv_heads = l.store.cache.kv_heads;
  args.halves = l.q_rope.halves;
  args.rows = l.store.rows;
  if (OfStrips(l, args)) {
    const dim3 grid(static_cast<unsigned>(StripsOf(q_width) + 2 * StripsOf(kv_width)), static_cast<unsigned>(l.store.count));
    const auto kernel = args.head_dim == 64 ? FinishStripsKernel<64> : FinishStripsKernel<128>;
    return LaunchEarly(kernel, grid, dim3(32 * kStripWarps), 0, stream, args) == cudaSuccess;
  }
  const size_t bytes = sizeof(float) * static_cast<size_t>(q_width > kv_width ? q_width : kv_width);
  if (bytes > 48 * 1024) return false;
  return LaunchEarly(FinishKernel, dim3(3, static_cast<unsigned>(l.store.count)), dim3(kThreads), bytes, stream, args) == cudaSuccess;
}

}  // namespace thermoe::cuda
