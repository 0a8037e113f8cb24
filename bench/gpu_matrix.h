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

// Launches as a graph on a stream of its own.
class ReplayedGraph {
 public:
  template <typename Launch>
  ReplayedGraph(int launches, const Launch& launch) : launches_(launches) {
    BENCH_CUDA(cudaStreamCreate(&stream_));
    for (int i = 0; i < launches; ++i) launch(i, stream_);
    BENCH_CUDA(cudaStreamSynchronize(stream_));
    cudaGraph_t graph;
    BENCH_CUDA(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal));
    for (int i = 0; i < launches; ++i) launch(i, stream_);
    BENCH_CUDA(cudaStreamEndCapture(stream_, &graph));
    BENCH_CUDA(cudaGraphInstantiate(&exec_, graph, 0));
    BENCH_CUDA(cudaGraphDestroy(graph));
    for (cudaEvent_t& event : events_) BENCH_CUDA(cudaEventCreate(&event));
  }
  ReplayedGraph(const ReplayedGraph&) = delete;
  ReplayedGraph& operator=(const ReplayedGraph&) = delete;
  ~ReplayedGraph() {
    for (cudaEvent_t event : events_) cudaEventDestroy(event);
    cudaGraphExecDestroy(exec_);
    cudaStreamDestroy(stream_);
  }

  // Median time of one launch, in us.
  double MedianUs() {
    constexpr int kReplays = 11;
    std::vector<double> times;
    for (int i = 0; i < kReplays + 2; ++i) {
      BENCH_CUDA(cudaEventRecord(events_[0], stream_));
      BENCH_CUDA(cudaGraphLaunch(exec_, stream_));
      BENCH_CUDA(cudaEventRecord(events_[1], stream_));
      BENCH_CUDA(cudaStreamSynchronize(stream_));
      float ms = 0;
      BENCH_CUDA(cudaEventElapsedTime(&ms, events_[0], events_[1]));
      if (i >= 2) times.push_back(static_cast<double>(ms) * 1e3 / launches_);
    }
    std::nth_element(times.begin(), times.begin() + kReplays / 2, times.end());
    return times[kReplays / 2];
  }

  // Queues so many replays and waits for those that were queued the time before.
  void Queue(int replays) {
    for (int i = 0; i < replays; ++i) BENCH_CUDA(cudaGraphLaunch(exec_, stream_));
    BENCH_CUDA(cudaEventRecord(events_[queued_ % 2], stream_));
    if (++queued_ > 1) BENCH_CUDA(cudaEventSynchronize(events_[queued_ % 2]));
  }
  void Finish() {
    BENCH_CUDA(cudaStreamSynchronize(stream_));
    queued_ = 0;
  }

 private:
  int launches_, queued_ = 0;
  cudaStream_t stream_;
  cudaGraphExec_t exec_;
  cudaEvent_t events_[2];
};

template <typename Launch>
double TimeGraph(int launches, const Launch& launch) {
  return ReplayedGraph(launches, launch).MedianUs();
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
// `distinct` experts from `first` on, `each` slots of each, all of them read with `planes`.
Routing EvenRouting(int32_t first, int32_t distinct, int32_t each, int32_t slots, int32_t experts, Planes planes);

struct DeviceRouting {
  DeviceArray<cuda::Job> jobs;
  DeviceArray<int32_t> job_count, order, expert;
  DeviceArray<float> weight;
  explicit DeviceRouting(const Routing& routing);
  void PutInto(cuda::ExpertFfnLaunch* launch) const;
};

// What every launch of experts wants beside weights and routing: scratch, poisoned; counters and passed values, zero.
struct ExpertRooms {
  DeviceArray<std::byte> scratch;
  DeviceArray<uint32_t> met{cuda::kExpertCounters};
  DeviceArray<uint64_t> passed{cuda::kPassedWords};

  // Of the launch's shape.
  explicit ExpertRooms(const cuda::ExpertFfnLaunch& l) : scratch(cuda::ExpertFfnScratch(l.hidden, l.width, l.slots, l.rows)) {
    scratch.Fill(0x7f), met.Fill(0), passed.Fill(0);
  }
  void PutInto(cuda::ExpertFfnLaunch* launch) const { launch->scratch = scratch.data(), launch->met = met.data(), launch->passed = passed.data(); }
};

// Number of failures.
int CheckAll(uint32_t seed);

}  // namespace thermoe::bench
