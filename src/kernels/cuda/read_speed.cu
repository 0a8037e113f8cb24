// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/read_speed.h"

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/device.h"
#include "kernels/cuda/launch_early.cuh"

namespace thermoe::cuda {
namespace {

constexpr int kThreads = 512, kBlocksOfEach = 8;  // of a multiprocessor's

__global__ void __launch_bounds__(kThreads) ReadAllKernel(const uint4* from, int64_t count, uint32_t* out) {
  uint32_t sum = 0;
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
#pragma unroll 8
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    const uint4 v = __ldcs(from + i);
    sum += v.x ^ v.y ^ v.z ^ v.w;
  }
  if (sum != 0) *out = sum;  // the memory is zero, which the compiler does not know
}

class Event {
 public:
  Event() { made_ = cudaEventCreate(&event_) == cudaSuccess; }
  ~Event() {
    if (made_) cudaEventDestroy(event_);
  }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  operator cudaEvent_t() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
  bool made_ = false;
};

}  // namespace

double ReadBytesPerSecond(cudaStream_t stream) {
  constexpr int kPasses = 5, kTimes = 4;
  // Beyond the L2 cache by far, or what that holds of it counts.
  for (int64_t bytes = int64_t{1} << 30; bytes >= int64_t{512} << 20; bytes /= 2) {
    const Result<DeviceMemory> memory = DeviceMemory::Allocate(bytes, "measuring its memory");
    if (!memory.ok()) continue;
    std::byte* data = memory->data();
    const Event begin, end;
    bool good = cudaMemsetAsync(data, 0, static_cast<size_t>(bytes), stream) == cudaSuccess;
    double best_s = 0;
    for (int pass = 0; pass < kPasses && good; ++pass) {
      good = cudaEventRecord(begin, stream) == cudaSuccess;
      for (int i = 0; i < kTimes; ++i) {
        ReadAllKernel<<<static_cast<unsigned>(kBlocksOfEach * Multiprocessors()), kThreads, 0, stream>>>(reinterpret_cast<const uint4*>(data), bytes / 16,
                                                                                                        reinterpret_cast<uint32_t*>(data));
      }
      good = cudaEventRecord(end, stream) == cudaSuccess && cudaGetLastError() == cudaSuccess && good;
      float ms = 0;
      good = good && cudaEventSynchronize(end) == cudaSuccess && cudaEventElapsedTime(&ms, begin, end) == cudaSuccess && ms > 0;
      const double seconds = 1e-3 * static_cast<double>(ms) / kTimes;
      if (good && (best_s == 0 || seconds < best_s)) best_s = seconds;
    }
    cudaGetLastError();  // said by 0
    return good ? static_cast<double>(bytes) / best_s : 0;
  }
  return 0;
}

}  // namespace thermoe::cuda
