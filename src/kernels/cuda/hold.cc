// SPDX-License-Identifier: Apache-2.0
// What lives on the device from the start: weights, keys and values, tables of experts, steering.
#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/errors.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/stream_rows.h"
#include "kernels/cuda/unpacked.h"
#include "kernels/cuda/upload.h"

namespace thermoe::cuda {
namespace {

constexpr int64_t kSummaryRows = 32;  // of logits at once; more make room when they come

constexpr WeightMatrix FfnWeights::* kRoles[] = {&FfnWeights::gate, &FfnWeights::up, &FfnWeights::down};
OperationRoom RoomOf(bool wgmma) {
  return {LinearScratch, ExpertFfnScratch, AttentionScratch, SelectScratch, kHalfRows, wgmma ? UnpackedRoom : [](int32_t) -> size_t { return 0; }};
}

// Of what kernels have room for.
Status CheckShape(const ModelConfig& config) {
  if (config.slots > kMaxDeviceSlots) {
    return Unsupported("{} slots a token; the cuda backend runs up to {}: use the cpu backend", config.slots, kMaxDeviceSlots);
  }
  if (config.head_dim > kMostHeadDim) {
    return Unsupported("heads of {}; the cuda backend runs up to {}: use the cpu backend", config.head_dim, kMostHeadDim);
  }
  return Status::Ok();
}

}  // namespace

Result<DeviceRoom> CudaOps::Room() const {
  size_t free = 0, total = 0;
  THERMOE_RETURN_IF_ERROR(CudaStatus(cudaMemGetInfo(&free, &total), "asking for its free memory"));
  return DeviceRoom{device_.name, static_cast<int64_t>(free), static_cast<int64_t>(total)};
}

Status CudaOps::CheckFits(const kernels::PlannedModel& model, const kernels::EngineSize& asked,
                          const std::function<kernels::StepSizes(const kernels::EngineSize&)>& sizes) const {
  THERMOE_RETURN_IF_ERROR(CheckShape(model.config));
  const Result<DeviceRoom> device = Room();
  return device.ok() ? cuda::CheckFits(*device, model, asked, sizes, RoomOf(wgmma_)) : device.status();
}

Status CudaOps::Hold(const kernels::ResidentModel& model) {
  const ModelConfig& config = model.config;
  bool interleaved = false;
  ForEachMatrix(model.weights, model.experts, model.experts.size(),
                [&](const WeightMatrix& m, MatrixPart) { interleaved = interleaved || m.interleaved(); });
  if (interleaved) {
    return InvalidArgument("the model was loaded in the layout of the cpu backend; load it with LoadOptions::interleave off for cuda");
  }
  THERMOE_RETURN_IF_ERROR(CheckShape(config));
  const MemoryPlan plan = PlanMemory({config, model.weights, model.experts},
                                     {model.kv.blocks * kKvBlock, model.step_bytes, model.max_rows, model.max_sequences, model.context}, RoomOf(wgmma_));
  const Result<DeviceRoom> device = Room();
  if (!device.ok()) return device.status();
  if (plan.total() > device->free_bytes) {  // CheckFits has more to say
    return ResourceExhausted("{}; take a smaller or more quantised model, or use --backend cpu (or THERMOE_BACKEND=cpu)",
                             NeededText(*device, plan, model.max_sequences, model.context));
  }
  context_ = model.context;
  rows_capacity_ = tables_capacity_ = 0;
  table_stride_ = TableStride(context_);
  THERMOE_RETURN_IF_ERROR(UploadMatrices(model, plan));
  THERMOE_RETURN_IF_ERROR(UploadVectors(model, plan));
  Result<DeviceMemory> kv = DeviceMemory::Allocate(std::max<int64_t>(plan.kv, 1), "keys and values");
  if (!kv.ok()) return kv.status();
  kv_ = std::move(kv).value();
  kv_host_ = model.kv.data, kv_floats_ = model.kv.floats();
  THERMOE_RETURN_IF_ERROR(CudaStatus(cudaMemset(kv_.data(), 0, static_cast<size_t>(plan.kv)), "clearing memory"));
  EnsureScratch(plan.scratch);
  Result<DeviceMemory> halves = DeviceMemory::Allocate(plan.halves, "rows as halves");
  if (!halves.ok()) return halves.status();
  halves_ = std::move(halves).value();
  half_count_ = plan.halves / static_cast<int64_t>(sizeof(__half));
  unpacked_ = {};
  if (plan.unpacked > 0) {
    Result<DeviceMemory> unpacked = DeviceMemory::Allocate(plan.unpacked, "weights as halves");
    if (!unpacked.ok()) return unpacked.status();
    unpacked_ = std::move(unpacked).value();
  }
  for (const std::span<const FfnWeights> layer : model.experts) {
    Result<ExpertTables> tables = MakeTables(layer, nullptr);
    if (!tables.ok()) return tables.status();
    experts_[layer.data()] = std::move(tables).value();
  }
  // The rows of the largest step, so that addresses stay.
  rows_capacity_ = model.max_rows, tables_capacity_ = std::max(1, model.max_sequences);
  Result<DeviceMemory> rows = DeviceMemory::Allocate(plan.rows, "the rows of a step");
  if (!rows.ok()) return rows.status();
  rows_memory_ = std::move(rows).value();
  EnsureSummaries(kSummaryRows);
  EnsureSelectSlots(static_cast<size_t>(config.layers), config.experts);
  slots_ = config.slots;
  nested_ = !model.experts.empty() && model.experts[0][0].gate.type == DType::kNested8;
  return health_;
}

// Each place once, tied matrices share one; then the embedding, whose rows are read as the file has them.
Status CudaOps::UploadMatrices(const kernels::ResidentModel& model, const MemoryPlan& plan) {
  const WeightMatrix& table = model.weights.embedding;
  Result<DeviceMemory> weights = DeviceMemory::Allocate(std::max<int64_t>(plan.weights, 1), "the weights");
  if (!weights.ok()) return weights.status();
  Result<DeviceMemory> embedding = DeviceMemory::Allocate(std::max<int64_t>(plan.embedding, 1), "the embedding");
  if (!embedding.ok()) return embedding.status();
  std::vector<UploadItem> items;
  std::byte* at = weights->data();
  ForEachMatrix(model.weights, model.experts, model.experts.size(), [&](const WeightMatrix& m, MatrixPart) {
    if (matrices_.contains(m.data)) return;
    items.push_back({&m, at});
    matrices_[m.data] = View(m.type, m.rows, m.cols, at);
    at += AlignedBytes(PackedBytes(m.type, m.rows, m.cols));
  });
  THERMOE_CHECK(at - weights->data() <= plan.weights);
  items.push_back({&table, embedding->data(), /*packed=*/false});
  tables_of_rows_[table.data] = embedding->data();
  owned_.push_back(std::move(weights).value());
  owned_.push_back(std::move(embedding).value());
  Result<kernels::LoadFacts> load = Upload(items, model.files, threads_);
  if (!load.ok()) return load.status();
  load_ = *load;
  return health_;
}

Status CudaOps::UploadVectors(const kernels::ResidentModel& model, const MemoryPlan& plan) {
  Result<DeviceMemory> memory = DeviceMemory::Allocate(std::max<int64_t>(plan.vectors, 1), "norms and biases");
  if (!memory.ok()) return memory.status();
  int64_t at = 0;
  ForEachVector(model.weights, model.experts.size(), [&](const std::vector<float>& v) {
    const int64_t size = Bytes<float>(static_cast<int64_t>(v.size()));
    Check(cudaMemcpy(memory->data() + at, v.data(), static_cast<size_t>(size), cudaMemcpyDefault), "loading norms and biases");
    addresses_.Add(v.data(), static_cast<size_t>(size), memory->data() + at);
    at += AlignedBytes(size);
  });
  owned_.push_back(std::move(memory).value());
  return health_;
}

void CudaOps::EnsureScratch(int64_t bytes) const {
  if (bytes <= scratch_bytes_) return;
  LaunchPending();
  Synchronise();
  Result<DeviceMemory> memory = DeviceMemory::Allocate(bytes, "scratch of operations");
  if (!memory.ok()) return Check(memory.status());
  scratch_ = std::move(memory).value();
  scratch_bytes_ = bytes;
  DropGraphs();  // they have the old address
}

Result<CudaOps::ExpertTables> CudaOps::MakeTables(std::span<const FfnWeights> experts, Call* call) const {
  const size_t count = experts.size();
  std::vector<DeviceMatrix> views(3 * count);
  for (size_t e = 0; e < count; ++e) {
    for (size_t r = 0; r < 3; ++r) {
      views[r * count + e] = MatrixOf(experts[e].*kRoles[r], call);
      if (views[r * count + e].packing != views[r * count].packing) {
        return Unsupported("experts of one layer have weights of different types; the cuda backend wants one type for each matrix: convert the "
                           "model again, or use the cpu backend");
      }
    }
  }
  Result<DeviceMemory> memory = DeviceMemory::Allocate(Bytes<DeviceMatrix>(static_cast<int64_t>(views.size())), "tables of experts");
  if (!memory.ok()) return memory.status();
  Check(cudaMemcpy(memory->data(), views.data(), views.size() * sizeof(DeviceMatrix), cudaMemcpyDefault), "loading tables of experts");
  const auto* base = memory->as<DeviceMatrix>();
  ExpertTables tables;
  tables.gate = base, tables.up = base + count, tables.down = base + 2 * count;
  tables.gate_packing = views[0].packing, tables.up_packing = views[count].packing, tables.down_packing = views[2 * count].packing;
  tables.gate_base = views[0], tables.up_base = views[count], tables.down_base = views[2 * count];
  tables.stride = count > 1 ? views[1].hi - views[0].hi : 0;
  for (size_t i = 0; i < views.size(); ++i) {
    const DeviceMatrix& first = views[i / count * count];
    const auto away = static_cast<int64_t>(i % count) * tables.stride;
    const auto follows = [away](const std::byte* at, const std::byte* of_first) { return at == nullptr || at - of_first == away; };
    if (!follows(views[i].hi, first.hi) || !follows(views[i].lo, first.lo) || !follows(views[i].scales, first.scales)) tables.stride = 0;
    if (tables.stride == 0) break;
  }
  tables.tables = std::move(memory).value();
  return tables;
}

void CudaOps::EnsureSelectSlots(size_t layers, int32_t experts) const {
  if (layers == select_slots_.size() && experts == select_experts_) return;
  Synchronise();
  DropGraphs();  // they have the old addresses
  const auto n = static_cast<int64_t>(layers);
  const int64_t counted = Bytes<SelectCounts>(n) + Bytes<int32_t>(n * experts);
  const int64_t rules_at = AlignedBytes(counted), bytes = rules_at + Bytes<SelectRules>(n) + Bytes<float>(n * experts) + Bytes<int32_t>(n) + n * experts;
  Result<DeviceMemory> memory = DeviceMemory::Allocate(bytes, "steering");
  if (!memory.ok()) return Check(memory.status());
  for (Side& side : sides_) {
    Result<PinnedMemory> pinned = PinnedMemory::Allocate(counted);
    if (!pinned.ok()) return Check(pinned.status());
    side.records = std::move(pinned).value();
  }
  select_memory_ = std::move(memory).value();
  counts_ = select_memory_.as<SelectCounts>();
  Check(cudaMemsetAsync(counts_, 0, static_cast<size_t>(counted), stream_), "clearing memory");  // ExpertsAhead asks what the step before chose
  expert_slots_ = reinterpret_cast<int32_t*>(counts_ + layers);
  rules_ = reinterpret_cast<SelectRules*>(select_memory_.data() + rules_at);
  biases_ = reinterpret_cast<float*>(rules_ + layers);
  job_counts_ = reinterpret_cast<int32_t*>(biases_ + n * experts);
  caps_ = reinterpret_cast<uint8_t*>(job_counts_ + n);
  select_experts_ = experts;
  select_slots_.assign(layers, {});
}

void CudaOps::WriteRules(size_t index, const LayerSteering* steering, int32_t experts, int32_t slots, bool nested) const {
  SelectSlot& slot = select_slots_[index];
  const LayerSteering plain;
  const LayerSteering& now = steering == nullptr ? plain : *steering;
  if (slot.written && now == slot.steering) return;
  const auto resolve = [slots](int value) { return value == kAllSlots ? slots : std::min(value, slots); };
  SelectRules rules;
  rules.guaranteed = std::max(1, resolve(now.guaranteed_slots));
  rules.most = std::max(1, resolve(now.max_slots));
  rules.full = nested ? resolve(now.full_slots) : slots;
  rules.drop_below = now.drop_below_frac;
  rules.soft_batch = now.soft_batch;
  rules.has_bias = now.selection_bias.empty() ? 0 : 1;
  rules.has_cap = nested && !now.plane_cap.empty() ? 1 : 0;
  Stage(rules_ + index, &rules, sizeof(rules));
  const auto at = static_cast<int64_t>(index) * experts;
  if (rules.has_bias != 0) Stage(biases_ + at, now.selection_bias.data(), Bytes<float>(experts));
  if (rules.has_cap != 0) Stage(caps_ + at, now.plane_cap.data(), experts);
  slot.steering = now;
  slot.written = true;
}

void CudaOps::SetSteering(const Steering* steering, std::span<LayerRecord> records) const {
  records_of_step_ = records;
  EnsureSelectSlots(records.size(), select_experts_);
  for (size_t i = 0; i < records.size(); ++i) {
    select_slots_[i].record = &records[i];
    WriteRules(i, steering == nullptr || steering->layers.empty() ? nullptr : &steering->layers[i], select_experts_, slots_, nested_);
  }
}

}  // namespace thermoe::cuda
