// SPDX-License-Identifier: Apache-2.0
// The warpgroups of a prefill block that multiply, and what they make of the sums.
#pragma once

#include "kernels/cuda/prefill_ring.cuh"

namespace thermoe::cuda {

#if __CUDA_ARCH_FEAT_SM90_ALL

template <Packing kPacking, Epilogue kEpilogue>
class PrefillMultiply {
 public:
  __device__ PrefillMultiply(const PrefillArgs& args, PrefillShared<kPacking>* shared) : args_(args), shared_(shared) {
    const int thread = static_cast<int>(threadIdx.x) - kWarpgroup;
    lane_ = thread % 32;
    warp_ = __shfl_sync(~0u, thread / 32, 0);
  }

  __device__ __forceinline__ void Run() {
    RingPlace<2> place;
    while (true) {
      BarrierWait(&shared_->item_full[place.at], place.parity);
      const PrefillItem& item = shared_->item[place.at];
      const int32_t columns = __reduce_max_sync(~0u, item.columns);  // so that the compiler sees that a warp agrees
      if (columns == 0) return;
      const bool hi = __any_sync(~0u, item.job.planes == Planes::kHi) != 0;
      if (kMayBeHi<kPacking, kEpilogue> && hi) {
        Item<kMayBeHi<kPacking, kEpilogue>>(item, columns);
      } else {
        Item<false>(item, columns);
      }
      __syncwarp();
      WarpArrives(&shared_->item_empty[place.at], lane_);
      place.Next();
    }
  }

 private:
  using Words = TileWords<kPacking>;
  using Sums = float[kMostColumns / 2];
  static constexpr int kStages = Stages(kPacking);
  static constexpr int kTailColumns = 64;  // up to here the tensor cores take less

  template <bool kHi>
  __device__ __forceinline__ void Item(const PrefillItem& item, int32_t columns) {
    if (columns > kTailColumns) {
      Item<kMostColumns, kHi>(item, columns);
    } else {
      Item<kTailColumns, kHi>(item, columns);
    }
  }
  template <int kColumns, bool kHi>
  __device__ __forceinline__ void Item(const PrefillItem& item, int32_t columns) {
    Sums first, second;
    Multiply<kColumns, kHi>(columns, first, second);
    End<kColumns>(item, first, second);
  }

  // An item's columns of the weights, stage by stage. kAhead steps of 16 of them are with the tensor cores while the
  // fragments of the next are made.
  template <int kColumns, bool kHi>
  __device__ __forceinline__ void Multiply(int32_t columns, Sums& first, Sums& second) {
    constexpr int kAhead = kColumns == kMostColumns ? 2 : 1;  // two everywhere: ptxas runs out of registers
    Fragment fragment[kAhead == 1 ? 2 : 4][2];                // of the steps in turn; of both streams
    Words words[2];
    Await<kHi>(words);
    int32_t before = 0;  // the stage before
#pragma unroll 1
    for (int32_t k = 0; k < args_.k_tiles; ++k) {
      const uint64_t descriptor = WgmmaDescriptor(shared_->x[stage_.at]);
      const int32_t now = stage_.at;
      const auto step = [&]<int kStep>() {
        Fragment(&at)[2] = fragment[kAhead == 1 ? kStep % 2 : kStep];
        at[0] = words[0].template Step<kStep, kHi>();
        at[1] = words[1].template Step<kStep, kHi>();
        const int accumulate = k > 0 || kStep > 0;
        WgmmaFence();
        const auto multiply = [&]<int kOf>() {
          Wgmma<kOf>::Multiply(first, at[0], descriptor + 2 * kStep, accumulate);
          Wgmma<kOf>::Multiply(second, at[1], descriptor + 2 * kStep, accumulate);
          WgmmaCommit();  // here: where branches meet, the compiler ends a group of its own
        };
        if (kColumns == kTailColumns && columns <= kTailColumns / 2) {
          multiply.template operator()<kTailColumns / 2>();
        } else {
          multiply.template operator()<kColumns>();
        }
        if constexpr (kStep == 3) {
          stage_.Next();
          if (k + 1 < args_.k_tiles) Await<kHi>(words);
        }
        WgmmaWait<kAhead>();
        if (kStep == kAhead - 1 && k > 0) Release(before);
      };
      step.template operator()<0>();
      step.template operator()<1>();
      step.template operator()<2>();
      step.template operator()<3>();
      before = now;
    }
    WgmmaWait<0>();
    Release(before);
  }
  // The next stage has come: this lane's words of it.
  template <bool kHi>
  __device__ __forceinline__ void Await(Words (&words)[2]) {
    BarrierWait(&shared_->full[stage_.at], stage_.parity);
    const std::byte* weights = shared_->weights[stage_.at];
    words[0].template Load<kHi>(weights, kGroupTiles, warp_, lane_);
    words[1].template Load<kHi>(weights + WeightStageBytes(kPacking) / 2, kGroupTiles, warp_, lane_);
  }
  __device__ void Release(int32_t stage) { WarpArrives(&shared_->empty[stage], lane_); }

  // Row (of the item's streams) of sum i: this warp's 16 rows.
  __device__ int RowInGroup(int i) const { return warp_ * 16 + lane_ / 4 + i / 2 % 2 * 8; }
  // kHalf: what a row's weights are scaled by.
  __device__ void RowScales(const PrefillItem& item, int stream, float (&out)[2]) const {
    out[0] = out[1] = 1;
    if constexpr (kPacking == Packing::kHalf) {
      const auto* scales = reinterpret_cast<const float*>(MatrixOf<kEpilogue>(args_, item.job, stream).scales) +
                           GroupOf<kEpilogue>(args_, item.job, item.m, stream) * kGroupRows;
      out[0] = scales[RowInGroup(0)];
      out[1] = scales[RowInGroup(2)];
    }
  }

  template <int kColumns>
  __device__ __forceinline__ void End(const PrefillItem& item, const Sums& first, const Sums& second) {
    float a[2], b[2];
    RowScales(item, 0, a);
    RowScales(item, 1, b);
    if constexpr (kEpilogue == Epilogue::kSwiGlu) {
      Store<kColumns>(item, item.m * kGroupRows, [&](int i, float factor) {
        const float gate = first[i] * factor * a[i / 2 % 2], up = second[i] * factor * b[i / 2 % 2];
        return __fdividef(gate, 1.0f + __expf(-gate)) * up;
      });
    } else if constexpr (kEpilogue == Epilogue::kSlots) {
      Store<kColumns>(item, 2 * item.m * kGroupRows,
                      [&](int i, float factor) { return first[i] * factor * a[i / 2 % 2]; });
      Store<kColumns>(item, (2 * item.m + 1) * kGroupRows,
                      [&](int i, float factor) { return second[i] * factor * b[i / 2 % 2]; });
    } else {
      StoreFloats<kColumns>(item, 2 * item.m * kGroupRows, first, a);
      StoreFloats<kColumns>(item, (2 * item.m + 1) * kGroupRows, second, b);
    }
  }

  // value(i, factor of the activation) of each sum as halves, 16 activations by the warp's 16 rows at a time: through
  // shared memory, so that a lane has 16 bytes of an activation. row0: the group's first row.
  template <int kColumns, typename Value>
  __device__ __forceinline__ void Store(const PrefillItem& item, int32_t row0, Value value) {
    const int32_t row = row0 + warp_ * 16 + lane_ % 2 * 8;
#pragma unroll
    for (int j = 0; j < kColumns / 16; ++j) {
      if (16 * j >= item.columns) break;
      __half(&staging)[16][24] = shared_->staging[warp_][j % 2];
      uint32_t halves[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 factor = *reinterpret_cast<const float2*>(&item.factor[16 * j + i / 2 * 8 + lane_ % 4 * 2]);
        halves[i] = SaturatedHalves(value(8 * j + 2 * i, factor.x), value(8 * j + 2 * i + 1, factor.y));
      }
      StoreTransposed(&staging[lane_ / 16 * 8 + lane_ % 8][lane_ / 8 % 2 * 8], halves);
      __syncwarp();
      const int n = 16 * j + lane_ / 2;
      if (n < item.columns && row < args_.half_stride) {
        const int64_t to = kEpilogue == Epilogue::kSlots ? item.place[n] : item.job.first + item.n0 + n;
        *reinterpret_cast<uint4*>(args_.half_out + to * args_.half_stride + row) =
            *reinterpret_cast<const uint4*>(&staging[lane_ / 2][lane_ % 2 * 8]);
      }
    }
    __syncwarp();
  }
  __device__ static uint32_t SaturatedHalves(float low, float high) {
    constexpr uint32_t kMost = 0x7bff7bffu, kLeast = 0xfbfffbffu;
    const __half2 pair = __hmax2(__floats2half2_rn(low, high), *reinterpret_cast<const __half2*>(&kLeast));
    const __half2 within = __hmin2(pair, *reinterpret_cast<const __half2*>(&kMost));
    return *reinterpret_cast<const uint32_t*>(&within);
  }

  template <int kColumns>
  __device__ __forceinline__ void StoreFloats(const PrefillItem& item, int32_t row0, const Sums& sums,
                                              const float (&scales)[2]) {
    const PrefillPart& part = args_.part[item.job.expert];
    const int32_t rows = part.weight.rows;
    float* out = part.out;
    const float* bias = part.bias;
#pragma unroll
    for (int i = 0; i < kColumns / 2; ++i) {
      const int n = i / 4 * 8 + lane_ % 4 * 2 + i % 2;
      const int32_t row = row0 + RowInGroup(i);
      if (n >= item.columns || row >= rows) continue;
      out[int64_t{item.n0 + n} * rows + row] = sums[i] * scales[i / 2 % 2] * item.factor[n] + (bias != nullptr ? bias[row] : 0.0f);
    }
  }

  const PrefillArgs& args_;
  PrefillShared<kPacking>* shared_;
  int lane_, warp_;
  RingPlace<kStages> stage_;
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace thermoe::cuda
