// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "kernels/cuda/launches.h"
#include "kernels/cuda/matrix_kernels.h"

namespace thermoe::cuda {
namespace {

bool Few(const LinearLaunch& launch) { return launch.weight.packing != Packing::kF32; }

bool AllFloats(const ExpertFfnLaunch& launch) {
  return launch.gate_packing == Packing::kF32 && launch.up_packing == Packing::kF32 &&
         launch.down_packing == Packing::kF32;
}
bool AnyFloats(const ExpertFfnLaunch& launch) {
  return launch.gate_packing == Packing::kF32 || launch.up_packing == Packing::kF32 ||
         launch.down_packing == Packing::kF32;
}

}  // namespace

size_t LinearScratch(int32_t rows, int32_t in, int32_t out) { return LinearTogetherScratch(rows, in, {&out, 1}); }

size_t LinearTogetherScratch(int32_t rows, int32_t in, std::span<const int32_t> outs) {
  size_t bytes = LinearDecodeScratch(rows, in, outs);
  for (const int32_t& out : outs) bytes = std::max(bytes, LinearDecodeScratch(rows, in, {&out, 1}));
  return bytes;
}

cudaError_t Linear(const LinearLaunch& launch, cudaStream_t stream) { return LinearTogether({&launch, 1}, stream); }

cudaError_t LinearTogether(std::span<const LinearLaunch> launches, cudaStream_t stream) {
  if (launches.empty() || launches.front().rows == 0) return cudaSuccess;
  if (launches.size() <= kMostTogether && std::all_of(launches.begin(), launches.end(), Few))
    return LinearDecode(launches, stream);
  for (const LinearLaunch& launch : launches) {
    const cudaError_t error = Few(launch) ? LinearDecode({&launch, 1}, stream) : LinearPlain(launch, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

size_t ExpertFfnScratch(int32_t experts, int32_t hidden, int32_t width, int32_t slots, int32_t rows) {
  return std::max(ExpertPlainScratch(width, slots, rows), ExpertDecodeScratch(experts, hidden, width, slots, rows));
}

cudaError_t ExpertFfn(const ExpertFfnLaunch& launch, cudaStream_t stream) {
  if (launch.rows == 0) return cudaSuccess;
  if (AllFloats(launch)) return ExpertPlain(launch, stream);
  if (AnyFloats(launch)) return cudaErrorNotSupported;
  return ExpertDecode(launch, stream);
}

}  // namespace thermoe::cuda
