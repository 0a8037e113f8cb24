// SPDX-License-Identifier: Apache-2.0
// Tensor maps, by which Hopper copies boxes of arrays.
#pragma once

#include <cudaTypedefs.h>

#include "kernels/cuda/launch_early.cuh"

namespace thermoe::cuda {

// The driver's function that makes them, or null. Asked for once.
inline PFN_cuTensorMapEncodeTiled_v12000 TensorMapMaker() {
  static const auto maker = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
#if CUDART_VERSION >= 12050
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
#else
    const cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result);
#endif
    if (!Succeeded(error)) found = nullptr;
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(found);
  }();
  return maker;
}

// Of dimensions from the innermost on; strides of all but that, in bytes. Boxes lie in shared memory in rows of 128 bytes with their 16-byte pieces exchanged
// (kSwizzleAlign); beyond the array they are zero, and nothing is written. False: the driver cannot make one.
template <unsigned kDimensions>
bool MakeTensorMap(CUtensorMapDataType type, const void* from, const cuuint64_t (&sizes)[kDimensions], const cuuint64_t (&strides)[kDimensions - 1],
                   const cuuint32_t (&box)[kDimensions], CUtensorMap* map) {
  const auto maker = TensorMapMaker();
  cuuint32_t steps[kDimensions];
  for (cuuint32_t& step : steps) step = 1;
  return maker != nullptr && maker(map, type, kDimensions, const_cast<void*>(from), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                   CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace thermoe::cuda
