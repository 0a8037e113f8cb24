// SPDX-License-Identifier: Apache-2.0
// Packed weights to fragments of finished halves: what prefill multiplies, where one fragment serves up to 128 rows.
#pragma once

#include "kernels/cuda/fragments.cuh"

namespace thermoe::cuda {

// One lane's share of a tile of 16 rows by 64 columns.
template <Packing kPacking>
struct TileWords {
  static constexpr int kRecordWords = ScaleTileBytes(kPacking) / kTileRows / 4;  // of a row
  uint4 hi, lo;
  uint32_t record[2][kRecordWords];  // of rows g and g + 8

  // From shared memory: so many tiles of one column of tiles, codes, lo plane, scales. kHi: there is no lo plane.
  template <bool kHi>
  __device__ void Load(const std::byte* column, int tiles, int tile, int lane) {
    constexpr bool kLo = HasLoPlane(kPacking) && !kHi;
    const int plane = tiles * kPlaneTileBytes;
    hi = reinterpret_cast<const uint4*>(column)[tile * 32 + lane];
    if constexpr (kLo) lo = reinterpret_cast<const uint4*>(column + plane)[tile * 32 + lane];
    const auto* records = reinterpret_cast<const uint32_t*>(column + plane * (kLo ? 2 : 1) + tile * ScaleTileBytes(kPacking));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < kRecordWords; ++i) record[half][i] = records[(lane / 4 + half * 8) * kRecordWords + i];
    }
  }

  // From the matrix in memory, once.
  __device__ void LoadTile(const DeviceMatrix& m, int64_t tile, int lane) {
    hi = __ldcs(reinterpret_cast<const uint4*>(m.hi) + tile * 32 + lane);
    if constexpr (HasLoPlane(kPacking)) lo = __ldcs(reinterpret_cast<const uint4*>(m.lo) + tile * 32 + lane);
    const auto* records = reinterpret_cast<const uint32_t*>(m.scales + tile * ScaleTileBytes(kPacking));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < kRecordWords; ++i) record[half][i] = records[(lane / 4 + half * 8) * kRecordWords + i];
    }
  }

  // Step kStep of 16 columns, times its scales. kHi: the hi plane alone.
  template <int kStep, bool kHi>
  __device__ Fragment Step() const {
    Fragment codes;
    const RowWords words = BlockWords(hi, kStep / 2);
    if constexpr (kPacking == Packing::kPlanes8 && kHi) {
      codes = FromHiPlane(Word(hi, kStep));
    } else if constexpr (HasLoPlane(kPacking)) {
      codes = FromBytes(Word(hi, kStep), Word(lo, kStep));
    } else if constexpr (kPacking == Packing::kMxfp4) {
      codes = FromE2M1<kStep % 2>(words);
    } else {
      codes = FromNibbles<kStep % 2>(words, kPacking == Packing::kNibble ? kEightOfNibbles : kZeroOfNibbles);
    }
    if constexpr (kPacking == Packing::kNibbleMin || kPacking == Packing::kByteMin) {
      // In floats: what is near zero is a difference of larger numbers.
      const ScaleMin rows[2] = {ScaleMinOf<kStep>(0), ScaleMinOf<kStep>(1)};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&codes.r[i]));
        const ScaleMin& row = rows[i % 2];
        codes.r[i] = PackHalves(pair.x * row.scale - row.min, pair.y * row.scale - row.min);
      }
    } else {
      const uint32_t scales[2] = {Scale<kStep>(0), Scale<kStep>(1)};
#pragma unroll
      for (int i = 0; i < 4; ++i) codes.r[i] = MulHalves(codes.r[i], scales[i % 2]);
    }
    return codes;
  }

 private:
  struct ScaleMin {
    float scale, min;
  };
  template <int kStep>
  __device__ ScaleMin ScaleMinOf(int half) const {
    constexpr int kBlock = kStep / 2;
    const auto& r = record[half];
    if constexpr (kPacking == Packing::kByteMin)
      return {__uint_as_float(r[2 * kBlock]), __uint_as_float(r[2 * kBlock + 1])};
    return {HalfBits(r[0]) * static_cast<float>(r[1] >> (16 * kBlock) & 255u),
            HalfBits(r[0] >> 16) * static_cast<float>(r[1] >> (16 * kBlock + 8) & 255u)};
  }
  // Twice, as halves.
  template <int kStep>
  __device__ uint32_t Scale(int half) const {
    constexpr int kBlock = kStep / 2;
    const auto& r = record[half];
    if constexpr (kPacking == Packing::kByte16) {
      return Twice(HalfBits(r[0]) * static_cast<float>(static_cast<int8_t>(r[1] >> (8 * kStep))));
    }
    if constexpr (kPacking == Packing::kMxfp4)
      return Twice(__uint_as_float(kBlock == 0 ? r[0] << 16 : r[0] & 0xffff0000u));
    return __byte_perm(r[0], 0, kBlock == 0 ? 0x1010 : 0x3232);
  }
  __device__ static uint32_t Twice(float value) { return PackHalves(value, value); }
};

template <>
struct TileWords<Packing::kHalf> {
  const uint4* at;
  template <bool kHi>
  __device__ void Load(const std::byte* column, int, int tile, int lane) {
    at = reinterpret_cast<const uint4*>(column + tile * kHalfTileBytes) + lane;
  }
  __device__ void LoadTile(const DeviceMatrix& m, int64_t tile, int lane) { at = reinterpret_cast<const uint4*>(m.hi + tile * kHalfTileBytes) + lane; }
  template <int kStep, bool kHi>
  __device__ Fragment Step() const {
    const uint4 words = at[kStep * 32];
    return {{words.x, words.y, words.z, words.w}};
  }
};

}  // namespace thermoe::cuda
