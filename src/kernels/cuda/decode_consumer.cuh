// SPDX-License-Identifier: Apache-2.0
// The warps that multiply: each a row tile of its own, over the same activations in shared memory.
#pragma once

#include "kernels/cuda/decode_memory.cuh"

namespace thermoe::cuda {

// Four of n floats from column c on, which is a multiple of 4; zero beyond.
__device__ inline float4 Load4(const float* row, int32_t c, int32_t n) {
  if (n % 4 == 0) return __ldcg(reinterpret_cast<const float4*>(row + c));
  return {__ldcg(row + c), c + 1 < n ? __ldcg(row + c + 1) : 0.0f, c + 2 < n ? __ldcg(row + c + 2) : 0.0f,
          c + 3 < n ? __ldcg(row + c + 3) : 0.0f};
}

// Puts a slice's activations into shared memory. Not inlined: it is rare, and wants registers.
template <int NT, bool kExperts>
class Stager {
 public:
  __device__ Stager(const DecodeMemory<NT>& memory, const DecodeArgs& args, int product, const Fill& fill, int warp,
                    int lane)
      : memory_(memory),
        args_(args),
        fill_(fill),
        columns_(args.columns[product]),
        product_(product),
        warp_(warp),
        lane_(lane) {
    slice_ = fill.piece / columns_.slice_pieces;
    k0_ = slice_ * columns_.slice_pieces * columns_.piece_tiles;
    tiles_ = min(columns_.slice_pieces * columns_.piece_tiles, columns_.k_tiles - k0_);
    offsets_[0] = OffsetOf(fill.packing[0], fill.mode);
    offsets_[1] = OffsetOf(fill.packing[1], fill.mode);
  }

  // A segment of a row at a time: 4 columns a lane. Rows and segments are dealt out to the warps in turn.
  __device__ void Stage() {
    constexpr int kWarps = kConsumers / 32;
    constexpr bool kShared = SliceShares(NT);
    constexpr int kBatch = kShared ? MostSliceTiles(NT) / kSegmentTiles : 4;  // loads in flight
    const int32_t segments = CeilDiv(tiles_, kSegmentTiles);
    ConsumersSync();  // nobody reads the old ones
    int32_t n = kShared ? warp_ : 0, segment = kShared ? 0 : warp_;
    const auto settle = [&] {
      while (segment >= segments) {
        segment -= segments;
        n += kShared ? kWarps : 1;
      }
    };
    settle();
    while (n < fill_.count) {
      float4 values[kBatch];
      int32_t ns[kBatch], at[kBatch];
      float most_of_all = 0;
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        ns[i] = kShared && i >= segments ? fill_.count : n;
        at[i] = kShared ? i : segment;
        if (ns[i] < fill_.count) {
          values[i] = Load(ns[i], at[i]);
          most_of_all = fmaxf(most_of_all, Most(values[i]));
        }
        segment += kShared ? 0 : kWarps;
        settle();
      }
      if (kShared) n += kWarps;
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (ns[i] >= fill_.count) continue;
        const float scale = HalfScale(
            __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(kShared ? most_of_all : Most(values[i])))));
        Store(values[i], scale, ns[i], at[i]);
        if (lane_ == 0) memory_.unscale[(kShared ? 0 : at[i] * NT * 8) + ns[i]] = InverseOfPower(scale);
      }
    }
    ConsumersSync();
  }

 private:
  __device__ static float Most(const float4& v) {
    return fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
  }

  // This lane's four columns of a segment of activation n.
  __device__ float4 Load(int32_t n, int32_t segment) const {
    const int32_t c = (k0_ + segment * kSegmentTiles) * kTileCols + lane_ * 4, cols = columns_.cols,
                  row = fill_.first + n;
    if (!kExperts || product_ == 0) {
      const int64_t token = kExperts ? args_.ffn.order[row] / args_.ffn.slots : row;
      return c < cols ? Load4(args_.x + token * cols, c, cols) : float4{};
    }
    // Gate and up of these columns: a segment is a group of their rows.
    static_assert(kSegmentTiles * kTileCols == kGroupRows);
    const Columns& inputs = args_.columns[0];
    uint32_t written =
        WrittenPieces<NT, kExperts>(memory_, inputs, fill_.chunk, c / kGroupRows, inputs.row_units, lane_);
    const float* gate = args_.gate_up + int64_t{row} * inputs.pieces * 2 * cols;
    float4 g = {}, u = {};
    while (written != 0) {
      const int64_t p = __ffs(static_cast<int>(written)) - 1;
      written &= written - 1;
      if (c >= cols) continue;
      const float4 a = Load4(gate + 2 * p * cols, c, cols), b = Load4(gate + (2 * p + 1) * cols, c, cols);
      g = {g.x + a.x, g.y + a.y, g.z + a.z, g.w + a.w};
      u = {u.x + b.x, u.y + b.y, u.z + b.z, u.w + b.w};
    }
    return {Silu(g.x) * u.x, Silu(g.y) * u.y, Silu(g.z) * u.z, Silu(g.w) * u.w};
  }

  // The largest magnitude of what shares a scale lands in [1024, 2048).
  __device__ void Store(const float4& v, float scale, int32_t n, int32_t segment) {
    const __half2 low = __floats2half2_rn(v.x * scale, v.y * scale), high = __floats2half2_rn(v.z * scale, v.w * scale);
    const float2 a = __half22float2(low), b = __half22float2(high);
    float sum = (a.x + a.y) + (b.x + b.y);  // of the 32 columns that eight lanes have
    for (int step = 1; step < 8; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
    const int tile = segment * kSegmentTiles + lane_ / 16, block = tile * 2 + lane_ % 16 / 8;
    if (tile >= tiles_) return;
    // Columns 4 j..4 j + 3 of the tile: two neighbouring lanes of one register.
    const int j = lane_ % 16, word = j % 8 / 2, t = j % 2 * 2;
    auto* at = reinterpret_cast<__half2*>(memory_.x + (block * NT + n / 8) * 32 + n % 8 * 4 + t) + word;
    at[0] = low;
    at[4] = high;
    if (lane_ % 8 < 4) {  // two places for each of two row groups
      const int g = lane_ / 2 % 2;
      auto* begin =
          reinterpret_cast<float*>(memory_.begin + ((g * args_.slice_tiles * 2 + block) * NT + n / 8) * 4 + n % 8 / 2);
      begin[n % 2 + lane_ % 2 * 2] = -(g == 0 ? offsets_[0] : offsets_[1]) * sum;
    }
  }

  const DecodeMemory<NT>& memory_;
  const DecodeArgs& args_;
  const Fill& fill_;
  const Columns& columns_;
  int product_, warp_, lane_;
  int32_t slice_, k0_, tiles_;
  float offsets_[2];
};

extern __shared__ __align__(128) std::byte decode_shared[];

template <int NT, bool kExperts>
__device__ __noinline__ void StageSlice(const DecodeArgs& args, int product, int slot, int warp, int lane) {
  const DecodeMemory<NT> memory(decode_shared, args);
  Stager<NT, kExperts>(memory, args, product, memory.shared->fill[slot], warp, lane).Stage();
}

template <int NT, bool kExperts>
class Consumer {
 public:
  __device__ Consumer(const DecodeMemory<NT>& memory, const DecodeArgs& args, int thread)
      : memory_(memory),
        args_(args),
        lane_(thread % 32),
        warp_(thread / 32),
        row_tile_(thread / 32 % kGroupTiles),
        group_(thread / 32 / kGroupTiles) {}

  // The units of one product.
  __device__ __forceinline__ void Product(int product) {
    float total[NT][4];
    Clear(total);
    for (;;) {
      BarrierWait(&memory_.shared->full[slot_], phase_);
      const Fill& fill = memory_.shared->fill[slot_];
      const uint4 head = *reinterpret_cast<const uint4*>(&fill);
      if ((head.x & 0xffu) != 0) break;
      if ((head.x >> 8 & 0xffu) != 0) {
        StageSlice<NT, kExperts>(args_, product, slot_, warp_, lane_);
        Clear(total);  // it is zero already: nothing to keep across the call
      }
      Multiply(head, total);
      if ((head.x >> 16 & 0xffu) != 0) {
        const Unit unit{static_cast<int32_t>(head.z >> 16 & 0xffu), fill.first, static_cast<int32_t>(head.w & 0xffffu),
                        static_cast<int32_t>(head.w >> 16), fill.row[group_] + row_tile_ * kTileRows};
        Release();
        Finish(product, unit, total);
        Clear(total);
      } else {
        Release();
      }
    }
    Release();
  }

 private:
  struct Unit {
    int32_t count, first, piece, matrix, row;
  };

  __device__ __forceinline__ static void Clear(float (&total)[NT][4]) {
#pragma unroll
    for (int nt = 0; nt < NT; ++nt) total[nt][0] = total[nt][1] = total[nt][2] = total[nt][3] = 0;
  }

  __device__ __forceinline__ void Release() {
    __syncwarp();
    if (lane_ == 0) BarrierArrive(&memory_.shared->empty[slot_]);
    if (++slot_ == args_.slots_of_ring) {
      slot_ = 0;
      phase_ ^= 1;
    }
  }

  // total += this warp's row tile of a fill times the activations. head: the fill's first 16 bytes.
  __device__ __forceinline__ void Multiply(const uint4& head, float (&total)[NT][4]) {
    const auto packing = static_cast<Packing>(head.y >> (8 * group_) & 0xffu);
    const auto mode = static_cast<ReadMode>(head.y >> 16 & 0xffu);
    const int both = static_cast<int>(head.z >> 24);
    using Sums = float[NT][4];
    const auto quant = [&]<Packing kPacking, ReadMode kMode = ReadMode::kBoth>() {
      Segments(head, total, [&](const TileData& data, int tile, const TileActivations& in, int used, Sums& sums) {
        QuantTile<NT, kPacking, kMode>(data, tile, in, lane_, used, both, sums);
      });
    };
    switch (packing) {
      case Packing::kPlanes8:
        if (mode == ReadMode::kHi) return quant.template operator()<Packing::kPlanes8, ReadMode::kHi>();
        if (mode == ReadMode::kMixed) return quant.template operator()<Packing::kPlanes8, ReadMode::kMixed>();
        return quant.template operator()<Packing::kPlanes8>();
      case Packing::kNibble: return quant.template operator()<Packing::kNibble>();
      case Packing::kNibbleMin: return quant.template operator()<Packing::kNibbleMin>();
      case Packing::kByteMin: return quant.template operator()<Packing::kByteMin>();
      case Packing::kByte16: return quant.template operator()<Packing::kByte16>();
      case Packing::kMxfp4: return quant.template operator()<Packing::kMxfp4>();
      case Packing::kHalf:
        return Segments(head, total,
                        [&](const TileData& data, int tile, const TileActivations& in, int used, Sums& sums) {
                          HalfTile<NT>(data, tile, in, lane_, used, sums);
                        });
      case Packing::kF32: return;  // never here: plain kernels
    }
  }

  // Segment by segment: its sums, with the scales of its activations undone, join the total. Where a slice shares a
  // scale that is left to the end.
  template <typename Tile>
  __device__ __forceinline__ void Segments(const uint4& head, float (&total)[NT][4], Tile multiply) {
    const int room = static_cast<int>(head.z >> (8 * group_) & 0xffu) * kGroupTiles;
    const TileData data{memory_.ring + slot_ * args_.slot_bytes + group_ * (args_.slot_bytes / 2), room};
    const int tiles = static_cast<int>(head.x >> 24), used = (static_cast<int>(head.z >> 16 & 0xffu) + 7) / 8;
    int x_tile = static_cast<int>(head.y >> 24);
    const auto in = [&](int at) {
      return TileActivations{memory_.x + at * 2 * NT * 32,
                             memory_.begin + (group_ * args_.slice_tiles + at) * 2 * NT * 4};
    };
#pragma unroll 1
    for (int k = 0; k < tiles; k += kSegmentTiles, x_tile += kSegmentTiles) {
      const auto segment = [&](float(&sums)[NT][4]) {
#pragma unroll 1
        for (int i = 0; i < min(kSegmentTiles, tiles - k); ++i) {
          multiply(data, (k + i) * kGroupTiles + row_tile_, in(x_tile + i), used, sums);
        }
      };
      if constexpr (SliceShares(NT)) {
        segment(total);
      } else {
        float sums[NT][4];
        Clear(sums);
        segment(sums);
        const float* unscale = memory_.unscale + x_tile / kSegmentTiles * NT * 8 + lane_ % 4 * 2;
#pragma unroll
        for (int nt = 0; nt < NT; ++nt) {
          if (NT > 1 && nt >= used) break;
          const float2 factor = *reinterpret_cast<const float2*>(unscale + nt * 8);
#pragma unroll
          for (int i = 0; i < 4; ++i) total[nt][i] += sums[nt][i] * (i % 2 == 0 ? factor.x : factor.y);
        }
      }
    }
  }

  __device__ const DeviceMatrix& MatrixOf(int product, int32_t m) const {
    if constexpr (!kExperts) return args_.linear[m];
    return (product == 1 ? args_.ffn.down : group_ == 1 ? args_.ffn.up : args_.ffn.gate)[m];
  }
  __device__ bool Halves(int product) const {
    if constexpr (!kExperts) return true;
    return (product == 1  ? args_.ffn.down_packing
            : group_ == 1 ? args_.ffn.up_packing
                          : args_.ffn.gate_packing) == Packing::kHalf;
  }

  // Writes the sums of this warp's row tile.
  __device__ __forceinline__ void Finish(int product, const Unit& unit, const float (&total)[NT][4]) const {
    const int32_t limit =
        kExperts ? (product == 0 ? args_.ffn.width : args_.ffn.hidden) : args_.linear[unit.matrix].rows;
    const int32_t row = unit.row + lane_ / 4;
    float scales[2] = {1, 1};
    if (Halves(product) && MatrixOf(product, unit.matrix).packing == Packing::kHalf) {
      const auto* of_rows = reinterpret_cast<const float*>(MatrixOf(product, unit.matrix).scales);
      for (int half = 0; half < 2; ++half) scales[half] = row + half * 8 < limit ? of_rows[row + half * 8] : 0.0f;
    }
#pragma unroll
    for (int nt = 0; nt < NT; ++nt) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int n = nt * 8 + lane_ % 4 * 2 + i;
        if (n >= unit.count) continue;
        float* to = RowOf(product, unit, n) + row;
        const float unscale = SliceShares(NT) ? memory_.unscale[n] : 1.0f;
        const float* bias = nullptr;
        if constexpr (!kExperts) bias = args_.columns[0].pieces == 1 ? args_.bias[unit.matrix] : nullptr;
        if (row < limit) __stcg(to, total[nt][i] * unscale * scales[0] + (bias != nullptr ? bias[row] : 0.0f));
        if (row + 8 < limit)
          __stcg(to + 8, total[nt][i + 2] * unscale * scales[1] + (bias != nullptr ? bias[row + 8] : 0.0f));
      }
    }
  }

  // Where the product's rows of activation n of the chunk go.
  __device__ __forceinline__ float* RowOf(int product, const Unit& unit, int n) const {
    const int64_t at = unit.first + n;
    const int32_t pieces = args_.columns[product].pieces;
    if constexpr (kExperts) {
      if (product == 0) return args_.gate_up + ((at * pieces + unit.piece) * 2 + group_) * args_.ffn.width;
      return args_.partial + (args_.ffn.order[at] * int64_t{pieces} + unit.piece) * args_.ffn.hidden;
    }
    const int64_t rows = args_.linear[unit.matrix].rows;
    if (pieces == 1) return args_.linear_out[unit.matrix] + at * rows;
    return args_.partial + args_.partial_at[unit.matrix] + (at * pieces + unit.piece) * rows;
  }

  const DecodeMemory<NT>& memory_;
  const DecodeArgs& args_;
  int lane_, warp_, row_tile_, group_;
  int32_t slot_ = 0;
  uint32_t phase_ = 0;
};

}  // namespace thermoe::cuda
