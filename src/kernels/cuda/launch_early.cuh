// SPDX-License-Identifier: Apache-2.0
// Launches a kernel that may begin while the one before it runs. Every thread of it must call WaitForBefore (warp.cuh) before it
// reads or writes what others do, and before it ends.
#pragma once

#include <cuda_runtime_api.h>

#include <utility>

namespace thermoe::cuda {

template <typename... Parameters, typename... Arguments>
cudaError_t LaunchEarly(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, Arguments&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = shared_bytes, config.stream = stream;
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &early, config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

}  // namespace thermoe::cuda
