// SPDX-License-Identifier: Apache-2.0
// What a model and an engine take of a device's memory: what hold.cc allocates, and whether it fits. Plain C++.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/residency.h"
#include "model/formats.h"
#include "runtime/kv_layout.h"
#include "thermoe/status.h"

namespace thermoe::cuda {

inline constexpr int64_t kReserveBytes = int64_t{512} << 20;  // CUDA's own, graphs, kernels and what is small
inline constexpr int64_t kPlanAlign = 256;                    // of pieces of one allocation

constexpr int64_t AlignedBytes(int64_t bytes) { return (bytes + kPlanAlign - 1) / kPlanAlign * kPlanAlign; }

// Words of a sequence's block table on the device.
constexpr int32_t TableStride(int32_t context) { return context / kKvBlock + 2; }

// What operations want beside their operands, as matrix_kernels.h, attention.h, select.h, stream_rows.h and unpacked.h have it.
struct OperationRoom {
  size_t (*linear)(int32_t rows, int32_t in) = nullptr;
  size_t (*experts)(int32_t hidden, int32_t width, int32_t slots, int32_t rows) = nullptr;
  int64_t (*attention)(int64_t singles, int32_t heads, int32_t head_dim) = nullptr;
  int64_t (*select)(int64_t rows) = nullptr;
  int32_t half_rows = 0;  // rows that norms and attention leave as halves, too
  size_t (*unpacked)(int32_t rows) = nullptr;
};

// A model other than it is.
struct ModelChange {
  std::optional<int32_t> layers;      // the first so many
  std::optional<DType> at_most;       // matrices in this type where theirs is larger
  bool nested = false;                // experts as with --experts nested
};

// Bytes of each allocation.
struct MemoryPlan {
  int64_t weights = 0;    // matrices that products are taken with, packed
  int64_t vectors = 0;    // norms and biases
  int64_t embedding = 0;  // as the file has it
  int64_t tables = 0;     // of experts
  int64_t kv = 0;
  int64_t step = 0;     // buffers that are adopted
  int64_t scratch = 0;  // of operations
  int64_t halves = 0;   // rows as halves
  int64_t unpacked = 0;  // weights as halves
  int64_t rows = 0;     // places of a step's rows
  int64_t total() const;  // and the reserve; the largest int64_t where it is more
};

MemoryPlan PlanMemory(const kernels::PlannedModel& model, const kernels::StepSizes& sizes, const OperationRoom& room, const ModelChange& change = {});

struct DeviceRoom {
  std::string name;
  int64_t free_bytes = 0, total_bytes = 0;
};

// As kernels::Residency::CheckFits.
Status CheckFits(const DeviceRoom& device, const kernels::PlannedModel& model, const kernels::EngineSize& asked,
                 const std::function<kernels::StepSizes(const kernels::EngineSize&)>& sizes, const OperationRoom& room);

// What is free and what is needed, for an error's first half.
std::string NeededText(const DeviceRoom& device, const MemoryPlan& plan, int32_t sequences, int32_t context);

// Each matrix that products are taken with, in the order of the device's memory, experts last: visit(matrix, part).
enum class MatrixPart : uint8_t {
  kDense,
  kRouter,  // of which expert, or how much of the shared one: in floats throughout
  kExpert,
};
template <typename Visitor>
void ForEachMatrix(const ModelWeights& weights, std::span<const std::span<const FfnWeights>> experts, size_t layers, const Visitor& visit) {
  for (size_t l = 0; l < layers; ++l) {
    const LayerWeights& layer = weights.layers[l];
    const auto dense = [&](const WeightMatrix& m, MatrixPart part = MatrixPart::kDense) {
      if (!m.empty()) visit(m, part);
    };
    for (const WeightMatrix* m : {&layer.q, &layer.k, &layer.v, &layer.o}) dense(*m);
    dense(layer.gate, MatrixPart::kRouter);
    for (const WeightMatrix* m : {&layer.shared.gate, &layer.shared.up, &layer.shared.down}) dense(*m);
    dense(layer.shared_gate, MatrixPart::kRouter);
  }
  visit(weights.output, MatrixPart::kDense);
  for (size_t l = 0; l < layers; ++l) {
    for (const FfnWeights& expert : experts[l]) {
      for (const WeightMatrix* m : {&expert.gate, &expert.up, &expert.down}) visit(*m, MatrixPart::kExpert);
    }
  }
}

// Each norm and bias that there is.
template <typename Visitor>
void ForEachVector(const ModelWeights& weights, size_t layers, const Visitor& visit) {
  for (size_t l = 0; l < layers; ++l) {
    const LayerWeights& layer = weights.layers[l];
    for (const std::vector<float>* v : {&layer.attention_norm, &layer.q_bias, &layer.k_bias, &layer.v_bias, &layer.q_norm, &layer.k_norm,
                                        &layer.expert_norm}) {
      if (!v->empty()) visit(*v);
    }
  }
  visit(weights.output_norm);
}

}  // namespace thermoe::cuda
