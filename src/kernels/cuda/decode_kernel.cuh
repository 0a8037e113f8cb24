// SPDX-License-Identifier: Apache-2.0
// The decode kernel, and starting it with as deep a ring as shared memory allows.
#pragma once

#include "kernels/cuda/decode_consumer.cuh"
#include "kernels/cuda/decode_streamer.cuh"

namespace thermoe::cuda {

// out += weight * down of each token's slots, in slot order; of each the pieces in theirs.
__device__ inline void CombineSlots(const DecodeArgs& args, int64_t thread, int64_t threads) {
  const ExpertFfnLaunch& ffn = args.ffn;
  const int32_t pieces = args.columns[1].pieces;
  for (int64_t i = thread; i < int64_t{ffn.rows} * ffn.hidden; i += threads) {
    const int64_t t = i / ffn.hidden, d = i - t * ffn.hidden;
    float sum = ffn.out[i];
    for (int32_t k = 0; k < ffn.slots; ++k) {
      const int64_t slot = t * ffn.slots + k;
      if (ffn.expert[slot] < 0) break;
      float y = 0;
#pragma unroll 8
      for (int32_t p = 0; p < pieces; ++p) y += __ldcg(args.partial + (slot * pieces + p) * ffn.hidden + d);
      sum += ffn.weight[slot] * y;
    }
    ffn.out[i] = sum;
  }
}
__device__ inline void AddPieces(const DecodeArgs& args, int64_t thread, int64_t threads) {
  const int32_t pieces = args.columns[0].pieces;
  for (int m = 0; m < args.linears; ++m) {
    const int32_t rows = args.linear[m].rows;
    for (int64_t i = thread; i < int64_t{args.rows} * rows; i += threads) {
      const int64_t t = i / rows, r = i - t * rows;
      float sum = args.bias[m] != nullptr ? args.bias[m][r] : 0.0f;
#pragma unroll 8
      for (int32_t p = 0; p < pieces; ++p)
        sum += __ldcg(args.partial + args.partial_at[m] + (t * pieces + p) * rows + r);
      args.linear_out[m][i] = sum;
    }
  }
}

template <int NT, bool kExperts>
__global__ void __launch_bounds__(kDecodeThreads, 1) DecodeKernel(const __grid_constant__ DecodeArgs args) {
  const DecodeMemory<NT> memory(decode_shared, args);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  if (thread == 0) {
    for (int i = 0; i < args.slots_of_ring; ++i) {
      BarrierInit(&memory.shared->full[i], kFillArrivals);
      BarrierInit(&memory.shared->empty[i], 2 * kGroupTiles);
    }
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async;" ::: "memory");  // the copies see the barriers
#endif
  }
  int job_count = 0;
  if constexpr (kExperts) {
    job_count = *args.ffn.job_count;
    for (uint32_t j = threadIdx.x; j < args.job_capacity; j += kDecodeThreads) memory.jobs[j] = args.ffn.jobs[j];
  }
  __syncthreads();
  if (thread >= kConsumers) {
    if constexpr (kExperts) {
      ListChunks(memory, args, job_count, lane);
    } else if (lane == 0) {
      ListLinears(memory, args);
    }
    __syncwarp();
    Streamer<NT, kExperts> streamer(memory, args, lane);
#pragma unroll 1
    for (int product = 0; product < (kExperts ? 2 : 1); ++product) streamer.Product(product);
    return;
  }
  Consumer<NT, kExperts> consumer(memory, args, thread);
  constexpr int kProducts = kExperts ? 2 : 1;
#pragma unroll 1
  for (int product = 0; product < kProducts; ++product) {
    consumer.Product(product);
    if (!kExperts && args.columns[0].pieces == 1) return;
    GridSync(args.sync, static_cast<uint32_t>(product) + 1, thread);
  }
  const int64_t global_thread = int64_t{blockIdx.x} * kConsumers + thread, threads = int64_t{gridDim.x} * kConsumers;
  if constexpr (kExperts) {
    CombineSlots(args, global_thread, threads);
  } else {
    AddPieces(args, global_thread, threads);
  }
  LeaveSync(args.sync, thread);
}

struct DeviceLimits {
  int multiprocessors = 0;
  int shared_bytes = 0;  // most of a block
};
// Of the current device, asked once a thread.
inline cudaError_t LimitsOfDevice(DeviceLimits* out) {
  static thread_local int known = -1;
  static thread_local DeviceLimits limits;
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  if (device != known) {
    cudaError_t error = cudaDeviceGetAttribute(&limits.multiprocessors, cudaDevAttrMultiProcessorCount, device);
    if (error == cudaSuccess) {
      error = cudaDeviceGetAttribute(&limits.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    }
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
  args.slice_tiles = std::max(SliceTiles(args.columns[0]), SliceTiles(args.columns[1]));
  const size_t fixed = DecodeFixedBytes(NT, args);
  const int64_t room = limits.shared_bytes - static_cast<int64_t>(fixed);
  args.slots_of_ring = static_cast<int32_t>(std::min<int64_t>(kMostSlots, room / args.slot_bytes));
  if (args.slots_of_ring < 2) return cudaErrorInvalidConfiguration;
  const size_t shared = fixed + static_cast<size_t>(args.slots_of_ring) * static_cast<size_t>(args.slot_bytes);
  const auto kernel = DecodeKernel<NT, kExperts>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
  if (error != cudaSuccess) return error;
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

}  // namespace thermoe::cuda
