// SPDX-License-Identifier: Apache-2.0
// Packed weights times many rows, on Hopper: weights go from memory to registers in fragment order, become halves there
// and are multiplied by 128 rows of activations in shared memory.
//
// One block on each multiprocessor takes items in turn: 128 activations of one job by 256 weight rows. Its two
// warpgroups take 64 rows each of two groups of 128 (gate and up: the same of both, so that a thread has both of a
// value; else neighbours). Bytes from the L2 cache of an item: 256 rows of weights and 128 of activations; FLOPs: 2 *
// 128 * 256 a column.
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

struct PrefillArgs {
  const DeviceMatrix* first = nullptr;   // [E] gate or down
  const DeviceMatrix* second = nullptr;  // [E] up; down: null
  DeviceMatrix linear;                   // kRows: the matrix
  const Job* jobs = nullptr;             // kRows: null, one job of all rows
  const int32_t* job_count = nullptr;
  int32_t job_capacity = 1;
  const int32_t* order = nullptr;
  const float* weight = nullptr;  // [T, K]
  int32_t slots = 1, rows = 0;
  const __half* x = nullptr;       // [rows of the input, k_tiles * 64]
  const float* unscale = nullptr;  // [rows of the input] or null
  int32_t k_tiles = 0;
  int32_t out_rows = 0;        // of the product: F, D or out
  __half* half_out = nullptr;  // [.., half_stride]
  int32_t half_stride = 0;
  float* float_out = nullptr;  // [rows, out_rows]
  const float* bias = nullptr;
};

inline constexpr int kPrefillThreads = 256;
inline constexpr int kMostColumns = 128;  // activations of an item
inline constexpr int kStageBytes = kMostColumns * 128;
inline constexpr int kStagingStride = kGroupRows + 8;  // halves: banks differ from row to row

// Stages of 64 columns in shared memory: what fits.
constexpr int Stages(Packing packing) { return packing == Packing::kHalf ? 3 : 5; }
// Of a stage: two groups of 128 rows.
constexpr int WeightStageBytes(Packing packing) {
  return 2 * kGroupTiles *
         (CodeTileBytes(packing) + (HasLoPlane(packing) ? kPlaneTileBytes : 0) + ScaleTileBytes(packing));
}

struct PrefillItem {
  Job job;
  int32_t n0, columns;  // first activation of the job, and how many
  int32_t m;            // which 128 (kSwiGlu) or 256 rows
};

template <Packing kPacking>
struct PrefillShared {
  alignas(1024) std::byte x[Stages(kPacking)][kStageBytes];
  alignas(128) std::byte weights[Stages(kPacking)][WeightStageBytes(kPacking)];
  alignas(16) __half staging[kMostColumns][kStagingStride];
  uint64_t full[Stages(kPacking)];  // weights have come
  float factor[2][kMostColumns];    // of items in turn: what undoes an activation's scale, or a slot's weight
  int32_t place[2][kMostColumns];   // kSlots: the slot
  PrefillItem item[2];
  int32_t before[1];  // [jobs + 1] tiles of activations of the jobs before
};
template <Packing kPacking>
constexpr size_t PrefillSharedBytes(int32_t job_capacity) {
  return sizeof(PrefillShared<kPacking>) + 4 * static_cast<size_t>(job_capacity) + 1024;  // to align
}

#if __CUDA_ARCH_FEAT_SM90_ALL

template <Packing kPacking, Epilogue kEpilogue>
class Prefill {
 public:
  __device__ Prefill(const PrefillArgs& args, PrefillShared<kPacking>* shared) : args_(args), shared_(shared) {
    thread_ = static_cast<int>(threadIdx.x);
    lane_ = thread_ % 32;
    warpgroup_ = thread_ / 128;
    warp_ = thread_ / 32 % 4;
  }

  __device__ __forceinline__ void Run() {
    if (thread_ == 0) {
      for (uint64_t& full : shared_->full) BarrierInit(&full, 1);
      asm volatile("fence.proxy.async;" ::: "memory");  // the copies see the barriers
    }
    const int32_t row_items = args_.out_rows <= 0 ? 0 : (args_.out_rows + kItemRows - 1) / kItemRows;
    const int32_t items = ListTiles() * row_items;
    int32_t at = static_cast<int32_t>(blockIdx.x);
    if (at >= items) return;
    Begin(ItemAt(at, row_items));
    while (at < items) {
      const int32_t columns = columns_;
      const bool hi = hi_;
      at += static_cast<int32_t>(gridDim.x);
      const int32_t next = at < items ? at : -1;
      if (kMayBeHi && hi) {
        Item<kMayBeHi>(columns, next, row_items);
      } else {
        Item<false>(columns, next, row_items);
      }
    }
  }

 private:
  static constexpr int kItemRows = kEpilogue == Epilogue::kSwiGlu ? kGroupRows : 2 * kGroupRows;
  static constexpr bool kMayBeHi = kPacking == Packing::kPlanes8 && kEpilogue != Epilogue::kRows;
  using Words = TileWords<kPacking>;
  using Sums = float[kMostColumns / 2];
  static constexpr int kStages = Stages(kPacking);

  __device__ Job JobAt(int32_t j) const {
    if constexpr (kEpilogue == Epilogue::kRows) return {0, Planes::kBoth, 0, args_.rows};
    return args_.jobs[j];
  }

  // Tiles of activations of each job, summed; returns all.
  __device__ int32_t ListTiles() {
    const int32_t jobs = kEpilogue == Epilogue::kRows ? 1 : *args_.job_count;
    for (int32_t j = thread_; j < jobs; j += kPrefillThreads) {
      shared_->before[j + 1] = (JobAt(j).count + kMostColumns - 1) / kMostColumns;
    }
    jobs_ = jobs;
    __syncthreads();
    if (thread_ < 32) {
      int32_t sum = 0;
      for (int32_t base = 0; base < jobs; base += 32) {
        int32_t value = base + lane_ < jobs ? shared_->before[base + lane_ + 1] : 0;
        for (int step = 1; step < 32; step *= 2) {
          const int32_t other = __shfl_up_sync(~0u, value, step);
          if (lane_ >= step) value += other;
        }
        if (base + lane_ < jobs) shared_->before[base + lane_ + 1] = sum + value;
        sum += __shfl_sync(~0u, value, 31);
      }
      if (lane_ == 0) shared_->before[0] = 0;
    }
    __syncthreads();
    return shared_->before[jobs];
  }

  __device__ PrefillItem ItemAt(int32_t at, int32_t row_items) const {
    const int32_t tile = at / row_items;
    int32_t low = 0, high = jobs_ - 1;  // the last job that begins at or before the tile
    while (low < high) {
      const int32_t middle = (low + high + 1) / 2;
      if (shared_->before[middle] <= tile) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    PrefillItem item;
    item.job = JobAt(low);
    item.n0 = (tile - shared_->before[low]) * kMostColumns;
    item.columns = min(kMostColumns, item.job.count - item.n0);
    item.m = at - tile * row_items;
    return item;
  }

  // Starts the loads of an item: its first stages, and what its end needs to know of each activation.
  __device__ void Begin(const PrefillItem& item) {
    parity_ ^= 1;
    columns_ = item.columns;
    hi_ = item.job.planes == Planes::kHi;
    if (thread_ == 0) shared_->item[parity_] = item;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int32_t n = item.n0 + min(thread_ / 8 + 32 * i, item.columns - 1);
      source_[i] = SourceRow(item, n) * args_.k_tiles * (kTileCols / 8) + thread_ % 8;
    }
    if (thread_ < kMostColumns) {
      const int32_t n = item.n0 + min(thread_, item.columns - 1);
      float factor = args_.unscale != nullptr ? args_.unscale[SourceRow(item, n)] : 1.0f;
      if constexpr (kEpilogue == Epilogue::kSlots) {
        const int32_t slot = args_.order[item.job.first + n];
        factor *= args_.weight[slot];
        shared_->place[parity_][thread_] = slot;
      }
      shared_->factor[parity_][thread_] = factor;
    }
    for (int k = 0; k < kStages - 2; ++k) Fetch(k);
  }

  __device__ int32_t SourceRow(const PrefillItem& item, int32_t n) const {
    if constexpr (kEpilogue == Epilogue::kSwiGlu) return args_.order[item.job.first + n] / args_.slots;
    return item.job.first + n;
  }
  __device__ const DeviceMatrix& Matrix(const PrefillItem& item, int stream) const {
    if constexpr (kEpilogue == Epilogue::kRows) return args_.linear;
    return (kEpilogue == Epilogue::kSwiGlu && stream == 1 ? args_.second : args_.first)[item.job.expert];
  }
  // The group of 128 rows of a stream; kept inside the matrix.
  __device__ int32_t GroupOf(const PrefillItem& item, int stream) const {
    if constexpr (kEpilogue == Epilogue::kSwiGlu) return item.m;
    return min(2 * item.m + stream, (args_.out_rows - 1) / kGroupRows);
  }
  // Stage k of the item begun last: 64 columns of its activations and weights. Always one group of copies.
  __device__ void Fetch(int32_t k) {
    if (k < args_.k_tiles) {
      const int32_t stage = (base_ + k) % kStages;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = thread_ / 8 + 32 * i;
        if (32 * i < columns_) {
          CopyAsync(shared_->x[stage] + row * 128 + (thread_ % 8 ^ row % 8) * 16,
                    reinterpret_cast<const uint4*>(args_.x) + source_[i] + k * (kTileCols / 8));
        }
      }
      if (thread_ == 0) FetchWeights(k, stage);
    }
    CommitCopies();
  }
  __device__ void FetchWeights(int32_t k, int32_t stage) {
    constexpr uint32_t kCodes = kGroupTiles * CodeTileBytes(kPacking), kScales = kGroupTiles * ScaleTileBytes(kPacking);
    const uint32_t lo = HasLoPlane(kPacking) && !(kMayBeHi && hi_) ? kCodes : 0;
    const PrefillItem& item = shared_->item[parity_];
    uint64_t* full = &shared_->full[stage];
    ExpectBytes(full, 2 * (kCodes + lo + kScales));
#pragma unroll
    for (int stream = 0; stream < 2; ++stream) {
      const DeviceMatrix& m = Matrix(item, stream);
      const int64_t column = int64_t{GroupOf(item, stream)} * args_.k_tiles + k;
      std::byte* to = shared_->weights[stage] + stream * (WeightStageBytes(kPacking) / 2);
      BulkCopy(to, m.hi + column * kCodes, kCodes, full);
      if (lo > 0) BulkCopy(to + kCodes, m.lo + column * kCodes, lo, full);
      if (kScales > 0) BulkCopy(to + kCodes + lo, m.scales + column * kScales, kScales, full);
    }
  }

  template <bool kHi>
  __device__ __forceinline__ void Item(int32_t columns, int32_t next, int32_t row_items) {
    Sums first, second;
    Fragment fragment[2][2];  // in turn; of both streams
#pragma unroll 1
    for (int32_t k = 0; k < args_.k_tiles; ++k) {
      const int32_t stage = (base_ + k) % kStages;
      asm volatile("cp.async.wait_group %0;\nfence.proxy.async.shared::cta;" ::"n"(kStages - 3) : "memory");
      BarrierWait(&shared_->full[stage], static_cast<uint32_t>((base_ + k) / kStages & 1));
      __syncthreads();  // the stage is there, and the one before the last is free
      Fetch(k + kStages - 2);
      Words words[2];
      words[0].template Load<kHi>(shared_->weights[stage], warpgroup_ * 4 + warp_, lane_);
      words[1].template Load<kHi>(shared_->weights[stage] + WeightStageBytes(kPacking) / 2, warpgroup_ * 4 + warp_,
                                  lane_);
      const uint64_t descriptor = WgmmaDescriptor(shared_->x[stage]);
      const auto step = [&]<int kStep>() {
        Fragment(&at)[2] = fragment[kStep % 2];
        at[0] = words[0].template Step<kStep, kHi>();
        at[1] = words[1].template Step<kStep, kHi>();
        const int accumulate = k > 0 || kStep > 0;
        const auto multiply = [&]<int kColumns>() {
          WgmmaFence();
          Wgmma<kColumns>::Multiply(first, at[0], descriptor + 2 * kStep, accumulate);
          Wgmma<kColumns>::Multiply(second, at[1], descriptor + 2 * kStep, accumulate);
        };
        if (columns <= 32) {
          multiply.template operator()<32>();
        } else if (columns <= 64) {
          multiply.template operator()<64>();
        } else {
          multiply.template operator()<128>();
        }
        WgmmaCommit();
        WgmmaWait<1>();
      };
      step.template operator()<0>();
      step.template operator()<1>();
      step.template operator()<2>();
      step.template operator()<3>();
    }
    WgmmaWait<0>();
    __syncthreads();  // nobody reads the stages
    const int parity = parity_;
    base_ += args_.k_tiles;
    if (next >= 0) Begin(ItemAt(next, row_items));
    End(shared_->item[parity], parity, first, second);
  }

  // Row (of the item's streams) of accumulator i: this warp's 16 rows.
  __device__ int RowInGroup(int i) const { return warpgroup_ * 64 + warp_ * 16 + lane_ / 4 + i / 2 % 2 * 8; }
  __device__ int ColumnOf(int i) const { return i / 4 * 8 + lane_ % 4 * 2 + i % 2; }
  // kHalf: what a row's weights are scaled by.
  __device__ void RowScales(const PrefillItem& item, int stream, float (&out)[2]) const {
    out[0] = out[1] = 1;
    if constexpr (kPacking == Packing::kHalf) {
      const auto* scales =
          reinterpret_cast<const float*>(Matrix(item, stream).scales) + GroupOf(item, stream) * kGroupRows;
      out[0] = scales[RowInGroup(0)];
      out[1] = scales[RowInGroup(2)];
    }
  }

  __device__ __forceinline__ void End(const PrefillItem& item, int parity, const Sums& first, const Sums& second) {
    float a[2], b[2];
    RowScales(item, 0, a);
    RowScales(item, 1, b);
    const float* factor = shared_->factor[parity];
    if constexpr (kEpilogue == Epilogue::kSwiGlu) {
#pragma unroll
      for (int i = 0; i < kMostColumns / 2; ++i) {
        if (i % 8 == 0) asm volatile("" ::: "memory");  // registers are short: no loads ahead
        const float f = factor[ColumnOf(i)];
        const float gate = first[i] * f * a[i / 2 % 2], up = second[i] * f * b[i / 2 % 2];
        shared_->staging[ColumnOf(i)][RowInGroup(i)] = SaturatedHalf(Silu(gate) * up);
      }
      __syncthreads();
      Copy(item, parity, item.m * kGroupRows);
      __syncthreads();
    } else if constexpr (kEpilogue == Epilogue::kSlots) {
#pragma unroll
      for (int stream = 0; stream < 2; ++stream) {
#pragma unroll
        for (int i = 0; i < kMostColumns / 2; ++i) {
          if (i % 8 == 0) asm volatile("" ::: "memory");
          const float value = stream == 0 ? first[i] * a[i / 2 % 2] : second[i] * b[i / 2 % 2];
          shared_->staging[ColumnOf(i)][RowInGroup(i)] = SaturatedHalf(value * factor[ColumnOf(i)]);
        }
        __syncthreads();
        Copy(item, parity, (2 * item.m + stream) * kGroupRows);
        __syncthreads();
      }
    } else {
#pragma unroll
      for (int stream = 0; stream < 2; ++stream) {
#pragma unroll
        for (int i = 0; i < kMostColumns / 2; ++i) {
          if (i % 8 == 0) asm volatile("" ::: "memory");
          const int n = ColumnOf(i), row = (2 * item.m + stream) * kGroupRows + RowInGroup(i);
          if (n >= item.columns || row >= args_.out_rows) continue;
          const float value = (stream == 0 ? first[i] * a[i / 2 % 2] : second[i] * b[i / 2 % 2]) * factor[n];
          args_.float_out[int64_t{item.n0 + n} * args_.out_rows + row] =
              value + (args_.bias != nullptr ? args_.bias[row] : 0.0f);
        }
      }
    }
  }

  // The staged group of rows to memory: 16 bytes a lane, half a warp a row of it.
  __device__ void Copy(const PrefillItem& item, int parity, int32_t row0) {
    const int32_t c = thread_ % 16 * 8;
    if (row0 + c >= args_.half_stride) return;
    for (int n = thread_ / 16; n < item.columns; n += kPrefillThreads / 16) {
      const int64_t to = kEpilogue == Epilogue::kSlots ? shared_->place[parity][n] : item.job.first + item.n0 + n;
      *reinterpret_cast<uint4*>(args_.half_out + to * args_.half_stride + row0 + c) =
          *reinterpret_cast<const uint4*>(&shared_->staging[n][c]);
    }
  }

  const PrefillArgs& args_;
  PrefillShared<kPacking>* shared_;
  int thread_, lane_, warpgroup_, warp_;
  int32_t jobs_ = 0;
  // Of the item that was begun last.
  int32_t columns_ = 0;
  bool hi_ = false;
  int parity_ = 0;
  int32_t source_[4];  // of 16 bytes
  int32_t base_ = 0;   // stages that the items before took
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <Packing kPacking, Epilogue kEpilogue>
__global__ void __launch_bounds__(kPrefillThreads, 1) PrefillKernel(const __grid_constant__ PrefillArgs args) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ std::byte prefill_shared[];
  auto* aligned = prefill_shared + (1024 - SharedAddress(prefill_shared) % 1024) % 1024;
  Prefill<kPacking, kEpilogue>(args, reinterpret_cast<PrefillShared<kPacking>*>(aligned)).Run();
#endif
}

template <Packing kPacking, Epilogue kEpilogue>
cudaError_t StartPrefill(const PrefillArgs& args, int multiprocessors, cudaStream_t stream) {
  const auto kernel = PrefillKernel<kPacking, kEpilogue>;
  const size_t shared = PrefillSharedBytes<kPacking>(args.job_capacity);
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
  if (error != cudaSuccess) return error;
  kernel<<<static_cast<unsigned>(multiprocessors), kPrefillThreads, shared, stream>>>(args);
  return cudaGetLastError();
}

template <Epilogue kEpilogue>
cudaError_t StartPrefill(Packing packing, const PrefillArgs& args, int multiprocessors, cudaStream_t stream) {
  switch (packing) {
    case Packing::kPlanes8: return StartPrefill<Packing::kPlanes8, kEpilogue>(args, multiprocessors, stream);
    case Packing::kNibble: return StartPrefill<Packing::kNibble, kEpilogue>(args, multiprocessors, stream);
    case Packing::kNibbleMin: return StartPrefill<Packing::kNibbleMin, kEpilogue>(args, multiprocessors, stream);
    case Packing::kByteMin: return StartPrefill<Packing::kByteMin, kEpilogue>(args, multiprocessors, stream);
    case Packing::kByte16: return StartPrefill<Packing::kByte16, kEpilogue>(args, multiprocessors, stream);
    case Packing::kMxfp4: return StartPrefill<Packing::kMxfp4, kEpilogue>(args, multiprocessors, stream);
    case Packing::kHalf: return StartPrefill<Packing::kHalf, kEpilogue>(args, multiprocessors, stream);
    case Packing::kF32: break;
  }
  return cudaErrorNotSupported;
}

}  // namespace thermoe::cuda
