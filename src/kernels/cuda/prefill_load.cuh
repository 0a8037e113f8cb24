// SPDX-License-Identifier: Apache-2.0
// The warpgroup of a prefill block that lists the items and brings what they read.
#pragma once

#include "kernels/cuda/prefill_ring.cuh"
#include "kernels/cuda/warp.cuh"

namespace thermoe::cuda {

#if __CUDA_ARCH_FEAT_SM90_ALL

template <Packing kPacking, Epilogue kEpilogue>
class PrefillLoad {
 public:
  __device__ PrefillLoad(const PrefillArgs& args, PrefillShared<kPacking>* shared)
      : args_(args), shared_(shared), thread_(static_cast<int>(threadIdx.x)) {}

  __device__ __forceinline__ void Run() {
    int32_t row_items = ItemsOf(args_.out_rows);
    if constexpr (kEpilogue == Epilogue::kRows) {
      for (int p = 0; p < args_.parts; ++p) row_items += ItemsOf(args_.part[p].weight.rows);
    }
    const int32_t items = ListTiles() * row_items;
    int32_t at = static_cast<int32_t>(blockIdx.x);
    for (int turn = 0; at < items; turn ^= 1) {
      int32_t next = 0;  // asked for here, known by the end of the item
      if (thread_ == 0) next = static_cast<int32_t>(gridDim.x) + atomicAdd(args_.taken, 1);
      Begin(at, row_items);
      for (int32_t k = 0; k < args_.k_tiles; ++k) Fetch();
      if (thread_ == 0) shared_->next[turn] = next;
      Meet();
      at = shared_->next[turn];
    }
    TellAll();
    BarrierWait(&shared_->item_empty[item_.at], item_.parity ^ 1);
    if (thread_ == 0) shared_->item[item_.at].columns = 0;
    BarrierArrive(&shared_->item_full[item_.at]);
  }

 private:
  static constexpr int kItemRows = kEpilogue == Epilogue::kSwiGlu ? kGroupRows : 2 * kGroupRows;
  static constexpr int kStages = Stages(kPacking);
  static constexpr int kPieces = kTileCols / 8;             // of 16 bytes of an activation's columns
  static constexpr int kRowsAtOnce = kWarpgroup / kPieces;  // activations that all threads copy at once
  static constexpr int kCopies = kMostColumns / kRowsAtOnce;
  static constexpr int kUnderWay = 2;  // stages whose activations are on the way when the next ones' begin

  __device__ static int32_t ItemsOf(int32_t rows) { return (rows + kItemRows - 1) / kItemRows; }
  __device__ Job JobAt(int32_t j) const {
    if constexpr (kEpilogue == Epilogue::kRows) return {0, Planes::kBoth, 0, args_.rows};
    return args_.jobs[j];
  }
  __device__ static void Meet() {
    __syncwarp();
    asm volatile("bar.sync 1, %0;" ::"n"(kWarpgroup) : "memory");
  }

  // Tiles of activations of each job, summed; returns all.
  __device__ int32_t ListTiles() {
    const int32_t jobs = kEpilogue == Epilogue::kRows ? 1 : *args_.job_count;
    for (int32_t j = thread_; j < jobs; j += kWarpgroup) {
      shared_->before[j + 1] = (JobAt(j).count + kMostColumns - 1) / kMostColumns;
    }
    jobs_ = jobs;
    Meet();
    if (thread_ < 32) {
      int32_t sum = 0;
      for (int32_t base = 0; base < jobs; base += 32) {
        const int32_t value = SumUpTo(thread_, base + thread_ < jobs ? shared_->before[base + thread_ + 1] : 0);
        if (base + thread_ < jobs) shared_->before[base + thread_ + 1] = sum + value;
        sum += __shfl_sync(~0u, value, 31);
      }
      if (thread_ == 0) shared_->before[0] = 0;
    }
    Meet();
    return shared_->before[jobs];
  }

  // Item `at` for those who multiply, and where its activations are.
  __device__ void Begin(int32_t at, int32_t row_items) {
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
    Job job = JobAt(low);
    const int32_t n0 = (tile - shared_->before[low]) * kMostColumns;
    int32_t m = at - tile * row_items;
    if constexpr (kEpilogue == Epilogue::kRows) {
      for (int32_t here = ItemsOf(args_.part[0].weight.rows); m >= here; here = ItemsOf(args_.part[job.expert].weight.rows)) m -= here, ++job.expert;
    }
    const int32_t row_tiles = kEpilogue == Epilogue::kRows ? args_.row_tiles : args_.k_tiles, k_first = kEpilogue == Epilogue::kRows ? args_.part[job.expert].k_first : 0;
    columns_ = min(kMostColumns, job.count - n0);
    hi_ = job.planes == Planes::kHi;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int32_t row = SourceRow(job, n0 + min(thread_ / kPieces + kRowsAtOnce * i, columns_ - 1));
      source_[i] = reinterpret_cast<const std::byte*>(args_.x) + ((int64_t{row} * row_tiles + k_first) * kPieces + thread_ % kPieces) * static_cast<int64_t>(sizeof(uint4));
    }
    const int stream = thread_ / 64;
    const DeviceMatrix& matrix = MatrixOf<kEpilogue>(args_, job, stream);
    const int64_t first = int64_t{GroupOf<kEpilogue>(args_, job, m, stream)} * row_tiles + k_first;
    if (thread_ / 32 % 2 == 0) {
      codes_ = matrix.hi + first * kCodes;
    } else {
      codes_ = matrix.lo + first * kCodes;
      scales_ = matrix.scales + first * kScales;
    }
    const int32_t n = n0 + min(thread_, columns_ - 1);
    float factor = args_.unscale != nullptr ? args_.unscale[SourceRow(job, n)] : 1.0f;
    int32_t slot = 0;
    if constexpr (kEpilogue == Epilogue::kSlots) {
      slot = args_.order[job.first + n];
      factor *= args_.weight[slot];
    }
    if (args_.k_tiles < kUnderWay) TellAll();  // the place becomes free by what they do not know of yet
    BarrierWait(&shared_->item_empty[item_.at], item_.parity ^ 1);
    PrefillItem& item = shared_->item[item_.at];
    if (thread_ == 0) item.job = job, item.n0 = n0, item.columns = columns_, item.m = m;
    item.factor[thread_] = factor;
    item.place[thread_] = slot;
    BarrierArrive(&shared_->item_full[item_.at]);
    item_.Next();
  }
  __device__ int32_t SourceRow(const Job& job, int32_t n) const {
    if constexpr (kEpilogue == Epilogue::kSwiGlu) return args_.order[job.first + n] / args_.slots;
    return job.first + n;
  }

  // The next stage of the item begun last: 64 columns of its activations and weights.
  __device__ void Fetch() {
    BarrierWait(&shared_->empty[stage_.at], stage_.parity ^ 1);
    if (ElectLane()) FetchWeights(&shared_->full[stage_.at]);
    codes_ += kCodes;
    scales_ += kScales;
    std::byte* to = shared_->x[stage_.at] + thread_ / kPieces * 128 + (thread_ % kPieces ^ thread_ / kPieces % 8) * 16;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      if (i < kCopies / 2 || columns_ > kMostColumns / 2) {
        CopyAsync(to + kRowsAtOnce * i * 128, source_[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kCopies; ++i) source_[i] += kPieces * sizeof(uint4);
    CommitCopies();
    stage_.Next();
    if (++untold_ <= kUnderWay) return;
    WaitCopies<kUnderWay>();
    Tell();
  }
  // A warp's share of a stage's weights: of a stream the codes, or the lo plane and the scales.
  __device__ void FetchWeights(uint64_t* full) {
    std::byte* to = shared_->weights[stage_.at] + thread_ / 64 * (WeightStageBytes(kPacking) / 2);
    if (thread_ / 32 % 2 == 0) {
      ExpectBytes(full, kCodes);
      BulkCopy(to, codes_, kCodes, full);
      return;
    }
    const uint32_t lo = HasLoPlane(kPacking) && !(kMayBeHi<kPacking, kEpilogue> && hi_) ? kCodes : 0;
    ExpectBytes(full, lo + kScales);
    if (lo > 0) BulkCopy(to + kCodes, codes_, lo, full);
    if (kScales > 0) BulkCopy(to + kCodes + lo, scales_, kScales, full);
  }
  // The activations of a stage have come.
  __device__ void Tell() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // the tensor cores see what threads copied
    __syncwarp();
    WarpArrives(&shared_->full[told_.at], thread_ % 32);
    told_.Next();
    --untold_;
  }
  __device__ void TellAll() {
    WaitCopies<0>();
    while (untold_ > 0) Tell();
  }

  // Of a group of 128 rows by 64 columns.
  static constexpr uint32_t kCodes = kGroupTiles * CodeTileBytes(kPacking),
                            kScales = kGroupTiles * ScaleTileBytes(kPacking);

  const PrefillArgs& args_;
  PrefillShared<kPacking>* shared_;
  int thread_;
  int32_t jobs_ = 0;
  // Of the item that was begun last.
  int32_t columns_ = 0;
  bool hi_ = false;
  const std::byte* source_[kCopies];                      // what this thread copies of the next stage, 16 bytes each: an address reckoned for each copy would wait for the copy before
  const std::byte *codes_ = nullptr, *scales_ = nullptr;  // of this warp
  RingPlace<kStages> stage_, told_;
  int untold_ = 0;  // stages fetched that those who multiply do not know of
  RingPlace<2> item_;
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace thermoe::cuda
