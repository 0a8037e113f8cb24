// SPDX-License-Identifier: Apache-2.0
// What products of floats by tensor cores share (matrix_tf32.cu, matrix_tf32_many.cu). A float is the sum of two numbers of TF32's eleven bits but for 2^-21 of it, and
// a product of floats is three of theirs but for 2^-22. Tensor cores cut sums off instead of rounding them, so they add up 32 columns at a time, great products apart
// from small ones; what these come to is added in floats. All in all a sum is as exact as one of floats' products (ADR 30).
#pragma once

#include "kernels/cuda/fragments.cuh"
#include "kernels/cuda/prefill.h"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/warp.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace thermoe::cuda {

inline constexpr int kBand = 32;  // columns that lie together in shared memory, and that tensor cores add up
using Line = float[kBand];

#if __CUDA_ARCH__ >= 900

// A float's parts; what is left of the lower one beyond eleven bits the tensor cores do not look at. Of what is infinite, or rounds to it, no number comes.
struct Split {
  uint32_t high, low;
};
__device__ inline Split SplitOf(float x) {
  const uint32_t high = (__float_as_uint(x) + 0x1000u) & 0xffffe000u;  // rounded: half goes away from zero
  return {high, __float_as_uint(x - __uint_as_float(high))};
}

// 16 rows by 8 columns times 8 weights. a: columns t and t + 4 of rows g and g + 8 (t = lane % 4, g = lane / 4), by columns; b: of weight g.
__device__ inline void MultiplyTf32(const uint32_t (&a)[4], const uint32_t (&b)[2], float (&sums)[4]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// By one thread: a box of so many bytes.
__device__ inline void FetchBox(const CUtensorMap& from, int32_t line, int32_t band, int32_t bytes, Line* to, uint64_t* barrier) {
  ExpectBytes(barrier, static_cast<uint32_t>(bytes));
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(SharedAddress(to)), "l"(&from),
               "r"(0), "r"(line), "r"(band), "r"(SharedAddress(barrier))
               : "memory");
}

// A band of 16 rows, split once, times those of 8 kEights weights. rows, weights: the lane's first lines, lane / 4 further than the first of all. The 16-byte pieces of
// line i of a band are exchanged by i % 8. The lane's pieces, 2 t and 2 t + 1, are what fragments have as columns t and t + 4 of four steps: of eight lanes that read
// together no two meet at a bank.
template <int kEights>
__device__ inline void MultiplyBand(const Line* rows, const Line* weights, float (&sums)[kEights][4]) {
  const int lane = static_cast<int>(threadIdx.x % 32), first = (lane % 4 * 2 ^ lane / 4) * 4;
  uint32_t high[4][4], low[4][4];  // of eight columns
#pragma unroll
  for (int piece = 0; piece < 2; ++piece) {
    const float4 upper = *reinterpret_cast<const float4*>(rows[0] + (first ^ 4 * piece)), lower = *reinterpret_cast<const float4*>(rows[8] + (first ^ 4 * piece));
    const float of_rows[2][4] = {{upper.x, lower.x, upper.y, lower.y}, {upper.z, lower.z, upper.w, lower.w}};
#pragma unroll
    for (int s = 0; s < 2; ++s) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Split split = SplitOf(of_rows[s][i]);
        high[2 * piece + s][i] = split.high, low[2 * piece + s][i] = split.low;
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kEights; ++j) {
    float great[4] = {}, small[2][4] = {};
#pragma unroll
    for (int piece = 0; piece < 2; ++piece) {
      const float4 w = *reinterpret_cast<const float4*>(weights[8 * j] + (first ^ 4 * piece));
      const float of_weights[2][2] = {{w.x, w.y}, {w.z, w.w}};
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        uint32_t w_high[2], w_low[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const Split split = SplitOf(of_weights[s][i]);
          w_high[i] = split.high, w_low[i] = split.low;
        }
        MultiplyTf32(high[2 * piece + s], w_high, great);
        MultiplyTf32(low[2 * piece + s], w_high, small[0]);
        MultiplyTf32(high[2 * piece + s], w_low, small[1]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[j][i] += great[i] + (small[0][i] + small[1][i]);
  }
}

#endif  // __CUDA_ARCH__ >= 900

// Whether these products are for it at all.
inline bool SplitsFloats(const LinearLaunch& l) {
  constexpr int32_t kFewWeights = 16, kManyWeights = 1024;
  return MayBeHoppers(l) && l.weight.rows > kFewWeights && l.weight.rows <= kManyWeights && OfQuads(l.x) && OfQuads(l.weight.hi);
}
// [columns / 32, lines, 32] floats in boxes of so many bands and lines.
inline bool MapOfBands(const float* from, int32_t lines, int32_t columns, int lines_of_box, int bands_of_box, CUtensorMap* map) {
  const cuuint64_t sizes[] = {kBand, static_cast<cuuint64_t>(lines), static_cast<cuuint64_t>(columns / kBand)}, strides[] = {static_cast<cuuint64_t>(columns) * sizeof(float), sizeof(Line)};
  const cuuint32_t box[] = {kBand, static_cast<cuuint32_t>(lines_of_box), static_cast<cuuint32_t>(bands_of_box)};
  return MakeTensorMap<3>(CU_TENSOR_MAP_DATA_TYPE_FLOAT32, from, sizes, strides, box, map);
}

}  // namespace thermoe::cuda
