// SPDX-License-Identifier: Apache-2.0
// The decode kernel, and starting it with as deep a ring as shared memory allows.
#pragma once

#include "kernels/cuda/decode_consumer.cuh"
#include "kernels/cuda/decode_streamer.cuh"

namespace thermoe::cuda {

// Which chunk has each slot.
template <int NT>
__device__ void MapSlots(const DecodeMemory<NT>& memory, const DecodeArgs& args, int thread) {
  for (int32_t c = thread / 32; c < memory.shared->chunks; c += kConsumers / 32) {
    const Chunk chunk = memory.chunk[c];
    for (int32_t i = thread % 32; i < chunk.count; i += 32)
      memory.chunk_of[args.ffn.order[chunk.first + i]] = static_cast<uint16_t>(c);
  }
}

// The sum of the pieces that were written. part: [pieces] each `stride` floats after the other.
__device__ inline float SumOfPieces(uint32_t written, const float* part, int64_t stride) {
  float sum = 0;
  while (written != 0) {
    sum += __ldcg(part + (__ffs(static_cast<int>(written)) - 1) * stride);
    written &= written - 1;
  }
  return sum;
}

// out += weight * down of each token's slots, in slot order. A warp: 32 columns of a token.
template <int NT>
__device__ void CombineSlots(const DecodeMemory<NT>& memory, const DecodeArgs& args, int32_t warp, int32_t warps,
                             int lane) {
  const ExpertFfnLaunch& ffn = args.ffn;
  const Columns& columns = args.columns[1];
  const int32_t blocks = CeilDiv(ffn.hidden, 32);
  for (int32_t task = warp; task < ffn.rows * blocks; task += warps) {
    const int32_t t = task / blocks, d0 = (task - t * blocks) * 32, d = min(d0 + lane, ffn.hidden - 1);
    float* out = ffn.out + int64_t{t} * ffn.hidden + d;
    float sum = *out;
    for (int32_t k = 0; k < ffn.slots; ++k) {
      const int32_t slot = t * ffn.slots + k;
      if (ffn.expert[slot] < 0) break;
      const uint32_t written = WrittenPieces<NT, true>(memory, columns, memory.chunk_of[slot], d0 / (2 * kGroupRows),
                                                       columns.row_units, lane);
      sum += ffn.weight[slot] *
             SumOfPieces(written, args.partial + int64_t{slot} * columns.pieces * ffn.hidden + d, ffn.hidden);
    }
    if (d0 + lane < ffn.hidden) *out = sum;
  }
}
// out = bias + the pieces. A warp: 32 rows of a matrix for one activation.
template <int NT>
__device__ void AddPieces(const DecodeMemory<NT>& memory, const DecodeArgs& args, int32_t warp, int32_t warps,
                          int lane) {
  const Columns& columns = args.columns[0];
  for (int32_t c = 0; c < memory.shared->chunks; ++c) {
    const Chunk chunk = memory.chunk[c];
    const int m = chunk.matrix;
    const int32_t rows = args.linear[m].rows, blocks = CeilDiv(rows, 32);
    for (int32_t task = warp; task < chunk.count * blocks; task += warps) {
      const int32_t n = task / blocks, r0 = (task - n * blocks) * 32, r = min(r0 + lane, rows - 1);
      const uint32_t written =
          WrittenPieces<NT, false>(memory, columns, c, r0 / (2 * kGroupRows), RowUnits(rows), lane);
      const int64_t t = chunk.first + n;
      const float sum = SumOfPieces(written, args.partial + args.partial_at[m] + t * columns.pieces * rows + r, rows);
      if (r0 + lane < rows) args.linear_out[m][t * rows + r] = sum + (args.bias[m] != nullptr ? args.bias[m][r] : 0.0f);
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
    GiveRegisters<64>();
    if (thread >= kConsumers + 32) return;
    if constexpr (kExperts) {
      ListChunks(memory, args, job_count, lane);
    } else if (lane == 0) {
      ListLinears(memory, args);
    }
    __syncwarp();
    Streamer<NT, kExperts> streamer(memory, args, lane);
#pragma unroll 1
    for (int product = 0; product < (kExperts ? 2 : 1); ++product) streamer.Product(product);
  } else {
    TakeRegisters<112>();
    Consumer<NT, kExperts> consumer(memory, args, thread);
#pragma unroll 1
    for (int product = 0; product < (kExperts ? 2 : 1); ++product) {
      consumer.Product(product);
      if (!kExperts && args.columns[0].pieces == 1) return;
      if (kExperts && product == 0) MapSlots(memory, args, thread);
      GridSync(args.sync, static_cast<uint32_t>(product) + 1, thread);
    }
    const auto warp = static_cast<int32_t>(blockIdx.x * (kConsumers / 32) + threadIdx.x / 32);
    const auto warps = static_cast<int32_t>(gridDim.x * (kConsumers / 32));
    if constexpr (kExperts) {
      CombineSlots(memory, args, warp, warps, lane);
    } else {
      AddPieces(memory, args, warp, warps, lane);
    }
    LeaveSync(args.sync, thread);
  }
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
