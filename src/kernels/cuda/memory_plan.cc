// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/memory_plan.h"

#include <algorithm>

#include "base/errors.h"
#include "base/saturating.h"
#include "kernels/cuda/weight_layout.h"

namespace thermoe::cuda {
namespace {

using kernels::EngineSize;

constexpr int64_t kHalfBytes = 2;  // of keys and values, and of rows as halves

DType StoredType(const WeightMatrix& m, MatrixPart part, bool nested, std::optional<DType> at_most) {
  const DType type = nested && part == MatrixPart::kExpert ? DType::kNested8 : m.type;
  const bool smaller = at_most && part != MatrixPart::kRouter && m.cols % TraitsOf(*at_most).block_elements == 0 &&
                       PackedBytes(*at_most, m.rows, m.cols) < PackedBytes(type, m.rows, m.cols);
  return smaller ? *at_most : type;
}

int64_t EmbeddingBytes(const WeightMatrix& table, std::optional<DType> at_most) {
  const int64_t bytes = table.rows * table.row_bytes();
  if (!at_most || table.cols % TraitsOf(*at_most).block_elements != 0) return bytes;
  return std::min(bytes, table.rows * RowBytes(*at_most, table.cols));
}

// Experts that --experts nested would make smaller.
bool NestingHelps(const kernels::PlannedModel& model) {
  if (model.nested) return false;
  bool helps = true;
  ForEachMatrix(model.weights, model.experts, model.experts.size(), [&](const WeightMatrix& m, MatrixPart part) {
    if (part == MatrixPart::kExpert) helps = helps && TraitsOf(m.type).bits > 8 && m.cols % kQuantBlock == 0;
  });
  return helps;
}

int64_t MiB(int64_t bytes) { return bytes >> 20; }

}  // namespace

int64_t MemoryPlan::total() const { return SaturatingSum(weights, vectors, embedding, tables, kv, step, scratch, halves, unpacked, rows, kReserveBytes); }

MemoryPlan PlanMemory(const kernels::PlannedModel& model, const kernels::StepSizes& sizes, const OperationRoom& room, const ModelChange& change) {
  const ModelConfig& config = model.config;
  const auto layers = static_cast<size_t>(change.layers.value_or(static_cast<int32_t>(model.experts.size())));
  MemoryPlan plan;
  ForEachMatrix(model.weights, model.experts, layers, [&](const WeightMatrix& m, MatrixPart part) {
    const DType type = StoredType(m, part, model.nested || change.nested, change.at_most);
    plan.weights += AlignedBytes(PackedBytes(type, m.rows, m.cols));
    plan.scratch = std::max(plan.scratch, static_cast<int64_t>(room.linear(sizes.max_rows, static_cast<int32_t>(m.cols))));
  });
  ForEachVector(model.weights, layers, [&](const std::vector<float>& v) { plan.vectors += AlignedBytes(static_cast<int64_t>(v.size() * sizeof(float))); });
  plan.embedding = EmbeddingBytes(model.weights.embedding, change.at_most);
  plan.tables = static_cast<int64_t>(layers * 3 * sizeof(DeviceMatrix)) * config.experts;
  plan.kv = SaturatingProduct(sizes.kv_positions, static_cast<int64_t>(layers), 2, config.kv_heads, config.head_dim, kHalfBytes);
  plan.step = sizes.step_bytes;
  for (const int64_t bytes : {static_cast<int64_t>(room.experts(config.hidden, config.expert_width, config.slots, sizes.max_rows)),
                              room.attention(std::min(sizes.max_rows, sizes.max_sequences), config.heads, config.head_dim),
                              room.select(sizes.max_rows)}) {
    plan.scratch = std::max(plan.scratch, bytes);
  }
  plan.halves = kHalfBytes * std::min(sizes.max_rows, room.half_rows) * std::max(config.hidden, config.heads * config.head_dim);
  plan.unpacked = static_cast<int64_t>(room.unpacked(sizes.max_rows));
  plan.rows = static_cast<int64_t>(sizeof(int32_t)) * (2 * int64_t{sizes.max_rows} + int64_t{std::max(1, sizes.max_sequences)} * TableStride(sizes.context));
  return plan;
}

std::string NeededText(const DeviceRoom& device, const MemoryPlan& plan, int32_t sequences, int32_t context) {
  return fmt::format("{} has {} of {} MiB free but {} are needed (weights {}, keys and values of {} {} of {} tokens {}, steps {}, in reserve {})",
                     device.name, MiB(device.free_bytes), MiB(device.total_bytes), MiB(plan.total()),
                     MiB(plan.weights + plan.vectors + plan.embedding + plan.tables), sequences, sequences == 1 ? "sequence" : "sequences", context,
                     MiB(plan.kv), MiB(plan.step + plan.scratch + plan.halves + plan.unpacked + plan.rows), MiB(kReserveBytes));
}

Status CheckFits(const DeviceRoom& device, const kernels::PlannedModel& model, const EngineSize& asked,
                 const std::function<kernels::StepSizes(const EngineSize&)>& sizes, const OperationRoom& room) {
  const auto fits = [&](const EngineSize& size, const ModelChange& change = {}) {
    return PlanMemory(model, sizes(size), room, change).total() <= device.free_bytes;
  };
  if (fits(asked)) return Status::Ok();
  const std::string needed = NeededText(device, PlanMemory(model, sizes(asked), room), asked.sequences, asked.context);
  if (const std::string text = kernels::WhatFits(asked, [&](const EngineSize& size) { return fits(size); }); !text.empty()) {
    return ResourceExhausted("{}; {}", needed, text);
  }
  // The weights are too many.
  const EngineSize least = kernels::SmallestSize(asked);
  const auto all = static_cast<int32_t>(model.experts.size());
  const int32_t layers = kernels::LargestThatFits(all, [&](int32_t n) { return fits(least, {.layers = n, .at_most = {}}); });
  const std::string weights = layers > 0 ? fmt::format("the weights of {} of its {} layers would fit", layers, all)
                                         : fmt::format("not one of its {} layers would fit", all);
  // What would do, the least change first.
  const auto with = [&](const ModelChange& change) -> std::optional<std::string> {
    if (fits(asked, change)) return "";
    if (fits(least, change)) return ", with fewer sequences or a shorter context";
    return {};
  };
  if (NestingHelps(model)) {
    if (const auto more = with({.layers = {}, .at_most = {}, .nested = true})) {
      return ResourceExhausted("{}; {}, all of them with experts of 8 bits (--experts nested){}", needed, weights, *more);
    }
  }
  for (const DType type : {DType::kQ8_0, DType::kQ4_0}) {
    if (const auto more = with({.layers = {}, .at_most = type})) {
      const bool unnests = model.nested && type == DType::kQ4_0;  // nested experts are made of 8 bits
      return ResourceExhausted("{}; {}, all of them from a file of {}{}{}; or use --backend cpu (or THERMOE_BACKEND=cpu)", needed, weights, TraitsOf(type).name,
                               unnests ? " and --experts native" : "", *more);
    }
  }
  return ResourceExhausted("{}; {}, and not all of them in 4 bits: take a smaller model or another GPU (--device), or use --backend cpu (or THERMOE_BACKEND=cpu)", needed,
                           weights);
}

}  // namespace thermoe::cuda
