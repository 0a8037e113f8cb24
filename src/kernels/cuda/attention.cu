// SPDX-License-Identifier: Apache-2.0
// Tensor-core tiles: 16 rows of queries against 16 positions at a time. In decode the 16 rows are the query heads of one kv head, in
// prefill 16 neighbouring tokens of one head (on Hopper heads of 64 and 128 have attend_many.cu). A block of keys in the cache is 16 positions: one tile.
#include <algorithm>
#include <cfloat>

#include "kernels/cuda/attend_many.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/fragments.cuh"
#include "kernels/cuda/half_rows.cuh"
#include "kernels/cuda/launch_early.cuh"
#include "kernels/cuda/shared.cuh"
#include "kernels/cuda/warp.cuh"
#include "runtime/kv_layout.h"

namespace thermoe::cuda {
namespace {

constexpr int kTile = kKvBlock;  // positions
constexpr int kDecodeWarps = 4;
constexpr int kMostSplits = 32, kSplitPositions = 128;  // fewer positions are not worth another block
static_assert(kTile == 16);

__device__ uint32_t Pack(float low, float high) { return PackHalves(WithinHalf(low), WithinHalf(high)); }

// Four 8 x 8 tiles of halves, transposed.
__device__ void LoadTransposed(const __half* row, uint32_t (&out)[4]) {
  const uint32_t address = SharedAddress(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address));
}

__device__ void LoadPlain(const __half* row, uint32_t (&out)[4]) {
  const uint32_t address = SharedAddress(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address));
}

// What 16 rows of queries have seen so far. A thread holds rows lane / 4 and lane / 4 + 8.
template <int kDim>
struct Seen {
  float out[kDim / 8][4];
  float most[2];
  float sum[2];

  __device__ void Clear() {
#pragma unroll
    for (int d = 0; d < kDim / 8; ++d) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[d][i] = 0;
    }
    most[0] = most[1] = -INFINITY;
    sum[0] = sum[1] = 0;
  }
};

constexpr int kPad = 8;  // halves between rows in shared memory: rows of a matrix fall into different banks

template <int kDim>
struct QueryFragments {
  Fragment a[kDim / 16];
};

// `at(row)` is the address of a row of queries, or null.
template <int kDim, typename At>
__device__ QueryFragments<kDim> LoadQueries(float scale, At&& at) {
  const int lane = static_cast<int>(threadIdx.x % 32), group = lane / 4, pair = 2 * (lane % 4);
  QueryFragments<kDim> q;
  const float* rows[2] = {at(group), at(group + 8)};
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      const float* row = rows[part % 2];
      const int d = 16 * k + pair + (part / 2) * 8;
      q.a[k].r[part] = row == nullptr ? 0u : Pack(row[d] * scale, row[d + 1] * scale);
    }
  }
  return q;
}

// One tile of keys and values in shared memory ([16, kDim + kPad] each). Row r of the queries sees positions below `limit[r]` (two
// rows a thread); `first` is the tile's first position. scale is already in the queries, with log2 e.
template <int kDim>
__device__ void SeeTile(const QueryFragments<kDim>& q, const __half* keys, const __half* values, int first, const int (&limit)[2],
                        Seen<kDim>* seen) {
  const int lane = static_cast<int>(threadIdx.x % 32), pair = 2 * (lane % 4);
  constexpr int kStride = kDim + kPad;
  float scores[2][4] = {};  // positions 0-7, 8-15
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
    uint32_t b[4];  // positions 0-7: k low, k high; positions 8-15: the same
    LoadPlain(keys + (lane % 8 + lane / 16 * 8) * kStride + 16 * k + lane / 8 % 2 * 8, b);
    Mma(scores[0], q.a[k], b[0], b[1]);
    Mma(scores[1], q.a[k], b[2], b[3]);
  }
  float most[2] = {seen->most[0], seen->most[1]};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int position = first + 8 * half + pair + i % 2;
      if (position >= limit[i / 2]) scores[half][i] = -INFINITY;
      most[i / 2] = fmaxf(most[i / 2], scores[half][i]);
    }
  }
  float keep[2], part[2] = {0, 0};
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    most[r] = fmaxf(most[r], __shfl_xor_sync(kAllLanes, most[r], 1));
    most[r] = fmaxf(most[r], __shfl_xor_sync(kAllLanes, most[r], 2));
    keep[r] = most[r] == -INFINITY ? 1.0f : exp2f(seen->most[r] - most[r]);
    seen->most[r] = most[r];
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float p = most[i / 2] == -INFINITY ? 0.0f : exp2f(scores[half][i] - most[i / 2]);
      scores[half][i] = p;
      part[i / 2] += p;
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) seen->sum[r] = seen->sum[r] * keep[r] + part[r];
  const Fragment p = {{Pack(scores[0][0], scores[0][1]), Pack(scores[0][2], scores[0][3]), Pack(scores[1][0], scores[1][1]),
                       Pack(scores[1][2], scores[1][3])}};
#pragma unroll
  for (int d = 0; d < kDim / 16; ++d) {
    uint32_t b[4];  // dims 0-7: positions low, high; dims 8-15
    LoadTransposed(values + (lane % 8 + lane / 8 % 2 * 8) * kStride + 16 * d + lane / 16 * 8, b);
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      float(&out)[4] = seen->out[2 * d + side];
      out[0] *= keep[0], out[1] *= keep[0], out[2] *= keep[1], out[3] *= keep[1];
      Mma(out, p, b[2 * side], b[2 * side + 1]);
    }
  }
}

// Sums over the lanes that share a row.
template <int kDim>
__device__ void FinishSums(Seen<kDim>* seen) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    seen->sum[r] += __shfl_xor_sync(kAllLanes, seen->sum[r], 1);
    seen->sum[r] += __shfl_xor_sync(kAllLanes, seen->sum[r], 2);
  }
}

template <int kDim>
__device__ void StartTile(const HalfKv& cache, const int32_t* table, int kv_head, int tile, __half* keys, __half* values, int thread,
                          int threads) {
  const int64_t base = (int64_t{table[tile]} * cache.kv_heads + kv_head) * kTile * kDim;
  constexpr int kPieces = kTile * kDim / 8;
  for (int i = thread; i < kPieces; i += threads) {
    const int row = i / (kDim / 8), d = i % (kDim / 8) * 8;
    CopyAsync(keys + row * (kDim + kPad) + d, cache.keys + base + row * kDim + d);
    CopyAsync(values + row * (kDim + kPad) + d, cache.values + base + row * kDim + d);
  }
}

// A part of the context of one row and kv head: [16 heads, kDim] unnormalised, largest score and sum.
template <int kDim>
struct Partial {
  float out[16][kDim];
  float most[16];
  float sum[16];
};

__device__ void PutOut(const AttentionLaunch& l, int64_t row, int column, int dim, float value) {
  const int64_t at = row * l.heads * dim;
  l.out[at + column] = value;
  if (l.halves != nullptr) StoreHalf(l.halves + at, column, value);
}

// grid: kv heads, splits, rows. Each warp of a block takes every fourth tile of the block's part.
template <int kDim>
__global__ void __launch_bounds__(32 * kDecodeWarps) DecodeKernel(AttentionLaunch l, Partial<kDim>* partials) {
  extern __shared__ __half shared_place[];
  __half* shared = Held(shared_place);
  WaitForBefore();
  LetNextStart();
  constexpr int kStages = 2, kTileHalves = kTile * (kDim + kPad);
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int kv_head = static_cast<int>(blockIdx.x), splits = static_cast<int>(gridDim.y), split = static_cast<int>(blockIdx.y);
  const int64_t row = blockIdx.z;
  const int per_kv = l.heads / l.cache.kv_heads, length = l.rows.position[row] + 1;
  const int tiles = (length + kTile - 1) / kTile, each = (tiles + splits - 1) / splits;
  const int begin = split * each, end = min(tiles, begin + each);
  const int32_t* table = l.rows.tables + int64_t{l.rows.sequence[row]} * l.rows.stride;
  const float* queries = l.q + (row * l.heads + kv_head * per_kv) * kDim;
  const QueryFragments<kDim> q = LoadQueries<kDim>(l.scale * 1.4426950408889634f, [&](int r) {
    return r < per_kv ? queries + r * kDim : nullptr;
  });
  Seen<kDim> seen;
  seen.Clear();
  const int limit[2] = {length, length};
  __half* mine = shared + warp * kStages * 2 * kTileHalves;
  const auto start = [&](int tile, int stage) {
    __half* keys = mine + stage * 2 * kTileHalves;
    if (tile < end) StartTile<kDim>(l.cache, table, kv_head, tile, keys, keys + kTileHalves, lane, 32);
    CommitCopies();
  };
  start(begin + warp, 0);
  int stage = 0;
  for (int tile = begin + warp; tile < end; tile += kDecodeWarps) {
    start(tile + kDecodeWarps, stage ^ 1);
    WaitCopies<1>();
    __syncwarp();
    const __half* keys = mine + stage * 2 * kTileHalves;
    SeeTile(q, keys, keys + kTileHalves, tile * kTile, limit, &seen);
    __syncwarp();
    stage ^= 1;
  }
  WaitCopies<0>();
  FinishSums(&seen);
  // The warps' parts into one.
  __syncthreads();
  auto* parts = reinterpret_cast<float*>(shared);  // [warps][per_kv][kDim + 2]
  constexpr int kRow = kDim + 2;
  const int group = lane / 4, pair = 2 * (lane % 4);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int head = group + 8 * r;
    if (head >= per_kv) continue;
    float* to = parts + (warp * per_kv + head) * kRow;
    if (lane % 4 == 0) to[kDim] = seen.most[r], to[kDim + 1] = seen.sum[r];
#pragma unroll
    for (int d = 0; d < kDim / 8; ++d) to[8 * d + pair] = seen.out[d][2 * r], to[8 * d + pair + 1] = seen.out[d][2 * r + 1];
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < per_kv * kDim; i += static_cast<int>(blockDim.x)) {
    const int head = i / kDim, d = i % kDim;
    float most = -INFINITY, sum = 0, out = 0;
    for (int w = 0; w < kDecodeWarps; ++w) most = fmaxf(most, parts[(w * per_kv + head) * kRow + kDim]);
    for (int w = 0; w < kDecodeWarps; ++w) {
      const float* from = parts + (w * per_kv + head) * kRow;
      const float keep = from[kDim] == -INFINITY ? 0.0f : exp2f(from[kDim] - most);
      sum += keep * from[kDim + 1];
      out += keep * from[d];
    }
    if (splits == 1) {
      PutOut(l, row, (kv_head * per_kv + head) * kDim + d, kDim, out / sum);
    } else {
      Partial<kDim>& to = partials[(row * l.cache.kv_heads + kv_head) * splits + split];
      to.out[head][d] = out;
      if (d == 0) to.most[head] = most, to.sum[head] = sum;
    }
  }
}

// grid: heads, rows; one thread a dimension.
template <int kDim>
__global__ void CombineKernel(AttentionLaunch l, const Partial<kDim>* partials, int splits) {
  WaitForBefore();
  LetNextStart();
  const int head = static_cast<int>(blockIdx.x), per_kv = l.heads / l.cache.kv_heads;
  const int64_t row = blockIdx.y;
  const Partial<kDim>* parts = partials + (row * l.cache.kv_heads + head / per_kv) * splits;
  const int within = head % per_kv, d = static_cast<int>(threadIdx.x);
  float most = -INFINITY, sum = 0, out = 0;
  for (int s = 0; s < splits; ++s) most = fmaxf(most, parts[s].most[within]);
  for (int s = 0; s < splits; ++s) {
    if (parts[s].most[within] == -INFINITY) continue;
    const float keep = exp2f(parts[s].most[within] - most);
    sum += keep * parts[s].sum[within];
    out += keep * parts[s].out[within][d];
  }
  PutOut(l, row, head * kDim + d, kDim, out / sum);
}

constexpr int kPrefillWarps = 4, kPrefillRows = 16 * kPrefillWarps;

// grid: heads, tiles of 64 rows from l.single on. A tile's rows may be of several sequences: each warp walks its own rows' sequences
// one after the other; where all rows of the block are of one sequence, tiles of keys are shared.
template <int kDim>
__global__ void __launch_bounds__(32 * kPrefillWarps) PrefillKernel(AttentionLaunch l) {
  extern __shared__ __half shared_place[];
  __half* shared = Held(shared_place);
  constexpr int kTileHalves = kTile * (kDim + kPad), kGroup = 4;  // tiles that are loaded together
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int head = static_cast<int>(blockIdx.x), kv_head = head / (l.heads / l.cache.kv_heads);
  // The last rows have most to do: first.
  const int64_t first_row = l.single + int64_t{gridDim.y - 1 - blockIdx.y} * kPrefillRows, last_row = min(l.count, first_row + kPrefillRows) - 1;
  const int64_t my_row = first_row + 16 * warp;
  const int group = lane / 4;
  const auto row_of = [&](int r) { return my_row + r; };
  const QueryFragments<kDim> q = LoadQueries<kDim>(l.scale * 1.4426950408889634f, [&](int r) {
    return row_of(r) <= last_row ? l.q + (row_of(r) * l.heads + head) * kDim : nullptr;
  });
  Seen<kDim> seen;
  seen.Clear();
  int64_t row = first_row;
  while (row <= last_row) {  // one sequence after the other
    const int sequence = l.rows.sequence[row];
    int64_t last = row;
    while (last < last_row && l.rows.sequence[last + 1] == sequence) ++last;
    const int length = l.rows.position[last] + 1, tiles = (length + kTile - 1) / kTile;
    const int32_t* table = l.rows.tables + int64_t{sequence} * l.rows.stride;
    int limit[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int64_t at = row_of(group + 8 * r);
      limit[r] = at >= row && at <= last ? l.rows.position[at] + 1 : 0;
    }
    const int64_t warp_last = min(last, my_row + 15);
    const int seen_by_warp = my_row + 15 < row || my_row > last ? 0 : l.rows.position[warp_last] + 1;
    const auto start = [&](int tile, int stage) {
      for (int i = 0; i < kGroup; ++i) {
        __half* keys = shared + (stage * kGroup + i) * 2 * kTileHalves;
        if (tile + i < tiles) {
          StartTile<kDim>(l.cache, table, kv_head, tile + i, keys, keys + kTileHalves, static_cast<int>(threadIdx.x), 32 * kPrefillWarps);
        }
      }
      CommitCopies();
    };
    start(0, 0);
    int stage = 0;
    for (int tile = 0; tile < tiles; tile += kGroup) {
      start(tile + kGroup, stage ^ 1);
      WaitCopies<1>();
      __syncthreads();
#pragma unroll 1
      for (int i = 0; i < kGroup && (tile + i) * kTile < seen_by_warp; ++i) {
        const __half* keys = shared + (stage * kGroup + i) * 2 * kTileHalves;
        SeeTile(q, keys, keys + kTileHalves, (tile + i) * kTile, limit, &seen);
      }
      __syncthreads();
      stage ^= 1;
    }
    WaitCopies<0>();
    __syncthreads();
    row = last + 1;
  }
  FinishSums(&seen);
  const int pair = 2 * (lane % 4);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int64_t at = row_of(group + 8 * r);
    if (at > last_row) continue;
    float* out = l.out + (at * l.heads + head) * kDim;
#pragma unroll
    for (int d = 0; d < kDim / 8; ++d) {
      *reinterpret_cast<float2*>(out + 8 * d + pair) = {seen.out[d][2 * r] / seen.sum[r], seen.out[d][2 * r + 1] / seen.sum[r]};
    }
  }
}

// Any head size: one warp a row and head, a position at a time.
__global__ void PlainKernel(AttentionLaunch l, int64_t first) {
  constexpr int kMostPerLane = kMostHeadDim / 32;
  const int lane = static_cast<int>(threadIdx.x), head = static_cast<int>(blockIdx.x), dim = l.cache.head_dim;
  const int64_t row = first + blockIdx.y;
  const int kv_head = head / (l.heads / l.cache.kv_heads), length = l.rows.position[row] + 1;
  const int32_t* table = l.rows.tables + int64_t{l.rows.sequence[row]} * l.rows.stride;
  const float* q = l.q + (row * l.heads + head) * dim;
  float out[kMostPerLane] = {}, most = -INFINITY, sum = 0;
  for (int p = 0; p < length; ++p) {
    const int64_t at = ((int64_t{table[p / kTile]} * l.cache.kv_heads + kv_head) * kTile + p % kTile) * dim;
    float dot = 0;
    for (int d = lane; d < dim; d += 32) dot += q[d] * __half2float(l.cache.keys[at + d]);
    const float score = WarpSum(dot) * l.scale, now = fmaxf(most, score), keep = expf(most - now), weight = expf(score - now);
    most = now;
    sum = sum * keep + weight;
#pragma unroll
    for (int i = 0; i < kMostPerLane; ++i) {
      if (lane + 32 * i < dim) out[i] = out[i] * keep + weight * __half2float(l.cache.values[at + lane + 32 * i]);
    }
  }
#pragma unroll
  for (int i = 0; i < kMostPerLane; ++i) {
    if (lane + 32 * i < dim) l.out[(row * l.heads + head) * dim + lane + 32 * i] = out[i] / sum;
  }
}

__global__ void StoreKernel(StoreLaunch l) {
  const int64_t row = blockIdx.x;
  const int width = l.cache.kv_heads * l.cache.head_dim, position = l.rows.position[row];
  const int32_t block = l.rows.tables[int64_t{l.rows.sequence[row]} * l.rows.stride + position / kTile];
  for (int i = static_cast<int>(threadIdx.x); i < width; i += static_cast<int>(blockDim.x)) {
    const int head = i / l.cache.head_dim, d = i % l.cache.head_dim;
    const int64_t at = ((int64_t{block} * l.cache.kv_heads + head) * kTile + position % kTile) * l.cache.head_dim + d;
    l.cache.keys[at] = SaturatedHalf(l.k[row * width + i]);
    l.cache.values[at] = SaturatedHalf(l.v[row * width + i]);
  }
}

// Splits of a context so that all multiprocessors have something to do.
int SplitsFor(int64_t rows, int32_t kv_heads, int32_t longest) {
  const int64_t blocks = rows * kv_heads, useful = (longest + kSplitPositions - 1) / kSplitPositions;
  const int64_t splits = (264 + blocks - 1) / blocks;
  return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>({splits, useful, kMostSplits})));
}

template <int kDim>
void Launch(const AttentionLaunch& l, cudaStream_t stream) {
  constexpr size_t kTileBytes = kTile * (kDim + kPad) * sizeof(__half);
  if (l.single > 0) {
    const int splits = SplitsFor(l.single, l.cache.kv_heads, l.longest);
    const size_t loads = kDecodeWarps * 2 * 2 * kTileBytes;
    const size_t parts = kDecodeWarps * static_cast<size_t>(l.heads / l.cache.kv_heads) * (kDim + 2) * sizeof(float);
    const size_t bytes = loads > parts ? loads : parts;
    cudaFuncSetAttribute(DecodeKernel<kDim>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    const dim3 grid(static_cast<unsigned>(l.cache.kv_heads), static_cast<unsigned>(splits), static_cast<unsigned>(l.single));
    auto* partials = static_cast<Partial<kDim>*>(l.scratch);
    LaunchEarly(DecodeKernel<kDim>, grid, dim3(32 * kDecodeWarps), bytes, stream, l, partials);
    if (splits > 1) {
      const dim3 heads(static_cast<unsigned>(l.heads), static_cast<unsigned>(l.single));
      LaunchEarly(CombineKernel<kDim>, heads, dim3(kDim), 0, stream, l, partials, splits);
    }
  }
  if (l.count > l.single && !AttendMany(l, nullptr, stream)) {
    const size_t bytes = 2 * 4 * 2 * kTileBytes;
    cudaFuncSetAttribute(PrefillKernel<kDim>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    const dim3 grid(static_cast<unsigned>(l.heads), static_cast<unsigned>((l.count - l.single + kPrefillRows - 1) / kPrefillRows));
    PrefillKernel<kDim><<<grid, 32 * kPrefillWarps, bytes, stream>>>(l);
  }
}

}  // namespace

int64_t AttentionScratch(int64_t singles, int32_t heads, int32_t head_dim) {
  // Partials of min(splits) x rows x kv heads, 16 heads each.
  const int64_t most = 264 + singles * heads;
  return (most + kMostSplits) * 16 * (head_dim + 2) * static_cast<int64_t>(sizeof(float));
}

bool WritesHalves(const AttentionLaunch& l) {
  const int32_t dim = l.cache.head_dim;
  return l.single == l.count && l.heads / l.cache.kv_heads <= 16 && (dim == 32 || dim == 64 || dim == 96 || dim == 128);
}

void Attention(const AttentionLaunch& l, cudaStream_t stream) {
  if (l.count == 0) return;
  if (l.heads / l.cache.kv_heads <= 16) {
    switch (l.cache.head_dim) {
      case 32: return Launch<32>(l, stream);
      case 64: return Launch<64>(l, stream);
      case 96: return Launch<96>(l, stream);
      case 128: return Launch<128>(l, stream);
      default: break;
    }
  }
  PlainKernel<<<dim3(static_cast<unsigned>(l.heads), static_cast<unsigned>(l.count)), 32, 0, stream>>>(l, 0);
}

void StoreKv(const StoreLaunch& launch, cudaStream_t stream) {
  if (launch.count > 0) StoreKernel<<<static_cast<unsigned>(launch.count), 256, 0, stream>>>(launch);
}

}  // namespace thermoe::cuda
