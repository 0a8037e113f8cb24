// SPDX-License-Identifier: Apache-2.0
// Runs every operation that a model's forward pass launches over a grid of sizes, on its own weights, and times it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
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
  std::string backend, isa;  // as EngineOptions
  bool quick = false;        // a coarse grid and fewer runs
  // Joules that a counter has counted, or nothing while it cannot be read; empty: energy is not measured.
  std::function<std::optional<double>()> energy_j;
};

struct PlannedPoint {
  OperationShape shape;
  bool held_out = false;
};
// The grid, small and large operations mixed, held-out points among them; always the same for the same model.
std::vector<PlannedPoint> PlanProfile(const ModelShape& model, bool quick);

class Profiler {
 public:
  static Result<std::unique_ptr<Profiler>> Create(const ProfileTarget& target, const ProfilerOptions& options);

  // "cpu/avx512, 2 threads", as Engine::Describe.
  std::string Describe() const;
  const ModelShape& model() const { return model_; }

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
  std::vector<int32_t> ids_;             // [rows]
  std::vector<KvRow> kv_rows_;           // set by PlaceRows()
  std::vector<kernels::RowKind> kinds_;  // [rows]
  // Set by PlaceSlots() and SelectCall().
  kernels::Selection selection_;
  LayerRecord record_;
  std::vector<int32_t> slot_expert_, order_;
  std::vector<float> slot_weight_, scores_;
  std::vector<Planes> slot_planes_;
  std::vector<kernels::Selection::Job> jobs_;
  std::vector<float> inner_, slot_out_;
  std::vector<float> fourth_, weight_gradient_, low_rank_, adam_;  // set by the calls of profiler_backward.cc
  std::vector<int32_t> targets_;
};

}  // namespace thermoe
