// SPDX-License-Identifier: Apache-2.0
// Products with packed weights (weight_layout.h) on the GPU. Everything is asynchronous on a stream, allocates nothing,
// reads nothing back and can be captured in a graph: launches depend only on shapes, packings and row counts, never on
// data. The reference (kernels/reference/linear.cc, experts.cc) says what is computed. Activations are rounded to
// binary16, of few rows saturated, of many after a scaling of each row by a power of two (kF32: not at all); sums are
// floats, in an order that data do not change.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/cuda/weight_layout.h"

namespace thermoe::cuda {

// Whether 16 bytes can be read there at once; null: nothing is.
inline bool OfQuads(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// Gates and ups of some of the experts that come next, brought to the L2 cache meanwhile by a launch that leaves memory idle, because nearly all experts will be read.
struct ExpertsAhead {
  const std::byte* first[2] = {};           // expert 0's gate and up, others at `stride`
  int64_t stride = 0;
  int32_t bytes = 0;                        // of each
  int32_t experts = 0, every = 0, count = 0;  // count of them, every so manyth; 0: none
  const int32_t* slots_before = nullptr;    // [E] slots of the step before, and how many experts had some
  const int32_t* distinct_before = nullptr;
};

struct LinearLaunch {
  DeviceMatrix weight;          // [out, in]
  const float* x = nullptr;     // [rows, in]
  const float* bias = nullptr;  // [out] or null
  float* out = nullptr;         // [rows, out] = x * weight^T + bias
  int32_t rows = 0;
  bool wgmma = true;        // may use Hopper's own tensor-core instructions
  void* scratch = nullptr;  // [LinearScratch], aligned to 256 bytes
  const __half* halves = nullptr;  // x once more as half_rows.cuh has it, or null
  bool prefilled = false;   // prefill.h's HalfRowsOf has x already; only where PrefillsTogether
  bool adds = false;        // out += instead; only for LinearOfStreamedRows (stream_rows.h)
  std::byte* unpacked = nullptr;  // [kUnpackedBytes] where weights of many rows may be unpacked first (unpacked.h), of linears alone; or null
  bool spares = false;      // leaves multiprocessors to the launch that follows, where half of them do
  ExpertsAhead ahead{};     // only by LinearOfStreamedRows
};
size_t LinearScratch(int32_t rows, int32_t in);
cudaError_t Linear(const LinearLaunch& launch, cudaStream_t stream);
// Several matrices with the same x, rows and scratch (q, k and v): one kernel where rows are few. At most 4.
inline constexpr size_t kMostTogether = 4;
cudaError_t LinearTogether(std::span<const LinearLaunch> launches, cudaStream_t stream);
// Whether that multiplies rows as prefill has them, all at once.
bool PrefillsTogether(std::span<const LinearLaunch> launches);

// The same words as kernels::Selection::Job.
struct Job {
  int32_t expert = 0;
  Planes planes = Planes::kBoth;
  int32_t first = 0;  // into order
  int32_t count = 0;
};
static_assert(sizeof(Job) == 16);

inline constexpr int32_t kExpertCounters = 4096;
// Words that pass from block to block: launches of experts before this one; a row's picks, of a slot each; inner values.
inline constexpr int32_t kMostPicks = 16;
inline constexpr int64_t kPicksFirst = 2, kPassedFirst = kPicksFirst + kMostPicks, kPassedValues = int64_t{64} << 10;
inline constexpr int64_t kQuadsFirst = kPassedFirst + kPassedValues;  // of one row: pairs of words, the first of which is four values
inline constexpr int64_t kPassedWords = kQuadsFirst + kPassedValues / 2;
struct ExpertFfnLaunch {
  const DeviceMatrix* gate = nullptr;  // [E] in device memory, all of one packing and shape; likewise up and down
  const DeviceMatrix* up = nullptr;    // [E], [width, hidden]
  const DeviceMatrix* down = nullptr;  // [E], [hidden, width]
  Packing gate_packing = Packing::kPlanes8, up_packing = Packing::kPlanes8, down_packing = Packing::kPlanes8;
  int32_t experts = 0, hidden = 0, width = 0, slots = 0, rows = 0;
  // Expert 0's, where expert e's lie e * stride bytes further on; stride 0: they do not.
  DeviceMatrix gate_base, up_base, down_base;
  int64_t stride = 0;
  bool wgmma = true;                     // may use Hopper's own tensor-core instructions
  bool may_read_hi = false;              // some jobs may be of the hi plane alone
  const float* x = nullptr;  // [T, hidden]
  const __half* halves = nullptr;        // x once more as half_rows.cuh has it, or null
  bool prefilled = false;                // prefill.h's HalfRowsOf has x already; only where PrefillsExperts
  // As kernels::Selection has them, in device memory.
  const Job* jobs = nullptr;           // [job_count], of capacity min(E, T * K) * 2
  const int32_t* job_count = nullptr;  // [1]
  const int32_t* order = nullptr;      // [kept slots] token * K + slot
  int32_t jobs_room = 0, order_room = 0;  // how many they have room for: nothing is read beyond
  const float* weight = nullptr;       // [T, K]
  const int32_t* expert = nullptr;     // [T, K], -1: empty; empty ones come last
  float* out = nullptr;                // [T, hidden] +=
  void* scratch = nullptr;             // [ExpertFfnScratch], aligned to 256 bytes
  uint32_t* met = nullptr;             // [kExpertCounters] zeroed once by the caller, left zero; of no other launch under way. Null: slower kernels
  // [kPassedWords] aligned to 16 bytes, zeroed once by the caller; of no other launch under way: by way of it, inner values of few slots come to the blocks
  // that multiply them sooner. Null: they do not.
  uint64_t* passed = nullptr;
  // How many experts the step before read, or this one, if the launch before has told by now: where nearly all, weights are copied before it is known which
  // (stream_experts.cuh). Null: not.
  const int32_t* distinct_before = nullptr;
  bool picked = false;  // the launch before this one, of the same `passed`, passes what it picks for the one row (SelectLaunch.picks)
};
size_t ExpertFfnScratch(int32_t hidden, int32_t width, int32_t slots, int32_t rows);
cudaError_t ExpertFfn(const ExpertFfnLaunch& launch, cudaStream_t stream);

}  // namespace thermoe::cuda
