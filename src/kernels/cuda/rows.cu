// SPDX-License-Identifier: Apache-2.0
#include <cuda_fp16.h>

#include <algorithm>

#include "kernels/cuda/copy_piece.cuh"
#include "kernels/cuda/launch_early.cuh"
#include "kernels/cuda/norm_row.cuh"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/warp.cuh"
#include "model/quant_blocks.h"

namespace thermoe::cuda {
namespace {

constexpr int kThreads = 256, kMostNormThreads = 1024, kSumThreads = 128;
constexpr unsigned kDryRows = 32;  // of decoding, where a block has time to go through its code before there is anything to norm

unsigned BlocksFor(int64_t size) { return static_cast<unsigned>((size + kThreads - 1) / kThreads); }

// One block a row.
template <typename V>
__global__ void __launch_bounds__(kMostNormThreads) RmsNormKernel(NormLaunch l) {
  LetNextStart();
  const V gain = ReadGain<V>(l);
#pragma unroll 1
  for (int dry = gridDim.x <= kDryRows ? 1 : 0; dry >= 0; --dry) {
    if (dry == 0) WaitForBefore();
    NormRow(l, blockIdx.x, gain, dry != 0);
  }
}

// Narrow rows (one head): one warp each.
__global__ void RmsNormWarpKernel(const float* x, const float* gain, float* out, int64_t rows, int n, float epsilon) {
  const int64_t row = int64_t{blockIdx.x} * (blockDim.x / 32) + threadIdx.x / 32;
  if (row >= rows) return;
  const int lane = static_cast<int>(threadIdx.x % 32);
  float squares = 0;
  for (int i = lane; i < n; i += 32) squares += x[row * n + i] * x[row * n + i];
  const float scale = 1.0f / sqrtf(WarpSum(squares) / static_cast<float>(n) + epsilon);
  for (int i = lane; i < n; i += 32) out[row * n + i] = x[row * n + i] * scale * gain[i];
}

__global__ void RopeKernel(RopeLaunch l) {
  const int half = l.rope_dim / 2;
  const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t per_row = int64_t{l.heads} * half;
  if (index >= l.rows * per_row) return;
  const int64_t row = index / per_row;
  const int i = static_cast<int>(index % half);
  const int64_t head = row * l.heads + index % per_row / half;
  float* a = l.x + head * l.head_dim + (l.halves ? i : 2 * i);
  float* b = a + (l.halves ? half : 1);
  const float cosine = l.cosines[row * half + i], sine = l.sines[row * half + i], x = *a, y = *b;
  *a = x * cosine - y * sine;
  *b = y * cosine + x * sine;
}

__global__ void SwiGluKernel(const float* gate, const float* up, float* out, int64_t size) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < size) out[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

__global__ void AddKernel(const float* x, const float* gate, float* out, int64_t size, int64_t n) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= size) return;
  const float scale = gate == nullptr ? 1.0f : 1.0f / (1.0f + expf(-gate[i / n]));
  out[i] += scale * x[i];
}

__global__ void ClampKernel(float* x, int64_t size, float limit) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < size) x[i] = x[i] > limit ? limit : x[i] < -limit ? -limit : x[i];
}

// grid: columns, rows. V: as of NormRow.
template <typename V>
__global__ void AddSlotsKernel(SlotSums sums, float* out, int count) {
  LetNextStart();
  const int at = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
#pragma unroll 1
  for (int dry = gridDim.y <= kDryRows ? 1 : 0; dry >= 0; --dry) {
    if (dry == 0) WaitForBefore();
    if (at - static_cast<int>(threadIdx.x % 32) >= count) continue;
    const SlotWeights weights(sums, blockIdx.y);
    V* to = reinterpret_cast<V*>(out) + int64_t{blockIdx.y} * count + min(at, count - 1);
    V sum = __ldcg(to);
    AddFromSlots(sums, weights, blockIdx.y, count, min(at, count - 1), &sum);
    if (at < count && dry == 0) *to = sum;
  }
}

__global__ void GatherKernel(const float* x, const int32_t* picked, float* out, int64_t n) {
  WaitForBefore();
  LetNextStart();
  const float* from = x + picked[blockIdx.x] * n;
  float* to = out + blockIdx.x * n;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) to[i] = from[i];
}

// grid: pieces.
__global__ void ScatterKernel(ScatterLaunch l) { CopyPiece(l.pieces[blockIdx.x], threadIdx.x, blockDim.x); }

__device__ float Half(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
__device__ uint16_t Load16(const std::byte* p) { return static_cast<uint16_t>(static_cast<unsigned>(p[0]) | static_cast<unsigned>(p[1]) << 8); }

// Element i of a row as its format defines it (model/formats.h, quant_blocks.h). Rows of files may begin at any byte.
__device__ float Element(DType type, const std::byte* row, int64_t i) {
  const auto byte = [&](int64_t at) { return static_cast<unsigned>(row[at]); };
  const auto nibble = [&](int64_t base, int64_t j) { return j < 16 ? byte(base + j) & 15 : byte(base + j - 16) >> 4; };
  const int64_t block = i / 32, j = i % 32;
  switch (type) {
    case DType::kF32: return __uint_as_float(byte(4 * i) | byte(4 * i + 1) << 8 | byte(4 * i + 2) << 16 | byte(4 * i + 3) << 24);
    case DType::kF16: return Half(Load16(row + 2 * i));
    case DType::kBF16: return __uint_as_float(static_cast<unsigned>(Load16(row + 2 * i)) << 16);
    case DType::kQ8_0: return Half(Load16(row + 34 * block)) * static_cast<float>(static_cast<int8_t>(byte(34 * block + 2 + j)));
    case DType::kQ4_0: return Half(Load16(row + 18 * block)) * (static_cast<float>(nibble(18 * block + 2, j)) - 8.0f);
    case DType::kQ5_0:
    case DType::kQ5_1: {
      const bool offset = type == DType::kQ5_1;
      const int64_t at = (offset ? 24 : 22) * block, high = at + (offset ? 4 : 2);
      const unsigned code = nibble(high + 4, j) | (byte(high + j / 8) >> (j % 8) & 1) << 4;
      const float d = Half(Load16(row + at));
      return offset ? __fadd_rn(__fmul_rn(d, static_cast<float>(code)), Half(Load16(row + at + 2))) : d * (static_cast<float>(code) - 16.0f);
    }
    case DType::kIQ4NL: {
      constexpr int8_t values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
      return Half(Load16(row + 18 * block)) * static_cast<float>(values[nibble(18 * block + 2, j)]);
    }
    case DType::kMXFP4: {
      constexpr int8_t values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
      return ldexpf(static_cast<float>(values[nibble(17 * block + 1, j)]), static_cast<int>(byte(17 * block)) - 128);
    }
    case DType::kQ4K:
    case DType::kQ5K: {
      const int64_t at = (type == DType::kQ4K ? 144 : 176) * (i / 256), low = at + (type == DType::kQ4K ? 16 : 48);
      const int64_t s = i % 256 / 32;
      const auto packed = [&](int64_t k) { return byte(at + 4 + k); };
      const unsigned scale = s < 4 ? packed(s) & 63 : (packed(s + 4) & 15) | packed(s - 4) >> 6 << 4;
      const unsigned least = s < 4 ? packed(s + 4) & 63 : packed(s + 4) >> 4 | packed(s) >> 6 << 4;
      const unsigned bits = byte(low + 32 * (s / 2) + j);
      unsigned code = s % 2 == 0 ? bits & 15 : bits >> 4;
      if (type == DType::kQ5K) code |= (byte(at + 16 + j) >> s & 1) << 4;
      return __fsub_rn(__fmul_rn(Half(Load16(row + at)) * static_cast<float>(scale), static_cast<float>(code)),
                       Half(Load16(row + at + 2)) * static_cast<float>(least));
    }
    case DType::kQ6K: {
      const int64_t at = 210 * (i / 256), h = i % 256 / 128, q = i % 128 / 32;
      const unsigned bits = byte(at + 64 * h + 32 * (q % 2) + j);
      const unsigned code = (q < 2 ? bits & 15 : bits >> 4) | (byte(at + 128 + 32 * h + j) >> (2 * q) & 3) << 4;
      const auto scale = static_cast<float>(static_cast<int8_t>(byte(at + 192 + i % 256 / 16)));
      return Half(Load16(row + at + 208)) * scale * (static_cast<float>(code) - 32.0f);
    }
    case DType::kNested8: break;
  }
  return 0;
}

__device__ void TurnRow(const AnglesLaunch& l, int64_t row) {
  const auto position = static_cast<float>(l.position[row]);
  for (int i = static_cast<int>(threadIdx.x); i < l.half; i += static_cast<int>(blockDim.x)) {
    const float angle = __fmul_rn(position, l.inverse_frequency[i]);
    l.cosines[row * l.half + i] = cosf(angle), l.sines[row * l.half + i] = sinf(angle);
  }
}

__global__ void AnglesKernel(AnglesLaunch l) { TurnRow(l, blockIdx.x); }

// grid: columns, then, of angles, one block more; rows.
__global__ void EmbedKernel(EmbedLaunch l) {
  WaitForBefore();
  LetNextStart();
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= l.cols) {
    if (l.angles.rows > 0 && blockIdx.x + 1 == gridDim.x) TurnRow(l.angles, blockIdx.y);
    return;
  }
  const int32_t told = l.ids[blockIdx.y], id = told >= 0 ? told : __ldcg(l.largest + blockIdx.y);
  l.out[blockIdx.y * l.cols + i] = Element(l.type, l.table + id * l.row_bytes, i);
}

// One block. What comes from the host comes at once.
constexpr int kInputThreads = 512;
__global__ void __launch_bounds__(kInputThreads) InputsKernel(InputsLaunch l) {
  constexpr int kQuad = 16;
  static_assert(kInputThreads * kQuad <= kStepInputBytes);
  __shared__ StepInputs shared;
  const StepInputs* inputs = l.copied;
  const int thread = static_cast<int>(threadIdx.x);
  LetNextStart();
  const auto load = [thread, &inputs] {
    if (thread < static_cast<int>(sizeof(StepInputs)) / kQuad) reinterpret_cast<uint4*>(&shared)[thread] = __ldcv(reinterpret_cast<const uint4*>(inputs) + thread);
    return __ldcv(reinterpret_cast<const uint4*>(inputs + 1) + thread);  // there is room for it, whatever is in it
  };
  const uint32_t number = *l.launches + 1;
  uint4 first = load();
  __syncthreads();
  if (shared.number != number) {
    __syncthreads();
    inputs = l.inputs, first = load();
    __syncthreads();
  }
  if (thread == 0) *l.launches = number;
  const auto* data = reinterpret_cast<const std::byte*>(inputs + 1);
#pragma unroll 1
  for (int at = thread * kQuad; at < shared.bytes; at += kInputThreads * kQuad) {
    const uint4 quad = at == thread * kQuad ? first : __ldcv(reinterpret_cast<const uint4*>(data + at));
#pragma unroll 1
    for (int i = 0; i < shared.count; ++i) {
      const StepInputs::Piece piece = shared.pieces[i];
      const int within = at - piece.at, left = piece.bytes - within;
      if (within < 0 || left <= 0) continue;
      if (left >= kQuad) *reinterpret_cast<uint4*>(piece.to + within) = quad;
      else for (int b = 0; b < left; ++b) piece.to[within + b] = reinterpret_cast<const std::byte*>(&quad)[b];
    }
  }
}

}  // namespace

void RmsNorm(const NormLaunch& l, cudaStream_t stream) {
  if (l.rows == 0) return;
  if (l.n <= 256 && l.add == nullptr && l.slots.slot_out == nullptr && l.halves == nullptr) {
    RmsNormWarpKernel<<<static_cast<unsigned>((l.rows + 7) / 8), 256, 0, stream>>>(l.x, l.gain, l.out, l.rows, l.n, l.epsilon);
    return;
  }
  const bool quads = l.n % 4 == 0 && OfQuads(l.x) && OfQuads(l.gain) && OfQuads(l.out) && OfQuads(l.add) && OfQuads(l.slots.slot_out);
  const int threads = std::clamp(l.n / (quads ? 4 : 1) / 32 * 32, 32, kMostNormThreads);
  LaunchEarly(quads ? RmsNormKernel<float4> : RmsNormKernel<float>, dim3(static_cast<unsigned>(l.rows)), dim3(static_cast<unsigned>(threads)), 0, stream, l);
}

void AddSlots(const SlotSums& sums, float* out, int64_t rows, int32_t hidden, cudaStream_t stream) {
  if (rows == 0) return;
  const bool quads = hidden % 4 == 0 && OfQuads(out) && OfQuads(sums.slot_out);
  const int count = quads ? hidden / 4 : hidden;
  const dim3 grid(static_cast<unsigned>((count + kSumThreads - 1) / kSumThreads), static_cast<unsigned>(rows));
  LaunchEarly(quads ? AddSlotsKernel<float4> : AddSlotsKernel<float>, grid, dim3(kSumThreads), 0, stream, sums, out, count);
}

void Rope(const RopeLaunch& launch, cudaStream_t stream) {
  const int64_t size = launch.rows * launch.heads * (launch.rope_dim / 2);
  if (size > 0) RopeKernel<<<BlocksFor(size), kThreads, 0, stream>>>(launch);
}

void Scatter(const ScatterLaunch& l, cudaStream_t stream) {
  if (l.count > 0) ScatterKernel<<<static_cast<unsigned>(l.count), 256, 0, stream>>>(l);
}

void TakeInputs(const InputsLaunch& l, cudaStream_t stream) { InputsKernel<<<1, kInputThreads, 0, stream>>>(l); }

void SwiGlu(const float* gate, const float* up, float* out, int64_t size, cudaStream_t stream) {
  if (size > 0) SwiGluKernel<<<BlocksFor(size), kThreads, 0, stream>>>(gate, up, out, size);
}

void Add(const float* x, const float* gate, float* out, int64_t rows, int64_t n, cudaStream_t stream) {
  if (rows * n > 0) AddKernel<<<BlocksFor(rows * n), kThreads, 0, stream>>>(x, gate, out, rows * n, n);
}

void Clamp(float* x, int64_t size, float limit, cudaStream_t stream) {
  if (size > 0) ClampKernel<<<BlocksFor(size), kThreads, 0, stream>>>(x, size, limit);
}

void Gather(const float* x, const int32_t* picked, float* out, int64_t rows, int64_t n, cudaStream_t stream) {
  if (rows > 0) LaunchEarly(GatherKernel, dim3(static_cast<unsigned>(rows)), dim3(kThreads), 0, stream, x, picked, out, n);
}

void Embed(const EmbedLaunch& l, cudaStream_t stream) {
  if (l.rows == 0) return;
  const dim3 grid(BlocksFor(l.cols) + (l.angles.rows > 0 ? 1 : 0), static_cast<unsigned>(l.rows));
  LaunchEarly(EmbedKernel, grid, dim3(kThreads), 0, stream, l);
}

void Angles(const AnglesLaunch& l, cudaStream_t stream) {
  if (l.rows > 0) AnglesKernel<<<static_cast<unsigned>(l.rows), 64, 0, stream>>>(l);
}

}  // namespace thermoe::cuda
