// SPDX-License-Identifier: Apache-2.0
// Products of many rows with few weights in floats, the router's gate in prefill, by tensor cores (Hopper; tf32.cuh has how). A block has 32 rows and up to 128 rows of
// weights, all columns of which pass through a ring of stages; its warps have a band of a stage, 16 of the rows and 32 weights each, and add the bands up at the end,
// in order. Sixteen warps, for a product of the tensor cores waits for the one before it.
#include "kernels/cuda/launch_early.cuh"
#include "kernels/cuda/launches.h"
#include "kernels/cuda/tf32.cuh"

namespace thermoe::cuda {
namespace {

constexpr int kMultiplying = 16, kThreads = 32 * (kMultiplying + 1);  // warps that multiply; one brings
constexpr int kRows = 32, kRowsOfWarp = 16, kOfWarp = 32;           // rows of a block and of a warp; weights of a warp

// kWeights: of a block.
template <int kWeights>
struct ManyShared {
  static constexpr int kGroups = kWeights / kOfWarp, kBands = kMultiplying / kGroups * kRowsOfWarp / kRows;  // bands of a stage
  static constexpr int kStages = 4;
  alignas(kSwizzleAlign) Line weights[kStages][kBands][kWeights];
  alignas(kSwizzleAlign) Line rows[kStages][kBands][kRows];
  float parts[kBands][kRows][kWeights];
  uint64_t full[kStages], empty[kStages];
};
template <int kWeights>
constexpr size_t kManyBytes = sizeof(ManyShared<kWeights>) + kSwizzleAlign;
static_assert(kManyBytes<64> <= 227 * 1024 && kManyBytes<128> <= 227 * 1024);

struct ManyArgs {
  CUtensorMap x, w;  // [columns / 32, rows, 32], boxes of a stage's bands by kRows or kWeights
  const float* bias;
  float* out;
  int32_t rows, weights, stages;  // stages: that pass
};

#if __CUDA_ARCH__ >= 900

// By one thread.
template <int kWeights>
__device__ void BringStages(const ManyArgs& a, int32_t first_row, int32_t first_weight, ManyShared<kWeights>* shared) {
  using Shared = ManyShared<kWeights>;
  constexpr int kBytesOfWeights = Shared::kBands * kWeights * static_cast<int>(sizeof(Line)), kBytesOfRows = Shared::kBands * kRows * static_cast<int>(sizeof(Line));
  int at = 0;
  uint32_t parity = 0;
#pragma unroll 1
  for (int32_t k = 0; k < a.stages; ++k) {
    BarrierWait(&shared->empty[at], parity ^ 1);
    FetchBox(a.w, first_weight, k * Shared::kBands, kBytesOfWeights, shared->weights[at][0], &shared->full[at]);
    FetchBox(a.x, first_row, k * Shared::kBands, kBytesOfRows, shared->rows[at][0], &shared->full[at]);
    if (++at == Shared::kStages) at = 0, parity ^= 1;
  }
}

#endif  // __CUDA_ARCH__ >= 900

template <int kWeights>
__global__ void __launch_bounds__(kThreads) ManyTf32Kernel(const __grid_constant__ ManyArgs a) {
#if __CUDA_ARCH__ >= 900
  using Shared = ManyShared<kWeights>;
  extern __shared__ std::byte many_shared[];
  auto* shared = Held(reinterpret_cast<Shared*>(SwizzleAligned(many_shared)));
  const int warp = WarpNumber(), lane = static_cast<int>(threadIdx.x % 32);
  const auto first_row = static_cast<int32_t>(blockIdx.x) * kRows, first_weight = static_cast<int32_t>(blockIdx.y) * kWeights;
  if (threadIdx.x == 0) {
    for (int i = 0; i < Shared::kStages; ++i) BarrierInit(&shared->full[i], 2), BarrierInit(&shared->empty[i], kMultiplying * kArrivalsOfWarp);
    asm volatile("fence.proxy.async;" ::: "memory");  // the copies see the barriers
  }
  WaitForBefore();
  LetNextStart();
  __syncthreads();
  if (warp == kMultiplying) {
    if (ElectLane()) BringStages<kWeights>(a, first_row, first_weight, shared);
    return;
  }
  const int group = warp % Shared::kGroups, row = warp / Shared::kGroups % (kRows / kRowsOfWarp) * kRowsOfWarp, band = warp / Shared::kGroups * kRowsOfWarp / kRows;
  float sums[kOfWarp / 8][4] = {};
  int at = 0;
  uint32_t parity = 0;
#pragma unroll 1
  for (int32_t k = 0; k < a.stages; ++k) {
    BarrierWait(&shared->full[at], parity);
    MultiplyBand(shared->rows[at][band] + row + lane / 4, shared->weights[at][band] + kOfWarp * group + lane / 4, sums);
    __syncwarp();
    WarpArrives(&shared->empty[at], lane);
    if (++at == Shared::kStages) at = 0, parity ^= 1;
  }
#pragma unroll
  for (int j = 0; j < kOfWarp / 8; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float* to = &shared->parts[band][row + lane / 4 + 8 * half][kOfWarp * group + 8 * j + lane % 4 * 2];
      *reinterpret_cast<float2*>(to) = {sums[j][2 * half], sums[j][2 * half + 1]};
    }
  }
  __syncwarp();
  asm volatile("bar.sync 1, %0;" ::"n"(32 * kMultiplying) : "memory");
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kWeights; i += 32 * kMultiplying) {
    const int32_t t = first_row + i / kWeights, r = first_weight + i % kWeights;
    if (t >= a.rows || r >= a.weights) continue;
    float sum = a.bias != nullptr ? a.bias[r] : 0.0f;
#pragma unroll
    for (int part = 0; part < Shared::kBands; ++part) sum += shared->parts[part][i / kWeights][i % kWeights];
    a.out[int64_t{t} * a.weights + r] = sum;
  }
#endif
}

template <int kWeights>
bool Start(const LinearLaunch& l, cudaStream_t stream) {
  using Shared = ManyShared<kWeights>;
  ManyArgs a;
  a.bias = l.bias, a.out = l.out, a.rows = l.rows, a.weights = l.weight.rows, a.stages = l.weight.cols / (Shared::kBands * kBand);
  if (l.weight.cols % (Shared::kBands * kBand) != 0 || static_cast<int64_t>(kManyBytes<kWeights>) > DeviceAttribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)) return false;
  if (!MapOfBands(l.x, l.rows, l.weight.cols, kRows, Shared::kBands, &a.x)) return false;
  if (!MapOfBands(reinterpret_cast<const float*>(l.weight.hi), l.weight.rows, l.weight.cols, kWeights, Shared::kBands, &a.w)) return false;
  const dim3 grid(static_cast<unsigned>((l.rows + kRows - 1) / kRows), static_cast<unsigned>((l.weight.rows + kWeights - 1) / kWeights));
  return LaunchWithShared(ManyTf32Kernel<kWeights>, grid, dim3(kThreads), static_cast<int>(kManyBytes<kWeights>), stream, a);
}

}  // namespace

bool LinearOfManyTf32(const LinearLaunch& l, cudaStream_t stream) {
  constexpr int32_t kFewRows = 2048;  // a block takes as long of fewer rows
  if (l.rows < kFewRows || !SplitsFloats(l)) return false;
  return l.weight.rows <= 64 ? Start<64>(l, stream) : Start<128>(l, stream);
}

}  // namespace thermoe::cuda
