// SPDX-License-Identifier: Apache-2.0
// Launches a kernel that may begin while the one before it runs. Every thread of it must call WaitForBefore (warp.cuh) before it
// reads or writes what others do, or meet with one that has, and one of every block before that ends; but words that say whose they are (warp.cuh) may
// come before.
// The kernels of a layer do not fit a multiprocessor's instruction cache together (32 KiB on an H100), so every one's code comes anew, from the 128 KiB that some
// multiprocessors share (80 ns a KiB for one warp) or from the L2 cache (160 to 180), and what is jumped to later: what a kernel goes through once costs by its length, and
// loops are unrolled only where loads or products must not wait for each other.
#pragma once

#include <cuda_runtime_api.h>

#include <utility>

#include "kernels/cuda/prefill.h"

namespace thermoe::cuda {

// For where another kernel serves if this cannot: its error is not the step's.
inline bool Succeeded(cudaError_t error) {
  if (error != cudaSuccess) (void)cudaGetLastError();
  return error == cudaSuccess;
}

// Of the current device; at least 1.
inline int DeviceAttribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  if (cudaGetDevice(&device) != cudaSuccess || cudaDeviceGetAttribute(&value, attribute, device) != cudaSuccess) return 1;
  return value > 1 ? value : 1;
}
inline int Multiprocessors() { return DeviceAttribute(cudaDevAttrMultiProcessorCount); }

// In clusters of so many blocks along x (1: none).
template <typename... Parameters, typename... Arguments>
cudaError_t LaunchEarlyInClusters(unsigned cluster, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                                  Arguments&&... arguments) {
  // All kernels of a step with the same division of the L1 cache: a multiprocessor must be idle to change it.
  cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = shared_bytes, config.stream = stream;
  cudaLaunchAttribute attributes[2] = {};
  config.attrs = attributes;
  if (HopperMultiprocessors() > 0) {  // elsewhere kernels come of PTX (compute_80), which has no waiting for the one before
    cudaLaunchAttribute& early = attributes[config.numAttrs++];
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 1) {
    cudaLaunchAttribute& clusters = attributes[config.numAttrs++];
    clusters.id = cudaLaunchAttributeClusterDimension;
    clusters.val.clusterDim.x = cluster, clusters.val.clusterDim.y = 1, clusters.val.clusterDim.z = 1;
  }
  return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

template <typename... Parameters, typename... Arguments>
cudaError_t LaunchEarly(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, Arguments&&... arguments) {
  return LaunchEarlyInClusters(1, kernel, grid, block, shared_bytes, stream, std::forward<Arguments>(arguments)...);
}

// With more shared memory than a kernel has without asking. False: another kernel must serve.
template <typename... Parameters, typename... Arguments>
bool LaunchWithSharedInClusters(unsigned cluster, void (*kernel)(Parameters...), dim3 grid, dim3 block, int shared_bytes, cudaStream_t stream, Arguments&&... arguments) {
  return Succeeded(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes)) &&
         Succeeded(LaunchEarlyInClusters(cluster, kernel, grid, block, static_cast<size_t>(shared_bytes), stream, std::forward<Arguments>(arguments)...));
}
template <typename... Parameters, typename... Arguments>
bool LaunchWithShared(void (*kernel)(Parameters...), dim3 grid, dim3 block, int shared_bytes, cudaStream_t stream, Arguments&&... arguments) {
  return LaunchWithSharedInClusters(1, kernel, grid, block, shared_bytes, stream, std::forward<Arguments>(arguments)...);
}

}  // namespace thermoe::cuda
