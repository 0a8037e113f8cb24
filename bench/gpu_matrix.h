// SPDX-License-Identifier: Apache-2.0
// What gpu_matrix.cu (timing) and gpu_matrix_check.cu (against double arithmetic) share.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "kernels/cuda/matrix_kernels.h"

#define BENCH_CUDA(call)                                                                              \
  do {                                                                                                \
    const cudaError_t error_ = (call);                                                                \
    if (error_ != cudaSuccess) {                                                                      \
      std::fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(error_)); \
      std::exit(1);                                                                                   \
    }                                                                                                 \
  } while (0)

namespace thermoe::bench {

template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count) : count_(count) {
    BENCH_CUDA(cudaMalloc(reinterpret_cast<void**>(&data_), count * sizeof(T) + 1));
  }
  explicit DeviceArray(const std::vector<T>& from) : DeviceArray(from.size()) {
    if (!from.empty()) BENCH_CUDA(cudaMemcpy(data_, from.data(), count_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  DeviceArray(DeviceArray&& other) noexcept : data_(other.data_), count_(other.count_) { other.data_ = nullptr; }
  DeviceArray& operator=(DeviceArray&&) = delete;
  ~DeviceArray() { cudaFree(data_); }

  T* data() const { return data_; }
  void Fill(int byte) { BENCH_CUDA(cudaMemset(data_, byte, count_ * sizeof(T))); }
  std::vector<T> Read() const {
    std::vector<T> out(count_);
    BENCH_CUDA(cudaMemcpy(out.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return out;
  }

 private:
  T* data_ = nullptr;
  size_t count_ = 0;
};

// Which experts the rows take: as Select writes it.
struct Routing {
  int32_t rows = 0, slots = 0, experts = 0;
  std::vector<int32_t> expert;  // [T, K]
  std::vector<float> weight;    // [T, K]
  std::vector<Planes> planes;   // [T, K]
  std::vector<cuda::Job> jobs;
  std::vector<int32_t> order;
};
// Distinct experts at random; the first full_slots slots of a row read both planes; some slots empty where asked.
Routing RandomRouting(std::mt19937* random, int32_t rows, int32_t slots, int32_t experts, int32_t full_slots,
                      bool some_empty);

struct DeviceRouting {
  DeviceArray<cuda::Job> jobs;
  DeviceArray<int32_t> job_count, order, expert;
  DeviceArray<float> weight;
  explicit DeviceRouting(const Routing& routing);
  void PutInto(cuda::ExpertFfnLaunch* launch) const;
};

// Number of failures.
int CheckAll(uint32_t seed);

}  // namespace thermoe::bench
