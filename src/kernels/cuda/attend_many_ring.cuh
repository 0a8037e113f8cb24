// SPDX-License-Identifier: Apache-2.0
// What the warps of a block of attend_many.cu share: items, two rings of tiles; and the warp that fills these.
#pragma once

#include <cuda.h>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/prefill.h"
#include "kernels/cuda/warp.cuh"
#include "kernels/cuda/wgmma.cuh"
#include "runtime/kv_layout.h"

namespace thermoe::cuda {

inline constexpr int kManyGroupThreads = 128, kManyGroups = 2, kManyThreads = (1 + kManyGroups) * kManyGroupThreads;
inline constexpr int kManyGroupRows = 64, kManyRows = kManyGroups * kManyGroupRows;
inline constexpr int kManyTile = 128, kManyTileBlocks = kManyTile / kKvBlock;  // positions, and blocks of the cache
inline constexpr int kManyColumns = 64;                               // halves of a row of 128 bytes
// Of a thread: what the launch gives each is shared out anew.
inline constexpr int kManyBringRegisters = 24, kManyMultiplyRegisters = 240;
static_assert(kManyBringRegisters + kManyGroups * kManyMultiplyRegisters <= 3 * (65536 / kManyThreads / 8 * 8));

struct ManyArgs {
  CUtensorMap keys, values;  // [blocks * kv_heads * 2, head_dim / 64, 8, 64], boxes of a block's 16 rows
  AttentionLaunch l;
  int32_t windows = 0;  // of 128 rows
  HalfRows halves;      // or without a place
};

template <int kDim>
struct ManyShared {
  static constexpr int kColumns = kDim / kManyColumns, kStages = 3 * 128 / kDim;  // 192 KiB
  using Tile = __half[kManyTile / 8][kColumns][8][kManyColumns];  // rows of 128 bytes as WgmmaDescriptor has them
  alignas(1024) Tile keys[kStages], values[kStages];
  uint64_t keys_full[kStages], keys_empty[kStages], values_full[kStages], values_empty[kStages];
  int32_t item[2];  // those that the block takes, in turn
  uint64_t item_full[2], item_empty[2];
};
template <int kDim>
constexpr size_t kManySharedBytes = sizeof(ManyShared<kDim>) + kSwizzleAlign;
static_assert(kManySharedBytes<128> <= 227 * 1024 && kManySharedBytes<64> <= 227 * 1024);

#if __CUDA_ARCH_FEAT_SM90_ALL

// 128 rows of one head: number `at` of a list in which those with most to do come first.
struct ManyItem {
  bool left;  // else: there are no more
  int head, first_row, last_row;
};
__device__ inline ManyItem ManyItemAt(const ManyArgs& args, int at) {
  const int first = static_cast<int>(args.l.single) + (args.windows - 1 - at / args.l.heads) * kManyRows;
  return {at < args.windows * args.l.heads, at % args.l.heads, first, min(static_cast<int>(args.l.count), first + kManyRows) - 1};
}

template <int kDim>
__device__ inline void InitManyBarriers(ManyShared<kDim>* shared) {
  constexpr uint32_t kOfWarps = kManyGroups * kManyGroupThreads / 32 * kArrivalsOfWarp;
  for (int i = 0; i < ManyShared<kDim>::kStages; ++i) {
    BarrierInit(&shared->keys_full[i], 1), BarrierInit(&shared->keys_empty[i], kOfWarps);
    BarrierInit(&shared->values_full[i], 1), BarrierInit(&shared->values_empty[i], kOfWarps);
  }
  for (int i = 0; i < 2; ++i) BarrierInit(&shared->item_full[i], 1), BarrierInit(&shared->item_empty[i], kOfWarps);
  asm volatile("fence.proxy.async;" ::: "memory");  // the copies see the barriers
}

// Neighbouring rows of one sequence within an item.
struct RowRun {
  int last, sequence;
  int length;  // positions that its last row sees

  __device__ int Tiles() const { return (length + kManyTile - 1) / kManyTile; }
};
// By whole warps.
__device__ inline RowRun RunFrom(const RowTable& rows, int row, int last_row) {
  int32_t of[kManyRows / 32];
#pragma unroll
  for (int k = 0; k < kManyRows / 32; ++k) of[k] = rows.sequence[min(row + 32 * k + static_cast<int>(threadIdx.x % 32), last_row)];
  const int sequence = __shfl_sync(kAllLanes, of[0], 0);
  int last = last_row;
#pragma unroll
  for (int k = kManyRows / 32 - 1; k >= 0; --k) {
    const uint32_t others = __ballot_sync(kAllLanes, of[k] != sequence);
    if (others != 0) last = row + 32 * k + __ffs(static_cast<int>(others)) - 2;
  }
  return {last, sequence, rows.position[last] + 1};
}

// Where a ring has its tile `count`, and the parity of the times that place was filled.
template <int kPlaces>
__device__ inline uint32_t RingPlaceOf(uint32_t count) { return count % kPlaces; }
template <int kPlaces>
__device__ inline uint32_t RingParityOf(uint32_t count) { return count / kPlaces % 2; }

__device__ inline void TensorCopy(void* to, const CUtensorMap& from, int eight, uint64_t* barrier) {
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %2, %2, %3}], [%4];" ::"r"(SharedAddress(to)),
               "l"(&from), "r"(0), "r"(eight), "r"(SharedAddress(barrier))
               : "memory");
}

// One warp: tiles of keys and values of all items, a lane of the first eight a block of 16 positions.
template <int kDim>
class ManyBring {
 public:
  __device__ ManyBring(const ManyArgs& args, ManyShared<kDim>* shared) : args_(args), shared_(shared) {}

  __device__ void Run() {
    uint32_t* taken = args_.l.taken;
    const int blocks = static_cast<int>(gridDim.x);
    int at = static_cast<int>(blockIdx.x);
    for (uint32_t told = 0;; ++told) {
      const ManyItem item = ManyItemAt(args_, at);
      Tell(told, at);
      if (!item.left) break;
      const int kv_head = item.head / (args_.l.heads / args_.l.cache.kv_heads);
      for (int row = item.first_row; row <= item.last_row;) {
        const RowRun run = RunFrom(args_.l.rows, row, item.last_row);
        Run(run, kv_head);
        row = run.last + 1;
      }
      // Not earlier: it should be the block that gets there first.
      if (lane_ == 0) at = blocks + static_cast<int>(atomicAdd(&taken[0], 1u));
      at = __shfl_sync(kAllLanes, at, 0);
    }
    if (lane_ == 0 && CountBlock(&taken[1]) == gridDim.x - 1) taken[0] = taken[1] = 0;
  }

 private:
  static constexpr int kStages = ManyShared<kDim>::kStages;

  __device__ void Tell(uint32_t told, int at) {
    BarrierWait(&shared_->item_empty[told % 2], RingParityOf<2>(told) ^ 1);
    if (lane_ == 0) shared_->item[told % 2] = at, BarrierArrive(&shared_->item_full[told % 2]);
    __syncwarp();
  }
  __device__ void Run(const RowRun& run, int kv_head) {
    const int32_t* table = args_.l.rows.tables + int64_t{run.sequence} * args_.l.rows.stride;
    const int last_block = (run.length - 1) / kKvBlock, tiles = run.Tiles();
    // Beyond the sequence its last block again: what nobody sees must still be numbers.
    const auto number = [&](int tile) { return table[min(tile * kManyTileBlocks + lane_, last_block)]; };
    int32_t block = number(0);
    for (int tile = 0; tile < tiles; ++tile) {
      const int eight = (block * args_.l.cache.kv_heads + kv_head) * (kKvBlock / 8);
      block = number(tile + 1);
      const uint32_t at = RingPlaceOf<kStages>(brought_);
      Bring(args_.keys, shared_->keys[at], eight, &shared_->keys_full[at], &shared_->keys_empty[at]);
      Bring(args_.values, shared_->values[at], eight, &shared_->values_full[at], &shared_->values_empty[at]);
      ++brought_;
    }
  }
  __device__ void Bring(const CUtensorMap& from, typename ManyShared<kDim>::Tile& to, int eight, uint64_t* full, uint64_t* empty) {
    BarrierWait(empty, RingParityOf<kStages>(brought_) ^ 1);
    if (lane_ == 0) ExpectBytes(full, sizeof(to));
    __syncwarp();
    if (lane_ < kManyTileBlocks) TensorCopy(to[lane_ * (kKvBlock / 8)], from, eight, full);
    __syncwarp();
  }

  const ManyArgs& args_;
  ManyShared<kDim>* shared_;
  int lane_ = static_cast<int>(threadIdx.x % 32);
  uint32_t brought_ = 0;  // tiles
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace thermoe::cuda
