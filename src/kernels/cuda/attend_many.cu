// SPDX-License-Identifier: Apache-2.0
// Attention of prefill, as FlashAttention-3 has it (Shah et al. 2024, arXiv 2407.08608): a warp brings tiles of 128 positions by tensor copies into two
// rings, one of keys and one of values; two warpgroups multiply, 64 rows of one head each. While the tensor cores are at the scores of a tile and at the
// values of the one before it for one warpgroup, the other is at its softmax; they take turns.
//
// An item: 128 rows of one head, which may be of several sequences: one after the other. Tiles begin at multiples of 128 positions and come in
// order, and positions that a row does not see add nothing to it: a row's result does not depend on the rows beside it.
// Bytes from the L2 cache of a tile and item: 512 head_dim. FLOPs: 4 * 128 * 128 head_dim: of 128 columns 2,048 cycles of the tensor cores. On an H100
// they take 2,880 (2,650 without copies), and some 3,200 where all multiprocessors are busy, at the 1.7 GHz that its power then leaves.
// What took longer: warpgroups without turns (4 %), two stages in the rings (9 %), queries in shared memory (1 %), rescaling where nothing has changed
// (2 %). Passing the turn before the values' products changes nothing.
#include "kernels/cuda/attend_many.h"

#include <algorithm>

#include "kernels/cuda/attend_many_ring.cuh"
#include "kernels/cuda/launch_early.cuh"
#include "kernels/cuda/prefill.h"
#include "kernels/cuda/tensor_map.h"

namespace thermoe::cuda {
namespace {

#if __CUDA_ARCH_FEAT_SM90_ALL

// 2^x; of less than 2^-126: zero.
__device__ inline float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// A warpgroup that multiplies. A thread has of two rows, 16 warp + lane / 4 and 8 further on, every fourth pair of columns (wgmma.cuh).
template <int kDim>
class ManyMultiply {
 public:
  __device__ ManyMultiply(const ManyArgs& args, ManyShared<kDim>* shared) : args_(args), shared_(shared) {
    const int warp = WarpNumber() - kManyGroupThreads / 32;
    group_ = warp / 4, warp_ = warp % 4, lane_ = static_cast<int>(threadIdx.x % 32);
  }

  __device__ __forceinline__ void Run() {
    if (group_ == 1) PassTurn();  // the other begins
    Beginning next;
    Begin(NextItem(), &next);
    while (next.item.left) {
      State state;
      state.Clear();
      const ManyItem item = next.item;
      Multiply(next, &state);
      Rescale(&state);
      MultiplyValues(&state);
      Begin(NextItem(), &next);  // its rows come while the tensor cores finish
      FinishValues(&state);
      Store(item, state);
    }
    if (group_ == 0) TakeTurn();  // the other's last
  }

 private:
  using Shared = ManyShared<kDim>;
  static constexpr int kStages = Shared::kStages;
  static constexpr uint32_t kColumnsBytes = 8 * kManyColumns * sizeof(__half), kEightBytes = Shared::kColumns * kColumnsBytes;

  // What an item begins with, asked for while the one before ends.
  struct Beginning {
    ManyItem item;
    RowRun run;                   // the first
    int limit[2];                 // positions that this thread's rows see
    int whole;                    // and the first row of the warpgroup
    Fragment queries[kDim / 16];  // as halves, times what makes scores of products, in bits
  };

  struct State {
    float out[64];          // the first kDim / 2
    Fragment weights[8];    // of the newest tile: its values are not in `out` yet
    float most[2], sum[2];  // of the scores, of 2 to the scores less `most`
    float keep[2];          // what `out` shrinks by before the newest tile's values come to it

    __device__ __forceinline__ void Clear() {
#pragma unroll
      for (int i = 0; i < 64; ++i) out[i] = 0;
      most[0] = most[1] = -INFINITY;
      sum[0] = sum[1] = 0;
      keep[0] = keep[1] = 1;
    }
  };

  __device__ __forceinline__ ManyItem NextItem() {
    BarrierWait(&shared_->item_full[items_ % 2], RingParityOf<2>(items_));
    const int at = shared_->item[items_ % 2];
    __syncwarp();
    WarpArrives(&shared_->item_empty[items_ % 2], lane_);
    ++items_;
    return ManyItemAt(args_, at);
  }

  // The first of this thread's two rows.
  __device__ int RowOf(const ManyItem& item) const { return item.first_row + group_ * kManyGroupRows + 16 * warp_ + lane_ / 4; }

  __device__ __forceinline__ void Begin(const ManyItem& item, Beginning* b) const {
    b->item = item;
    if (!item.left) return;
    const int32_t* position = args_.l.rows.position;
    const float scale = args_.l.scale * 1.4426950408889634f;
    b->run = RunFrom(args_.l.rows, item.first_row, item.last_row);
    b->whole = position[min(item.first_row + group_ * kManyGroupRows, item.last_row)] + 1;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = min(RowOf(item) + 8 * r, item.last_row);  // beyond the last: as that one, and not stored
      const float* from = args_.l.q + (int64_t{row} * args_.l.heads + item.head) * kDim + lane_ % 4 * 2;
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) {
        const float2 pair = *reinterpret_cast<const float2*>(from + i * 8);
        b->queries[i / 2].r[i % 2 * 2 + r] = PackHalves(WithinHalf(pair.x * scale), WithinHalf(pair.y * scale));
      }
      b->limit[r] = position[row] + 1;
    }
  }

  // All of an item's tiles but for the values of the last.
  __device__ __forceinline__ void Multiply(const Beginning& b, State* state) {
    const int last_row = b.item.last_row, mine = RowOf(b.item);
    const int group_first = b.item.first_row + group_ * kManyGroupRows, group_last = min(last_row, group_first + kManyGroupRows - 1);
    RowRun run = b.run;
    for (int row = b.item.first_row;;) {
      int limit[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) limit[r] = mine + 8 * r >= row && mine + 8 * r <= run.last ? b.limit[r] : 0;
      // Tiles that all rows of the warpgroup see.
      const int whole = group_first >= row && group_first <= run.last && group_last <= run.last ? b.whole / kManyTile : 0;
      int tile = 0;
      if (row == b.item.first_row) First(b, limit, state), tile = 1;
#pragma unroll 1
      for (; tile < whole; ++tile) Step<false>(b, tile, limit, state);
#pragma unroll 1
      for (const int tiles = run.Tiles(); tile < tiles; ++tile) Step<true>(b, tile, limit, state);
      row = run.last + 1;
      if (row > last_row) break;
      run = RunFrom(args_.l.rows, row, last_row);
    }
  }

  __device__ __forceinline__ void First(const Beginning& b, const int (&limit)[2], State* state) {
    float scores[64];
    const uint64_t keys = AwaitKeys();
    TakeTurn();
    MultiplyKeys(keys, b.queries, scores);
    PassTurn();
    WgmmaWait<0>();
    WgmmaHold(scores);
    ReleaseKeys();
    Mask(0, limit, scores);
    Weigh(scores, state);
    AwaitValues();
    PackWeights(scores, state);
  }

  template <bool kMasked>
  __device__ __forceinline__ void Step(const Beginning& b, int tile, const int (&limit)[2], State* state) {
    float scores[64];
    const uint64_t keys = AwaitKeys();
    TakeTurn();
    MultiplyKeys(keys, b.queries, scores);
    Rescale(state);
    MultiplyValues(state);
    PassTurn();
    WgmmaWait<1>();
    WgmmaHold(scores);
    ReleaseKeys();
    if constexpr (kMasked) Mask(tile * kManyTile, limit, scores);
    Weigh(scores, state);
    WgmmaHold(scores);
    AwaitValues();  // here: else the compiler waits for the products before the exponentials
    FinishValues(state);
    PackWeights(scores, state);
  }

  __device__ __forceinline__ void MultiplyKeys(uint64_t keys, const Fragment (&queries)[kDim / 16], float (&scores)[64]) const {
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      Wgmma<kManyTile>::Multiply(scores, queries[k], keys + k / 4 * (kColumnsBytes >> 4) + k % 4 * 2, k > 0);
    }
    WgmmaCommit();
  }
  __device__ __forceinline__ void MultiplyValues(State* state) {
    const uint64_t values = WgmmaTransposed(shared_->values[RingPlaceOf<kStages>(summed_)], kEightBytes, kColumnsBytes);
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < kManyTile / 16; ++k) Wgmma<kDim>::template Multiply<1>(state->out, state->weights[k], values + k * (2 * kEightBytes >> 4), 1);
    WgmmaCommit();
  }
  __device__ __forceinline__ void FinishValues(State* state) {
    WgmmaWait<0>();
    WgmmaHold(state->out);
#pragma unroll
    for (int k = 0; k < kManyTile / 16; ++k) WgmmaHold(state->weights[k]);
    WarpArrives(&shared_->values_empty[RingPlaceOf<kStages>(summed_)], lane_);
    ++summed_;
  }
  // The descriptor of the next tile's.
  __device__ __forceinline__ uint64_t AwaitKeys() const {
    const uint32_t at = __reduce_max_sync(kAllLanes, RingPlaceOf<kStages>(scored_));  // so that the compiler sees that a warp agrees
    BarrierWait(&shared_->keys_full[at], RingParityOf<kStages>(scored_));
    return WgmmaDescriptor(shared_->keys[at], kEightBytes);
  }
  // Of the newest tile with scores.
  __device__ void AwaitValues() const { BarrierWait(&shared_->values_full[RingPlaceOf<kStages>(scored_ - 1)], RingParityOf<kStages>(scored_ - 1)); }
  __device__ void ReleaseKeys() {
    WarpArrives(&shared_->keys_empty[RingPlaceOf<kStages>(scored_)], lane_);
    ++scored_;
  }

  __device__ __forceinline__ void Mask(int first, const int (&limit)[2], float (&scores)[64]) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int left = limit[r] - first - lane_ % 4 * 2;
#pragma unroll
      for (int j = 0; j < 16; ++j) {
        if (8 * j >= left) scores[4 * j + 2 * r] = -INFINITY;
        if (8 * j + 1 >= left) scores[4 * j + 2 * r + 1] = -INFINITY;
      }
    }
  }

  // Scores to weights; most and sum with them.
  __device__ __forceinline__ void Weigh(float (&scores)[64], State* state) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float even = scores[2 * r], odd = scores[2 * r + 1];
#pragma unroll
      for (int j = 1; j < 16; ++j) even = fmaxf(even, scores[4 * j + 2 * r]), odd = fmaxf(odd, scores[4 * j + 2 * r + 1]);
      float most = fmaxf(even, odd);
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 1));
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 2));
      most = fmaxf(most, state->most[r]);
      const float from = most == -INFINITY ? 0.0f : most;  // nothing seen so far: weights are 0
      state->keep[r] = Exp2(state->most[r] - from);
      state->most[r] = most;
      even = odd = 0;
#pragma unroll
      for (int j = 0; j < 16; ++j) {
        even += scores[4 * j + 2 * r] = Exp2(scores[4 * j + 2 * r] - from);
        odd += scores[4 * j + 2 * r + 1] = Exp2(scores[4 * j + 2 * r + 1] - from);
      }
      state->sum[r] = state->sum[r] * state->keep[r] + (even + odd);
    }
  }
  __device__ __forceinline__ void PackWeights(const float (&scores)[64], State* state) const {
#pragma unroll
    for (int k = 0; k < kManyTile / 16; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) state->weights[k].r[i] = PackHalves(scores[8 * k + 2 * i], scores[8 * k + 2 * i + 1]);
    }
  }
  __device__ __forceinline__ void Rescale(State* state) const {
    if (!__any_sync(kAllLanes, state->keep[0] != 1.0f || state->keep[1] != 1.0f)) return;
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) state->out[i] *= state->keep[i / 2 % 2];
  }

  __device__ __forceinline__ void Store(const ManyItem& item, const State& state) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float sum = state.sum[r];
      sum += __shfl_xor_sync(kAllLanes, sum, 1);
      sum += __shfl_xor_sync(kAllLanes, sum, 2);
      const float scale = 1.0f / sum;
      const int row = RowOf(item) + 8 * r;
      if (row > item.last_row) continue;
      if (args_.halves.halves != nullptr) {
        StoreHalves(item, row, state, r, scale);
        continue;
      }
      float* out = args_.l.out + (int64_t{row} * args_.l.heads + item.head) * kDim + lane_ % 4 * 2;
#pragma unroll
      for (int j = 0; j < kDim / 8; ++j) {
        *reinterpret_cast<float2*>(out + 8 * j) = {state.out[4 * j + 2 * r] * scale, state.out[4 * j + 2 * r + 1] * scale};
      }
    }
  }

  __device__ __forceinline__ void StoreHalves(const ManyItem& item, int row, const State& state, int r, float scale) const {
    auto* out = static_cast<__half*>(args_.halves.halves) + int64_t{row} * args_.halves.stride + item.head * kDim + lane_ % 4 * 2;
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
      *reinterpret_cast<uint32_t*>(out + 8 * j) = PackHalves(WithinHalf(state.out[4 * j + 2 * r] * scale), WithinHalf(state.out[4 * j + 2 * r + 1] * scale));
    }
    if (item.head != 0 || lane_ % 4 != 0) return;
    args_.halves.unscale[row] = 1.0f;
    if (row > 0) return;
#pragma unroll
    for (int i = 0; i < static_cast<int>(kMostTogether); ++i) args_.halves.taken[i] = 0;
  }

  // Named barriers 1 and 2: the warpgroups' turns at the tensor cores.
  __device__ void TakeTurn() const {
    asm volatile("bar.sync %0, %1;" ::"r"(1 + group_), "n"(kManyGroups * kManyGroupThreads) : "memory");
  }
  __device__ void PassTurn() const {
    asm volatile("bar.arrive %0, %1;" ::"r"(2 - group_), "n"(kManyGroups * kManyGroupThreads) : "memory");
  }

  const ManyArgs& args_;
  Shared* shared_;
  int group_, warp_, lane_;
  uint32_t scored_ = 0, summed_ = 0;  // tiles whose keys, and whose values, the tensor cores have been through
  uint32_t items_ = 0;                // begun
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <int kDim>
__global__ void __launch_bounds__(kManyThreads, 1) AttendManyKernel(const __grid_constant__ ManyArgs args) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ std::byte many_shared[];
  auto* shared = Held(reinterpret_cast<ManyShared<kDim>*>(SwizzleAligned(many_shared)));
  if (threadIdx.x == 0) InitManyBarriers(shared);
  __syncthreads();
  WaitForBefore();  // what follows finds no room beside this one, so it is not let begin early
  if (threadIdx.x < kManyGroupThreads) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kManyBringRegisters));
    if (WarpNumber() == 0) ManyBring<kDim>(args, shared).Run();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kManyMultiplyRegisters));
    ManyMultiply<kDim>(args, shared).Run();
  }
#endif
}

// False: the driver cannot make one.
bool MakeMap(const __half* from, int32_t dim, CUtensorMap* map) {
  // How many blocks there are is nowhere said; the numbers in the tables are within them.
  const cuuint64_t columns = static_cast<cuuint64_t>(dim / kManyColumns), row_bytes = static_cast<cuuint64_t>(dim) * sizeof(__half);
  const cuuint64_t sizes[] = {kManyColumns, 8, columns, cuuint64_t{1} << 31}, strides[] = {row_bytes, kManyColumns * sizeof(__half), 8 * row_bytes};
  const cuuint32_t box[] = {kManyColumns, 8, static_cast<cuuint32_t>(columns), kKvBlock / 8};
  return MakeTensorMap<4>(CU_TENSOR_MAP_DATA_TYPE_FLOAT16, from, sizes, strides, box, map);
}

template <int kDim>
bool Start(const AttentionLaunch& l, const HalfRows* halves, int multiprocessors, cudaStream_t stream) {
  ManyArgs args;
  if (halves != nullptr) args.halves = *halves;
  if (!MakeMap(l.cache.keys, kDim, &args.keys) || !MakeMap(l.cache.values, kDim, &args.values)) return false;
  args.l = l;
  args.windows = static_cast<int32_t>((l.count - l.single + kManyRows - 1) / kManyRows);
  const auto kernel = AttendManyKernel<kDim>;
  const int64_t blocks = std::min<int64_t>(int64_t{args.windows} * l.heads, multiprocessors);
  return LaunchWithShared(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kManyThreads), static_cast<int>(kManySharedBytes<kDim>), stream, args);
}

}  // namespace

bool AttendMany(const AttentionLaunch& l, const HalfRows* halves, cudaStream_t stream) {
  const int multiprocessors = l.wgmma && l.taken != nullptr ? HopperMultiprocessors() : 0;
  if (multiprocessors == 0 || (halves != nullptr && l.single > 0)) return false;
  switch (l.cache.head_dim) {
    case 64: return Start<64>(l, halves, multiprocessors, stream);
    case 128: return Start<128>(l, halves, multiprocessors, stream);
    default: return false;
  }
}

}  // namespace thermoe::cuda
