// SPDX-License-Identifier: Apache-2.0
// Selection of experts on the device: what kernels/select.cc does, in one launch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/matrix_kernels.h"
#include "kernels/cuda/rows.h"
#include "kernels/ops.h"

namespace thermoe::cuda {

// Job (matrix_kernels.h) has the words of kernels::Selection::Job.
static_assert(sizeof(Job) == sizeof(kernels::Selection::Job));

inline constexpr int kMaxDeviceSlots = 32;  // K

// The knobs of a layer with the neutral values resolved. Lives on the device, written between steps, so that a captured graph
// follows the steering.
struct alignas(16) SelectRules {
  int32_t guaranteed = 0, most = 0, full = 0;
  float drop_below = 0, soft_batch = 0;
  int32_t has_bias = 0, has_cap = 0;
  int32_t dry = 0;  // 1, on the device alone: nothing is written of rows that decode (choose_few.cuh)
};

// What a layer did, as LayerRecord; expert_slots [E] stands apart.
struct SelectCounts {
  double mass_lost;
  int32_t slots_full, slots_hi, slots_dropped, distinct, distinct_full, distinct_hi;
};

struct SelectLaunch {
  const float* logits = nullptr;      // [T, E]
  const kernels::RowKind* kinds = nullptr;  // [T]
  const SelectRules* rules = nullptr;
  const float* bias = nullptr;        // [E]
  const uint8_t* plane_cap = nullptr;  // [E]
  int32_t rows = 0, experts = 0, slots = 0;
  bool normalise = true;
  float* scores = nullptr;            // [T, E] or null
  int32_t* expert = nullptr;          // [T, K]
  float* weight = nullptr;            // [T, K]
  Planes* planes = nullptr;           // [T, K]
  Job* jobs = nullptr;                // [2 E]
  int32_t* job_count = nullptr;
  int32_t* order = nullptr;           // [T * K]
  SelectCounts* counts = nullptr;
  int32_t* expert_slots = nullptr;    // [E]
  void* scratch = nullptr;            // SelectScratch bytes
  uint32_t* done = nullptr;           // zeroed once by the caller, then of selections alone; of no other launch under way
  uint32_t* passed = nullptr;         // [kGatePassed], the same, aligned to 16 bytes: logits of few rows on their way to the block that selects
  uint64_t* counted = nullptr;        // [kSelectCounted], the same: what blocks tell each other of many rows; null only of up to 32, of more than 256 experts of up to 8 (pass_counts.cuh)
  uint64_t* picks = nullptr;  // or ExpertFfnLaunch.passed of the experts that come next: the gate's launch also passes them what it picks for its one row
};
inline constexpr int64_t kGatePassed = 16 * 256;
inline constexpr int64_t kSelectCounted = 16 + 2 * (16 + 683 * (16 + 256));
inline constexpr int kGatePartRows = 32;
inline constexpr int64_t kGatePartOfRow = 4 * (256 + 4) * sizeof(float);  // of up to so many rows, what blocks of a gate give one that selects (gate_parts.cu)
int64_t SelectScratch(int64_t rows);
void Select(const SelectLaunch& launch, cudaStream_t stream);

// The product with the gate's float weights and the selection in one launch, of up to kGatePartRows rows. False: not these shapes, or no `passed`.
bool GateAndSelect(const LinearLaunch& gate, const SelectLaunch& launch, cudaStream_t stream);
// And the norm before them: whether they are such; and the launch.
bool NormsBeforeGate(const NormLaunch& norm, const LinearLaunch& gate, const SelectLaunch& launch);
bool NormGateAndSelect(const NormLaunch& norm, const LinearLaunch& gate, const SelectLaunch& launch, cudaStream_t stream);

}  // namespace thermoe::cuda
