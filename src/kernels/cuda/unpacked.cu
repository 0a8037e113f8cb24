// SPDX-License-Identifier: Apache-2.0
// Unpacked weights times many rows. A block takes items of 128 activations by 256 rows of weights, or by 128 where there would be too few; one thread has both
// brought, two warpgroups multiply 64 activations each. Two blocks of a cluster have the same weights, and each brings half of them for both.
//
// Of an item and 64 columns 48 KiB come to shared memory, 32 of them from the L2 cache, and 80 are read by the tensor cores in the 1,024 cycles that they
// take: nearly all that shared memory gives. At its end 128 KiB of floats leave.
// Neither better nor worse: one warpgroup a stage behind the other, so that one's end runs beside the other's products; blocks without clusters. Sums stored by
// threads instead of tensor copies: 1 to 2 % of OLMoE's prefill, nothing of Qwen3's. cuBLASLt with such weights
// and floats as output takes as long of 2,048 and 4,096 rows, and gives the same to the bit.
#include "kernels/cuda/unpacked.h"

#include <algorithm>

#include "kernels/cuda/launch_early.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/unpacked_ring.cuh"

namespace thermoe::cuda {
namespace {

constexpr int32_t kLeastRows = 256;  // of so many q, k and v of OLMoE take 27 us (Q4_0) and 30 (Q8_0) instead of 36 and 38 on an H100; fewer were not tried for them

#if __CUDA_ARCH_FEAT_SM90_ALL

// A warp of those that multiply: 16 activations of its warpgroup's 64.
template <int kColumns>
class UnpackedMultiply {
 public:
  __device__ UnpackedMultiply(const UnpackedArgs& args, UnpackedShared<kColumns>* shared) : args_(args), shared_(shared) {
    warp_ = WarpNumber() - kLoadWarps, lane_ = static_cast<int>(threadIdx.x % 32);
  }

  __device__ __forceinline__ void Run() {
    UnpackedItem item;
    for (UnpackedItems<kColumns> items(args_); items.Next(&item);) {
      const int32_t row = item.first_row + kOutRows * warp_;
      float factor[2];  // asked for here, needed at the item's end
#pragma unroll
      for (int i = 0; i < 2; ++i) factor[i] = args_.unscale[min(row + lane_ / 4 + 8 * i, args_.rows - 1)];
      Sums sums;
      Multiply(&sums);
      Store(item, row, sums, factor);
    }
    if (lane_ == 0) WaitStores();
  }

 private:
  using Shared = UnpackedShared<kColumns>;
  using Sums = float[kColumns / 2];  // of activations lane / 4 and 8 further on, every fourth pair of columns (wgmma.cuh)

  __device__ __forceinline__ void Multiply(Sums* sums) {
    int32_t before = 0;  // the stage before
#pragma unroll 1
    for (int32_t k = 0; k < args_.k_tiles; ++k) {
      BarrierWait(&shared_->full[place_.at], place_.parity);
      const uint64_t x = WgmmaDescriptor(shared_->x[place_.at] + warp_ / 4 * (kUnpackedTileBytes / 2)), weights = WgmmaDescriptor(shared_->weights[place_.at]);
      WgmmaFence();
#pragma unroll
      for (int step = 0; step < kTileCols / 16; ++step) WgmmaOfShared(*sums, x + 2 * step, weights + 2 * step, k > 0 || step > 0);
      WgmmaCommit();
      WgmmaWait<1>();
      if (k > 0) Release(before);
      before = place_.at;
      place_.Next();
    }
    WgmmaWait<0>();
    WgmmaHold(*sums);
    Release(before);
  }
  __device__ void Release(int32_t stage) const {
    // As WarpArrives: a lane for each block, or all for each.
    if constexpr (kArrivalsOfWarp > 1) {
      for (uint32_t block = 0; block < kUnpackedCluster; ++block) ArriveAt(&shared_->empty[stage], block);
    } else if (lane_ < kUnpackedCluster) {
      ArriveAt(&shared_->empty[stage], static_cast<uint32_t>(lane_));
    }
  }

  // Through shared memory, 32 columns at a time: a tensor copy writes whole lines, and nothing beyond the output. What rows beyond the last come to goes nowhere.
  __device__ __forceinline__ void Store(const UnpackedItem& item, int32_t row, const Sums& sums, const float (&factor)[2]) const {
    if (row >= args_.rows) return;
#pragma unroll
    for (int c = 0; c < kColumns / kOutColumns; ++c) {
      std::byte* staging = shared_->staging[warp_][c % 2];
      if (lane_ == 0) WaitStoresRead<1>();
      __syncwarp();
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        std::byte* to = staging + (lane_ / 4 + 8 * i) * (kOutColumns * sizeof(float)) + lane_ % 2 * sizeof(float2);
#pragma unroll
        for (int j = 0; j < kOutColumns / 8; ++j) {
          *reinterpret_cast<float2*>(to + ((2 * j + lane_ % 4 / 2) ^ lane_ / 4) * 16) = Value(item, sums, factor, i, kOutColumns / 8 * c + j);
        }
      }
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // the copy sees what lanes wrote
      __syncwarp();
      if (lane_ == 0) TensorStore(args_.out[item.part], item.first_column + kOutColumns * c, row, staging);
    }
  }
  // Pair j of activation i.
  __device__ __forceinline__ float2 Value(const UnpackedItem& item, const Sums& sums, const float (&factor)[2], int i, int j) const {
    const UnpackedPart& part = args_.part[item.part];
    const int32_t row = min(part.first_group * kGroupRows + item.first_column + 8 * j + lane_ % 4 * 2, part.weight.rows - 2);
    float2 pair = {sums[4 * j + 2 * i], sums[4 * j + 2 * i + 1]};
    if (part.weight.packing == Packing::kHalf) {
      const float2 scale = *reinterpret_cast<const float2*>(reinterpret_cast<const float*>(part.weight.scales) + row);
      pair.x *= scale.x, pair.y *= scale.y;
    }
    const float2 bias = part.bias != nullptr ? *reinterpret_cast<const float2*>(part.bias + row) : float2{0, 0};
    return {pair.x * factor[i] + bias.x, pair.y * factor[i] + bias.y};
  }

  const UnpackedArgs& args_;
  Shared* shared_;
  int warp_, lane_;
  RingPlace<Shared::kStages> place_;
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <int kColumns>
__global__ void __launch_bounds__(kPrefillThreads, 1) UnpackedKernel(const __grid_constant__ UnpackedArgs args) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ std::byte unpacked_shared[];
  using Shared = UnpackedShared<kColumns>;
  auto* shared = Held(reinterpret_cast<Shared*>(SwizzleAligned(unpacked_shared)));
  if (threadIdx.x == 0) {
    for (int i = 0; i < Shared::kStages; ++i) BarrierInit(&shared->full[i], 1), BarrierInit(&shared->empty[i], kMultiplyWarps * kUnpackedCluster * kArrivalsOfWarp);
    asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async;" ::: "memory");  // the other block and the copies see the barriers
  }
  __syncthreads();
  MeetInCluster();
  WaitForBefore();
  LetNextStart();
  if (threadIdx.x < kWarpgroup) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kLoadRegisters));
    if (threadIdx.x == 0) BringUnpacked<kColumns>(args, shared);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kMultiplyRegisters));
    UnpackedMultiply<kColumns>(args, shared).Run();
  }
  __syncwarp();
  MeetInCluster();  // the other block may still copy to this one and arrive here
#endif
}

template <int kColumns>
cudaError_t Start(const UnpackedArgs& args, cudaStream_t stream) {
  int32_t items = 0;
  for (int32_t p = 0; p < args.parts; ++p) items += ColumnItems<kColumns>(args.part[p]) * RowItems(args.rows);
  const int blocks = std::min(items, HopperMultiprocessors() / kUnpackedCluster) * kUnpackedCluster;
  const auto kernel = UnpackedKernel<kColumns>;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kUnpackedSharedBytes<kColumns>));
  if (error != cudaSuccess) return error;
  return LaunchEarlyInClusters(kUnpackedCluster, kernel, dim3(static_cast<unsigned>(blocks)), dim3(kPrefillThreads), kUnpackedSharedBytes<kColumns>, stream, args);
}

// [rows, cols], rows so many bytes apart, in boxes of box_rows by box_cols.
bool MapOf(CUtensorMapDataType type, const void* from, int32_t rows, int32_t cols, int64_t row_bytes, int box_rows, int box_cols, CUtensorMap* map) {
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(cols), static_cast<cuuint64_t>(rows)}, strides[] = {static_cast<cuuint64_t>(row_bytes)};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(box_cols), static_cast<cuuint32_t>(box_rows)};
  return MakeTensorMap<2>(type, from, sizes, strides, box, map);
}

// Whether items of 128 rows of weights take less time than those of 256: by their rounds, one reckoned at 13 twentieths of the other (half the products, two thirds
// of the bytes).
bool Narrow(std::span<const LinearLaunch> launches) {
  const auto rounds = [&](int columns) {
    int64_t items = 0;
    for (const LinearLaunch& l : launches) items += (l.weight.rows + columns - 1) / columns;
    const int clusters = HopperMultiprocessors() / kUnpackedCluster;
    return (items * RowItems(launches.front().rows) + clusters - 1) / clusters;
  };
  return rounds(kGroupRows) * 13 < rounds(2 * kGroupRows) * 20;
}

// What is unpacked at once: each packing by a launch, then the product. waits: as Unpack's.
cudaError_t Piece(UnpackedArgs* args, bool narrow, std::byte* unpacked, bool waits, cudaStream_t stream) {
  const std::span<const UnpackedPart> parts(args->part, static_cast<size_t>(args->parts));
  for (size_t begin = 0, end = 0; begin < parts.size(); begin = end) {
    while (end < parts.size() && parts[end].weight.packing == parts[begin].weight.packing) ++end;
    const cudaError_t error = Unpack(parts.subspan(begin, end - begin), unpacked, waits, stream);
    if (error != cudaSuccess) return error;
  }
  for (size_t p = 0; p < parts.size(); ++p) {
    const int32_t all = parts[p].weight.rows, first = parts[p].first_group * kGroupRows, rows = std::min(all - first, parts[p].groups * kGroupRows);
    if (!MapOf(CU_TENSOR_MAP_DATA_TYPE_FLOAT32, parts[p].out + first, args->rows, rows, int64_t{all} * 4, kOutRows, kOutColumns, &args->out[p])) {
      return cudaErrorNotSupported;
    }
  }
  return narrow ? Start<kGroupRows>(*args, stream) : Start<2 * kGroupRows>(*args, stream);
}

// Groups of 128 rows.
int32_t GroupsAtOnce(const DeviceMatrix& weight) { return static_cast<int32_t>(kUnpackedBytes / (static_cast<size_t>(weight.k_tiles) * kUnpackedTileBytes)) / 2 * 2; }

}  // namespace

size_t UnpackedRoom(int32_t rows) { return rows >= kLeastRows && HopperMultiprocessors() > 0 ? kUnpackedBytes : 0; }

bool PrefillsUnpacked(std::span<const LinearLaunch> launches) {
  const LinearLaunch& one = launches.front();
  if (one.unpacked == nullptr || one.rows < kLeastRows || GroupsAtOnce(one.weight) == 0 || TensorMapMaker() == nullptr) return false;
  return std::all_of(launches.begin(), launches.end(), [](const LinearLaunch& l) { return l.weight.rows % 4 == 0 && OfQuads(l.out) && OfQuads(l.bias); });
}

cudaError_t LinearUnpacked(std::span<const LinearLaunch> launches, const HalfRows& x, cudaStream_t stream) {
  const LinearLaunch& one = launches.front();
  UnpackedArgs args;
  args.rows = one.rows, args.k_tiles = one.weight.k_tiles, args.weights = one.unpacked, args.unscale = x.unscale;
  static_assert(kHalfRowsTogether % (kUnpackedCluster * kUnpackedRows) == 0);
  if (!MapOf(CU_TENSOR_MAP_DATA_TYPE_FLOAT16, x.halves, WholeHalfRows(one.rows), x.stride, int64_t{x.stride} * 2, kUnpackedRows, kTileCols, &args.x)) return cudaErrorNotSupported;
  const int32_t room = GroupsAtOnce(one.weight);
  const bool narrow = Narrow(launches);
  bool waits = false;  // for the piece before
  int32_t taken = 0;
  const auto multiply = [&] {
    const cudaError_t error = Piece(&args, narrow, one.unpacked, waits, stream);
    args.parts = taken = 0, waits = true;
    return error;
  };
  for (const LinearLaunch& l : launches) {
    const int32_t groups = (l.weight.rows + kGroupRows - 1) / kGroupRows;
    for (int32_t first = 0; first < groups;) {
      const int32_t here = std::min(groups - first, room - taken);
      args.part[args.parts++] = {l.weight, first, here, taken, l.out, l.bias};
      taken += here, first += here;
      if (taken < room) continue;
      if (const cudaError_t error = multiply(); error != cudaSuccess) return error;
    }
  }
  return args.parts > 0 ? multiply() : cudaSuccess;
}

}  // namespace thermoe::cuda
