// SPDX-License-Identifier: Apache-2.0
// Products of many rows with few weights in floats: the router's gate. Tiles of a product are too few to have all columns one after the other, so the warps of a
// block share them, sixteen at a time in turn, and add up at the end; the sums are the same whatever the tile. A lane holds kRows by kWeights sums, so that the
// floats it reads of shared memory (kRows + kWeights for as many products as sums) take no longer than the products. All warps bring 256 columns of a row at a
// time, so that a warp asks for whole lines: where every warp brought its own columns, 32 bytes of 16 rows at once, 4,096 rows by 64 weights took 46 us on an H100,
// of which arithmetic is 19.
#include <algorithm>

#include "kernels/cuda/fragments.cuh"
#include "kernels/cuda/launch_early.cuh"
#include "kernels/cuda/launches.h"
#include "kernels/cuda/warp.cuh"

namespace thermoe::cuda {
namespace {

constexpr int kWarps = 16, kThreads = 32 * kWarps, kDepth = 16, kStages = 2;
constexpr int kTurn = kWarps * kDepth;  // columns
constexpr int kPitch = kTurn + 4;       // floats of a line of a stage: neighbours begin in other banks

// Lanes lie across weights and down rows so that neighbours share what they read: pairs of lanes a row of activations, lanes two apart a row of weights.
template <int kRows, int kWeights, int kAcross>
struct SplitShape {
  static constexpr int kOfRows = kRows, kOfWeights = kWeights, kLanesAcross = kAcross, kLanesDown = 32 / kAcross;
  static constexpr int kRowsOfTile = kRows * kLanesDown, kWeightsOfTile = kWeights * kAcross;
  using Stage = float[kRowsOfTile + kWeightsOfTile][kPitch];  // rows, then weights
  static constexpr size_t kBytes = kStages * sizeof(Stage);
  static_assert(kWarps * kRowsOfTile * kWeightsOfTile * sizeof(float) <= kBytes);  // the sums, at the end

  __device__ static int Across(int lane) { return (lane & 1) | (lane >> 1 & 2) | (kAcross == 8 ? lane >> 2 & 4 : 0); }
  __device__ static int Down(int lane) { return (lane >> 1 & 1) | (lane >> 2 & (kAcross == 8 ? 2 : 6)); }
};
using Large = SplitShape<8, 8, 8>;   // 32 by 64
using Medium = SplitShape<4, 8, 8>;  // 16 by 64
using Small = SplitShape<2, 4, 4>;   // 16 by 16

struct SplitArgs {
  const float *x, *w, *bias;
  float* out;
  int32_t rows, weights, n;
};

// By all threads: the columns from k on. Lines beyond the last are the last once more; nobody reads what comes of them.
template <typename Shape>
__device__ void FetchTurn(const SplitArgs& a, int32_t t0, int32_t r0, int32_t k, typename Shape::Stage& stage) {
  constexpr int kPieces = kTurn / 4, kAtOnce = kThreads / kPieces;
  const int first = static_cast<int>(threadIdx.x) / kPieces, piece = static_cast<int>(threadIdx.x) % kPieces * 4;
  if (k + piece < a.n) {
#pragma unroll
    for (int i = 0; i < (Shape::kRowsOfTile + Shape::kWeightsOfTile) / kAtOnce; ++i) {
      const bool row = i < Shape::kRowsOfTile / kAtOnce;
      const int line = first + kAtOnce * i;
      const int32_t at = row ? min(t0 + line, a.rows - 1) : min(r0 + line - Shape::kRowsOfTile, a.weights - 1);
      CopyAsync(&stage[line][piece], (row ? a.x : a.w) + static_cast<uint32_t>(at * a.n + k + piece));
    }
  }
  CommitCopies();
}

// Adds the products of a warp's columns of a turn, one column after the other. rows, weights: the lane's first lines.
template <typename Shape>
__device__ void MultiplyTurn(const float* rows, const float* weights, float (&sums)[Shape::kOfRows][Shape::kOfWeights]) {
#pragma unroll 1
  for (int k = 0; k < kDepth; k += 4) {
    float4 w[Shape::kOfWeights];
#pragma unroll
    for (int j = 0; j < Shape::kOfWeights; ++j) w[j] = *reinterpret_cast<const float4*>(weights + j * Shape::kLanesAcross * kPitch + k);
#pragma unroll
    for (int i = 0; i < Shape::kOfRows; ++i) {
      const float4 x = *reinterpret_cast<const float4*>(rows + i * Shape::kLanesDown * kPitch + k);
#pragma unroll
      for (int j = 0; j < Shape::kOfWeights; ++j) sums[i][j] += x.x * w[j].x;
#pragma unroll
      for (int j = 0; j < Shape::kOfWeights; ++j) sums[i][j] += x.y * w[j].y;
#pragma unroll
      for (int j = 0; j < Shape::kOfWeights; ++j) sums[i][j] += x.z * w[j].z;
#pragma unroll
      for (int j = 0; j < Shape::kOfWeights; ++j) sums[i][j] += x.w * w[j].w;
    }
  }
}

template <typename Shape>
__global__ void __launch_bounds__(kThreads) SplitColumns(SplitArgs a) {
  extern __shared__ __align__(16) std::byte split_shared[];
  auto* stages = Held(reinterpret_cast<typename Shape::Stage*>(split_shared));
  const int warp = WarpNumber(), lane = static_cast<int>(threadIdx.x % 32), across = Shape::Across(lane), down = Shape::Down(lane);
  const int32_t t0 = static_cast<int32_t>(blockIdx.x) * Shape::kRowsOfTile, r0 = static_cast<int32_t>(blockIdx.y) * Shape::kWeightsOfTile;
  WaitForBefore();
  LetNextStart();
#pragma unroll
  for (int s = 0; s < kStages; ++s) FetchTurn<Shape>(a, t0, r0, s * kTurn, stages[s]);
  float sums[Shape::kOfRows][Shape::kOfWeights] = {};
  int stage = 0;
#pragma unroll 1
  for (int32_t k = 0; k < a.n; k += kTurn, stage ^= 1) {
    WaitCopies<kStages - 1>();
    __syncthreads();
    const float* own = &stages[stage][0][warp * kDepth];
    if (k + warp * kDepth < a.n) MultiplyTurn<Shape>(own + down * kPitch, own + (Shape::kRowsOfTile + across) * kPitch, sums);
    __syncthreads();
    FetchTurn<Shape>(a, t0, r0, k + kStages * kTurn, stages[stage]);
  }
  // The stages hold the warps' sums now: [warp, row, weight]. Nothing is on its way there any more: what was asked for last lay beyond the columns.
  constexpr int kTile = Shape::kRowsOfTile * Shape::kWeightsOfTile;
  auto* parts = reinterpret_cast<float*>(stages);
#pragma unroll
  for (int i = 0; i < Shape::kOfRows; ++i) {
#pragma unroll
    for (int j = 0; j < Shape::kOfWeights; ++j) {
      parts[warp * kTile + (i * Shape::kLanesDown + down) * Shape::kWeightsOfTile + j * Shape::kLanesAcross + across] = sums[i][j];
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kTile; i += kThreads) {
    const int32_t t = t0 + i / Shape::kWeightsOfTile, r = r0 + i % Shape::kWeightsOfTile;
    if (t >= a.rows || r >= a.weights) continue;
    float sum = a.bias != nullptr ? a.bias[r] : 0.0f;
#pragma unroll
    for (int part = 0; part < kWarps; ++part) sum += parts[part * kTile + i];
    a.out[int64_t{t} * a.weights + r] = sum;
  }
}

unsigned Blocks(int32_t count, int32_t each) { return static_cast<unsigned>((count + each - 1) / each); }

// False: the device has not the shared memory.
template <typename Shape>
bool Start(const SplitArgs& args, cudaStream_t stream) {
  const auto kernel = SplitColumns<Shape>;
  const dim3 grid(Blocks(args.rows, Shape::kRowsOfTile), Blocks(args.weights, Shape::kWeightsOfTile));
  return LaunchWithShared(kernel, grid, dim3(kThreads), static_cast<int>(Shape::kBytes), stream, args);
}

}  // namespace

bool LinearOfSplitColumns(const LinearLaunch& l, cudaStream_t stream) {
  if (l.weight.cols % kDepth != 0 || !OfQuads(l.x) || !OfQuads(l.weight.hi)) return false;
  if (int64_t{std::max(l.rows, l.weight.rows)} * l.weight.cols > INT32_MAX) return false;
  const SplitArgs args{l.x, reinterpret_cast<const float*>(l.weight.hi), l.bias, l.out, l.rows, l.weight.rows, l.weight.cols};
  const auto blocks = [&]<typename Shape>(Shape) { return Blocks(l.rows, Shape::kRowsOfTile) * Blocks(l.weight.rows, Shape::kWeightsOfTile); };
  const auto multiprocessors = static_cast<unsigned>(Multiprocessors());
  const bool small = blocks(Small{}) <= 2 * multiprocessors, medium = blocks(Medium{}) <= multiprocessors;
  if (!small && !medium && Start<Large>(args, stream)) return true;
  return (!small && Start<Medium>(args, stream)) || Start<Small>(args, stream);
}

}  // namespace thermoe::cuda
