// SPDX-License-Identifier: Apache-2.0
// A block has a part of the context of one row and kv head, or of half of that one's heads. It norms and turns its heads for itself; the one (of either half) that
// has the newest position stores its key and value. Positions are the rows of the tensor cores' products and the (at most 8) query heads of a kv head their columns;
// a warp has a tile of 16 positions at a time. Keys and values come as they lie in memory, which is quicker than as the lanes want them (record 29), into a ring of
// each warp's own.
#include <algorithm>

#include "kernels/cuda/attend_few.h"
#include "kernels/cuda/fragments.cuh"
#include "kernels/cuda/half_rows.cuh"
#include "kernels/cuda/launch_early.cuh"
#include "kernels/cuda/shared.cuh"
#include "kernels/cuda/warp.cuh"
#include "kernels/cuda/wgmma.cuh"
#include "runtime/kv_layout.h"

namespace thermoe::cuda {
namespace {

// Warps of a block: where a multiprocessor has one block at most, more, so that fewer blocks share a context; where there are more blocks than
// multiprocessors take at once, fewer; and fewer where the rings of more do not fit shared memory.
constexpr int kMany = 16, kFew = 8, kFewest = 4;
constexpr int kMostHeads = 8;       // of q to one of k
constexpr int kMostSplits = 32;     // AttentionScratch has room for, of 16 heads and 264 blocks: of 8 heads, as here, for twice the blocks
// Bytes of a step's keys and values up to which, of each row's, other blocks ask for what the last three quarters of the rows have: 24 MiB, of an H100's L2 cache of 50.
constexpr int64_t kMostAsked = int64_t{32} << 20;
static_assert(kKvBlock == 16);
constexpr int kPieces = 3;  // of a warp's ring: the keys or the values of a tile

struct AttendArgs {
  const float *q, *k, *v;            // [rows, heads * kDim]
  const float *q_norm, *k_norm;      // or null
  const float *cosines, *sines;
  float* out;                        // [rows, heads * kDim]
  __half* halves;                    // out once more as half_rows.cuh has it, or null
  float* partials;                   // [rows, blocks of its heads, splits, per_kv, kDim + 2]
  uint32_t* done;                    // [rows, blocks of its heads] parts that are done
  RowTable rows;
  HalfKv cache;
  int32_t heads, per_kv, rope_dim;   // per_kv: heads of a block
  int32_t shares_log;                // blocks that share a kv head's heads
  int32_t asked;                     // tiles of a row that AskForOthers asks for at most
  int32_t norm;                      // elements of q and k normalised together; 0: they are not
  float epsilon, limit, scale;
  bool halves_turn;                  // rope
  bool early;                        // tables and angles may be read before the launch before has ended
};

// A head's part: sums, then the largest score and its weight. The parts of four lanes, two heads each, fall into other banks.
template <int kDim>
constexpr int kTwoParts = 2 * kDim + 10;
template <int kDim>
__device__ int PartAt(int head) {
  return head / 2 * kTwoParts<kDim> + head % 2 * (kDim + 4);
}

template <int kDim>
constexpr int kPieceBytes = kKvBlock * kDim * static_cast<int>(sizeof(__half));
// A warp's: its ring, later its parts of all heads.
template <int kDim>
constexpr int kWarpBytes = kPieces * kPieceBytes<kDim>;
static_assert(kMostHeads / 2 * kTwoParts<64> * sizeof(float) <= kWarpBytes<64> && kMostHeads / 2 * kTwoParts<128> * sizeof(float) <= kWarpBytes<128>);

template <int kDim, int kWarps>
struct alignas(16) Room {
  float qk[kMostHeads + 1][kDim];    // heads of q, then k
  __half q[kMostHeads][kDim];
  __half newest[2][kDim];            // key and value of the newest position
  float sums[kWarps];
  bool last;
};

__device__ float Dot(const float4& a) { return a.x * a.x + a.y * a.y + (a.z * a.z + a.w * a.w); }

// One 8 x 8 matrix of halves, transposed between the lanes.
__device__ uint32_t Transposed(uint32_t pair) {
  uint32_t out;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(pair));
  return out;
}

// What a warp needs to finish a head of q or k: lane l has elements l, l + 32, ... and angles l, l + 32, ...
template <int kDim>
struct Head {
  float value[kDim / 32], gain[kDim / 32], cosine[kDim / 64], sine[kDim / 64];

  // Nothing that the launch before gave.
  __device__ void LoadConstants(const AttendArgs& a, int64_t row, const float* gains) {
    const int lane = static_cast<int>(threadIdx.x % 32), half = a.rope_dim / 2;
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) gain[j] = gains == nullptr ? 1.0f : __ldg(gains + lane + 32 * j);
#pragma unroll
    for (int j = 0; j < kDim / 64; ++j) {
      const bool there = lane + 32 * j < half;
      cosine[j] = there ? __ldg(a.cosines + row * half + lane + 32 * j) : 1.0f, sine[j] = there ? __ldg(a.sines + row * half + lane + 32 * j) : 0.0f;
    }
  }
  __device__ void LoadValues(const float* from) {
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) value[j] = __ldcg(from + threadIdx.x % 32 + 32 * j);
  }
  // Normed, limited and turned, in `to`. scale: of a norm over all heads.
  __device__ void Finish(const AttendArgs& a, float scale, float* to) {
    const int lane = static_cast<int>(threadIdx.x % 32), half = a.rope_dim / 2;
    if (a.norm == kDim) {
      float squares = 0;
#pragma unroll
      for (int j = 0; j < kDim / 32; ++j) squares += value[j] * value[j];
      scale = rsqrtf(WarpSum(squares) / kDim + a.epsilon);
    }
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) {
      float v = a.norm > 0 ? value[j] * scale * gain[j] : value[j];
      if (a.limit > 0) v = fminf(fmaxf(v, -a.limit), a.limit);
      to[lane + 32 * j] = v;
    }
    __syncwarp();
#pragma unroll
    for (int j = 0; j < kDim / 64; ++j) {
      const int p = lane + 32 * j;
      if (p >= half) continue;
      float* first = to + (a.halves_turn ? p : 2 * p);
      float* second = first + (a.halves_turn ? half : 1);
      const float u = *first, w = *second;
      *first = u * cosine[j] - w * sine[j];
      *second = w * cosine[j] + u * sine[j];
    }
    __syncwarp();
  }
};

// The first of eight dimensions that a lane has of values, and of what they come to.
__device__ int DimensionOf(int eight) { return eight * 64 + static_cast<int>(threadIdx.x % 32) / 4 * 8; }

// Where 16 bytes of a piece lie in the ring, in 16 bytes. Exchanged in a row so that neither lanes of one matrix of keys nor of values meet in a bank.
template <int kDim>
__device__ int PlaceOf(int position, int sixteen) {
  return position * (kDim / 8) + (sixteen ^ (position & 6) ^ (position & 1) << 2);
}

// Sums over positions of a warp's tiles. A lane has of heads 2 t and 2 t + 1 (t: lane % 4) the dimensions of DimensionOf.
template <int kDim>
struct Attended {
  float out[kDim / 16][4];
  float most[2], sum[2];
};

// One tile more. tile_at: its first position. take: waits for the keys (0) or values (1) and says where they are; done: when they have been read.
template <int kDim, typename Take, typename Done>
__device__ void AttendTile(const uint4 (&q)[kDim / 32], int tile_at, int length, Attended<kDim>* seen, Take&& take, Done&& done) {
  const int lane = static_cast<int>(threadIdx.x % 32), group = lane / 4, pair = lane % 4;
  const uint4* keys = take(0);
  float scores[4] = {};
#pragma unroll
  for (int j = 0; j < kDim / 32; ++j) {
    const uint4 low = keys[PlaceOf<kDim>(group, pair + 4 * j)], high = keys[PlaceOf<kDim>(group + 8, pair + 4 * j)];
    Mma(scores, {{low.x, high.x, low.y, high.y}}, q[j].x, q[j].y);
    Mma(scores, {{low.z, high.z, low.w, high.w}}, q[j].z, q[j].w);
  }
  done(0);
  float keep[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float& low = scores[h];
    float& high = scores[2 + h];
    if (tile_at + group >= length) low = -INFINITY;
    if (tile_at + group + 8 >= length) high = -INFINITY;
    float most = fmaxf(seen->most[h], fmaxf(low, high));
    for (int offset = 4; offset < 32; offset *= 2) most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, offset));
    keep[h] = exp2f(seen->most[h] - most);  // a tile has a position that is seen: never infinite less infinite but before the first
    seen->most[h] = most;
    low = exp2f(low - most), high = exp2f(high - most);
    seen->sum[h] = seen->sum[h] * keep[h] + low + high;
  }
  const uint32_t b0 = Transposed(PackHalves(scores[0], scores[1])), b1 = Transposed(PackHalves(scores[2], scores[3]));
  const uint4* values = take(1);
  uint4 v[4];
#pragma unroll
  for (int i = 0; i < kDim / 16; ++i) {
    if (i % 4 == 0) {
#pragma unroll
      for (int p = 0; p < 4; ++p) v[p] = values[PlaceOf<kDim>(2 * pair + p % 2 + p / 2 * 8, group + i / 4 * 8)];
    }
    float(&out)[4] = seen->out[i];
    out[0] *= keep[0], out[1] *= keep[1], out[2] *= keep[0], out[3] *= keep[1];
    uint32_t w[4];
#pragma unroll
    for (int p = 0; p < 4; ++p) w[p] = Word(v[p], i % 4);
    Mma(out, {{__byte_perm(w[0], w[1], 0x5410), __byte_perm(w[0], w[1], 0x7632), __byte_perm(w[2], w[3], 0x5410), __byte_perm(w[2], w[3], 0x7632)}}, b0,
        b1);
  }
  done(1);
}

// Where a block of the cache has the keys (0) or values (1) of a kv head.
template <int kDim>
__device__ __half* TileOf(const HalfKv& cache, int of_values, int32_t block, int kv_head) {
  return (of_values == 0 ? cache.keys : cache.values) + (int64_t{block} * cache.kv_heads + kv_head) * kKvBlock * kDim;
}

// The blocks of the first quarter of the rows, which find multiprocessors that the product before leaves idle, ask for what the others will read (H100, 32 rows of 16
// heads and 128 positions: 14 us to 11).
template <int kDim>
__device__ void AskForOthers(const AttendArgs& a, int kv_head) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  const unsigned rows = gridDim.z, first = (rows + 3) / 4, other = blockIdx.z + first * static_cast<unsigned>(WarpNumber());
  if (gridDim.x > 1 || blockIdx.z >= first || other == blockIdx.z || other >= rows) return;
  const int32_t* table = a.rows.tables + int64_t{a.rows.sequence[other]} * a.rows.stride;
  const int pieces = 2 * min(a.rows.position[other] / kKvBlock + 1, a.asked);
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x % 32); i < pieces; i += 32) {
    BulkPrefetch(reinterpret_cast<const std::byte*>(TileOf<kDim>(a.cache, i % 2, table[i / 2], kv_head)), kPieceBytes<kDim>);
  }
#endif
}

// A lane's share of what a warp's tiles came to.
template <int kDim>
__device__ void PutParts(const Attended<kDim>& seen, int per_kv, float* parts) {
  const int group = static_cast<int>(threadIdx.x % 32) / 4, pair = static_cast<int>(threadIdx.x % 4);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (2 * pair + h >= per_kv) continue;
    float* to = parts + PartAt<kDim>(2 * pair + h);
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) *reinterpret_cast<float2*>(to + DimensionOf(i / 4) + i % 4 * 2) = {seen.out[i][h], seen.out[i][2 + h]};
    if (group == 0) to[kDim] = seen.most[h], to[kDim + 1] = seen.sum[h];
  }
}

// Adds parts of one head and dimension, kMost at once: value, largest score, weight.
template <int kMost, typename Part>
__device__ float3 JoinParts(int count, Part&& part) {
  float3 all{0, -INFINITY, 0};
#pragma unroll 1
  for (int begin = 0; begin < count; begin += kMost) {
    float3 parts[kMost];
    float most = all.y;
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      parts[i] = begin + i < count ? part(begin + i) : float3{0, -INFINITY, 0};
      most = fmaxf(most, parts[i].y);
    }
    const float kept = all.y == -INFINITY ? 0.0f : exp2f(all.y - most);
    all = {all.x * kept, most, all.z * kept};
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      const float keep = parts[i].y == -INFINITY ? 0.0f : exp2f(parts[i].y - most);
      all.x += keep * parts[i].x, all.z += keep * parts[i].z;
    }
  }
  return all;
}

// grid: splits, kv heads times the blocks that share one, rows.
template <int kDim, int kWarps>
__global__ void __launch_bounds__(32 * kWarps, kMany / kWarps) AttendKernel(AttendArgs a) {
  constexpr int kThreads = 32 * kWarps;
  constexpr float kLog2E = 1.4426950408889634f;
  extern __shared__ __align__(16) std::byte shared_place[];
  std::byte* const shared = Held(shared_place);
  Room<kDim, kWarps>& room = *reinterpret_cast<Room<kDim, kWarps>*>(shared);
  std::byte* const rings = shared + sizeof(Room<kDim, kWarps>);  // kWarpBytes a warp
  const int thread = static_cast<int>(threadIdx.x), warp = WarpNumber(), lane = thread % 32;
  const int split = static_cast<int>(blockIdx.x), splits = static_cast<int>(gridDim.x), kv_head = static_cast<int>(blockIdx.y) >> a.shares_log;
  const int first_head = static_cast<int>(blockIdx.y) * a.per_kv;
  const int64_t row = blockIdx.z, which = row * gridDim.y + blockIdx.y;
  const int q_width = a.heads * kDim, kv_width = a.cache.kv_heads * kDim;

  // What the launch before has not written may be read before that has ended: keys and values of earlier positions, gains and, mostly, tables and angles.
  if (!a.early) WaitForBefore();
  const int position = a.rows.position[row], length = position + 1, newest = position / kKvBlock, tiles = newest + 1, each = (tiles + splits - 1) / splits;
  const int begin = min(tiles, split * each), end = min(tiles, begin + each), first_tile = begin + warp;
  const bool stores = newest >= begin && newest < end;  // has the newest position
  const int32_t* table = a.rows.tables + int64_t{a.rows.sequence[row]} * a.rows.stride;
  uint4* const ring = reinterpret_cast<uint4*>(rings + warp * kWarpBytes<kDim>);
  const auto place_of = [&](int piece) { return ring + piece % kPieces * (kPieceBytes<kDim> / 16); };
  // Piece 2 n is the keys of the warp's tile n, the next its values.
  const auto ask = [&](int piece) {
    if (const int tile = first_tile + piece / 2 * kWarps; tile < end) {
      const __half* from = TileOf<kDim>(a.cache, piece % 2, table[tile], kv_head) + lane * 8;
#pragma unroll
      for (int i = 0; i < kDim / 16; ++i) CopyAsync(place_of(piece) + PlaceOf<kDim>((i * 32 + lane) / (kDim / 8), lane % (kDim / 8)), from + i * 256);
    }
    CommitCopies();
  };
#pragma unroll 1
  for (int piece = 0; piece < kPieces; ++piece) ask(piece);
  if constexpr (kWarps == kFewest) AskForOthers<kDim>(a, kv_head);
  const bool all_heads = a.norm > kDim;
  // Heads of q, then k, then v: a warp has every kWarps-th, whose loads do not wait for each other.
  constexpr int kTurns = (kMostHeads + 2 + kWarps - 1) / kWarps;
  Head<kDim> heads[kTurns];
  const auto load_constants = [&](int h, Head<kDim>* head) {
    const float* gains = h == a.per_kv ? a.k_norm : a.q_norm;
    if (h > a.per_kv || a.norm == 0) gains = nullptr;
    else if (all_heads) gains += (h == a.per_kv ? kv_head : first_head + h) * kDim;
    head->LoadConstants(a, row, gains);
  };
  const auto load_values = [&](int h, Head<kDim>* head) {
    head->LoadValues(h < a.per_kv ? a.q + row * q_width + (first_head + h) * kDim : (h == a.per_kv ? a.k : a.v) + row * kv_width + kv_head * kDim);
  };
#pragma unroll
  for (int t = 0; t < kTurns; ++t) {
    if (warp + t * kWarps < a.per_kv + 2) load_constants(warp + t * kWarps, &heads[t]);
  }
  WaitForBefore();
  LetNextStart();
#pragma unroll
  for (int t = 0; t < kTurns; ++t) {
    if (warp + t * kWarps < a.per_kv + 2) load_values(warp + t * kWarps, &heads[t]);
  }
  if (all_heads) {  // half of the warps add up q, half k
    const bool of_k = warp >= kWarps / 2;
    const auto* of = reinterpret_cast<const float4*>(of_k ? a.k + row * kv_width : a.q + row * q_width);
    const int quads = (of_k ? kv_width : q_width) / 4;
    float squares = 0;
#pragma unroll kMany / kWarps * 2
    for (int i = thread % (kThreads / 2); i < quads; i += kThreads / 2) squares += Dot(__ldcg(of + i));
    squares = WarpSum(squares);
    if (lane == 0) room.sums[warp] = squares;
    __syncthreads();
  }
  const int64_t cell = ((int64_t{table[newest]} * a.cache.kv_heads + kv_head) * kKvBlock + position % kKvBlock) * kDim;
#pragma unroll
  for (int t = 0; t < kTurns; ++t) {
    const int h = warp + t * kWarps;
    Head<kDim>& head = heads[t];
    const bool is_k = h == a.per_kv;
    if (h <= a.per_kv) {
      float scale = 0;
      if (all_heads) {
#pragma unroll 1
        for (int w = 0; w < kWarps / 2; ++w) scale += room.sums[(is_k ? kWarps / 2 : 0) + w];
        scale = rsqrtf(scale / static_cast<float>(is_k ? kv_width : q_width) + a.epsilon);
      }
      head.Finish(a, scale, room.qk[h]);
      __half* to = is_k ? room.newest[0] : room.q[h];
      const float times = is_k ? 1.0f : a.scale * kLog2E;
#pragma unroll
      for (int j = 0; j < kDim / 32; ++j) {
        const __half half = SaturatedHalf(room.qk[h][lane + 32 * j] * times);
        to[lane + 32 * j] = half;
        if (is_k && stores) a.cache.keys[cell + lane + 32 * j] = half;
      }
    } else if (h == a.per_kv + 1 && stores) {
#pragma unroll
      for (int j = 0; j < kDim / 32; ++j) {
        const float value = a.limit > 0 ? fminf(fmaxf(head.value[j], -a.limit), a.limit) : head.value[j];
        a.cache.values[cell + lane + 32 * j] = room.newest[1][lane + 32 * j] = SaturatedHalf(value);
      }
    }
  }
#pragma unroll 1
  for (int i = a.per_kv * kDim + thread; i < kMostHeads * kDim; i += kThreads) (&room.q[0][0])[i] = __half{};  // heads that there are not
  __syncthreads();
  Attended<kDim> seen;
#pragma unroll
  for (int i = 0; i < kDim / 16; ++i) seen.out[i][0] = seen.out[i][1] = seen.out[i][2] = seen.out[i][3] = 0;
  seen.most[0] = seen.most[1] = -INFINITY, seen.sum[0] = seen.sum[1] = 0;
  uint4 q[kDim / 32];
#pragma unroll
  for (int j = 0; j < kDim / 32; ++j) q[j] = *reinterpret_cast<const uint4*>(&room.q[lane / 4][j * 32 + lane % 4 * 8]);
#pragma unroll 1
  for (int n = 0, tile = first_tile; tile < end; ++n, tile += kWarps) {
    const auto take = [&](int of_values) {
      uint4* piece = place_of(2 * n + of_values);
      WaitCopies<kPieces - 1>();
      // Asked for before this position was there: the lanes whose copies these were write them anew.
      if (constexpr int kOfRow = kDim / 8; tile == newest && lane / kOfRow == position % (32 / kOfRow)) {
        piece[PlaceOf<kDim>(position % kKvBlock, lane % kOfRow)] = reinterpret_cast<const uint4*>(room.newest[of_values])[lane % kOfRow];
      }
      __syncwarp();
      return piece;
    };
    const auto done = [&](int of_values) {
      __syncwarp();
      ask(2 * n + of_values + kPieces);
    };
    AttendTile<kDim>(q, tile * kKvBlock, length, &seen, take, done);
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    for (int offset = 4; offset < 32; offset *= 2) seen.sum[h] += __shfl_xor_sync(kAllLanes, seen.sum[h], offset);
  }

  // The warps' parts into one.
  const int busy = min(kWarps, end - begin);
  if (warp < busy) PutParts(seen, a.per_kv, reinterpret_cast<float*>(ring));
  __syncthreads();
  const auto put = [&](int of_kv, int d, float value) {
    const int column = (first_head + of_kv) * kDim + d;
    a.out[row * q_width + column] = value;
    if (a.halves != nullptr) StoreHalf(a.halves + row * q_width, column, value);
  };
  const auto part_of = [&](int s, int of_kv) { return a.partials + ((which * splits + s) * a.per_kv + of_kv) * (kDim + 2); };
#pragma unroll 1
  for (int i = thread; i < a.per_kv * kDim; i += kThreads) {
    const int of_kv = i / kDim, d = i % kDim;
    const float3 all = JoinParts<8>(busy, [&](int w) {
      const float* part = reinterpret_cast<const float*>(rings + w * kWarpBytes<kDim>) + PartAt<kDim>(of_kv);
      return float3{part[d], part[kDim], part[kDim + 1]};
    });
    if (splits == 1) {
      put(of_kv, d, __fdividef(all.x, all.z));
    } else {
      float* to = part_of(split, of_kv);
      to[d] = all.x;
      if (d == 0) to[kDim] = all.y, to[kDim + 1] = all.z;
    }
  }
  if (splits == 1) return;

  // The last part of a context to be done adds all of them.
  __syncthreads();
  if (thread == 0) room.last = CountBlock(a.done + which) + 1 == static_cast<uint32_t>(splits);
  __syncthreads();
  if (!room.last) return;
  if (thread == 0) a.done[which] = 0;
#pragma unroll 1
  for (int i = thread; i < a.per_kv * kDim; i += kThreads) {
    const int of_kv = i / kDim, d = i % kDim;
    const float3 all = JoinParts<4>(splits, [&](int s) {
      const float* part = part_of(s, of_kv);
      return float3{__ldcg(part + d), __ldcg(part + kDim), __ldcg(part + kDim + 1)};
    });
    put(of_kv, d, __fdividef(all.x, all.z));
  }
}

// Of a block, shared.
template <int kDim, int kWarps>
constexpr int kBlockBytes = static_cast<int>(sizeof(Room<kDim, kWarps>)) + kWarps * kWarpBytes<kDim>;
// With what the driver keeps of each, kMany / kWarps blocks are what an H100's multiprocessor has.
static_assert(kMany / kFewest * (kBlockBytes<128, kFewest> + 1024) <= 228 << 10 && kMany / kFew * (kBlockBytes<128, kFew> + 1024) <= 228 << 10);

// Blocks that a device takes at once. block_bytes: that one may have.
template <int kDim, int kWarps>
int64_t AtOnce(int block_bytes) {
  if (kBlockBytes<kDim, kWarps> > block_bytes) return 0;
  return int64_t{Multiprocessors()} * std::clamp(DeviceAttribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor) / (kBlockBytes<kDim, kWarps> + 1024), 1, kMany / kWarps);
}

// Parts of a context, so that all multiprocessors have something to do, once: of blocks each of whose warps attends to 16 positions at once.
int SplitsFor(int64_t blocks, int64_t at_once, int warps, int32_t longest) {
  const int64_t positions = 16 * warps, useful = (longest + positions - 1) / positions;
  return static_cast<int>(std::clamp<int64_t>(std::min(at_once / blocks, useful), 1, kMostSplits));
}

// heads: blocks of a row. False, too, where there are more blocks than fit at once and those of fewer warps will do.
template <int kDim, int kWarps>
bool LaunchAttend(int64_t heads, const AttentionLaunch& l, int block_bytes, const AttendArgs& a, cudaStream_t stream) {
  const int64_t at_once = AtOnce<kDim, kWarps>(block_bytes), blocks = heads * l.count;
  if (at_once == 0 || (kWarps > kFewest && blocks > at_once)) return false;
  const dim3 grid(static_cast<unsigned>(SplitsFor(blocks, at_once, kWarps, l.longest)), static_cast<unsigned>(heads), static_cast<unsigned>(l.count));
  return LaunchWithShared(AttendKernel<kDim, kWarps>, grid, dim3(32 * kWarps), kBlockBytes<kDim, kWarps>, stream, a);
}

}  // namespace

bool FinishAndAttend(const FinishLaunch& f, const AttentionLaunch& l, bool early, uint32_t* counters, cudaStream_t stream, int block_bytes) {
  const int32_t dim = l.cache.head_dim, kv_heads = l.cache.kv_heads, per_kv = l.heads / kv_heads, norm = f.q_norm ? f.q_norm->n : 0;
  if ((dim != 64 && dim != 128) || per_kv > kMostHeads || l.single != l.count || l.count == 0 || f.store.count != l.count) return false;
  if (counters == nullptr || l.count * kv_heads > kAttendCounters || f.q_rope.rope_dim > dim) return false;
  if (f.store.cache.keys != l.cache.keys || f.store.cache.values != l.cache.values) return false;
  // One norm a head, or one of all of them.
  if (norm != 0 && norm != dim && (norm != l.heads * dim || f.k_norm->n != kv_heads * dim)) return false;
  if (norm == dim && f.k_norm->n != dim) return false;
  AttendArgs a{};
  a.q = l.q, a.k = f.store.k, a.v = f.store.v;
  a.q_norm = f.q_norm ? f.q_norm->gain : nullptr, a.k_norm = f.k_norm ? f.k_norm->gain : nullptr;
  a.cosines = f.q_rope.cosines, a.sines = f.q_rope.sines;
  a.out = l.out, a.halves = l.halves, a.partials = static_cast<float*>(l.scratch), a.done = counters;
  a.rows = l.rows, a.cache = l.cache, a.heads = l.heads, a.rope_dim = f.q_rope.rope_dim;
  a.norm = norm, a.early = early;
  a.epsilon = f.q_norm ? f.q_norm->epsilon : 0.0f, a.limit = f.limit, a.scale = l.scale, a.halves_turn = f.q_rope.halves;
  a.asked = static_cast<int32_t>(kMostAsked / (l.count * kv_heads * 2 * kKvBlock * dim * static_cast<int64_t>(sizeof(__half))));
  // Of few rows two blocks share a kv head's heads: each has half of the parts to join, and the product that follows still finds multiprocessors free.
  a.shares_log = per_kv % 2 == 0 && per_kv > kMostHeads / 2 && 4 * l.count * kv_heads <= Multiprocessors() ? 1 : 0;
  a.per_kv = per_kv >> a.shares_log;
  const auto launch = [&]<int kWarps>() {
    const int64_t heads = int64_t{kv_heads} << a.shares_log;
    return dim == 64 ? LaunchAttend<64, kWarps>(heads, l, block_bytes, a, stream) : LaunchAttend<128, kWarps>(heads, l, block_bytes, a, stream);
  };
  if (block_bytes == 0) block_bytes = DeviceAttribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  return launch.template operator()<kMany>() || launch.template operator()<kFew>() || launch.template operator()<kFewest>();
}

}  // namespace thermoe::cuda
