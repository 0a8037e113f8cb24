// SPDX-License-Identifier: Apache-2.0
// One warp, one tile of 16 rows by 64 columns, up to 8 NT rows of activations: what the decode kernel does between two
// waits.
//
// Codes go to the tensor cores with an offset still on them, and products begin with minus the offset times the sum of
// the activations: both are exact in what they are rounded to, and save an addition for every two weights.
#pragma once

#include "kernels/cuda/decode_plan.h"
#include "kernels/cuda/fragments.cuh"

namespace thermoe::cuda {

// How the activations of a piece of work read kPlanes8. kMixed: the first ones by both planes, the rest by hi.
enum class ReadMode : uint8_t { kHi, kBoth, kMixed };

inline constexpr float kByteOffset = 1024.0f + 128.0f, kHiOffset = 1024.0f + 120.5f;
// The offset that a packing's products begin with; 0: none. kByteMin needs the sum itself.
__device__ inline float OffsetOf(Packing packing, ReadMode mode) {
  switch (packing) {
    case Packing::kPlanes8: return mode == ReadMode::kHi ? kHiOffset : kByteOffset;
    case Packing::kNibble: return 64.0f + 8.0f;
    case Packing::kNibbleMin: return 64.0f;
    case Packing::kByteMin: return 1.0f;
    default: return 0.0f;
  }
}

// A row tile's codes, lo plane and scales in shared memory; `tile`: its place among the tiles there, `room` of each
// part.
struct TileData {
  const std::byte* bytes;
  int32_t room;
};
// Activations of one tile of columns: fragments [2][NT][32] and beginnings [2][NT][4] (by t: columns 2 t, 2 t + 1, the
// same again).
struct TileActivations {
  const uint4* x;
  const float4* begin;
};

// Scales and minimums of two rows (g, g + 8) of a tile: by step of 16 columns and by 32 columns.
struct TileScales {
  float scale[2][4];
  float min[2][2];
};

template <Packing kPacking>
__device__ __forceinline__ TileScales LoadScales(const std::byte* scales, int lane) {
  TileScales out;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const std::byte* row = scales + (lane / 4 + half * 8) * (ScaleTileBytes(kPacking) / kTileRows);
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

// The codes of a step, with their offset on them where OffsetOf has one.
template <Packing kPacking, ReadMode kMode>
__device__ inline Fragment DecodeStep(uint32_t hi, uint32_t lo) {
  if constexpr (kPacking == Packing::kPlanes8) return kMode == ReadMode::kHi ? OffsetHiPlane(hi) : OffsetBytes(hi, lo);
  if constexpr (kPacking == Packing::kNibble || kPacking == Packing::kNibbleMin) return OffsetNibbles(hi);
  if constexpr (kPacking == Packing::kMxfp4) return FromE2M1(hi);
  return FromBytes(hi, lo);
}

// sum += tile * x. used: groups of 8 activations there are; both: in kMixed, how many activations read both planes.
template <int NT, Packing kPacking, ReadMode kMode>
__device__ __forceinline__ void QuantTile(const TileData& data, int tile, const TileActivations& in, int lane, int used,
                                          int both, float (&sum)[NT][4]) {
  constexpr bool kLo = HasLoPlane(kPacking) && kMode != ReadMode::kHi;
  constexpr bool kOffset =
      kPacking == Packing::kPlanes8 || kPacking == Packing::kNibble || kPacking == Packing::kNibbleMin;
  const uint4 hi = reinterpret_cast<const uint4*>(data.bytes)[tile * 32 + lane];
  uint4 lo = {};
  if constexpr (kLo) lo = reinterpret_cast<const uint4*>(data.bytes + data.room * kPlaneTileBytes)[tile * 32 + lane];
  const TileScales scales = LoadScales<kPacking>(
      data.bytes + data.room * kPlaneTileBytes * (kLo ? 2 : 1) + tile * ScaleTileBytes(kPacking), lane);
#pragma unroll
  for (int b = 0; b < 2; ++b) {
    const Fragment a0 = DecodeStep<kPacking, kMode>(Word(hi, 2 * b), Word(lo, 2 * b));
    const Fragment a1 = DecodeStep<kPacking, kMode>(Word(hi, 2 * b + 1), Word(lo, 2 * b + 1));
    Fragment h0, h1;
    if constexpr (kMode == ReadMode::kMixed) {
      h0 = OffsetHiPlane(Word(hi, 2 * b));
      h1 = OffsetHiPlane(Word(hi, 2 * b + 1));
    }
#pragma unroll
    for (int nt = 0; nt < NT; ++nt) {
      if (NT > 1 && nt >= used) break;
      const uint4 v = in.x[(b * NT + nt) * 32 + lane];
      const float4 begin = in.begin[(b * NT + nt) * 4 + lane % 4];
      float c[4] = {0, 0, 0, 0};
      if constexpr (kOffset) {
        c[0] = begin.x;
        c[1] = begin.y;
        c[2] = begin.z;
        c[3] = begin.w;
      }
      Mma(c, a0, v.x, v.y);
      if constexpr (kPacking == Packing::kByte16) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          sum[nt][i] += scales.scale[i / 2][2 * b] * c[i];
          c[i] = 0;
        }
      }
      Mma(c, a1, v.z, v.w);
      if constexpr (kMode == ReadMode::kMixed) {
        constexpr float kRatio = kHiOffset / kByteOffset;
        float h[4] = {begin.x * kRatio, begin.y * kRatio, begin.z * kRatio, begin.w * kRatio};
        Mma(h, h0, v.x, v.y);
        Mma(h, h1, v.z, v.w);
#pragma unroll
        for (int i = 0; i < 4; ++i) c[i] = nt * 8 + lane % 4 * 2 + i % 2 < both ? c[i] : h[i];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[nt][i] += scales.scale[i / 2][2 * b + 1] * c[i];
      if constexpr (kPacking == Packing::kNibbleMin || kPacking == Packing::kByteMin) {
        constexpr float kUnit = kPacking == Packing::kNibbleMin ? 1.0f / 64.0f : 1.0f;
        const float begins[4] = {begin.x, begin.y, begin.z, begin.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[nt][i] += scales.min[i / 2][b] * kUnit * begins[i];
      }
    }
  }
}

template <int NT>
__device__ __forceinline__ void HalfTile(const TileData& data, int tile, const TileActivations& in, int lane, int used,
                                         float (&sum)[NT][4]) {
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    const uint4 codes = reinterpret_cast<const uint4*>(data.bytes)[(tile * 4 + step) * 32 + lane];
    const Fragment a = {{codes.x, codes.y, codes.z, codes.w}};
#pragma unroll
    for (int nt = 0; nt < NT; ++nt) {
      if (NT > 1 && nt >= used) break;
      const uint2 v = reinterpret_cast<const uint2*>(&in.x[(step / 2 * NT + nt) * 32 + lane])[step % 2];
      Mma(sum[nt], a, v.x, v.y);
    }
  }
}

}  // namespace thermoe::cuda
