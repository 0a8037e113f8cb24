// SPDX-License-Identifier: Apache-2.0
// Products of some rows with few weights in floats, the router's gate, by tensor cores (Hopper): tf32.cuh has how, matrix_tf32_many.cu more rows.
//
// The eight blocks of a cluster have 16 rows, 64 rows of weights and an eighth of the columns each. Each tells the others what two rows come to; that adds up the eight
// parts, in order. (Of more rows that is no gain: in a step only 14 or 15 clusters of eight find room.)
#include "kernels/cuda/launch_early.cuh"
#include "kernels/cuda/launches.h"
#include "kernels/cuda/tf32.cuh"

namespace thermoe::cuda {
namespace {

constexpr int kCluster = 8, kWarps = 8, kThreads = 32 * kWarps;
constexpr int kRows = 16, kWeights = 8 * kWarps;  // of a block; a warp has all rows and eight weights
constexpr int kOwn = kRows / kCluster;            // rows that a block adds up
constexpr int32_t kMostRows = 256;

struct Tf32Args {
  CUtensorMap x, w;  // [columns / 32, rows, 32], boxes of a block's part of the columns by kRows or kWeights
  const float* bias;
  float* out;
  int32_t rows, weights, n;
};

#if __CUDA_ARCH__ >= 900

// To the same place of another block of the cluster, whose barrier counts it.
__device__ inline void TellBlock(uint32_t block, float* place, uint64_t* barrier, float2 value) {
  asm volatile("{\n.reg .b32 there, counts;\nmapa.shared::cluster.u32 there, %0, %2;\nmapa.shared::cluster.u32 counts, %1, %2;\n"
               "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [there], {%3, %4}, [counts];\n}" ::"r"(SharedAddress(place)),
               "r"(SharedAddress(barrier)), "r"(block), "f"(value.x), "f"(value.y)
               : "memory");
}

#endif  // __CUDA_ARCH__ >= 900

struct Tf32Shared {
  float parts[kCluster][kOwn][kWeights];  // what the cluster's blocks tell
  uint64_t weights_there, rows_there, told;
};

// grid: clusters of 16 rows each, 64 rows of weights. Dynamic shared memory: weights and rows, by bands, then Tf32Shared.
__global__ void __launch_bounds__(kThreads) Tf32Kernel(const __grid_constant__ Tf32Args a) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ std::byte tf32_shared[];
  const int32_t bands = a.n / kCluster / kBand;
  auto* weights = Held(reinterpret_cast<Line*>(SwizzleAligned(tf32_shared)));
  Line* rows = weights + kWeights * bands;
  auto* shared = reinterpret_cast<Tf32Shared*>(rows + kRows * bands);
  const int warp = WarpNumber(), lane = static_cast<int>(threadIdx.x % 32), thread = static_cast<int>(threadIdx.x);
  const auto rank = static_cast<int32_t>(blockIdx.x % kCluster), first_row = static_cast<int32_t>(blockIdx.x / kCluster) * kRows;
  const int32_t first_weight = static_cast<int32_t>(blockIdx.y) * kWeights;
  if (thread == 0) {
    for (uint64_t* barrier : {&shared->weights_there, &shared->rows_there, &shared->told}) BarrierInit(barrier, 1);
    asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async;" ::: "memory");
    ExpectBytes(&shared->told, sizeof(shared->parts));
    FetchBox(a.w, first_weight, rank * bands, kWeights * bands * int32_t{sizeof(Line)}, weights, &shared->weights_there);
  }
  __syncwarp();
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");  // the others' barriers are there when they are told
  WaitForBefore();
  LetNextStart();
  if (thread == 0) FetchBox(a.x, first_row, rank * bands, kRows * bands * int32_t{sizeof(Line)}, rows, &shared->rows_there);
  __syncwarp();
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
  BarrierWait(&shared->weights_there, 0);
  BarrierWait(&shared->rows_there, 0);
  const Line *own_rows = rows + lane / 4, *own_weights = weights + 8 * warp + lane / 4;
  float sums[1][4] = {};
#pragma unroll 2
  for (int32_t band = 0; band < bands; ++band, own_rows += kRows, own_weights += kWeights) MultiplyBand(own_rows, own_weights, sums);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = lane / 4 + 8 * i;
    TellBlock(static_cast<uint32_t>(row / kOwn), &shared->parts[rank][row % kOwn][8 * warp + lane % 4 * 2], &shared->told, float2{sums[0][2 * i], sums[0][2 * i + 1]});
  }
  BarrierWait(&shared->told, 0);
  const int own = thread / kWeights, column = thread % kWeights;
  const int32_t t = first_row + rank * kOwn + own, r = first_weight + column;
  if (own >= kOwn || t >= a.rows || r >= a.weights) return;
  float sum = a.bias != nullptr ? a.bias[r] : 0.0f;
#pragma unroll
  for (int part = 0; part < kCluster; ++part) sum += shared->parts[part][own][column];
  a.out[int64_t{t} * a.weights + r] = sum;
#endif
}

}  // namespace

bool LinearOfTf32(const LinearLaunch& l, cudaStream_t stream) {
  if (l.rows > kMostRows || l.weight.cols % (kCluster * kBand) != 0 || !SplitsFloats(l)) return false;
  Tf32Args a;
  a.bias = l.bias, a.out = l.out, a.rows = l.rows, a.weights = l.weight.rows, a.n = l.weight.cols;
  const int64_t shared = int64_t{kWeights + kRows} * (a.n / kCluster) * int64_t{sizeof(float)} + int64_t{sizeof(Tf32Shared)} + kSwizzleAlign;
  if (shared > DeviceAttribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)) return false;
  const int bands = a.n / kBand / kCluster;
  if (!MapOfBands(l.x, l.rows, a.n, kRows, bands, &a.x) || !MapOfBands(reinterpret_cast<const float*>(l.weight.hi), a.weights, a.n, kWeights, bands, &a.w)) return false;
  const dim3 grid(static_cast<unsigned>((a.rows + kRows - 1) / kRows * kCluster), static_cast<unsigned>((a.weights + kWeights - 1) / kWeights));
  return LaunchWithSharedInClusters(kCluster, Tf32Kernel, grid, dim3(kThreads), static_cast<int>(shared), stream, a);
}

}  // namespace thermoe::cuda
