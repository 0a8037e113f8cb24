// SPDX-License-Identifier: Apache-2.0
// A warp's tile of codes times one or two rows of activations in whole numbers, on the tensor cores: codes are multiplied as they lie, with hardly an instruction for their
// bits, where halves of them take three a pair. An activation is 256 p1 + p0 units, two signed bytes; the unit is a power of two of 32 columns of its row, so that the
// greatest is below 2^14 units: those from an eighth of it on are what they are as halves, the others off by 2^-14 of it at most.
//
// The columns of a product (mma.m16n8k32: 16 rows of codes, 32 columns of them, eight of activations) are p1 and p0 of each row of several blocks of 32 columns: of one row four
// products add to the same sums, each with zeros where it has nothing to say, and a lane then scales what it has of one block, not of four.
#pragma once

#include "kernels/cuda/tile_product.cuh"

namespace thermoe::cuda {

inline constexpr int kWholeRows = 2;

template <Packing kPacking>
inline constexpr bool kHasWholeCodes = kPacking == Packing::kPlanes8 || kPacking == Packing::kBothPlanes || kPacking == Packing::kHiPlane || kPacking == Packing::kNibble ||
                                       kPacking == Packing::kNibbleMin;

// Sums begin at the bits of kWholeBase as an integer, so that they are floats when they are done.
inline constexpr float kWholeBase = 12582912.0f;  // 1.5 * 2^23
inline constexpr uint32_t kWholeBaseBits = 0x4b400000u;

// Of 32 columns of a row, beside its bytes: where the sums of p1 and p0 begin, that what codes carry on top of their values comes off, the unit, and the sum of the activations.
struct alignas(16) WholeNote {
  uint32_t begin1, begin0;
  float unit, sum;
};
inline constexpr int kNoteTileBytes = 2 * static_cast<int>(sizeof(WholeNote));  // of a row

// Halves of half_rows.cuh to pairs of bytes, where they are: of each 16 bytes, which a lane has of 32 columns, p1 of the columns as a word of codes has its first and its second
// (weight_layout.h), then p0. By 4 lanes of a warp together; all have the note. hi: of kPlanes8, without lo planes.
template <Packing kPacking>
__device__ inline uint4 WholeBytes(const uint4& halves, bool hi, WholeNote* note) {
  const auto pair = [&](int i) {
    const uint32_t word = Word(halves, i);
    return *reinterpret_cast<const __half2*>(&word);
  };
  const __half2 most2 = __hmax2(__hmax2(__habs2(pair(0)), __habs2(pair(1))), __hmax2(__habs2(pair(2)), __habs2(pair(3))));
  uint32_t most = max(static_cast<uint32_t>(__half_as_ushort(__low2half(most2))), static_cast<uint32_t>(__half_as_ushort(__high2half(most2))));
  most = max(most, __shfl_xor_sync(~0u, most, 1)), most = max(most, __shfl_xor_sync(~0u, most, 2));
  const uint32_t exponent = most >> 10;
  const float scale = __uint_as_float((127 + 28 - exponent) << 23);
  uint32_t whole[8];  // whose low bytes are p0 + 128, then p1
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 values = __half22float2(pair(i));
    whole[2 * i] = __float_as_uint(fmaf(values.x, scale, kWholeBase + 128.0f)), whole[2 * i + 1] = __float_as_uint(fmaf(values.y, scale, kWholeBase + 128.0f));
  }
  const auto gather = [&](int first, uint32_t which) {
    return __byte_perm(__byte_perm(whole[first], whole[first + 4], 0x5140), __byte_perm(whole[first + 1], whole[first + 5], 0x5140), which);
  };
  const uint4 bytes = {gather(0, 0x7632), gather(2, 0x7632), gather(0, 0x5410) ^ 0x80808080u, gather(2, 0x5410) ^ 0x80808080u};
  const auto sum = [](uint32_t a, uint32_t b) { return __dp4a(static_cast<int>(a), 0x01010101, __dp4a(static_cast<int>(b), 0x01010101, 0)); };
  int sum1 = sum(bytes.x, bytes.y), sum0 = sum(bytes.z, bytes.w);
#pragma unroll
  for (int offset = 1; offset < 4; offset *= 2) sum1 += __shfl_xor_sync(~0u, sum1, offset), sum0 += __shfl_xor_sync(~0u, sum0, offset);
  const float unit = __uint_as_float((127 - 28 + exponent) << 23);
  // Codes of 4 bits come 16 times. They carry 8 or nothing, those of 8 bits 128, hi planes 128 - 7.5: of 7.5 sums of p1 half a one may be left, which goes to those of p0
  // as 128; theirs, half a unit times half a step of a code, is left out.
  constexpr int kCarried = kPacking == Packing::kNibbleMin ? 0 : 128;
  constexpr bool kTimes16 = kPacking == Packing::kNibble || kPacking == Packing::kNibbleMin;
  const bool less = kPacking == Packing::kHiPlane || (kPacking == Packing::kPlanes8 && hi);
  const int less1 = less ? 15 * sum1 : 0, less0 = less ? 15 * sum0 : 0;
  note->begin1 = kWholeBaseBits - static_cast<uint32_t>(kCarried * sum1 - (less1 >> 1));
  note->begin0 = kWholeBaseBits - static_cast<uint32_t>(kCarried * sum0 - 128 * (less1 & 1) - (less0 >> 1));
  note->unit = kTimes16 ? unit * 0.0625f : unit;
  note->sum = static_cast<float>(256 * sum1 + sum0) * unit;
  return bytes;
}

// c += a b: a 16 by 32 unsigned bytes, b 32 by 8 signed.
__device__ inline void MmaOfBytes(uint32_t (&c)[4], const Fragment& a, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b0), "r"(b1));
}

// Codes of a tile as bytes; those of four bits, and hi planes, times 16. kBoth: with lo planes.
template <Packing kPacking, bool kBoth>
struct WholeTile {
  uint4 hi, lo;
  __device__ WholeTile(const std::byte* codes, const std::byte* lo_plane) {
    hi = *reinterpret_cast<const uint4*>(codes);
    if constexpr (kBoth) lo = *reinterpret_cast<const uint4*>(lo_plane);
  }
  __device__ Fragment Codes(int block) const {
    constexpr uint32_t kHigh = 0xf0f0f0f0u;
    const uint32_t step = Word(hi, 2 * block), next = Word(hi, 2 * block + 1);  // of planes
    if constexpr (kBoth) {
      const uint32_t lo_step = Word(lo, 2 * block), lo_next = Word(lo, 2 * block + 1);
      const RowWords first = OfRows(FirstBytes(step, lo_step), FirstBytes(next, lo_next)), second = OfRows(SecondBytes(step, lo_step), SecondBytes(next, lo_next));
      return {{first.g, first.g8, second.g, second.g8}};
    }
    const RowWords words = kPacking == Packing::kPlanes8 || kPacking == Packing::kHiPlane ? OfRows(step, next) : BlockWords(hi, block);
    return {{words.g & kHigh, words.g8 & kHigh, words.g << 4 & kHigh, words.g8 << 4 & kHigh}};
  }

 private:
  // Words of two steps, as planes have them, to words of rows, as other codes of 4 bits lie.
  __device__ static RowWords OfRows(uint32_t step, uint32_t next) { return {__byte_perm(step, next, 0x6240), __byte_perm(step, next, 0x7351)}; }
};

// Scale and minimum of 32 columns of a row. record: of its tile's row; block: 0 or 1.
template <Packing kPacking>
struct WholeScale {
  static constexpr int kRecord = ScaleTileBytes(kPacking) / kTileRows;
  static constexpr bool kMin = kPacking == Packing::kNibbleMin;
  float scale, min = 0;
  __device__ WholeScale(const std::byte* record, int block) {
    if constexpr (kMin) {
      const uint32_t halves = *reinterpret_cast<const uint32_t*>(record), bytes = reinterpret_cast<const uint16_t*>(record)[2 + block];
      scale = HalfBits(halves) * static_cast<float>(bytes & 255u), min = HalfBits(halves >> 16) * static_cast<float>(bytes >> 8);
    } else {
      scale = HalfBits(reinterpret_cast<const uint16_t*>(record)[block]);
    }
  }
};

// Where a lane finds what it reads of an item's rows, of notes and of scales, in bytes, and which block of its group is its in products. Groups are the blocks that add to the same
// sums: of one row four, of two rows (rows_log 0, 1) two.
struct WholeLane {
  int x, note, record, block, of_products;  // block: of the tile that has the record

  // x_next, tile_next: from one of a warp's tiles to the next, in a row and in a stage.
  __device__ WholeLane(int rows_log, int row_bytes, int x_next, int tile_next, int record_bytes) {
    const unsigned lane = threadIdx.x % 32, column = lane / 4, t = lane % 4, mask = static_cast<unsigned>(rows_log), of_sums = t >> rows_log;  // mask: of a row among one or two
    const unsigned own = column >> (1 + rows_log), row = static_cast<unsigned>(row_bytes), next = static_cast<unsigned>(x_next);
    of_products = static_cast<int>(own);
    x = static_cast<int>((column / 2 & mask) * row + own / 2 * next + own % 2 * 64 + t * 16 + column % 2 * 8);
    note = static_cast<int>((kWholeRows + (t & mask)) * row + of_sums / 2 * (next / 4) + of_sums % 2 * 16);
    record = static_cast<int>(of_sums / 2 * static_cast<unsigned>(tile_next) + column * static_cast<unsigned>(record_bytes)), block = static_cast<int>(of_sums % 2);
  }
};

// A group's products: sum (of rows g and g + 8) += what they come to. codes, lo: the lane's of the first tile; x, notes, records: the lane's. there: tiles of the group that there are,
// kTiles or fewer: lanes whose block is not there read what nobody uses.
template <Packing kPacking, bool kBoth, int kTiles>
__device__ __forceinline__ void MultiplyWhole(const std::byte* codes, const std::byte* lo, const std::byte* records, int tile_next, const std::byte* x, const std::byte* notes,
                                              const WholeLane& lane, int there, float (&sum)[2]) {
  using Scale = WholeScale<kPacking>;
  const uint2 v = *reinterpret_cast<const uint2*>(x);
  const WholeNote note = *reinterpret_cast<const WholeNote*>(notes);
  const Scale scales[2] = {Scale(records, lane.block), Scale(records + kTileRows / 2 * Scale::kRecord, lane.block)};
  uint32_t c[4] = {note.begin1, note.begin0, note.begin1, note.begin0};
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    if (i >= there) break;
    const WholeTile<kPacking, kBoth> tile(codes + i * tile_next, lo + i * tile_next);
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      const bool own = lane.of_products == 2 * i + b;
      MmaOfBytes(c, tile.Codes(b), own ? v.x : 0, own ? v.y : 0);
    }
  }
  if (there < kTiles && threadIdx.x % 4 >= 2) return;  // this lane's block is not there
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    sum[i] += (fmaf(__uint_as_float(c[2 * i]), 256.0f, -257.0f * kWholeBase) + __uint_as_float(c[2 * i + 1])) * (scales[i].scale * note.unit);
    if constexpr (Scale::kMin) sum[i] -= scales[i].min * note.sum;
  }
}

// A warp's sums where those of Mma are (fragments.cuh), [4][32].
__device__ __forceinline__ void PutWholeSums(int rows_log, const float (&sum)[2], float* to) {
  const int lane = static_cast<int>(threadIdx.x % 32), row = lane % 4;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float total = sum[i];
    total += __shfl_xor_sync(~0u, total, 2);
    if (rows_log == 0) total += __shfl_xor_sync(~0u, total, 1);
    if (row <= rows_log) to[(2 * i + row) * 32 + lane / 4 * 4] = total;
  }
}

}  // namespace thermoe::cuda
