// SPDX-License-Identifier: Apache-2.0
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

// grid: parts, rows.
__global__ void __launch_bounds__(kThreads) FinishKernel(FinishArgs args) {
  extern __shared__ float row_place[];
  float* row = Held(row_place);
  WaitForBefore();
  LetNextStart();
  const Part part = args.parts[blockIdx.x];
  const int64_t t = blockIdx.y;
  const int n = part.width, thread = static_cast<int>(threadIdx.x);
  float* x = part.x + t * n;
  const auto limited = [&](float value) {
    return args.limit > 0 ? (value > args.limit ? args.limit : value < -args.limit ? -args.limit : value) : value;
  };
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

}  // namespace

bool FinishProjections(const FinishLaunch& l, cudaStream_t stream) {
  const int q_width = l.q_rope.heads * l.q_rope.head_dim, kv_width = l.k_rope.heads * l.k_rope.head_dim;
  const size_t bytes = sizeof(float) * static_cast<size_t>(q_width > kv_width ? q_width : kv_width);
  if (bytes > 48 * 1024) return false;
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
  return LaunchEarly(FinishKernel, dim3(3, static_cast<unsigned>(l.store.count)), dim3(kThreads), bytes, stream, args) == cudaSuccess;
}

}  // namespace thermoe::cuda
