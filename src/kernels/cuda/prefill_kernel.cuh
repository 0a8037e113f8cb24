// SPDX-License-Identifier: Apache-2.0
// Packed weights times many rows, on Hopper: weights go from memory to registers in fragment order, become halves there
// and are multiplied by 128 rows of activations in shared memory.
//
// One block on each multiprocessor takes items in turn: 128 activations of one job by 256 weight rows. A warpgroup
// brings activations and weights into a ring of stages (prefill_load.cuh), two multiply (prefill_multiply.cuh): 64 rows
// each of two groups of 128 (gate and up: the same of both, so that a thread has both of a value; else neighbours).
// They meet nowhere but at the ring, so that one's end of an item runs beside the other's products. Bytes from the L2
// cache of an item: 256 rows of weights and 128 of activations; FLOPs: 2 * 128 * 256 a column.
#pragma once

#include "kernels/cuda/launch_early.cuh"
#include "kernels/cuda/prefill_load.cuh"
#include "kernels/cuda/prefill_multiply.cuh"

namespace thermoe::cuda {

template <Packing kPacking, Epilogue kEpilogue>
__global__ void __launch_bounds__(kPrefillThreads, 1) PrefillKernel(const __grid_constant__ PrefillArgs args) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ std::byte prefill_shared[];
  auto* shared = Held(reinterpret_cast<PrefillShared<kPacking>*>(SwizzleAligned(prefill_shared)));
  if (threadIdx.x == 0) InitBarriers(shared);
  WaitForBefore();
  LetNextStart();
  __syncthreads();
  if (threadIdx.x < kWarpgroup) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kLoadRegisters));
    PrefillLoad<kPacking, kEpilogue>(args, shared).Run();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kMultiplyRegisters));
    PrefillMultiply<kPacking, kEpilogue>(args, shared).Run();
  }
#endif
}

template <Packing kPacking, Epilogue kEpilogue>
cudaError_t StartPrefill(const PrefillArgs& args, int multiprocessors, cudaStream_t stream) {
  const auto kernel = PrefillKernel<kPacking, kEpilogue>;
  const size_t shared = PrefillSharedBytes<kPacking>(args.job_capacity);
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
  if (error != cudaSuccess) return error;
  return LaunchEarly(kernel, dim3(static_cast<unsigned>(multiprocessors)), dim3(kPrefillThreads), shared, stream, args);
}

template <Epilogue kEpilogue>
cudaError_t StartPrefill(Packing packing, const PrefillArgs& args, int multiprocessors, cudaStream_t stream) {
  switch (packing) {
    case Packing::kPlanes8: return StartPrefill<Packing::kPlanes8, kEpilogue>(args, multiprocessors, stream);
    case Packing::kNibble: return StartPrefill<Packing::kNibble, kEpilogue>(args, multiprocessors, stream);
    case Packing::kNibbleMin: return StartPrefill<Packing::kNibbleMin, kEpilogue>(args, multiprocessors, stream);
    case Packing::kByteMin: return StartPrefill<Packing::kByteMin, kEpilogue>(args, multiprocessors, stream);
    case Packing::kByte16: return StartPrefill<Packing::kByte16, kEpilogue>(args, multiprocessors, stream);
    case Packing::kMxfp4: return StartPrefill<Packing::kMxfp4, kEpilogue>(args, multiprocessors, stream);
    case Packing::kHalf: return StartPrefill<Packing::kHalf, kEpilogue>(args, multiprocessors, stream);
    case Packing::kF32:
    case Packing::kHiPlane:
    case Packing::kBothPlanes: break;
  }
  return cudaErrorNotSupported;
}

}  // namespace thermoe::cuda
