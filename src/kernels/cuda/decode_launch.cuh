// SPDX-License-Identifier: Apache-2.0
// Starting the decode kernel with as many rows of activations at once, and as deep a ring, as suit the launch.
#pragma once

#include "kernels/cuda/decode_stream.cuh"

namespace thermoe::cuda {

struct DeviceLimits {
  int multiprocessors = 0;
  int shared_bytes = 0;  // most of a block
};
// Of the current device, asked once.
inline cudaError_t LimitsOfDevice(DeviceLimits* out) {
  static thread_local int known = -1;
  static thread_local DeviceLimits limits;
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  if (device != known) {
    cudaError_t error = cudaDeviceGetAttribute(&limits.multiprocessors, cudaDevAttrMultiProcessorCount, device);
    if (error == cudaSuccess)
      error = cudaDeviceGetAttribute(&limits.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (error != cudaSuccess) return error;
    known = device;
  }
  *out = limits;
  return cudaSuccess;
}

template <int NT, bool kExperts>
cudaError_t StartDecode(DecodeArgs args, int64_t units, cudaStream_t stream) {
  DeviceLimits limits;
  if (const cudaError_t error = LimitsOfDevice(&limits); error != cudaSuccess) return error;
  const size_t fixed = DecodeFixedBytes(NT, args.chunk_capacity, args.job_capacity);
  const int64_t room = limits.shared_bytes - static_cast<int64_t>(fixed);
  args.slots_of_ring = static_cast<int32_t>(std::min<int64_t>(kMostSlots, room / args.slot_bytes));
  if (args.slots_of_ring < 2) return cudaErrorInvalidConfiguration;
  const size_t shared = fixed + static_cast<size_t>(args.slots_of_ring) * static_cast<size_t>(args.slot_bytes);
  const auto kernel = DecodeKernel<NT, kExperts>;
  if (const cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
      error != cudaSuccess) {
    return error;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(std::min<int64_t>(limits.multiprocessors, units)));
  config.blockDim = dim3(kDecodeThreads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  cudaLaunchAttribute together = {};  // blocks wait for each other
  together.id = cudaLaunchAttributeCooperative;
  together.val.cooperative = 1;
  config.attrs = &together;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, args);
}

template <bool kExperts>
cudaError_t StartDecode(const DecodeArgs& args, int groups, int64_t units, cudaStream_t stream) {
  switch (groups) {
    case 1: return StartDecode<1, kExperts>(args, units, stream);
    case 2: return StartDecode<2, kExperts>(args, units, stream);
    case 4: return StartDecode<4, kExperts>(args, units, stream);
    default: return StartDecode<8, kExperts>(args, units, stream);
  }
}

// Bytes of one ring slot for products of these shapes.
inline int32_t SlotBytes(Packing packing, const Columns& columns) {
  return std::min(FillTiles(packing), columns.slice_tiles) * TileBytes(packing);
}

}  // namespace thermoe::cuda
