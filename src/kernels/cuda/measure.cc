// SPDX-License-Identifier: Apache-2.0
// Operations as a graph that is replayed to be measured: what they take inside a step, launches shared as there. And how fast memory is read.
#include "base/check.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/read_speed.h"

namespace thermoe::cuda {

// What a stream takes between two points, by the device's clock.
class CudaOps::Stopwatch {
 public:
  explicit Stopwatch(const CudaOps& ops) : ops_(ops) {
    for (cudaEvent_t* event : {&begin_, &end_}) ops_.Check(cudaEventCreate(event), "measuring");
  }
  ~Stopwatch() {
    for (cudaEvent_t event : {begin_, end_}) cudaEventDestroy(event);
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

  // Microseconds of what `launch` puts onto the stream `times` times, of one; waits. 0 once the device has failed.
  template <typename Launch>
  double Us(int times, const Launch& launch) const {
    ops_.Check(cudaEventRecord(begin_, ops_.stream_), "measuring");
    for (int i = 0; i < times; ++i) ops_.Check(launch(), "measuring");
    ops_.Check(cudaEventRecord(end_, ops_.stream_), "measuring");
    ops_.Synchronise();
    float ms = 0;
    ops_.Check(cudaEventElapsedTime(&ms, begin_, end_), "measuring");
    return ops_.health_.ok() ? 1e3 * static_cast<double>(ms) / times : 0;
  }

 private:
  const CudaOps& ops_;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

class CudaOps::MeasuredGraph final : public kernels::MeasuredStep {
 public:
  MeasuredGraph(const CudaOps& ops, cudaGraphExec_t graph) : ops_(ops), graph_(graph), watch_(ops) {}
  ~MeasuredGraph() override {
    if (graph_ != nullptr) cudaGraphExecDestroy(graph_);
  }
  MeasuredGraph(const MeasuredGraph&) = delete;
  MeasuredGraph& operator=(const MeasuredGraph&) = delete;

  double Run(int times) override {
    if (graph_ == nullptr || !ops_.health_.ok()) return 0;
    return watch_.Us(times, [&] { return cudaGraphLaunch(graph_, ops_.stream_); });
  }

 private:
  const CudaOps& ops_;
  cudaGraphExec_t graph_;
  Stopwatch watch_;
};

std::unique_ptr<kernels::MeasuredStep> CudaOps::Measure(std::function<void()> record) const {
  LaunchPending();
  // Once as it comes, so that kernels are loaded and scratch is large enough; then as a graph.
  for (const bool capture : {false, true}) {
    in_step_ = true;
    record();
    in_step_ = false;
    if (capture) break;
    LaunchPending();
    Synchronise();
  }
  THERMOE_CHECK(!pending_.empty());
  return std::make_unique<MeasuredGraph>(*this, CapturePending("making a graph of what is measured"));
}

double CudaOps::MeasureReadSpeed() const {
  constexpr int kPasses = 5, kTimes = 4;
  LaunchPending();
  Synchronise();
  // Beyond the L2 cache by far, or what that holds of it counts; with less memory left nothing is measured.
  for (int64_t bytes = int64_t{1} << 30; bytes >= int64_t{512} << 20; bytes /= 2) {
    const Result<DeviceMemory> memory = DeviceMemory::Allocate(bytes, "measuring its memory");
    if (!memory.ok()) continue;
    Check(cudaMemsetAsync(memory->data(), 0, static_cast<size_t>(bytes), stream_), "measuring");
    const Stopwatch watch(*this);
    double best_us = 0;
    for (int pass = 0; pass < kPasses && health_.ok(); ++pass) {
      const double us = watch.Us(kTimes, [&] { return ReadAll(memory->data(), bytes, memory->as<uint32_t>(), stream_), cudaGetLastError(); });
      if (best_us == 0 || us < best_us) best_us = us;
    }
    return health_.ok() && best_us > 0 ? static_cast<double>(bytes) / (1e-6 * best_us) : 0;
  }
  return 0;
}

}  // namespace thermoe::cuda
