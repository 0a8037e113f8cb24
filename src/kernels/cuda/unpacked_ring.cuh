// SPDX-License-Identifier: Apache-2.0
// What the threads of a block share that multiplies unpacked weights: a ring of stages of 64 columns of both factors, and the one thread that has it filled.
#pragma once

#include <cuda.h>

#include "kernels/cuda/prefill_ring.cuh"
#include "kernels/cuda/unpacked.h"
#include "kernels/cuda/warp.cuh"

namespace thermoe::cuda {

struct UnpackedArgs {
  CUtensorMap x;                   // [rows, k_tiles * 64] halves, boxes of 128 by 64
  CUtensorMap out[kMostTogether];  // of each part [rows, its rows of weights] floats, boxes of 16 by 32
  UnpackedPart part[kMostTogether];
  int32_t parts = 0, rows = 0, k_tiles = 0;
  const std::byte* weights = nullptr;  // as Unpack leaves them
  const float* unscale = nullptr;      // [rows] times this
};

inline constexpr int kUnpackedCluster = 2;              // blocks, each with activations of its own and all with the same weights
inline constexpr int kUnpackedRows = 128;               // activations of a block's item; 64 a warpgroup
inline constexpr int kOutRows = 16, kOutColumns = 32;   // that leave together, a warp's
inline constexpr int kUnpackedRowBytes = kTileCols * 2;  // of a stage

// kColumns: rows of weights of an item.
template <int kColumns>
struct UnpackedShared {
  static constexpr int kWeightBytes = kColumns * kUnpackedRowBytes;
  static constexpr int kStages = 192 * 1024 / (kUnpackedTileBytes + kWeightBytes);
  alignas(kSwizzleAlign) std::byte x[kStages][kUnpackedTileBytes];
  alignas(kSwizzleAlign) std::byte weights[kStages][kWeightBytes];
  alignas(kSwizzleAlign) std::byte staging[kMultiplyWarps][2][kOutRows * kOutColumns * sizeof(float)];
  uint64_t full[kStages], empty[kStages];
};
template <int kColumns>
inline constexpr size_t kUnpackedSharedBytes = sizeof(UnpackedShared<kColumns>) + kSwizzleAlign;
static_assert(kUnpackedSharedBytes<128> <= 227 * 1024 && kUnpackedSharedBytes<256> <= 227 * 1024);

// How often that many rows of weights, or of activations for the blocks of a cluster, are in what there is.
template <int kColumns>
__host__ __device__ int32_t ColumnItems(const UnpackedPart& part) {
  return (part.groups * kGroupRows + kColumns - 1) / kColumns;
}
__host__ __device__ inline int32_t RowItems(int32_t rows) { return (rows + kUnpackedCluster * kUnpackedRows - 1) / (kUnpackedCluster * kUnpackedRows); }

#if __CUDA_ARCH_FEAT_SM90_ALL

// Activations from first_row on by rows of weights of a part from first_column on.
struct UnpackedItem {
  int32_t part, first_row, first_column;
};

// The items of a block: its cluster's in turn, those of the same weights one after the other.
template <int kColumns>
class UnpackedItems {
 public:
  __device__ explicit UnpackedItems(const UnpackedArgs& args) : args_(args), row_items_(RowItems(args.rows)) {
    for (int p = 0; p < args.parts; ++p) count_ += ColumnItems<kColumns>(args.part[p]) * row_items_;
    at_ = static_cast<int32_t>(blockIdx.x) / kUnpackedCluster;
  }
  // False: there are no more.
  __device__ bool Next(UnpackedItem* item) {
    if (at_ >= count_) return false;
    int32_t column = at_ / row_items_, part = 0;
    for (int32_t here = ColumnItems<kColumns>(args_.part[0]); column >= here; here = ColumnItems<kColumns>(args_.part[part])) column -= here, ++part;
    const auto block = static_cast<int32_t>(blockIdx.x) % kUnpackedCluster;
    *item = {part, (at_ % row_items_ * kUnpackedCluster + block) * kUnpackedRows, column * kColumns};
    at_ += static_cast<int32_t>(gridDim.x) / kUnpackedCluster;
    return true;
  }

 private:
  const UnpackedArgs& args_;
  int32_t row_items_, count_ = 0, at_;
};

// All threads of the cluster's blocks.
__device__ inline void MeetInCluster() { asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory"); }
// At the barrier in this place of a block of the cluster. Released to this block only: for the cluster it would wait for all of this thread's memory, 1,000 cycles;
// what it tells of is read by the tensor cores, and done.
__device__ inline void ArriveAt(uint64_t* barrier, uint32_t block) {
  asm volatile("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\nmbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(SharedAddress(barrier)), "r"(block)
               : "memory");
}
__device__ inline void TensorCopy(void* to, const CUtensorMap& from, int column, int row, uint64_t* barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(SharedAddress(to)), "l"(&from), "r"(column),
               "r"(row), "r"(SharedAddress(barrier))
               : "memory");
}
// A group of copies of its own.
__device__ inline void TensorStore(const CUtensorMap& to, int column, int row, const void* from) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];\ncp.async.bulk.commit_group;" ::"l"(&to), "r"(column), "r"(row),
               "r"(SharedAddress(from))
               : "memory");
}
// At most kLeft groups have not been read from shared memory yet.
template <int kLeft>
__device__ inline void WaitStoresRead() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kLeft) : "memory");
}
__device__ inline void WaitStores() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }
// To the same place of both blocks of a cluster, and to the barrier in the same place.
__device__ inline void BulkCopyToBoth(void* to, const std::byte* from, uint32_t bytes, uint64_t* barrier) {
  constexpr uint16_t kBoth = 3;
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;" ::"r"(SharedAddress(to)), "l"(from),
               "r"(bytes), "r"(SharedAddress(barrier)), "h"(kBoth)
               : "memory");
}

// One thread: what all items read. Of the weights it has its half brought to both blocks.
template <int kColumns>
__device__ inline void BringUnpacked(const UnpackedArgs& args, UnpackedShared<kColumns>* shared) {
  using Shared = UnpackedShared<kColumns>;
  constexpr int kShare = kColumns / kUnpackedCluster;  // rows of weights
  const auto first = static_cast<int32_t>(blockIdx.x) % kUnpackedCluster * kShare;
  RingPlace<Shared::kStages> place;
  UnpackedItem item;
  for (UnpackedItems<kColumns> items(args); items.Next(&item);) {
    const UnpackedPart& part = args.part[item.part];
    const int32_t row = item.first_column + first, group = min(row / kGroupRows, part.groups - 1);
    const std::byte* from = args.weights + int64_t{part.at + group} * args.k_tiles * kUnpackedTileBytes + row % kGroupRows * kUnpackedRowBytes;
    for (int32_t k = 0; k < args.k_tiles; ++k) {
      BarrierWait(&shared->empty[place.at], place.parity ^ 1);
      uint64_t* full = &shared->full[place.at];
      ExpectBytes(full, kUnpackedTileBytes + Shared::kWeightBytes);
      TensorCopy(shared->x[place.at], args.x, k * kTileCols, item.first_row, full);
      BulkCopyToBoth(shared->weights[place.at] + first * kUnpackedRowBytes, from, kShare * kUnpackedRowBytes, full);
      from += kUnpackedTileBytes;
      place.Next();
    }
  }
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace thermoe::cuda
