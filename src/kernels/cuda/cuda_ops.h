// SPDX-License-Identifier: Apache-2.0
// The CUDA backend. Operands are named by host addresses: those of adopted buffers and of weights stand for the device's copies
// (AddressMap); others are copied to the device and back for the one call, which is how tests run single operations.
//
// Operations are recorded as they are called and launched in a run (launch.cc), where neighbours that belong together share a kernel.
// A step of decode rows is captured as a graph the first time and replayed from then on: replayed calls do nothing.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "kernels/cuda/address_map.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/memory_plan.h"
#include "kernels/cuda/step_graphs.h"
#include "kernels/ops.h"
#include "runtime/threads.h"

namespace thermoe::cuda {

class CudaOps final : public kernels::Ops {
 public:
  // kUnsupported where there is no device. `threads` read weights; must outlive the result. isa: "" (the best), "mma" or "wgmma"; device:
  // as ChooseDevice.
  static Result<std::unique_ptr<Ops>> Create(ThreadPool* threads, std::string_view isa, std::string_view device);
  ~CudaOps() override;

  std::string_view name() const override { return name_; }
  bool on_device() const override { return true; }
  int32_t kv_element_bytes() const override { return sizeof(__half); }
  kernels::LoadFacts load_facts() const override { return load_; }
  double MeasureReadSpeed() const override;  // measure.cc
  std::string device_name() const override { return device_.name; }
  std::string sensors() const override { return "nvml:" + device_.uuid; }
  Status CheckFits(const kernels::PlannedModel& model, const kernels::EngineSize& asked,
                   const std::function<kernels::StepSizes(const kernels::EngineSize&)>& sizes) const override;
  Status Hold(const kernels::ResidentModel& model) override;
  void Adopt(std::span<std::byte> buffer) override;
  void Publish(std::span<const std::byte> bytes) const override;
  void Fetch(std::span<std::byte> bytes) const override;
  void CopyKv(float* to, const float* from, int64_t floats) const override;
  void SetRows(std::span<const KvRow> rows) const override;
  void SetSteering(const Steering* steering, std::span<LayerRecord> records) const override;
  void BeginStep(uint64_t key, bool ahead) const override;
  bool overlaps_steps() const override { return true; }
  void EndStep() const override;
  void FinishRecords() const override;
  Status Health() const override { return health_; }
  std::unique_ptr<kernels::MeasuredStep> Measure(std::function<void()> record) const override;  // measure.cc

  void Embed(const WeightMatrix& table, std::span<const int32_t> ids, MutRows out) const override;
  void RmsNorm(const kernels::RmsNormArgs& args) const override;
  void Linear(const kernels::LinearArgs& args) const override;
  void Rope(const kernels::RopeArgs& args) const override;
  void StoreKv(const kernels::StoreKvArgs& args) const override;
  void Attention(const kernels::AttentionArgs& args) const override;
  void Select(const kernels::SelectArgs& args) const override;
  void ExpertFfn(const kernels::ExpertFfnArgs& args) const override;
  void SwiGlu(const kernels::SwiGluArgs& args) const override;
  void Add(const kernels::AddArgs& args) const override;
  void Clamp(MutRows x, float limit) const override;
  void Gather(const kernels::GatherArgs& args) const override;
  void Angles(const kernels::AnglesArgs& args) const override;
  bool Summarise(const kernels::SummariseArgs& args) const override;
  void FinishSummaries() const override;  // summaries.cc
  bool SummariesAreThere() const override;
  bool DrawTokens(const kernels::DrawArgs& args) const override;  // draws.cc

  // Test-time training runs on the cpu backend: the engine refuses it here, and these abort.
  void AddRow(const kernels::AddRowArgs& args) const override;
  void Gain(const kernels::GainArgs& args) const override;
  void LowRank(const kernels::LowRankArgs& args) const override;
  void ScaleSlots(const kernels::ScaleSlotsArgs& args) const override;
  void RowChange(const kernels::RowChangeArgs& args) const override;
  void ExpertInner(const kernels::ExpertInnerArgs& args) const override;
  void LinearBackward(const kernels::LinearBackwardArgs& args) const override;
  void RmsNormBackward(const kernels::RmsNormBackwardArgs& args) const override;
  void GainBackward(const kernels::GainBackwardArgs& args) const override;
  void SumRows(const kernels::SumRowsArgs& args) const override;
  void LowRankBackward(const kernels::LowRankBackwardArgs& args) const override;
  void ClampBackward(const kernels::ClampBackwardArgs& args) const override;
  void AttentionBackward(const kernels::AttentionBackwardArgs& args) const override;
  void ExpertFfnBackward(const kernels::ExpertFfnBackwardArgs& args) const override;
  void SelectBackward(const kernels::SelectBackwardArgs& args) const override;
  void ScaleSlotsBackward(const kernels::ScaleSlotsBackwardArgs& args) const override;
  void SwiGluBackward(const kernels::SwiGluBackwardArgs& args) const override;
  void AddBackward(const kernels::AddBackwardArgs& args) const override;
  void LossBackward(const kernels::LossBackwardArgs& args) const override;
  void Adam(std::span<const kernels::AdamArgs> tensors) const override;

 private:
  explicit CudaOps(const DeviceFacts& device, ThreadPool* threads);
  Status Start();  // stream and small buffers

  class Call;  // the operands of one operation
  struct ForeignKv;
  class Stopwatch;
  class MeasuredGraph;
  bool Holds(const KvLayer& cache) const;

  void Check(cudaError_t error, const char* what) const;
  void Check(const Status& status) const;
  void LaunchPending() const;
  cudaGraphExec_t CapturePending(const char* what) const;  // instead of launching it; null on an error
  void DropGraphs() const;
  void Synchronise() const;

  // hold.cc
  Result<DeviceRoom> Room() const;
  Status UploadMatrices(const kernels::ResidentModel& model, const MemoryPlan& plan);
  Status UploadVectors(const kernels::ResidentModel& model, const MemoryPlan& plan);
  void EnsureScratch(int64_t bytes) const;
  // A matrix on the device; packed and uploaded for this call where it is not resident.
  DeviceMatrix MatrixOf(const WeightMatrix& matrix, Call* call) const;
  // Tables of one layer's experts in device memory.
  struct ExpertTables {
    DeviceMemory tables;  // gate [E], up [E], down [E]
    const DeviceMatrix *gate = nullptr, *up = nullptr, *down = nullptr;
    DeviceMatrix gate_base, up_base, down_base;  // of expert 0
    int64_t stride = 0;                          // from one expert to the next; 0: not the same for all
    Packing gate_packing = Packing::kF32, up_packing = Packing::kF32, down_packing = Packing::kF32;
  };
  Result<ExpertTables> MakeTables(std::span<const FfnWeights> experts, Call* call) const;

  // What Select is told and tells of one layer; `index` is its place in the arrays.
  struct SelectSlot {
    LayerRecord* record = nullptr;
    LayerSteering steering;  // as written to the device
    bool written = false;
  };
  void WriteRules(size_t index, const LayerSteering* steering, int32_t experts, int32_t slots, bool nested) const;
  void EnsureSelectSlots(size_t layers, int32_t experts) const;
  void ReadRecord(const SelectCounts& counts, const int32_t* expert_slots, LayerRecord* record) const;
  ScatterLaunch::Piece Records() const;  // from where gates leave them to the host
  // What a step has of pinned memory, and what its results are to the host: two, as a step may begin while the one before it is under way.
  struct Side {
    DeviceMemory copied;     // its inputs, where there was time to copy them
    PinnedMemory inputs;     // of a graph, there when it is launched: what is staged, as far as it can be
    PinnedMemory records;    // counts and expert slots
    PinnedMemory summaries;  // [summary_rows_]
    bool under_way = false;  // what lies here may still be read or written
    bool records_under_way = false, records_here = false;  // with the summaries
    std::span<LayerRecord> record;                 // where records go
    std::span<kernels::LogitSummary> summarised;   // where summaries go
    PinnedMemory draws, recent;                    // [draw_room_] DrawRow, then DrawnToken; [recent_room_]
    size_t drawing = 0;                            // draws under way
    std::span<kernels::DrawnToken> drawn;          // where they go, by rows
    uint32_t summaries_asked = 0, draws_asked = 0;  // what told_ says when they have come
  };
  void EnsureSummaries(int64_t rows) const;
  bool EnsureDraws(int64_t draws, int64_t recent) const;
  void ReadDraws(Side* side) const;
  // In counters_.
  uint32_t* draws_done() const;
  uint32_t* summaries_launched() const;
  int32_t* largest_logits() const;  // [kMostAhead]
  uint32_t* inputs_taken() const;
  uint32_t* draws_told() const { return told_.as<uint32_t>() + 1; }

  DeviceFacts device_;
  ThreadPool* threads_;
  std::string name_;
  bool wgmma_ = false;
  cudaStream_t stream_ = nullptr, copies_ = nullptr;
  mutable Status health_ = Status::Ok();

  mutable AddressMap addresses_;               // adopted buffers and vectors of weights
  std::vector<DeviceMemory> owned_;            // what they are
  std::unordered_map<const std::byte*, DeviceMatrix> matrices_;          // by host address
  std::unordered_map<const std::byte*, std::byte*> tables_of_rows_;      // embedding tables as files have them
  std::unordered_map<const FfnWeights*, ExpertTables> experts_;          // by layer
  const float* kv_host_ = nullptr;
  int64_t kv_floats_ = 0;
  DeviceMemory kv_;
  kernels::LoadFacts load_;
  mutable DeviceMemory scratch_;
  mutable int64_t scratch_bytes_ = 0;
  DeviceMemory counters_;  // of blocks (kCounters)
  DeviceMemory halves_;  // LaunchRoom
  int64_t half_count_ = 0;
  DeviceMemory unpacked_;  // LinearLaunch.unpacked, if steps have rows enough

  // Inputs of a step, through pinned memory that a copy reads while the host goes on.
  PinnedMemory staging_;
  mutable int64_t staging_used_ = 0;
  mutable ScatterLaunch staged_;  // small inputs that are not under way yet
  void Stage(void* to, const void* from, int64_t bytes) const;
  void FlushStaged() const;
  void Reuse() const;  // what inputs lie in: nothing that is under way reads it any more
  mutable bool staging_read_ = false;     // something under way reads what was staged
  mutable Side sides_[2];
  mutable size_t side_ = 0;        // of the newest step
  mutable bool overlapped_ = false;  // the step before it is not finished, and is on the other
  Side& newest() const { return sides_[side_]; }
  Side& oldest() const { return sides_[overlapped_ ? 1 - side_ : side_]; }
  mutable uint32_t inputs_launched_ = 0;  // graphs
  void PackInputs() const;
  void LaunchGraph(cudaGraphExec_t graph) const;

  mutable DeviceMemory rows_memory_;
  mutable RowTable rows_;
  mutable int64_t rows_capacity_ = 0, tables_capacity_ = 0;
  mutable int32_t table_stride_ = 0, planned_length_ = 0;
  mutable const KvRow* rows_set_ = nullptr;
  mutable int64_t rows_count_ = 0, single_rows_ = 0;
  mutable std::vector<int32_t> row_words_;
  int32_t context_ = 0, slots_ = 0;
  bool nested_ = false;

  mutable std::vector<SelectSlot> select_slots_;
  mutable DeviceMemory select_memory_;
  mutable SelectRules* rules_ = nullptr;        // [layers]
  mutable float* biases_ = nullptr;             // [layers, E]
  mutable uint8_t* caps_ = nullptr;             // [layers, E]
  mutable SelectCounts* counts_ = nullptr;      // [layers]
  mutable int32_t* expert_slots_ = nullptr;     // [layers, E]
  mutable int32_t* job_counts_ = nullptr;       // [layers]
  mutable int32_t select_experts_ = 0;
  mutable std::span<LayerRecord> records_of_step_;  // of the newest SetSteering
  mutable size_t selected_ = 0;                 // the slot of the newest Select

  mutable DeviceMemory summary_memory_;
  mutable int64_t summary_rows_ = 0;
  PinnedMemory told_;  // how many summaries have come, and how many draws
  mutable uint32_t summaries_asked_ = 0;
  mutable DeviceMemory seen_;            // [recent_room_] SeenLogit
  mutable int64_t draw_room_ = 0, recent_room_ = 0;
  mutable uint32_t draws_asked_ = 0;
  mutable bool staged_since_ = false;  // inputs are on their way that were launched after the newest summaries were asked for

  mutable std::vector<Node> pending_;
  mutable uint64_t key_ = 0;
  mutable bool in_step_ = false, replaying_ = false;
  struct DropGraph {
    void operator()(cudaGraphExec_t graph) const { cudaGraphExecDestroy(graph); }  // one that still runs is freed once it is done
  };
  static constexpr size_t kMostGraphs = 1024;  // all numbers of rows at three or four lengths
  mutable StepGraphs<cudaGraphExec_t, DropGraph> graphs_{kMostGraphs};  // null: seen once
};

}  // namespace thermoe::cuda
