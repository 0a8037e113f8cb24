// SPDX-License-Identifier: Apache-2.0
// A block has a part of the context of one row and kv head, or of half of that one's heads. It norms and turns its heads for itself; the one (of either half) that
// has the newest position stores its key and value. Positions are the rows of the tensor cores' products and the (at most 8) query heads of a kv head their columns;
// keys and values come from memory as fragments, a warp a tile of 16 positions at a time.
#include <algorithm>

#include "kernels/cuda/attend_few.h"
#include "kernels/cuda/fragments.cuh"
#include "kernels/cuda/half_rows.cuh"
#include "kernels/cuda/launch_early.cuh"
#include "kernels/cuda/shared.cuh"
#include "kernels/cuda/warp.cuh"
#include "runtime/kv_layout.h"

namespace thermoe::cuda {
namespace {

// Warps of a block: where a multiprocessor has one block at most, more, so that fewer blocks share a context; where there are more blocks than
// multiprocessors take at once, fewer.
constexpr int kMany = 16, kFew = 8, kFewest = 4;
constexpr int kMostHeads = 8;       // of q to one of k
constexpr int kJoined = 4;          // heads whose parts are added at once, or twice as many of half of the warps
constexpr int kMostSplits = 32;     // AttentionScratch has room for, of 16 heads and 264 blocks: of 8 heads, as here, for twice the blocks
// Keys and values of a step's rows, as planned. Of more than that attention.cu's loads, which run ahead, are what counts (H100: as fast at 32 MiB,
// 15 % faster at 200).
constexpr int64_t kMostBytes = int64_t{48} << 20;
static_assert(kKvBlock == 16);

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
  int32_t norm;                      // elements of q and k normalised together; 0: they are not
  float epsilon, limit, scale;
  bool halves_turn;                  // rope
  bool early;                        // tables and angles may be read before the launch before has ended
};

// A head's part: sums, then the largest score and its weight. Where a block has few warps, the parts of four lanes fall into other banks.
template <int kDim>
constexpr int kTwoParts = 2 * kDim + 10;
template <int kDim, int kWarps>
__device__ int PartAt(int head) {
  return kWarps < kMany ? head / 2 * kTwoParts<kDim> + head % 2 * (kDim + 4) : head * (kDim + 4);
}

template <int kDim, int kWarps>
struct alignas(16) Room {
  float qk[kMostHeads + 1][kDim];    // heads of q, then k
  __half q[kMostHeads][kDim];
  float parts[kWarps * kJoined / 2 * kTwoParts<kDim>];  // of some heads at a time: PartAt
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

// The first of eight dimensions that a lane has of values, and of what they come to: group lane / 4's of a sixteen, or, where many blocks keep memory busy, of two
// halves of 64, so that a load of a warp takes whole sectors. (One row takes 0.5 % longer with that.)
template <int kDim, int kWarps>
__device__ int DimensionOf(int eight) {
  const int group = static_cast<int>(threadIdx.x % 32) / 4;
  return kWarps < kMany ? eight * 64 + group * 8 : group * (kDim / 8) + eight * 8;
}

// Sums over positions of a warp's tiles. A lane has of heads 2 t and 2 t + 1 (t: lane % 4) the dimensions of DimensionOf.
template <int kDim>
struct Attended {
  float out[kDim / 16][4];
  float most[2], sum[2];
};

// Keys of a tile as fragments: positions lane / 4 and lane / 4 + 8.
template <int kDim>
struct TileKeys {
  uint4 low[kDim / 32], high[kDim / 32];
  __device__ void Load(const __half* tile) {
    const __half* keys = tile + static_cast<int>(threadIdx.x % 32) / 4 * kDim + static_cast<int>(threadIdx.x) % 4 * 8;
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) {
      low[j] = __ldcg(reinterpret_cast<const uint4*>(keys + j * 32)), high[j] = __ldcg(reinterpret_cast<const uint4*>(keys + 8 * kDim + j * 32));
    }
  }
};

// Brings a tile to the L2 cache: a line of 128 bytes a lane.
template <int kDim>
__device__ void PrefetchTile(const __half* tile) {
  constexpr int kLines = kKvBlock * kDim * static_cast<int>(sizeof(__half)) / 128;
#pragma unroll
  for (int line = static_cast<int>(threadIdx.x) % 32; line < kLines; line += 32) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(reinterpret_cast<const std::byte*>(tile) + line * 128));
  }
}

__device__ uint32_t Word(const uint4 (&v)[2], int i) { return thermoe::cuda::Word(v[i / 4], i % 4); }
__device__ uint32_t Word(const uint4 (&v)[1], int i) { return thermoe::cuda::Word(v[0], i); }

// One tile more. tile_at: its first position.
template <int kDim, int kWarps>
__device__ void AttendTile(const TileKeys<kDim>& k, const __half* tile_values, const uint4 (&q)[kDim / 32], int tile_at, int length, Attended<kDim>* seen) {
  constexpr int kEach = kDim / 8;  // dimensions of values, a lane
  const int lane = static_cast<int>(threadIdx.x % 32), group = lane / 4, pair = lane % 4;
  uint4 v[4][kEach / 8];  // positions 2 pair, + 1, + 8, + 9
#pragma unroll
  for (int p = 0; p < 4; ++p) {
    const __half* values = tile_values + (2 * pair + p % 2 + p / 2 * 8) * kDim;
#pragma unroll
    for (int i = 0; i < kEach / 8; ++i) v[p][i] = __ldcg(reinterpret_cast<const uint4*>(values + DimensionOf<kDim, kWarps>(i)));
  }
  float scores[4] = {};
#pragma unroll
  for (int j = 0; j < kDim / 32; ++j) {
    Mma(scores, {{k.low[j].x, k.high[j].x, k.low[j].y, k.high[j].y}}, q[j].x, q[j].y);
    Mma(scores, {{k.low[j].z, k.high[j].z, k.low[j].w, k.high[j].w}}, q[j].z, q[j].w);
  }
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
#pragma unroll
  for (int i = 0; i < kDim / 16; ++i) {
    float(&out)[4] = seen->out[i];
    out[0] *= keep[0], out[1] *= keep[1], out[2] *= keep[0], out[3] *= keep[1];
    uint32_t w[4];
#pragma unroll
    for (int p = 0; p < 4; ++p) w[p] = Word(v[p], i);
    Mma(out, {{__byte_perm(w[0], w[1], 0x5410), __byte_perm(w[0], w[1], 0x7632), __byte_perm(w[2], w[3], 0x5410), __byte_perm(w[2], w[3], 0x7632)}}, b0,
        b1);
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
  constexpr int kThreads = 32 * kWarps, kJoinedWarps = 8;
  constexpr float kLog2E = 1.4426950408889634f;
  __shared__ Room<kDim, kWarps> room_place;
  Room<kDim, kWarps>& room = *Held(&room_place);
  const int thread = static_cast<int>(threadIdx.x), warp = WarpNumber(), lane = thread % 32;
  const int split = static_cast<int>(blockIdx.x), splits = static_cast<int>(gridDim.x), kv_head = static_cast<int>(blockIdx.y) >> a.shares_log;
  const int first_head = static_cast<int>(blockIdx.y) * a.per_kv;
  const int64_t row = blockIdx.z, which = row * gridDim.y + blockIdx.y;
  const int q_width = a.heads * kDim, kv_width = a.cache.kv_heads * kDim;

  // What the launch before has not written may be read before that has ended: keys of earlier positions, gains and, mostly, tables and angles.
  if (!a.early) WaitForBefore();
  const int position = a.rows.position[row], length = position + 1, newest = position / kKvBlock, tiles = newest + 1, each = (tiles + splits - 1) / splits;
  const int begin = min(tiles, split * each), end = min(tiles, begin + each), first_tile = begin + warp;
  const bool stores = newest >= begin && newest < end;  // has the newest position
  const int32_t* table = a.rows.tables + int64_t{a.rows.sequence[row]} * a.rows.stride;
  const auto tile_at = [&](const __half* cache, int tile) { return cache + (int64_t{table[tile]} * a.cache.kv_heads + kv_head) * kKvBlock * kDim; };
  TileKeys<kDim> keys;
  if (first_tile < end) {
    keys.Load(tile_at(a.cache.keys, first_tile));
    PrefetchTile<kDim>(tile_at(a.cache.values, first_tile));
  }
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
#pragma unroll 4
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
      __half* to = is_k ? a.cache.keys + cell : room.q[h];
      const float times = is_k ? 1.0f : a.scale * kLog2E;
      if (!is_k || stores) {
#pragma unroll
        for (int j = 0; j < kDim / 32; ++j) to[lane + 32 * j] = SaturatedHalf(room.qk[h][lane + 32 * j] * times);
      }
    } else if (h == a.per_kv + 1 && stores) {
#pragma unroll
      for (int j = 0; j < kDim / 32; ++j) {
        const float value = a.limit > 0 ? fminf(fmaxf(head.value[j], -a.limit), a.limit) : head.value[j];
        a.cache.values[cell + lane + 32 * j] = SaturatedHalf(value);
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
  for (int tile = first_tile; tile < end; tile += kWarps) {
    if (tile != first_tile || tile == newest) keys.Load(tile_at(a.cache.keys, tile));  // the newest position has come since
    AttendTile<kDim, kWarps>(keys, tile_at(a.cache.values, tile), q, tile * kKvBlock, length, &seen);
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    for (int offset = 4; offset < 32; offset *= 2) seen.sum[h] += __shfl_xor_sync(kAllLanes, seen.sum[h], offset);
  }

  // The warps' parts into one.
  const int busy = min(kWarps, end - begin), group = lane / 4, pair = lane % 4;
  const auto put = [&](int of_kv, int d, float value) {
    const int column = (first_head + of_kv) * kDim + d;
    a.out[row * q_width + column] = value;
    if (a.halves != nullptr) StoreHalf(a.halves + row * q_width, column, value);
  };
  const int joined = busy <= kWarps / 2 ? 2 * kJoined : kJoined;
  const auto part_of = [&](int s, int of_kv) { return a.partials + ((which * splits + s) * a.per_kv + of_kv) * (kDim + 2); };
#pragma unroll 1
  for (int first = 0; first < a.per_kv; first += joined) {
    if (const int mine = 2 * pair - first; warp < busy && mine >= 0 && mine < joined) {  // this lane's two heads are among them
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (kWarps < kMany && 2 * pair + h >= a.per_kv) continue;
        float* to = room.parts + PartAt<kDim, kWarps>(warp * joined + mine + h);
#pragma unroll
        for (int i = 0; i < kDim / 16; ++i) *reinterpret_cast<float2*>(to + DimensionOf<kDim, kWarps>(i / 4) + i % 4 * 2) = {seen.out[i][h], seen.out[i][2 + h]};
        if (group == 0) to[kDim] = seen.most[h], to[kDim + 1] = seen.sum[h];
      }
    }
    __syncthreads();
#pragma unroll 1
    for (int i = thread; i < min(joined, a.per_kv - first) * kDim; i += kThreads) {
      const int h = i / kDim, d = i % kDim, of_kv = first + h;
      const float3 all = JoinParts<kJoinedWarps>(busy, [&](int w) {
        const float* part = room.parts + PartAt<kDim, kWarps>(w * joined + h);
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
    __syncthreads();
  }
  if (splits == 1) return;

  // The last part of a context to be done adds all of them.
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

// Parts of a context, so that all multiprocessors have something to do, once: of blocks of so many warps, each of which attends to 16 positions at once.
int SplitsFor(int64_t blocks, int warps, int32_t longest) {
  const int64_t at_once = Multiprocessors() * kMany / warps, positions = 16 * warps, useful = (longest + positions - 1) / positions;
  return static_cast<int>(std::clamp<int64_t>(std::min(at_once / blocks, useful), 1, kMostSplits));
}

template <int kWarps>
cudaError_t LaunchAttend(dim3 grid, int dim, const AttendArgs& a, cudaStream_t stream) {
  return LaunchEarly(dim == 64 ? AttendKernel<64, kWarps> : AttendKernel<128, kWarps>, grid, dim3(32 * kWarps), 0, stream, a);
}

}  // namespace

bool FinishAndAttend(const FinishLaunch& f, const AttentionLaunch& l, bool early, uint32_t* counters, cudaStream_t stream) {
  const int32_t dim = l.cache.head_dim, kv_heads = l.cache.kv_heads, per_kv = l.heads / kv_heads, norm = f.q_norm ? f.q_norm->n : 0;
  if ((dim != 64 && dim != 128) || per_kv > kMostHeads || l.single != l.count || l.count == 0 || f.store.count != l.count) return false;
  if (counters == nullptr || l.count * kv_heads > kAttendCounters || f.q_rope.rope_dim > dim) return false;
  if (l.count * l.longest * kv_heads * dim * 2 * static_cast<int64_t>(sizeof(__half)) > kMostBytes) return false;
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
  const int64_t at_once = Multiprocessors();
  // Of few rows two blocks share a kv head's heads: each has half of the parts to join, and the product that follows still finds multiprocessors free.
  const int shares_log = per_kv % 2 == 0 && per_kv > kJoined && 4 * l.count * kv_heads <= at_once ? 1 : 0;
  const int64_t blocks = l.count * kv_heads << shares_log;
  a.per_kv = per_kv >> shares_log, a.shares_log = shares_log;
  const auto launch = [&]<int kWarps>() {
    const dim3 grid(static_cast<unsigned>(SplitsFor(blocks, kWarps, l.longest)), static_cast<unsigned>(kv_heads << shares_log), static_cast<unsigned>(l.count));
    return LaunchAttend<kWarps>(grid, dim, a, stream) == cudaSuccess;
  };
  if (blocks <= at_once) return launch.template operator()<kMany>();
  return blocks <= at_once * (kMany / kFew) ? launch.template operator()<kFew>() : launch.template operator()<kFewest>();
}

}  // namespace thermoe::cuda
