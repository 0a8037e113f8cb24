// SPDX-License-Identifier: Apache-2.0
// A warp's tile of 16 rows by 64 columns of packed weights: from memory to a ring in shared memory, from there to registers, and its
// product with rows of activations on the tensor cores. What few_rows.cu and stream_rows.cu share.
#pragma once

#include <algorithm>

#include "kernels/cuda/fragments.cuh"

namespace thermoe::cuda {

__device__ inline DeviceMatrix ExpertMatrix(const DeviceMatrix* table, const DeviceMatrix& base, int64_t stride, int expert) {
  if (stride == 0) return table[expert];
  DeviceMatrix m = base;
  m.hi += expert * stride;
  if (m.lo != nullptr) m.lo += expert * stride;
  if (m.scales != nullptr) m.scales += expert * stride;
  return m;
}

// Codes and scales of one tile, in registers.
template <Packing kPacking>
struct Loaded {
  static constexpr int kWords = kPacking == Packing::kHalf ? 4 : HasLoPlane(kPacking) ? 2 : 1;
  uint4 codes[kWords];
  uint4 scales[2];  // of rows g and g + 8, as many bytes as the packing has
};

// Where a tile's codes, lo plane and scales are in a ring. kHi: no room for the lo plane.
template <Packing kPacking, bool kHi>
struct Ring {
  static constexpr int kCodes = CodeTileBytes(kPacking), kLo = HasLoPlane(kPacking) && !kHi ? kPlaneTileBytes : 0;
  static constexpr int kScales = ScaleTileBytes(kPacking), kTile = kCodes + kLo + kScales;
  // As many tiles as `room` bytes hold for all warps of a block.
  static constexpr int Stages(int room, int warps, int mats) { return std::clamp(room / (warps * mats * kTile), 2, 8); }
};

// Starts the copy of one tile, by one warp.
template <Packing kPacking, bool kHi>
__device__ __forceinline__ void StartTile(const DeviceMatrix& m, int64_t tile, std::byte* to, int lane) {
  using R = Ring<kPacking, kHi>;
#pragma unroll
  for (int at = 0; at < R::kCodes; at += 512) CopyAsync(to + at + lane * 16, m.hi + tile * R::kCodes + at + lane * 16);
  if constexpr (R::kLo > 0) CopyAsync(to + R::kCodes + lane * 16, m.lo + tile * R::kLo + lane * 16);
  if constexpr (R::kScales > 0) {
    if (lane < R::kScales / 16) CopyAsync(to + R::kCodes + R::kLo + lane * 16, m.scales + tile * R::kScales + lane * 16);
  }
}

// Where a lane finds its part of a tile.
template <Packing kPacking>
struct LaneOffsets {
  int code, scale;
  __device__ explicit LaneOffsets(int lane) : code(lane * 16), scale(lane / 4 * (ScaleTileBytes(kPacking) / kTileRows)) {}
};

// codes, lo, scales: the lane's own. kHi: without the lo plane.
template <Packing kPacking, bool kHi>
__device__ __forceinline__ Loaded<kPacking> ReadTile(const std::byte* codes, const std::byte* lo, const std::byte* scales) {
  using R = Ring<kPacking, kHi>;
  Loaded<kPacking> tile;
#pragma unroll
  for (int at = 0; at < R::kCodes / 512; ++at) tile.codes[at] = *reinterpret_cast<const uint4*>(codes + at * 512);
  if constexpr (R::kLo > 0) tile.codes[1] = *reinterpret_cast<const uint4*>(lo);
  constexpr int kBytes = R::kScales / kTileRows;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const std::byte* at = scales + 8 * half * kBytes;
    if constexpr (kBytes == 4) tile.scales[half].x = *reinterpret_cast<const uint32_t*>(at);
    if constexpr (kBytes == 8) {
      const uint2 v = *reinterpret_cast<const uint2*>(at);
      tile.scales[half].x = v.x, tile.scales[half].y = v.y;
    }
    if constexpr (kBytes == 16) tile.scales[half] = *reinterpret_cast<const uint4*>(at);
  }
  return tile;
}

// Scale of step s (16 columns) and minimum of block b (32 columns) of row g + 8 half.
template <Packing kPacking>
__device__ __forceinline__ float ScaleOf(const uint4& record, int s) {
  if constexpr (kPacking == Packing::kByteMin) return __uint_as_float(s < 2 ? record.x : record.z);
  if constexpr (kPacking == Packing::kNibbleMin) return HalfBits(record.x) * static_cast<float>(record.y >> (s < 2 ? 0 : 16) & 255u);
  if constexpr (kPacking == Packing::kByte16) return HalfBits(record.x) * static_cast<float>(static_cast<int8_t>(record.y >> (8 * s)));
  if constexpr (kPacking == Packing::kMxfp4) return __uint_as_float(s < 2 ? record.x << 16 : record.x & 0xffff0000u);
  return HalfBits(s < 2 ? record.x : record.x >> 16);
}
template <Packing kPacking>
__device__ __forceinline__ float MinOf(const uint4& record, int b) {
  if constexpr (kPacking == Packing::kByteMin) return __uint_as_float(b == 0 ? record.y : record.w);
  if constexpr (kPacking == Packing::kNibbleMin) return HalfBits(record.x >> 16) * static_cast<float>(record.y >> (b == 0 ? 8 : 24) & 255u);
  return 0;
}

// sum += tile * x; x: what a lane has of [2 blocks of 32 columns][NT times 8 rows], the first `groups` of which are wanted.
template <Packing kPacking, bool kHi, int NT>
__device__ __forceinline__ void Multiply(const Loaded<kPacking>& tile, const uint4 (&x)[2][NT], float (&sum)[NT][4], int groups = NT) {
  if constexpr (kPacking == Packing::kHalf) {
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      const uint4& c = tile.codes[s];
      const Fragment a = {{c.x, c.y, c.z, c.w}};
#pragma unroll
      for (int nt = 0; nt < NT; ++nt) {
        if (nt > 0 && nt >= groups) break;
        const uint4& v = x[s / 2][nt];
        Mma(sum[nt], a, s % 2 == 0 ? v.x : v.z, s % 2 == 0 ? v.y : v.w);
      }
    }
    return;
  } else {
    // What unsigned codes carry on top of their values: taken off exactly. Only minima need the sums of the activations, by a product
    // with ones.
    constexpr bool kMin = kPacking == Packing::kNibbleMin || kPacking == Packing::kByteMin;
    constexpr uint32_t kOne = 0x3c003c00u;
    const Fragment ones = {{kOne, kOne, kOne, kOne}};
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      const auto fragment = [&]<int kOf>() {
        const RowWords words = BlockWords(tile.codes[0], b);
        const uint32_t hi = Word(tile.codes[0], 2 * b + kOf);
        if constexpr (kPacking == Packing::kHiPlane || (kPacking == Packing::kPlanes8 && kHi)) return FromHiPlane(hi);
        else if constexpr (kPacking == Packing::kNibble) return FromNibbles<kOf>(words, kEightOfNibbles);
        else if constexpr (kPacking == Packing::kNibbleMin) return FromNibbles<kOf>(words, kZeroOfNibbles);
        else if constexpr (kPacking == Packing::kMxfp4) return FromE2M1<kOf>(words);
        else return FromBytes(hi, Word(tile.codes[1 % Loaded<kPacking>::kWords], 2 * b + kOf));
      };
      const Fragment a[2] = {fragment.template operator()<0>(), fragment.template operator()<1>()};
#pragma unroll
      for (int nt = 0; nt < NT; ++nt) {
        if (nt > 0 && nt >= groups) break;
        const uint4& v = x[b][nt];
        float c[4] = {}, total[4] = {};
        Mma(c, a[0], v.x, v.y);
        if constexpr (kPacking == Packing::kByte16) {
#pragma unroll
          for (int i = 0; i < 4; ++i) sum[nt][i] += ScaleOf<kPacking>(tile.scales[i / 2], 2 * b) * c[i], c[i] = 0;
        }
        Mma(c, a[1], v.z, v.w);
        if constexpr (kMin) {
          Mma(total, ones, v.x, v.y);
          Mma(total, ones, v.z, v.w);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          sum[nt][i] += ScaleOf<kPacking>(tile.scales[i / 2], 2 * b + 1) * c[i];
          if constexpr (kMin) sum[nt][i] -= MinOf<kPacking>(tile.scales[i / 2], b) * total[i];
        }
      }
    }
  }
}

// The same where the first `both` rows of activations read both planes and the others the hi plane: one reading of the tile for both.
template <int NT>
__device__ __forceinline__ void MultiplyMixed(const Loaded<Packing::kPlanes8>& tile, const uint4 (&x)[2][NT], float (&sum)[NT][4], int both,
                                              int groups) {
  const int column = 2 * (static_cast<int>(threadIdx.x) % 4);
#pragma unroll
  for (int b = 0; b < 2; ++b) {
    Fragment whole[2], hi[2];
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const uint32_t word = Word(tile.codes[0], 2 * b + s);
      whole[s] = FromBytes(word, Word(tile.codes[1], 2 * b + s)), hi[s] = FromHiPlane(word);
    }
#pragma unroll
    for (int nt = 0; nt < NT; ++nt) {
      if (nt > 0 && nt >= groups) break;
      const uint4& v = x[b][nt];
      float c[4] = {}, h[4] = {};
      Mma(c, whole[0], v.x, v.y);
      Mma(h, hi[0], v.x, v.y);
      Mma(c, whole[1], v.z, v.w);
      Mma(h, hi[1], v.z, v.w);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float value = nt * 8 + column + i % 2 < both ? c[i] : h[i];
        sum[nt][i] += ScaleOf<Packing::kPlanes8>(tile.scales[i / 2], 2 * b + 1) * value;
      }
    }
  }
}

// `launch` with the packing as its template argument.
template <typename Launch>
bool ByPacking(Packing packing, Launch&& launch) {
  switch (packing) {
    case Packing::kPlanes8: return launch.template operator()<Packing::kPlanes8>();
    case Packing::kNibble: return launch.template operator()<Packing::kNibble>();
    case Packing::kNibbleMin: return launch.template operator()<Packing::kNibbleMin>();
    case Packing::kByteMin: return launch.template operator()<Packing::kByteMin>();
    case Packing::kByte16: return launch.template operator()<Packing::kByte16>();
    case Packing::kMxfp4: return launch.template operator()<Packing::kMxfp4>();
    case Packing::kHalf: return launch.template operator()<Packing::kHalf>();
    case Packing::kF32:
    case Packing::kHiPlane:
    case Packing::kBothPlanes: break;
  }
  return false;
}

}  // namespace thermoe::cuda
