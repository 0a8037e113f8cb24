// SPDX-License-Identifier: Apache-2.0
// What gpu_matrix.cu, gpu_gate.cu (timing) and gpu_matrix_check.cu (against double arithmetic) share.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
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
  size_t size() const { return count_; }
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

// Median time of one of the launches of a graph, in us.
inline constexpr int kReplays = 11;
template <typename Launch>
double TimeGraph(int launches, Launch launch) {
  cudaStream_t stream;
  BENCH_CUDA(cudaStreamCreate(&stream));
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  for (int i = 0; i < launches; ++i) launch(i, stream);
  BENCH_CUDA(cudaStreamSynchronize(stream));
  BENCH_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  for (int i = 0; i < launches; ++i) launch(i, stream);
  BENCH_CUDA(cudaStreamEndCapture(stream, &graph));
  BENCH_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t begin, end;
  BENCH_CUDA(cudaEventCreate(&begin));
  BENCH_CUDA(cudaEventCreate(&end));
  std::vector<double> times;
  for (int i = 0; i < kReplays + 2; ++i) {
    BENCH_CUDA(cudaEventRecord(begin, stream));
    BENCH_CUDA(cudaGraphLaunch(exec, stream));
    BENCH_CUDA(cudaEventRecord(end, stream));
    BENCH_CUDA(cudaStreamSynchronize(stream));
    float ms = 0;
    BENCH_CUDA(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 2) times.push_back(static_cast<double>(ms) * 1e3 / launches);
  }
  std::nth_element(times.begin(), times.begin() + kReplays / 2, times.end());
  BENCH_CUDA(cudaEventDestroy(begin));
  BENCH_CUDA(cudaEventDestroy(end));
  BENCH_CUDA(cudaGraphExecDestroy(exec));
  BENCH_CUDA(cudaGraphDestroy(graph));
  BENCH_CUDA(cudaStreamDestroy(stream));
  return times[kReplays / 2];
}

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
