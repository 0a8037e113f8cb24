// SPDX-License-Identifier: Apache-2.0
// The experts of many rows: bound by the tensor cores. Activations to halves, where the norm before has not left them; gate, up and
// SwiGLU; down with the slots' weights; the sums of each token's slots, where the norm that follows does not add them.
#include "kernels/cuda/prefill_kernel.cuh"
#include "kernels/cuda/select.h"

namespace thermoe::cuda {
namespace {

// Scratch: inner values, what slots gave, the rows as halves; these are there before the selection, which has what it leaves alone behind it.
struct Parts {
  size_t slots, rows, all;
};
Parts PartsOf(int32_t hidden, int32_t width, int32_t slots, int32_t rows) {
  const auto k = static_cast<size_t>(rows) * static_cast<size_t>(slots);
  Parts parts;
  parts.slots = std::max(AlignedScratch(k * static_cast<size_t>(Padded(width)) * sizeof(__half)), HalfRowsBytes(rows, hidden));
  parts.rows = AlignedScratch(std::max(parts.slots + k * static_cast<size_t>(hidden) * sizeof(__half), static_cast<size_t>(SelectScratch(rows))));
  parts.all = parts.rows + HalfRowsBytes(rows, hidden);
  return parts;
}

// out += the halves of each token's slots, in slot order. A thread: eight columns.
__global__ void AddHalfSlots(ExpertFfnLaunch args, const __half* slots) {
  WaitForBefore();
  LetNextStart();
  const int32_t pieces = args.hidden / 8;
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= int64_t{args.rows} * pieces) return;
  const int64_t t = i / pieces, c = (i - t * pieces) * 8;
  auto* out = reinterpret_cast<float4*>(args.out + t * args.hidden + c);
  float4 low = out[0], high = out[1];
  for (int32_t k = 0; k < args.slots && args.expert[t * args.slots + k] >= 0; ++k) {
    const uint4 words = *reinterpret_cast<const uint4*>(slots + (t * args.slots + k) * args.hidden + c);
    const float2 a = __half22float2(*reinterpret_cast<const __half2*>(&words.x)),
                 b = __half22float2(*reinterpret_cast<const __half2*>(&words.y));
    const float2 d = __half22float2(*reinterpret_cast<const __half2*>(&words.z)),
                 e = __half22float2(*reinterpret_cast<const __half2*>(&words.w));
    low = {low.x + a.x, low.y + a.y, low.z + b.x, low.w + b.y};
    high = {high.x + d.x, high.y + d.y, high.z + e.x, high.w + e.y};
  }
  out[0] = low;
  out[1] = high;
}

}  // namespace

size_t ExpertPrefillScratch(int32_t hidden, int32_t width, int32_t slots, int32_t rows) {
  return PartsOf(hidden, width, slots, rows).all;
}

HalfRows HalfRowsOf(const ExpertFfnLaunch& launch) {
  const Parts parts = PartsOf(launch.hidden, launch.width, launch.slots, launch.rows);
  return HalfRowsAt(static_cast<std::byte*>(launch.scratch) + parts.rows, launch.rows, launch.hidden);
}

cudaError_t ExpertPrefill(const ExpertFfnLaunch& launch, HalfSlots* left, cudaStream_t stream) {
  const Parts parts = PartsOf(launch.hidden, launch.width, launch.slots, launch.rows);
  auto* inner = static_cast<__half*>(launch.scratch);
  auto* slots = reinterpret_cast<__half*>(static_cast<std::byte*>(launch.scratch) + parts.slots);
  const HalfRows rows = HalfRowsOf(launch);
  cudaError_t error = launch.prefilled ? cudaSuccess : RowsToHalves(launch.x, launch.rows, launch.hidden, rows, stream);
  if (error != cudaSuccess) return error;
  PrefillArgs args;
  args.first = launch.gate;
  args.second = launch.up;
  args.jobs = launch.jobs;
  args.job_count = launch.job_count;
  args.job_capacity = 2 * std::min(launch.experts, launch.rows * launch.slots);
  args.order = launch.order;
  args.weight = launch.weight;
  args.slots = launch.slots;
  args.rows = launch.rows;
  args.x = static_cast<const __half*>(rows.halves);
  args.unscale = rows.unscale;
  args.k_tiles = Padded(launch.hidden) / kTileCols;
  args.out_rows = launch.width;
  args.half_out = inner;
  args.half_stride = Padded(launch.width);
  args.taken = rows.taken;
  error = StartPrefill<Epilogue::kSwiGlu>(launch.gate_packing, args, HopperMultiprocessors(), stream);
  if (error != cudaSuccess) return error;
  args.first = launch.down;
  args.second = nullptr;
  args.x = inner;
  args.unscale = nullptr;
  args.k_tiles = Padded(launch.width) / kTileCols;
  args.out_rows = launch.hidden;
  args.half_out = slots;
  args.half_stride = launch.hidden;
  args.taken = rows.taken + 1;
  error = StartPrefill<Epilogue::kSlots>(launch.down_packing, args, HopperMultiprocessors(), stream);
  if (error != cudaSuccess) return error;
  if (left != nullptr) {
    *left = {slots, launch.expert, launch.slots};
    return cudaSuccess;
  }
  constexpr int kThreads = 256;
  const auto blocks = static_cast<unsigned>((int64_t{launch.rows} * (launch.hidden / 8) + kThreads - 1) / kThreads);
  return LaunchEarly(AddHalfSlots, dim3(blocks), dim3(kThreads), 0, stream, launch, static_cast<const __half*>(slots));
}

}  // namespace thermoe::cuda
