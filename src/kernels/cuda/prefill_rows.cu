// SPDX-License-Identifier: Apache-2.0
// Which launches are prefill's, and rows of floats to the halves that it multiplies.
#include "kernels/cuda/fragments.cuh"
#include "kernels/cuda/prefill.h"

namespace thermoe::cuda {
namespace {

// Up to here the bytes of the weights take longer than the tensor cores: rows, and rows that an expert has on average.
constexpr int32_t kFewRows = 64;
constexpr int32_t kFewRowsOfExpert = 16;

// A warp: one row. out: [rows, stride], times a power of two that brings the row's largest magnitude into [1024, 2048);
// zero beyond n. unscale: [rows] what undoes it.
__global__ void ToHalves(const float* x, int32_t rows, int32_t n, int32_t stride, __half* out, float* unscale) {
  const int32_t row = static_cast<int32_t>(blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32);
  const int lane = threadIdx.x % 32;
  if (row >= rows) return;
  const float* from = x + int64_t{row} * n;
  float most = 0;
  for (int32_t c = lane; c < n; c += 32) most = fmaxf(most, fabsf(from[c]));
  const float scale = HalfScale(__uint_as_float(__reduce_max_sync(~0u, __float_as_uint(most))));
  auto* to = reinterpret_cast<__half2*>(out + int64_t{row} * stride);
  for (int32_t c = lane * 2; c < stride; c += 64) {
    to[c / 2] = __floats2half2_rn(c < n ? from[c] * scale : 0.0f, c + 1 < n ? from[c + 1] * scale : 0.0f);
  }
  if (lane == 0) unscale[row] = InverseOfPower(scale);
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
    count = major == 9 && minor == 0 ? multiprocessors : 0;
  }
  return count;
}

bool PrefillsLinear(const LinearLaunch& launch) {
  return launch.wgmma && launch.rows > kFewRows && launch.weight.packing != Packing::kF32 && HopperMultiprocessors() > 0;
}
bool PrefillsExperts(const ExpertFfnLaunch& launch) {
  const int64_t slots = int64_t{launch.rows} * launch.slots;
  return launch.wgmma && launch.rows > kFewRows && slots > int64_t{kFewRowsOfExpert} * launch.experts && launch.hidden % 8 == 0 &&
         launch.gate_packing == launch.up_packing && launch.gate_packing != Packing::kF32 &&
         launch.down_packing != Packing::kF32 && HopperMultiprocessors() > 0;
}

cudaError_t RowsToHalves(const float* x, int32_t rows, int32_t cols, HalfRows to, cudaStream_t stream) {
  constexpr int kThreads = 256, kRows = kThreads / 32;
  const auto blocks = static_cast<unsigned>((rows + kRows - 1) / kRows);
  ToHalves<<<blocks, kThreads, 0, stream>>>(x, rows, cols, to.stride, static_cast<__half*>(to.halves), to.unscale);
  return cudaGetLastError();
}

}  // namespace thermoe::cuda
