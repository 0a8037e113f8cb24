// SPDX-License-Identifier: Apache-2.0
// Operations as a graph that is replayed to be measured: what they take inside a step, launches shared as there.
#include "base/check.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/read_speed.h"

namespace thermoe::cuda {

class CudaOps::MeasuredGraph final : public kernels::MeasuredStep {
 public:
  MeasuredGraph(const CudaOps& ops, cudaGraphExec_t graph) : ops_(ops), graph_(graph) {
    for (cudaEvent_t* event : {&begin_, &end_}) ops_.Check(cudaEventCreate(event), "measuring");
  }
  ~MeasuredGraph() override {
    for (cudaEvent_t event : {begin_, end_}) cudaEventDestroy(event);
    if (graph_ != nullptr) cudaGraphExecDestroy(graph_);
  }
  MeasuredGraph(const MeasuredGraph&) = delete;
  MeasuredGraph& operator=(const MeasuredGraph&) = delete;

  double Run(int times) override {
    if (graph_ == nullptr || !ops_.health_.ok()) return 0;
    ops_.Check(cudaEventRecord(begin_, ops_.stream_), "measuring");
    for (int i = 0; i < times; ++i) ops_.Check(cudaGraphLaunch(graph_, ops_.stream_), "measuring");
    ops_.Check(cudaEventRecord(end_, ops_.stream_), "measuring");
    ops_.Synchronise();
    float ms = 0;
    ops_.Check(cudaEventElapsedTime(&ms, begin_, end_), "measuring");
    return 1e3 * static_cast<double>(ms) / times;
  }

 private:
  const CudaOps& ops_;
  cudaGraphExec_t graph_;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
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
  LaunchPending();
  Synchronise();
  return health_.ok() ? ReadBytesPerSecond(stream_) : 0;
}

}  // namespace thermoe::cuda
