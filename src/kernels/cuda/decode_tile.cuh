// SPDX-License-Identifier: Apache-2.0
// One warp, one tile of 16 rows by 64 columns, up to 8 NT rows of activations: what the decode kernel does between two
// waits.
#pragma once

#include "kernels/cuda/fragments.cuh"

namespace thermoe::cuda {

// How the activations of a piece of work read kPlanes8. kMixed: the first ones by both planes, the rest by hi.
enum class ReadMode : int32_t { kHi, kBoth, kMixed };

// What one fill of the ring holds of a row tile: codes, lo plane, scales, for `tiles` tiles each.
struct TileData {
  const std::byte* bytes;
  int32_t tiles;
};

// Scales and minimums of two rows (g, g + 8) of a tile: by step of 16 columns and by 32 columns.
struct TileScales {
  float scale[2][4];
  float min[2][2];
};

template <Packing kPacking>
__device__ inline TileScales LoadScales(const std::byte* scales, int tile, int lane) {
  TileScales out;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const std::byte* row = scales + (tile * kTileRows + lane / 4 + half * 8) * (ScaleTileBytes(kPacking) / kTileRows);
    if constexpr (kPacking == Packing::kByteMin) {
      const float4 record = *reinterpret_cast<const float4*>(row);
      out.scale[half][0] = out.scale[half][1] = record.x;
      out.scale[half][2] = out.scale[half][3] = record.z;
      out.min[half][0] = record.y;
      out.min[half][1] = record.w;
    } else if constexpr (kPacking == Packing::kNibbleMin) {
      const uint2 record = *reinterpret_cast<const uint2*>(row);
      const float d = HalfBits(record.x), dmin = HalfBits(record.x >> 16);
      out.scale[half][0] = out.scale[half][1] = d * static_cast<float>(record.y & 255u);
      out.scale[half][2] = out.scale[half][3] = d * static_cast<float>(record.y >> 16 & 255u);
      out.min[half][0] = dmin * static_cast<float>(record.y >> 8 & 255u);
      out.min[half][1] = dmin * static_cast<float>(record.y >> 24);
    } else if constexpr (kPacking == Packing::kByte16) {
      const uint2 record = *reinterpret_cast<const uint2*>(row);
      const float d = HalfBits(record.x);
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        out.scale[half][step] = d * static_cast<float>(static_cast<int8_t>(record.y >> (8 * step)));
      }
    } else {
      const uint32_t record = *reinterpret_cast<const uint32_t*>(row);
      const bool brain = kPacking == Packing::kMxfp4;  // a bfloat16 is the upper half of a float
      out.scale[half][0] = out.scale[half][1] = brain ? __uint_as_float(record << 16) : HalfBits(record);
      out.scale[half][2] = out.scale[half][3] = brain ? __uint_as_float(record & 0xffff0000u) : HalfBits(record >> 16);
    }
  }
  return out;
}

inline constexpr uint32_t kHalfOnes = 0x3c003c00u;

// total += tile * x. x: the activations' fragments of the tile, [2][NT][32] vectors; used: groups of 8 activations
// there are; both: in kMixed, how many activations read both planes.
template <int NT, Packing kPacking, ReadMode kMode>
__device__ inline void QuantTile(const TileData& data, int tile, const uint4* x, int lane, int used, int both,
                                 float (&total)[NT][4]) {
  constexpr bool kLo = HasLoPlane(kPacking) && kMode != ReadMode::kHi;
  constexpr bool kMin = kPacking == Packing::kNibbleMin || kPacking == Packing::kByteMin;
  const uint4 hi = reinterpret_cast<const uint4*>(data.bytes)[tile * 32 + lane];
  uint4 lo = {};
  if constexpr (kLo) lo = reinterpret_cast<const uint4*>(data.bytes + data.tiles * kPlaneTileBytes)[tile * 32 + lane];
  const TileScales scales = LoadScales<kPacking>(data.bytes + data.tiles * kPlaneTileBytes * (kLo ? 2 : 1), tile, lane);
#pragma unroll
  for (int b = 0; b < 2; ++b) {
    const Fragment a0 = Decode<kPacking, kMode == ReadMode::kHi>(Word(hi, 2 * b), Word(lo, 2 * b));
    const Fragment a1 = Decode<kPacking, kMode == ReadMode::kHi>(Word(hi, 2 * b + 1), Word(lo, 2 * b + 1));
    Fragment h0, h1;
    if constexpr (kMode == ReadMode::kMixed) {
      h0 = FromHiPlane(Word(hi, 2 * b));
      h1 = FromHiPlane(Word(hi, 2 * b + 1));
    }
#pragma unroll
    for (int nt = 0; nt < NT; ++nt) {
      if (nt >= used) break;
      const uint4 v = x[(b * NT + nt) * 32 + lane];
      float c[4] = {};
      Mma(c, a0, v.x, v.y);
      if constexpr (kPacking == Packing::kByte16) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          total[nt][i] += scales.scale[i / 2][2 * b] * c[i];
          c[i] = 0;
        }
      }
      Mma(c, a1, v.z, v.w);
      if constexpr (kMode == ReadMode::kMixed) {
        float h[4] = {};
        Mma(h, h0, v.x, v.y);
        Mma(h, h1, v.z, v.w);
#pragma unroll
        for (int i = 0; i < 4; ++i) c[i] = nt * 8 + lane % 4 * 2 + i % 2 < both ? c[i] : h[i];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) total[nt][i] += scales.scale[i / 2][2 * b + 1] * c[i];
      if constexpr (kMin) {  // the activations' sums, by a product with ones
        constexpr Fragment kOnes = {{kHalfOnes, kHalfOnes, kHalfOnes, kHalfOnes}};
        float sums[4] = {};
        Mma(sums, kOnes, v.x, v.y);
        Mma(sums, kOnes, v.z, v.w);
#pragma unroll
        for (int i = 0; i < 4; ++i) total[nt][i] -= scales.min[i / 2][b] * sums[i];
      }
    }
  }
}

template <int NT>
__device__ inline void HalfTile(const TileData& data, int tile, const uint4* x, int lane, int used,
                                float (&total)[NT][4]) {
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    const uint4 codes = reinterpret_cast<const uint4*>(data.bytes)[(tile * 4 + step) * 32 + lane];
    const Fragment a = {{codes.x, codes.y, codes.z, codes.w}};
#pragma unroll
    for (int nt = 0; nt < NT; ++nt) {
      if (nt >= used) break;
      const uint2 v = reinterpret_cast<const uint2*>(&x[(step / 2 * NT + nt) * 32 + lane])[step % 2];
      Mma(total[nt], a, v.x, v.y);
    }
  }
}

// This warp's tiles of a fill: part, part + parts, ...
template <int NT>
__device__ inline void Tiles(Packing packing, ReadMode mode, const TileData& data, const uint4* x, int part, int parts,
                             int lane, int used, int both, float (&total)[NT][4]) {
  const auto each = [&](auto body) {
    for (int tile = part; tile < data.tiles; tile += parts) body(tile, x + tile * 2 * NT * 32);
  };
  const auto quant = [&]<Packing kPacking, ReadMode kMode = ReadMode::kBoth>() {
    each([&](int tile, const uint4* at) { QuantTile<NT, kPacking, kMode>(data, tile, at, lane, used, both, total); });
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
      return each([&](int tile, const uint4* at) { HalfTile<NT>(data, tile, at, lane, used, total); });
    case Packing::kF32: return;  // never here: plain kernels
  }
}

}  // namespace thermoe::cuda
