// SPDX-License-Identifier: Apache-2.0
// Runs every operation that a model's forward pass launches over a grid of sizes, on its own weights, and times it.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "control/cost/cost_model.h"
#include "kernels/ops.h"
#include "model/config.h"
#include "model/weights.h"
#include "runtime/expert_store.h"
#include "runtime/kv_cache.h"
#include "runtime/threads.h"
#include "thermoe/status.h"

namespace thermoe {

// A loaded model; its parts must outlive the profiler.
struct ProfileTarget {
  const ModelConfig* config = nullptr;
  const ModelWeights* weights = nullptr;
  const ExpertStore* experts = nullptr;
  std::function<void(std::span<float> logits)> sample;  // chooses a token; empty: sampling is not measured
};
ModelShape ShapeOf(const ProfileTarget& target);

struct ProfilerOptions {
  int threads = 0;
  std::string backend, isa, device;  // as EngineOptions
  bool quick = false;        // a coarse grid and fewer runs
  // Operations are timed as they run inside a step, where neighbours may share a kernel: always on a device with memory of its own.
  bool in_steps = false;
  // Joules that a counter has counted, or nothing while it cannot be read; empty: energy is not measured. With in_steps called from a
  // thread of its own.
  std::function<std::optional<double>()> energy_j;
};

struct PlannedPoint {
  OperationShape shape;
  bool held_out = false;
  bool energy = true;  // measured too, where there is a counter
};
// The grid, small and large operations mixed, held-out points among them; always the same for the same model. `in_steps`: as ProfilerOptions.
std::vector<PlannedPoint> PlanProfile(const ModelShape& model, bool quick, bool in_steps = false);

// kCancelled, with how to go on.
Status ProfileStopped();

class Profiler {
 public:
  static Result<std::unique_ptr<Profiler>> Create(const ProfileTarget& target, const ProfilerOptions& options);

  // "cpu/avx512, 2 threads", as Engine::Describe.
  std::string Describe() const;
  // The name of the device that computes, where it has memory of its own, and the telemetry source that shows it.
  std::string device_name() const { return ops_->device_name(); }
  std::string sensors() const { return ops_->sensors(); }
  const ModelShape& model() const { return model_; }
  // As ProfilerOptions::energy_j.
  void SetEnergyCounter(std::function<std::optional<double>()> energy_j) { options_.energy_j = std::move(energy_j); }

  // Measures what the plan has and `known` has not. `on_point` gets each new point, some seconds' worth of them at a
  // time; an error of its ends the run. `go_on` is told the share done, at every visit of a point; false stops with
  // kCancelled.
  Status Run(const std::vector<CostPoint>& known, const std::function<Status(const CostPoint& point)>& on_point,
             const std::function<bool(double done_frac)>& go_on);

 private:
  using Call = std::function<void(size_t turn)>;

  Profiler(const ProfileTarget& target, const ProfilerOptions& options) : target_(target), options_(options) {}
  Status MakeBuffers();
  // Microseconds of one call: the fastest of some batches. Successive calls use the weights of successive layers, as a
  // step does.
  static double Visit(const Call& call);
  CostPoint PointOf(const PlannedPoint& planned, std::vector<double> visits_us);
  // Of one of `call`'s calls, idle power included: over a window of many changes of the counter. Nothing without a
  // counter that moves.
  std::optional<double> EnergyOf(const std::function<void()>& call, double latency_us) const;
  Call CallOf(const OperationShape& shape);
  Call RowCall(const OperationShape& shape);
  Call LinearCall(const OperationShape& shape);
  Call KvCall(const OperationShape& shape);
  Call SelectCall(const OperationShape& shape);
  Call ExpertCall(const OperationShape& shape);
  // profiler_backward.cc
  Call BackwardCall(const OperationShape& shape);
  Call BackwardRowCall(const OperationShape& shape);
  Call LinearBackwardCall(const OperationShape& shape);
  Call LowRankCall(const OperationShape& shape);
  Call SlotWeightCall(const OperationShape& shape);
  Call AdamCall(int64_t parameters);
  Call AdapterCall(const OperationShape& shape);
  Call ExpertBackwardCall(const OperationShape& shape, std::vector<int32_t> layers);
  void PlaceRows(const OperationShape& shape);
  void PlaceSlots(const OperationShape& shape);
  void PublishSlots() const;

  // profiler_steps.cc: with in_steps. Operations of a step that depend on nothing but its rows are timed together, in runs of a layer that
  // share kernels (Part), up to one operation and up to the next: so all of a step sum up to what the step takes.
  enum class Part : uint8_t { kBeforeAttention, kAfterAttention, kExperts, kShared, kLogits, kAlone };
  struct Timed {
    double us = 0, spread_frac = 0;
    std::optional<double> energy_j;
  };
  struct PartTime {
    Timed all;
    bool energy_tried = false;
    double known_us = 0;                       // of operations that other parts have the time of
    std::map<std::string, double> share_frac;  // of what is left, by TextOf(shape)
  };
  Status MakeStepBuffers(int64_t rows);  // profiler_buffers.cc
  Status FillKeys(int64_t rows);
  Part PartOf(const OperationShape& shape) const;
  size_t LayerOf(const OperationShape& shape) const;  // the first that has such an operation
  std::vector<OperationShape> MembersOf(Part part, size_t layer, int64_t rows) const;
  Call PartCall(Part part, size_t layer, int64_t rows, int last);
  Timed TimeCall(const Call& call, const kernels::OpCost& cost, bool energy);
  const PartTime& TimePart(Part part, size_t layer, int64_t rows, bool energy);
  double MicrosecondsInStep(const OperationShape& shape);
  std::optional<Timed> TimeInStep(const OperationShape& shape, bool energy);
  Call FinishCall(int64_t rows);
  Timed TimeAttention(const OperationShape& shape, bool energy);
  Timed TimeExperts(const OperationShape& shape, bool energy);
  Timed TimeAroundStep(const OperationShape& shape, bool energy);
  std::optional<double> StepEnergyOf(kernels::MeasuredStep* step, double once_us) const;
  Status RunInSteps(const std::vector<const PlannedPoint*>& missing, size_t all, const std::function<Status(const CostPoint& point)>& on_point,
                    const std::function<bool(double done_frac)>& go_on);

  ProfileTarget target_;
  ProfilerOptions options_;
  ModelShape model_;
  std::unique_ptr<ThreadPool> threads_;
  std::unique_ptr<kernels::Ops> ops_;
  std::unique_ptr<KvCache> cache_;
  int32_t kv_layers_ = 0;
  std::vector<int32_t> kv_blocks_;  // [blocks] all of the cache
  // Buffers of the largest operation of the plan.
  std::vector<float> in_, out_, third_;  // [largest floats]
  std::vector<float> ones_;              // [widest row]
  std::vector<float> cosines_, sines_;   // [rows, rope_dim / 2]
  std::vector<float> inverse_frequency_;  // [rope_dim / 2]
  std::vector<int32_t> ids_;             // [rows]
  std::vector<KvRow> kv_rows_;           // set by PlaceRows()
  std::vector<kernels::RowKind> kinds_;  // [rows]
  // Set by PlaceSlots() and SelectCall().
  kernels::Selection selection_;
  std::vector<LayerRecord> records_;
  std::vector<int32_t> slot_expert_, order_;
  std::vector<float> slot_weight_, scores_;
  std::vector<Planes> slot_planes_;
  std::vector<kernels::Selection::Job> jobs_;
  std::vector<float> inner_, slot_out_;
  std::vector<float> fourth_, weight_gradient_, low_rank_, adam_;  // set by the calls of profiler_backward.cc
  std::vector<int32_t> targets_;
  // Set by MakeStepBuffers(): what a step's stages work on.
  std::vector<float> x_, h_, q_, k_, v_, attended_, gate_logits_, shared_gate_, shared_up_, shared_scale_;  // [rows, ...]
  std::vector<float> logit_rows_, logits_;  // [kLogitRows, D], [kLogitRows, V]
  std::vector<int32_t> asked_;              // [kLogitRows]
  std::vector<kernels::LogitSummary> summaries_;
  std::map<std::tuple<Part, size_t, int64_t>, PartTime> parts_;
};

}  // namespace thermoe
