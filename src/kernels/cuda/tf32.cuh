// SPDX-License-Identifier: Apache-2.0
// What products of floats by tensor cores share (matrix_tf32.cu, matrix_tf32_many.cu). A float is the sum of two numbers of TF32's eleven bits but for 2^-21 of it, and
// a product of floats is three of theirs but for 2^-22. Tensor cores cut sums off instead of rounding them, so they add up 32 columns at a time, great products apart
// from small ones; what these come to is added in floats. All in all a sum is as exact as one of floats' products (ADR 30).
#pragma once

#include "kernels/cuda/fragments.cuh"
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

#endif  // __CUDA_ARCH__ >= 900

// [columns / 32, lines, 32] floats in boxes of so many bands and lines.
inline bool MapOfBands(const float* from, int32_t lines, int32_t columns, int lines_of_box, int bands_of_box, CUtensorMap* map) {
  const cuuint64_t sizes[] = {kBand, static_cast<cuuint64_t>(lines), static_cast<cuuint64_t>(columns / kBand)}, strides[] = {static_cast<cuuint64_t>(columns) * sizeof(float), sizeof(Line)};
  const cuuint32_t box[] = {kBand, static_cast<cuuint32_t>(lines_of_box), static_cast<cuuint32_t>(bands_of_box)};
  return MakeTensorMap<3>(CU_TENSOR_MAP_DATA_TYPE_FLOAT32, from, sizes, strides, box, map);
}

}  // namespace thermoe::cuda
