// SPDX-License-Identifier: Apache-2.0
// CudaOps over a step: its rows, the graph that replays it, and what its gates chose.
#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/cuda/cuda_ops.h"

namespace thermoe::cuda {

// One upload: [T] sequences, [T] positions, [sequences, stride] block numbers.
void CudaOps::SetRows(std::span<const KvRow> rows) const {
  rows_set_ = rows.data();
  rows_count_ = static_cast<int64_t>(rows.size());
  single_rows_ = 0;
  const size_t count = rows.size();
  int64_t sequences = 0, longest = 0;
  bool leading = true;
  for (size_t t = 0; t < count; ++t) {
    const bool first = t == 0 || rows[t].blocks != rows[t - 1].blocks, last = t + 1 == count || rows[t + 1].blocks != rows[t].blocks;
    sequences += first;
    longest = std::max<int64_t>(longest, rows[t].position / kKvBlock + 1);
    leading = leading && first && last;
    single_rows_ += leading;
  }
  // Launches of attention are planned for lengths that are powers of two, so that graphs serve many steps.
  planned_length_ = kKvBlock * 8;
  while (planned_length_ < longest * kKvBlock) planned_length_ *= 2;
  if (longest > table_stride_) table_stride_ = static_cast<int32_t>(std::max<int64_t>(longest, context_ / kKvBlock + 2)), tables_capacity_ = 0;
  if (static_cast<int64_t>(count) > rows_capacity_ || sequences > tables_capacity_) {
    Synchronise();
    rows_capacity_ = std::max(rows_capacity_, static_cast<int64_t>(count));
    tables_capacity_ = std::max(tables_capacity_, sequences);
    Result<DeviceMemory> memory = DeviceMemory::Allocate(Bytes<int32_t>(2 * rows_capacity_ + tables_capacity_ * table_stride_), "the rows of a step");
    if (!memory.ok()) return Check(memory.status());
    rows_memory_ = std::move(memory).value();
    DropGraphs();  // they have the old addresses
  }
  // Where they are and how far tables reach follows from the number of rows and the planned length, so that graphs serve many steps.
  const auto rows_of = static_cast<int64_t>(count);
  const int32_t stride = std::min(table_stride_, planned_length_ / kKvBlock);
  auto* words = rows_memory_.as<int32_t>();
  rows_ = {words, words + rows_of, words + 2 * rows_of, stride};
  row_words_.assign(static_cast<size_t>(2 * rows_of + sequences * stride), 0);
  int32_t sequence = -1;
  for (size_t t = 0; t < count; ++t) {
    if (t == 0 || rows[t].blocks != rows[t - 1].blocks) ++sequence;
    row_words_[t] = sequence;
    row_words_[count + t] = rows[t].position;
    int32_t* table = row_words_.data() + 2 * rows_of + int64_t{sequence} * stride;
    std::copy_n(rows[t].blocks, rows[t].position / kKvBlock + 1, table);
  }
  Stage(words, row_words_.data(), Bytes<int32_t>(static_cast<int64_t>(row_words_.size())));
}

void CudaOps::PackInputs() const {
  auto* inputs = newest().inputs.as<StepInputs>();
  inputs->count = inputs->bytes = 0;
  inputs->number = ++inputs_launched_;
  int64_t bytes = 0;
  bool fits = true;
  for (int32_t i = 0; i < staged_.count; ++i) {
    bytes += (staged_.pieces[i].bytes + 15) / 16 * 16;
    fits = fits && reinterpret_cast<uintptr_t>(staged_.pieces[i].to) % 16 == 0;
  }
  if (!fits || bytes > kStepInputBytes) return FlushStaged();
  for (int32_t i = 0; i < staged_.count; ++i) {
    const ScatterLaunch::Piece& piece = staged_.pieces[i];
    const auto size = static_cast<int32_t>(piece.bytes);
    inputs->pieces[inputs->count++] = {piece.to, inputs->bytes, size};
    std::memcpy(reinterpret_cast<std::byte*>(inputs + 1) + inputs->bytes, piece.from, static_cast<size_t>(size));
    inputs->bytes += (size + 15) / 16 * 16;
  }
  staged_.count = 0;
  if (!staging_read_) staging_used_ = 0;
}

void CudaOps::LaunchGraph(cudaGraphExec_t graph) const {
  // While the step before runs its inputs can cross the link.
  if (overlapped_) {
    const auto* inputs = newest().inputs.as<StepInputs>();
    Check(cudaMemcpyAsync(newest().copied.data(), inputs, sizeof(StepInputs) + static_cast<size_t>(inputs->bytes), cudaMemcpyDefault, copies_), "writing a step's inputs");
    Check(cudaStreamSynchronize(copies_), "writing a step's inputs");
  }
  Check(cudaGraphLaunch(graph, stream_), "launching a step");
}

void CudaOps::BeginStep(uint64_t key, bool ahead) const {
  if (in_step_) {  // the step before was left halfway
    pending_.clear(), replaying_ = ahead = false;
    Synchronise();
    summaries_asked_ = *told_.as<uint32_t>(), draws_asked_ = *draws_told();
  }
  if (!pending_.empty()) LaunchPending();
  overlapped_ = ahead;
  if (ahead) side_ = 1 - side_;
  if (newest().under_way) Synchronise();  // of a step that nobody waited for
  newest().under_way = true;
  // A graph has the addresses of its side.
  key_ = key == 0 ? 0 : key << 32 | static_cast<uint64_t>(side_) << 31 | static_cast<uint64_t>(planned_length_);
  key = key_;
  in_step_ = true;
  Side& side = newest();
  side.record = records_of_step_, side.records_under_way = side.records_here = false, side.drawing = 0;
  const cudaGraphExec_t graph = key == 0 ? nullptr : graphs_.Find(key);
  if (graph == nullptr) return FlushStaged();
  replaying_ = true;
  PackInputs();
  LaunchGraph(graph);
}

// A step's first run launches operation by operation, so that kernels are loaded; the second is captured.
void CudaOps::EndStep() const {
  in_step_ = false;
  if (replaying_) {
    replaying_ = false;
  } else if (key_ != 0 && graphs_.Knows(key_)) {
    pending_.insert(pending_.begin(), InputsLaunch{newest().inputs.as<StepInputs>(), newest().copied.as<StepInputs>(), inputs_taken()});
    const cudaGraphExec_t instance = CapturePending("making a graph of a step");
    graphs_.Put(key_, instance);
    PackInputs();  // none: this once they went before
    if (instance != nullptr) LaunchGraph(instance);
  } else {
    LaunchPending();
    if (key_ != 0) graphs_.Put(key_, nullptr);
  }
  if (!newest().record.empty() && !newest().records_under_way) {
    Scatter({{Records()}, 1}, stream_);  // by a kernel: a copy would make the stream change engines twice
    Check(cudaGetLastError(), "reading what the gates chose");
  }
}

ScatterLaunch::Piece CudaOps::Records() const {
  const auto layers = static_cast<int64_t>(newest().record.size());
  return {newest().records.data(), reinterpret_cast<const std::byte*>(counts_), Bytes<SelectCounts>(layers) + Bytes<int32_t>(layers * select_experts_)};
}

void CudaOps::ReadRecord(const SelectCounts& counts, const int32_t* expert_slots, LayerRecord* record) const {
  record->expert_slots.assign(expert_slots, expert_slots + select_experts_);
  record->distinct_experts = counts.distinct;
  record->distinct_full_experts = counts.distinct_full;
  record->distinct_hi_experts = counts.distinct_hi;
  record->slots_full = counts.slots_full;
  record->slots_hi = counts.slots_hi;
  record->slots_dropped = counts.slots_dropped;
  record->gate_mass_lost = counts.mass_lost;
}

void CudaOps::FinishRecords() const {
  const Side& side = oldest();
  if (!side.records_here) Synchronise();
  const auto* counts = side.records.as<SelectCounts>();
  const auto* slots = reinterpret_cast<const int32_t*>(counts + side.record.size());
  for (size_t i = 0; i < side.record.size(); ++i) ReadRecord(counts[i], slots + i * static_cast<size_t>(select_experts_), &side.record[i]);
  overlapped_ = false;
}

void CudaOps::DropGraphs() const { graphs_.Clear(); }

cudaGraphExec_t CudaOps::CapturePending(const char* what) const {
  FlushStaged();  // inputs are of this once, not of every replay
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t instance = nullptr;
  Check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed), what);
  LaunchPending();
  Check(cudaStreamEndCapture(stream_, &graph), what);
  Check(cudaGraphInstantiate(&instance, graph, 0), what);
  cudaGraphDestroy(graph);
  return instance;
}

}  // namespace thermoe::cuda
