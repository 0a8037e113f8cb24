// SPDX-License-Identifier: Apache-2.0
// What the warpgroups of a prefill block share: items, and a ring of stages of 64 columns.
#pragma once

#include "kernels/cuda/prefill.h"
#include "kernels/cuda/prefill_weights.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace thermoe::cuda {

enum class Epilogue {
  kSwiGlu,  // silu(first) * second as halves, by order
  kSlots,   // times the slot's weight as halves, by token and slot
  kRows,    // plus bias as floats
};

// A matrix that all rows meet.
struct PrefillPart {
  DeviceMatrix weight;
  int32_t k_first = 0;          // the first of its column tiles that count, as many as k_tiles
  float* out = nullptr;         // [rows, weight.rows]
  const float* bias = nullptr;  // or null
};

struct PrefillArgs {
  const DeviceMatrix* first = nullptr;   // [E] gate or down
  const DeviceMatrix* second = nullptr;  // [E] up; down: null
  PrefillPart part[kMostTogether];       // kRows: the matrices, of one packing and width; an item's job.expert says which
  int32_t parts = 0;
  const Job* jobs = nullptr;             // kRows: null, one job of all rows
  const int32_t* job_count = nullptr;
  int32_t job_capacity = 1;
  const int32_t* order = nullptr;
  const float* weight = nullptr;  // [T, K]
  int32_t slots = 1, rows = 0;
  const __half* x = nullptr;       // [rows of the input, k_tiles * 64]
  const float* unscale = nullptr;  // [rows of the input] or null
  int32_t k_tiles = 0;
  int32_t row_tiles = 0;       // kRows: of a whole row of x and of the matrices
  int32_t out_rows = 0;        // of the product: F or D
  __half* half_out = nullptr;  // [.., half_stride]
  int32_t half_stride = 0;
  int32_t* taken = nullptr;  // items that blocks took beyond their first; zero
};

// A warpgroup loads, two multiply.
inline constexpr int kWarpgroup = 128;
inline constexpr int kLoadWarps = 4, kMultiplyWarps = 8;
inline constexpr int kPrefillThreads = 3 * kWarpgroup;
// Of a thread: what the launch gives each (65,536 over all threads, a multiple of 8) is shared out anew.
inline constexpr int kLoadRegisters = 56, kMultiplyRegisters = 224;
static_assert(kLoadRegisters + 2 * kMultiplyRegisters <=
              3 * (65536 / kPrefillThreads / 8 * 8));  // or they wait forever

inline constexpr int kMostColumns = 128;  // activations of an item
inline constexpr int kStageBytes = kMostColumns * 128;

// Of a stage: two groups of 128 rows.
constexpr int WeightStageBytes(Packing packing) {
  return 2 * kGroupTiles *
         (CodeTileBytes(packing) + (HasLoPlane(packing) ? kPlaneTileBytes : 0) + ScaleTileBytes(packing));
}
// Stages of 64 columns in shared memory: what fits beside the rest.
constexpr int Stages(Packing packing) { return 200 * 1024 / (kStageBytes + WeightStageBytes(packing)); }

struct PrefillItem {
  Job job;
  int32_t n0, columns;                    // first activation of the job, and how many; 0: there are no more items
  int32_t m;                              // which 128 (kSwiGlu) or 256 rows
  alignas(8) float factor[kMostColumns];  // what undoes an activation's scale, or a slot's weight
  int32_t place[kMostColumns];            // kSlots: the slot
};

template <Packing kPacking>
struct PrefillShared {
  alignas(1024) std::byte x[Stages(kPacking)][kStageBytes];
  alignas(128) std::byte weights[Stages(kPacking)][WeightStageBytes(kPacking)];
  alignas(16) __half staging[kMultiplyWarps][2][16][24];  // 16 activations by 16 rows, in turn; filled up: banks differ
  PrefillItem item[2];
  uint64_t full[Stages(kPacking)], empty[Stages(kPacking)];
  uint64_t item_full[2], item_empty[2];
  int32_t next[2];    // items that the loading warps take, in turn
  int32_t before[1];  // [jobs + 1] tiles of activations of the jobs before
};
template <Packing kPacking>
constexpr size_t PrefillSharedBytes(int32_t job_capacity) {
  return sizeof(PrefillShared<kPacking>) + 4 * static_cast<size_t>(job_capacity) + kSwizzleAlign;
}
static_assert(PrefillSharedBytes<Packing::kPlanes8>(2048) <= 227 * 1024 &&
              PrefillSharedBytes<Packing::kNibble>(2048) <= 227 * 1024);

#if __CUDA_ARCH_FEAT_SM90_ALL

template <Packing kPacking>
__device__ inline void InitBarriers(PrefillShared<kPacking>* shared) {
  for (int i = 0; i < Stages(kPacking); ++i) {
    BarrierInit(&shared->full[i], kLoadWarps * (1 + kArrivalsOfWarp));  // bytes of weights, and activations
    BarrierInit(&shared->empty[i], kMultiplyWarps * kArrivalsOfWarp);
  }
  for (int i = 0; i < 2; ++i) {
    BarrierInit(&shared->item_full[i], kWarpgroup);
    BarrierInit(&shared->item_empty[i], kMultiplyWarps * kArrivalsOfWarp);
  }
  asm volatile("fence.proxy.async;" ::: "memory");  // the copies see the barriers
}

// A place in a ring: which, and the parity of the times it was filled.
template <int kPlaces>
struct RingPlace {
  int32_t at = 0;
  uint32_t parity = 0;
  __device__ void Next() {
    if (++at == kPlaces) at = 0, parity ^= 1;
  }
};

template <Epilogue kEpilogue>
__device__ inline const DeviceMatrix& MatrixOf(const PrefillArgs& args, const Job& job, int stream) {
  if constexpr (kEpilogue == Epilogue::kRows) return args.part[job.expert].weight;
  return (kEpilogue == Epilogue::kSwiGlu && stream == 1 ? args.second : args.first)[job.expert];
}
// The group of 128 rows of an item's stream; kept inside the matrix.
template <Epilogue kEpilogue>
__device__ inline int32_t GroupOf(const PrefillArgs& args, const Job& job, int32_t m, int stream) {
  if constexpr (kEpilogue == Epilogue::kSwiGlu) return m;
  return min(2 * m + stream, ((kEpilogue == Epilogue::kRows ? args.part[job.expert].weight.rows : args.out_rows) - 1) / kGroupRows);
}
template <Packing kPacking, Epilogue kEpilogue>
inline constexpr bool kMayBeHi = (kPacking == Packing::kPlanes8) && (kEpilogue != Epilogue::kRows);

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace thermoe::cuda
