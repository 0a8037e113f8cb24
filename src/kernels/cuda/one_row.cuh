// SPDX-License-Identifier: Apache-2.0
// Products of one row of activations with codes of 4 bits: what decoding of one sequence does (one_row.h). All that a warp multiplies first comes straight
// to its registers, asked for at once, so it goes through its code once, without loops, rings and barriers between them: far less code than stream_rows.cu
// has for up to 32 rows, and fewer instructions a weight, which is what a step of one row waits for (launch_early.cuh).
#pragma once

#include "kernels/cuda/tile_product.cuh"
#include "kernels/cuda/warp.cuh"

namespace thermoe::cuda::one_row {

inline constexpr int kWarps = 16;  // that multiply
inline constexpr int kQuad = 4;    // column tiles of a row tile, one after the other: what a warp has of it

// What is the same in all lanes, told to the compiler: no code is there for lanes that have parted.
__device__ inline int Uniform(int value) { return __shfl_sync(kAllLanes, value, 0); }

// 16 bytes, or a scale record, that a step reads once: they are the first to leave the L2 cache.
__device__ inline uint64_t ReadOncePolicy() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ inline uint4 ReadOnce16(const std::byte* from, uint64_t policy) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from), "l"(policy));
  return v;
}
__device__ inline uint2 ReadOnce8(const std::byte* from, uint64_t policy) {
  uint2 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v2.u32 {%0, %1}, [%2], %3;" : "=r"(v.x), "=r"(v.y) : "l"(from), "l"(policy));
  return v;
}
__device__ inline uint32_t ReadOnce4(const std::byte* from, uint64_t policy) {
  uint32_t v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.u32 %0, [%1], %2;" : "=r"(v) : "l"(from), "l"(policy));
  return v;
}

// Where the codes and scales of a row tile begin.
struct RowTilePlace {
  const std::byte *codes, *scales;
};
template <Packing kPacking>
__device__ inline RowTilePlace PlaceOf(const DeviceMatrix& m, int64_t first_tile) {
  return {m.hi + first_tile * kPlaneTileBytes, m.scales + first_tile * ScaleTileBytes(kPacking)};
}

// What a lane has of a quad: codes of every tile, and the scales of row lane % 16 of tiles lane / 16 and that + 2.
template <Packing kPacking>
struct Quad {
  static constexpr int kRecord = ScaleTileBytes(kPacking) / kTileRows;
  static_assert(!HasLoPlane(kPacking) && (kRecord == 4 || kRecord == 8));
  uint4 codes[kQuad];
  uint32_t record[2][kRecord / 4];

  // first: its first column tile.
  __device__ void ReadScales(const RowTilePlace& from, unsigned first, uint64_t policy) {
    constexpr unsigned kNext = kGroupTiles * ScaleTileBytes(kPacking);
    const unsigned lane = threadIdx.x % 32;
    const std::byte* at = from.scales + ((first + lane / kTileRows) * kNext + lane % kTileRows * kRecord);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if constexpr (kRecord == 4) record[i][0] = ReadOnce4(at + i * 2 * kNext, policy);
      if constexpr (kRecord == 8) {
        const uint2 v = ReadOnce8(at + i * 2 * kNext, policy);
        record[i][0] = v.x, record[i][1] = v.y;
      }
    }
  }
  __device__ void ReadCodes(const RowTilePlace& from, unsigned first, int tile, uint64_t policy) {
    constexpr unsigned kNext = kGroupTiles * kPlaneTileBytes;
    codes[tile] = ReadOnce16(from.codes + (first * kNext + threadIdx.x % 32 * 16) + tile * kNext, policy);
  }
  // The scales of rows lane / 4 and that + 8 (half 0, 1) of a tile.
  __device__ uint4 RecordOf(int tile, int half) const {
    const int from = tile % 2 * kTileRows + static_cast<int>(threadIdx.x % 32 / 4) + 8 * half;
    uint4 v{};
    v.x = __shfl_sync(kAllLanes, record[tile / 2][0], from);
    if constexpr (kRecord == 8) v.y = __shfl_sync(kAllLanes, record[tile / 2][kRecord / 4 - 1], from);
    return v;
  }
};

// Codes are multiplied as what their bits are as binary16 below its least normal number, code * 2^-24: exact, without a conversion.
inline constexpr float kCodeUnit = 1.0f / (1 << 24);
// What a sum is to be multiplied by in the end.
template <Packing kPacking>
inline constexpr float kSumUnit = kPacking == Packing::kMxfp4 ? 32768.0f : 1.0f / kCodeUnit;

// Activations of column tiles, one after the other, in shared memory: halves as half_rows.cuh has them, and the sums of 32 columns times kCodeUnit.
struct Activations {
  std::byte* halves;  // 128 bytes a tile
  float* sums;        // 2 a tile
};
inline constexpr int kActivationBytes = kTileCols * static_cast<int>(sizeof(__half)) + 2 * static_cast<int>(sizeof(float));
__device__ inline Activations ActivationsAt(std::byte* at, int tiles) {
  return {at, reinterpret_cast<float*>(at + tiles * kTileCols * static_cast<int>(sizeof(__half)))};
}

// Puts words of four halves where they belong: of 16 columns the words of t = 0 to 3 (half_rows.cuh) lie one after the other, as inner values pass. A warp's
// 32 lanes put the words of two tiles at once.
struct Putter {
  std::byte* halves;
  float* sums;

  // first: the first of the two tiles.
  __device__ Putter(const Activations& to, unsigned first) {
    const unsigned lane = threadIdx.x % 32, tile = first + lane / 16, of_tile = lane % 16;
    halves = to.halves + tile * 128 + of_tile / 8 * 64 + of_tile % 4 * 16 + of_tile / 4 % 2 * 8, sums = to.sums + tile * 2 + of_tile / 8;
  }
  // tiles: so many further on.
  __device__ void Put(int tiles, uint2 word) const {
    const float2 low = __half22float2(*reinterpret_cast<const __half2*>(&word.x)), high = __half22float2(*reinterpret_cast<const __half2*>(&word.y));
    float sum = low.x + low.y + (high.x + high.y);
#pragma unroll
    for (int offset = 1; offset < 8; offset *= 2) sum += __shfl_xor_sync(kAllLanes, sum, offset);
    *reinterpret_cast<uint2*>(halves + tiles * 128) = word;
    if (threadIdx.x % 8 == 0) sums[tiles * 2] = sum * kCodeUnit;
  }
};
// Where the lane's words of the first two tiles are in a row as half_rows.cuh has it; those of the next two 32 further on.
__device__ inline const uint2* WordsOf(const __half* row) {
  const unsigned lane = threadIdx.x % 32, of_tile = lane % 16;
  return reinterpret_cast<const uint2*>(row) + lane / 16 * 16 + of_tile / 8 * 8 + of_tile % 4 * 2 + of_tile / 4 % 2;
}

// A row as half_rows.cuh has it, of so many pieces of two column tiles (kMostColumns column tiles at most), by a block's first kRowWarps.
template <int kMostColumns, int kRowWarps>
__device__ void TakeRow(const __half* row, int pieces, const Activations& to) {
  constexpr int kTogether = kMostColumns / (2 * kRowWarps);  // of a warp
  const int warp = WarpNumber();
  const uint2* from = WordsOf(row) + warp * 32;
  uint2 words[kTogether];
#pragma unroll
  for (int i = 0; i < kTogether; ++i) {
    if (warp + i * kRowWarps < pieces) words[i] = __ldcg(from + i * kRowWarps * 32);
  }
  const Putter putter(to, 2 * warp);
#pragma unroll
  for (int i = 0; i < kTogether; ++i) {
    if (warp + i * kRowWarps < pieces) putter.Put(2 * i * kRowWarps, words[i]);
  }
}

// What a lane has of the activations of a column tile.
struct Met {
  uint4 x[2];
  float2 sums;

  __device__ Met(const Activations& activations, int at) {
    const auto* halves = reinterpret_cast<const uint4*>(activations.halves + at * 128 + threadIdx.x % 4 * 16);
    x[0] = halves[0], x[1] = halves[4];
    sums = reinterpret_cast<const float2*>(activations.sums)[at];
  }
};

// Codes times activations of 32 columns, of rows lane / 4 ([0]) and that + 8 ([2]), over the unit of codes.
template <Packing kPacking>
__device__ inline void AddBlock(RowWords words, const uint4& x, float (&c)[4]) {
  if constexpr (kPacking == Packing::kMxfp4) {
    Mma(c, SmallE2M1<0>(words), x.x, x.y);
    Mma(c, SmallE2M1<1>(words), x.z, x.w);
  } else {
    // Nibbles as they lie: the high ones, of columns 0 to 7 of 16, are 16 times as much, so they go together, and the low ones.
    constexpr uint32_t kHigh = 0x00f000f0u, kLow = 0x000f000fu;
    float high[4] = {};
    Mma(high, Fragment{{words.g & kHigh, words.g8 & kHigh, words.g >> 8 & kHigh, words.g8 >> 8 & kHigh}}, x.x, x.z);
    Mma(c, Fragment{{words.g & kLow, words.g8 & kLow, words.g >> 8 & kLow, words.g8 >> 8 & kLow}}, x.y, x.w);
    c[0] += high[0] * 0.0625f, c[2] += high[2] * 0.0625f;
  }
}

// sum += the product of a tile of a quad: of rows lane / 4 and that + 8, in kSumUnit. The one row of activations stands in all columns of the fragment, so all
// four lanes of a row have the same.
template <Packing kPacking>
__device__ inline void AddProduct(const Quad<kPacking>& quad, int tile, const Met& met, float (&sum)[2]) {
  const uint4 scales[2] = {quad.RecordOf(tile, 0), quad.RecordOf(tile, 1)};
#pragma unroll
  for (int b = 0; b < 2; ++b) {
    float c[4] = {};
    AddBlock<kPacking>(BlockWords(quad.codes[tile], b), met.x[b], c);
    const float of_block = b == 0 ? met.sums.x : met.sums.y;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      sum[i] += ScaleOf<kPacking>(scales[i], 2 * b) * (kPacking == Packing::kNibble ? c[2 * i] - 8.0f * of_block : c[2 * i]);
      if constexpr (kPacking == Packing::kNibbleMin) sum[i] -= MinOf<kPacking>(scales[i], b) * of_block;
    }
  }
}

// Sums of a row tile's rows: [16].
__device__ inline void PutPart(float* part, const float (&sum)[2]) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  if (lane % 4 == 0) part[lane / 4] = sum[0], part[lane / 4 + kTileRows / 2] = sum[1];
}
// Of `count` parts, one after the other: of row lane % 16.
__device__ inline float SumParts(const float* parts, int count) {
  const float* mine = parts + threadIdx.x % kTileRows;
  float sum = 0;
#pragma unroll 8
  for (int i = 0; i < count; ++i) sum += mine[i * kTileRows];
  return sum;
}

// `launch` with the packing as its template argument; false where it has not codes of 4 bits.
template <typename Launch>
bool ByFourBits(Packing packing, Launch&& launch) {
  switch (packing) {
    case Packing::kNibble: return launch.template operator()<Packing::kNibble>();
    case Packing::kNibbleMin: return launch.template operator()<Packing::kNibbleMin>();
    case Packing::kMxfp4: return launch.template operator()<Packing::kMxfp4>();
    default: return false;
  }
}

}  // namespace thermoe::cuda::one_row
