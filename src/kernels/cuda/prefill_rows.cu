// SPDX-License-Identifier: Apache-2.0
// Which launches are prefill's, and rows of floats to the halves that it multiplies.
#include "kernels/cuda/fragments.cuh"
#include "kernels/cuda/launch_early.cuh"
#include "kernels/cuda/prefill.h"
#include "kernels/cuda/warp.cuh"

namespace thermoe::cuda {
namespace {

// Up to here the bytes of the weights take longer than the tensor cores: rows of a linear, rows of experts, and those that an expert has on average.
constexpr int32_t kFewRows = 32, kFewRowsOfExperts = 64, kFewRowsOfExpert = 16;
// Of more columns than these, and more than four bits, the tensor cores take over earlier: Mixtral's experts in Q8_0 take 581 and 664 us of 56 and 64 rows, by these
// kernels 561 and 555, while those in Q4_0 take 337 and 427, and 422 and 412 (H100).
constexpr int32_t kManyColumns = 2048, kFewRowsOfWideExpert = 13;

// Rows as halves, one part after the other.
struct Parts {
  size_t unscale, taken, all;
};
Parts PartsOf(int32_t rows, int32_t cols) {
  const auto t = static_cast<size_t>(rows);
  Parts parts;
  parts.unscale = AlignedScratch(static_cast<size_t>(WholeHalfRows(rows)) * static_cast<size_t>(Padded(cols)) * sizeof(__half));
  parts.taken = parts.unscale + AlignedScratch(t * sizeof(float));
  parts.all = parts.taken + AlignedScratch(kMostTogether * sizeof(int32_t));
  return parts;
}

constexpr int kHalvesThreads = 128;
constexpr int kHeldPairs = 16;  // of a thread, of a row of up to 4,096 columns: those beyond are read twice

__device__ inline float2 PairAt(const float* row, int32_t c, int32_t n) {
  if (n % 2 == 0) return *reinterpret_cast<const float2*>(row + c);
  return {row[c], c + 1 < n ? row[c + 1] : 0.0f};
}

// A block: one row. out: [rows, stride], times a power of two that brings the row's largest magnitude into [1024, 2048);
// zero beyond n. unscale: [rows] what undoes it. taken: set to zero.
__global__ void __launch_bounds__(kHalvesThreads) ToHalves(const float* x, int32_t n, int32_t stride, __half* out, float* unscale,
                                                            int32_t* taken) {
  WaitForBefore();
  LetNextStart();
  const auto row = static_cast<int64_t>(blockIdx.x);
  const float* from = x + row * n;
  const int32_t first = static_cast<int32_t>(threadIdx.x) * 2;
  constexpr int32_t kStep = kHalvesThreads * 2;
  float2 held[kHeldPairs];
  float most = 0;
  const auto see = [&](float2 pair) { most = fmaxf(most, fmaxf(fabsf(pair.x), fabsf(pair.y))); };
#pragma unroll
  for (int i = 0; i < kHeldPairs; ++i) {
    const int32_t c = first + kStep * i;
    held[i] = c < n ? PairAt(from, c, n) : float2{0, 0};
  }
#pragma unroll
  for (int i = 0; i < kHeldPairs; ++i) see(held[i]);
  for (int32_t c = first + kStep * kHeldPairs; c < n; c += kStep) see(PairAt(from, c, n));
  __shared__ uint32_t of_warps[kHalvesThreads / 32];
  const uint32_t of_warp = __reduce_max_sync(~0u, __float_as_uint(most));
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = of_warp;
  __syncthreads();
  uint32_t of_row = 0;
  for (const uint32_t other : of_warps) of_row = max(of_row, other);
  const float scale = HalfScale(__uint_as_float(of_row));
  auto* to = reinterpret_cast<__half2*>(out + row * stride);
  const auto put = [&](int32_t c, float2 pair) {
    if (c < stride) to[c / 2] = __floats2half2_rn(pair.x * scale, pair.y * scale);
  };
#pragma unroll
  for (int i = 0; i < kHeldPairs; ++i) put(first + kStep * i, held[i]);
  for (int32_t c = first + kStep * kHeldPairs; c < stride; c += kStep) put(c, c < n ? PairAt(from, c, n) : float2{0, 0});
  if (threadIdx.x == 0) unscale[row] = InverseOfPower(scale);
  if (row == 0 && threadIdx.x < kMostTogether) taken[threadIdx.x] = 0;
}

}  // namespace

int HopperMultiprocessors() {
  static thread_local int known = -1, count = 0;
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  if (device != known) {
    int major = 0, minor = 0, multiprocessors = 0;
    const auto ask = [&](int* value, cudaDeviceAttr what) {
      return cudaDeviceGetAttribute(value, what, device) == cudaSuccess;
    };
    if (!ask(&major, cudaDevAttrComputeCapabilityMajor) || !ask(&minor, cudaDevAttrComputeCapabilityMinor) ||
        !ask(&multiprocessors, cudaDevAttrMultiProcessorCount)) {
      return 0;
    }
    known = device;
    // Built are code for Hopper and PTX of compute_80: which of them the driver has taken (CUDA_FORCE_PTX_JIT: the latter).
    cudaFuncAttributes code{};
    const bool hopper = major == 9 && minor == 0 && Succeeded(cudaFuncGetAttributes(&code, ToHalves)) && code.ptxVersion >= 90;
    count = hopper ? multiprocessors : 0;
  }
  return count;
}

bool PrefillsLinear(const LinearLaunch& launch) {
  return MayBeHoppers(launch) && launch.rows > kFewRows && launch.weight.packing != Packing::kF32;
}
bool PrefillsExperts(const ExpertFfnLaunch& launch) {
  const int64_t slots = int64_t{launch.rows} * launch.slots;
  const bool wide = launch.hidden > kManyColumns && !launch.may_read_hi && MoreThanFourBits(launch.gate_packing);
  const bool many = wide ? launch.rows > kFewRows && slots > int64_t{kFewRowsOfWideExpert} * launch.experts
                         : launch.rows > kFewRowsOfExperts && slots > int64_t{kFewRowsOfExpert} * launch.experts;
  return MayBeHoppers(launch) && many && launch.hidden % 8 == 0 &&
         launch.gate_packing == launch.up_packing && launch.gate_packing != Packing::kF32 &&
         launch.down_packing != Packing::kF32;
}

cudaError_t RowsToHalves(const float* x, int32_t rows, int32_t cols, HalfRows to, cudaStream_t stream) {
  return LaunchEarly(ToHalves, dim3(static_cast<unsigned>(rows)), dim3(kHalvesThreads), 0, stream, x, cols, to.stride, static_cast<__half*>(to.halves), to.unscale,
                     to.taken);
}

size_t HalfRowsBytes(int32_t rows, int32_t cols) { return PartsOf(rows, cols).all; }

HalfRows HalfRowsAt(void* at, int32_t rows, int32_t cols) {
  const Parts parts = PartsOf(rows, cols);
  auto* bytes = static_cast<std::byte*>(at);
  return {bytes, Padded(cols), reinterpret_cast<float*>(bytes + parts.unscale), reinterpret_cast<int32_t*>(bytes + parts.taken)};
}

}  // namespace thermoe::cuda
