// SPDX-License-Identifier: Apache-2.0
// The decode kernel: weights streamed once, from the first byte of the first product to the last byte of the last,
// whatever the other warps wait for. decode_plan.h says how the work is cut. linear_decode.cu and expert_decode.cu
// launch it.
#pragma once

#include "kernels/cuda/decode_plan.h"
#include "kernels/cuda/decode_tile.cuh"
#include "kernels/cuda/matrix_kernels.h"

namespace thermoe::cuda {

inline constexpr int kConsumers = 2 * kParts * 32;
inline constexpr int kDecodeThreads = kConsumers + 32;

// Rows of activations that one expert (or matrix) multiplies together; the first `both` of them read both planes.
struct Chunk {
  int32_t matrix = 0;  // expert, or which of the linears
  int32_t first = 0;   // into order, or row
  int32_t both = 0, count = 0;
};

struct DecodeArgs {
  // One product (linears) or two (experts: gate with up, then down).
  Columns columns[2];
  int32_t row_limit = 0;  // most rows of a chunk: 8 * NT
  int32_t chunk_capacity = 0, job_capacity = 0;
  int32_t slots_of_ring = 0, slot_bytes = 0;
  uint32_t* sync = nullptr;
  const float* x = nullptr;
  int32_t rows = 0;
  // Linears: cols of all, rows of each.
  DeviceMatrix linear[kMostLinears];
  const float* bias[kMostLinears] = {};
  float* linear_out[kMostLinears] = {};
  int64_t partial_at[kMostLinears] = {};  // into partial: [rows, slices, out]; used where slices > 1
  int32_t linears = 0;
  // Experts.
  ExpertFfnLaunch ffn;
  float* gate_up = nullptr;  // [T * K by order, slices of D, {gate, up}, F]
  float* partial = nullptr;  // experts: [T * K by token and slot, slices of F, D]
};

// What the streaming warp tells the others about a fill.
struct alignas(16) Fill {
  const float* row_scales;  // kHalf: of this row tile's rows; else null
  int32_t end;              // of a product: no weights
  Packing packing;
  ReadMode mode;
  int32_t tiles, x_tile;  // in this fill; where they begin in the slice
  int32_t fresh, last;    // first fill of new activations; last fill of the unit
  Chunk chunk;
  int32_t slice;
  int32_t row;  // of the tile's first row
  int32_t pad;
};

// Shared memory, in this order.
struct DecodeShared {
  uint64_t full[kMostSlots], empty[kMostSlots];
  Fill fill[kMostSlots];
  int32_t chunks, weight_sum;
};
constexpr size_t DecodeFixedBytes(int groups, int chunk_capacity, int job_capacity) {
  const size_t lists =
      sizeof(Chunk) * static_cast<size_t>(chunk_capacity) + 4 * static_cast<size_t>(chunk_capacity + 1);
  const size_t jobs = sizeof(Job) * static_cast<size_t>(job_capacity);  // read before there are sums
  const size_t sums = static_cast<size_t>(kParts * groups * 8 * kSumStride) * 4;
  const auto up = [](size_t bytes) { return (bytes + 127) / 128 * 128; };
  return up(sizeof(DecodeShared)) + up(lists) + up(jobs > sums ? jobs : sums) +
         up(static_cast<size_t>(kParts * groups * 8) * 4) + kActivationBytes;
}

template <int NT>
struct DecodeMemory {
  DecodeShared* shared;
  Chunk* chunk;     // [chunks]
  int32_t* before;  // [chunks + 1] weights of the chunks before
  Job* jobs;        // aliases sums
  float* sums;      // [parts, rows, kSumStride]
  float* unscale;   // [parts, rows]
  uint4* x;         // [slice tiles, 2, NT, 32]
  std::byte* ring;

  __device__ DecodeMemory(std::byte* at, const DecodeArgs& args) {
    const auto take = [&](size_t bytes) {
      std::byte* part = at;
      at += (bytes + 127) / 128 * 128;
      return part;
    };
    shared = reinterpret_cast<DecodeShared*>(take(sizeof(DecodeShared)));
    const auto capacity = static_cast<size_t>(args.chunk_capacity);
    chunk = reinterpret_cast<Chunk*>(take(sizeof(Chunk) * capacity + 4 * (capacity + 1)));
    before = reinterpret_cast<int32_t*>(chunk + capacity);
    const size_t job_bytes = sizeof(Job) * static_cast<size_t>(args.job_capacity),
                 sum_bytes = kParts * NT * 8 * kSumStride * 4;
    std::byte* both = take(job_bytes > sum_bytes ? job_bytes : sum_bytes);
    jobs = reinterpret_cast<Job*>(both);
    sums = reinterpret_cast<float*>(both);
    unscale = reinterpret_cast<float*>(take(kParts * NT * 8 * 4));
    x = reinterpret_cast<uint4*>(take(kActivationBytes));
    ring = at;
  }
};

__device__ inline void ConsumersSync() { asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory"); }

// All blocks' consumers have come here, and see what the others wrote before. `round`: 1, 2, ... in one launch.
__device__ inline void GridSync(uint32_t* sync, uint32_t round, int thread) {
  __threadfence();
  ConsumersSync();
  if (thread == 0) {
    atomicAdd(sync, 1u);
    const uint32_t all = round * gridDim.x;
    while (*reinterpret_cast<volatile uint32_t*>(sync) < all) {
    }
    __threadfence();
  }
  ConsumersSync();
}
// The last block out leaves the words zero.
__device__ inline void LeaveSync(uint32_t* sync, int thread) {
  if (thread == 0 && atomicAdd(sync + 1, 1u) == gridDim.x - 1) {
    sync[0] = 0;
    sync[1] = 0;
  }
}

// The weight of a chunk in the division of work: what its units read. kPlanes8 by hi alone reads 9 of 17 parts.
__device__ inline int32_t UnitWeight(ReadMode mode, bool planes) { return planes && mode == ReadMode::kHi ? 9 : 17; }
__device__ inline ReadMode ModeOf(const Chunk& chunk) {
  return chunk.both == 0 ? ReadMode::kHi : chunk.both == chunk.count ? ReadMode::kBoth : ReadMode::kMixed;
}

// Neighbouring jobs of one expert become one list of rows, cut where it has more than row_limit. By one warp.
template <int NT>
__device__ void ListChunks(const DecodeMemory<NT>& memory, const DecodeArgs& args, int job_count, int lane) {
  int32_t chunks = 0, weights = 0;
  for (int base = 0; base < job_count; base += 32) {
    const int j = base + lane;
    Chunk merged;
    int32_t pieces = 0;
    if (j < job_count && (j == 0 || memory.jobs[j - 1].expert != memory.jobs[j].expert)) {
      const Job& job = memory.jobs[j];
      const bool two = j + 1 < job_count && memory.jobs[j + 1].expert == job.expert;
      merged = {job.expert, job.first, job.planes == Planes::kBoth ? job.count : 0,
                job.count + (two ? memory.jobs[j + 1].count : 0)};
      pieces = (merged.count + args.row_limit - 1) / args.row_limit;
    }
    int32_t weight = 0;
    const auto piece = [&](int p) {
      Chunk out = merged;
      const int from = p * args.row_limit;
      out.first += from;
      out.count = min(args.row_limit, merged.count - from);
      out.both = min(max(merged.both - from, 0), out.count);
      return out;
    };
    const bool planes = args.ffn.gate_packing == Packing::kPlanes8;
    for (int p = 0; p < pieces; ++p) weight += UnitWeight(ModeOf(piece(p)), planes);
    int32_t piece_end = pieces, weight_end = weight;  // inclusive sums over lanes
    for (int step = 1; step < 32; step *= 2) {
      const int32_t a = __shfl_up_sync(~0u, piece_end, step), b = __shfl_up_sync(~0u, weight_end, step);
      if (lane >= step) {
        piece_end += a;
        weight_end += b;
      }
    }
    int32_t at = chunks + piece_end - pieces, sum = weights + weight_end - weight;
    for (int p = 0; p < pieces; ++p) {
      memory.chunk[at] = piece(p);
      memory.before[at] = sum;
      sum += UnitWeight(ModeOf(memory.chunk[at]), planes);
      ++at;
    }
    chunks += __shfl_sync(~0u, piece_end, 31);
    weights += __shfl_sync(~0u, weight_end, 31);
  }
  if (lane == 0) {
    memory.before[chunks] = weights;
    memory.shared->chunks = chunks;
    memory.shared->weight_sum = weights;
  }
}

// Every matrix, its rows of activations cut likewise. A chunk weighs its pairs of row tiles.
template <int NT>
__device__ void ListLinears(const DecodeMemory<NT>& memory, const DecodeArgs& args) {
  int32_t chunks = 0, weights = 0;
  for (int m = 0; m < args.linears; ++m) {
    for (int32_t first = 0; first < args.rows; first += args.row_limit) {
      const int32_t count = min(args.row_limit, args.rows - first);
      memory.chunk[chunks] = {m, first, count, count};
      memory.before[chunks++] = weights;
      weights += CeilDiv(args.linear[m].rows, 2 * kTileRows);
    }
  }
  memory.before[chunks] = weights;
  memory.shared->chunks = chunks;
  memory.shared->weight_sum = weights;
}

// Streams the units of one product that fall to this block; then a fill that says so. By one warp.
template <int NT, bool kExperts>
class Streamer {
 public:
  __device__ Streamer(const DecodeMemory<NT>& memory, const DecodeArgs& args, int lane)
      : memory_(memory), args_(args), lane_(lane) {}

  __device__ void Product(int product) {
    const Columns& columns = args_.columns[product];
    // A chunk weighs its `before` times `scale`; experts: the weight of a unit times the units of a chunk.
    const int64_t scale = kExperts ? int64_t{columns.pairs} * columns.slices : columns.slices;
    const int64_t all = memory_.shared->weight_sum * scale;
    const int64_t begin = all * blockIdx.x / gridDim.x, end = all * (blockIdx.x + 1) / gridDim.x;
    int c = 0;
    while (c < memory_.shared->chunks && memory_.before[c + 1] * scale <= begin) ++c;
    for (bool first = true; c < memory_.shared->chunks; ++c, first = false) {
      const int64_t start = memory_.before[c] * scale;
      if (start >= end) break;
      const Chunk chunk = memory_.chunk[c];
      const int32_t pairs = kExperts ? columns.pairs : CeilDiv(args_.linear[chunk.matrix].rows, 2 * kTileRows);
      const int64_t weight = kExperts ? memory_.before[c + 1] - memory_.before[c] : 1;
      const int32_t from = first ? static_cast<int32_t>((max(begin - start, int64_t{0}) + weight - 1) / weight) : 0;
      const int32_t to = min(pairs * columns.slices, static_cast<int32_t>((end - start + weight - 1) / weight));
      if (from < to) Units(product, columns, chunk, pairs, from, to);
    }
    for (int g = 0; g < 2; ++g) {
      Fill& fill = Next();
      if (lane_ == 0) fill.end = 1;
      Issue(0);
      CopiesIssued(&memory_.shared->full[slot_], lane_);
    }
  }

 private:
  __device__ void Units(int product, const Columns& columns, const Chunk& chunk, int32_t pairs, int32_t from,
                        int32_t to) {
    const bool together = kExperts && product == 0;  // gate and up
    DeviceMatrix matrix[2];
    if constexpr (kExperts) {
      matrix[0] = product == 0 ? args_.ffn.gate[chunk.matrix] : args_.ffn.down[chunk.matrix];
      matrix[1] = product == 0 ? args_.ffn.up[chunk.matrix] : matrix[0];
    } else {
      matrix[0] = matrix[1] = args_.linear[chunk.matrix];
    }
    int32_t slice = from / pairs, pair = from % pairs;
    bool fresh = true;
    for (int32_t u = from; u < to; ++u) {
      const int32_t k0 = slice * columns.slice_tiles, tiles = min(columns.slice_tiles, columns.k_tiles - k0);
      const int32_t step = min(FillTiles(matrix[0].packing), FillTiles(matrix[1].packing));
      for (int32_t at = 0; at < tiles; at += step) {
        for (int g = 0; g < 2; ++g) {
          const int32_t row_tile = together ? pair : 2 * pair + g;
          const DeviceMatrix& m = matrix[g];
          Fill& fill = Next();
          const int32_t here = min(step, tiles - at);
          if (lane_ == 0) {
            fill.row_scales =
                m.packing == Packing::kHalf ? reinterpret_cast<const float*>(m.scales) + row_tile * kTileRows : nullptr;
            fill.end = 0;
            fill.packing = m.packing;
            fill.mode = m.packing == Packing::kPlanes8 && kExperts ? ModeOf(chunk) : ReadMode::kBoth;
            fill.tiles = here;
            fill.x_tile = at;
            fill.fresh = fresh && at == 0;
            fill.last = at + step >= tiles;
            fill.chunk = chunk;
            fill.slice = slice;
            fill.row = row_tile * kTileRows;
          }
          Copy(m, ModeOf(chunk), int64_t{row_tile} * m.k_tiles + k0 + at, here);
        }
      }
      fresh = false;
      if (++pair == pairs) {
        pair = 0;
        ++slice;
        fresh = true;
      }
    }
  }

  // The next slot, when it is free.
  __device__ Fill& Next() {
    slot_ = next_ % args_.slots_of_ring;
    if (next_ >= args_.slots_of_ring) BarrierWait(&memory_.shared->empty[slot_], (next_ / args_.slots_of_ring - 1) & 1);
    ++next_;
    return memory_.shared->fill[slot_];
  }
  __device__ void Issue(uint32_t bytes) { ExpectBytes(&memory_.shared->full[slot_], bytes, lane_); }

  __device__ void Copy(const DeviceMatrix& m, ReadMode mode, int64_t tile, int32_t tiles) {
    uint64_t* full = &memory_.shared->full[slot_];
    std::byte* to = memory_.ring + slot_ * args_.slot_bytes;
    const uint32_t code_bytes = static_cast<uint32_t>(tiles * CodeTileBytes(m.packing));
    const bool hi_only = m.packing == Packing::kPlanes8 && kExperts && mode == ReadMode::kHi;
    const uint32_t lo_bytes = HasLoPlane(m.packing) && !hi_only ? code_bytes : 0;
    const uint32_t scale_bytes = static_cast<uint32_t>(tiles * ScaleTileBytes(m.packing));
    Issue(code_bytes + lo_bytes + scale_bytes);
    CopyToShared(to, m.hi + tile * CodeTileBytes(m.packing), code_bytes, full, lane_);
    if (lo_bytes > 0) CopyToShared(to + code_bytes, m.lo + tile * kPlaneTileBytes, lo_bytes, full, lane_);
    if (scale_bytes > 0)
      CopyToShared(to + code_bytes + lo_bytes, m.scales + tile * ScaleTileBytes(m.packing), scale_bytes, full, lane_);
    CopiesIssued(full, lane_);
  }

  const DecodeMemory<NT>& memory_;
  const DecodeArgs& args_;
  int lane_;
  int32_t next_ = 0, slot_ = 0;
};

// Four activations of a row of the product's input, zero beyond its columns.
struct RowSource {
  const float* row = nullptr;   // linears, gate and up: the row
  const float* gate = nullptr;  // down: gate products of the row, [slices][2][F]
  int32_t slices = 0;
  int32_t cols = 0;

  __device__ float4 Load4(const float* at, int32_t c) const {
    if (cols % 4 == 0) return __ldcg(reinterpret_cast<const float4*>(at + c));
    return {__ldcg(at + c), c + 1 < cols ? __ldcg(at + c + 1) : 0.0f, c + 2 < cols ? __ldcg(at + c + 2) : 0.0f,
            c + 3 < cols ? __ldcg(at + c + 3) : 0.0f};
  }
  __device__ float4 At(int32_t c) const {
    if (c >= cols) return {};
    if (gate == nullptr) return Load4(row, c);
    float4 g = {}, u = {};
    for (int32_t s = 0; s < slices; ++s) {
      const float4 a = Load4(gate + int64_t{2 * s} * cols, c), b = Load4(gate + int64_t{2 * s + 1} * cols, c);
      g = {g.x + a.x, g.y + a.y, g.z + a.z, g.w + a.w};
      u = {u.x + b.x, u.y + b.y, u.z + b.z, u.w + b.w};
    }
    return {Silu(g.x) * u.x, Silu(g.y) * u.y, Silu(g.z) * u.z, Silu(g.w) * u.w};
  }
};

template <int NT, bool kExperts>
class Consumer {
 public:
  __device__ Consumer(const DecodeMemory<NT>& memory, const DecodeArgs& args, int thread)
      : memory_(memory),
        args_(args),
        thread_(thread),
        lane_(thread % 32),
        part_(thread / 32 % kParts),
        group_(thread / 32 / kParts),
        next_(thread / 32 / kParts) {}

  // The units of one product.
  __device__ void Product(int product) {
    float total[NT][4] = {};
    for (;; next_ += 2) {
      const int slot = next_ % args_.slots_of_ring;
      BarrierWait(&memory_.shared->full[slot], next_ / args_.slots_of_ring & 1);
      const Fill fill = memory_.shared->fill[slot];
      if (fill.end != 0) {
        Release(slot);
        next_ += 2;
        return;
      }
      if (fill.fresh != 0) Stage(product, fill);
      const TileData data{memory_.ring + slot * args_.slot_bytes, fill.tiles};
      Tiles<NT>(fill.packing, fill.mode, data, memory_.x + fill.x_tile * 2 * NT * 32, part_, kParts, lane_,
                (fill.chunk.count + 7) / 8, fill.chunk.both, total);
      Release(slot);
      if (fill.last == 0) continue;
      Finish(product, fill, total);
#pragma unroll
      for (int nt = 0; nt < NT; ++nt) total[nt][0] = total[nt][1] = total[nt][2] = total[nt][3] = 0;
    }
  }

 private:
  __device__ void Release(int slot) {
    __syncwarp();
    if (lane_ == 0) BarrierArrive(&memory_.shared->empty[slot]);
  }

  __device__ RowSource Source(int product, const Chunk& chunk, int n) const {
    const Columns& columns = args_.columns[product];
    if constexpr (!kExperts) return {args_.x + int64_t{chunk.first + n} * columns.cols, nullptr, 0, columns.cols};
    if (product == 0) {
      const int32_t token = args_.ffn.order[chunk.first + n] / args_.ffn.slots;
      return {args_.x + int64_t{token} * columns.cols, nullptr, 0, columns.cols};
    }
    const int32_t slices = args_.columns[0].slices;
    return {nullptr, args_.gate_up + int64_t{chunk.first + n} * slices * 2 * columns.cols, slices, columns.cols};
  }

  // The slice's activations as fragments. A warp takes its own eighth of the columns of every second row, so that a
  // scale is a warp's own: the largest magnitude lands in [1024, 2048).
  __device__ void Stage(int product, const Fill& fill) {
    constexpr int kMostQuads =
        MostSliceTiles(NT) / kParts / 2 > 0 ? MostSliceTiles(NT) / kParts / 2 : 1;  // of float4 a lane
    const Columns& columns = args_.columns[product];
    const int32_t k0 = fill.slice * columns.slice_tiles, tiles = min(columns.slice_tiles, columns.k_tiles - k0);
    for (int n = group_; n < fill.chunk.count; n += 2) {
      const RowSource source = Source(product, fill.chunk, n);
      float4 values[kMostQuads];
      float most = 0;
#pragma unroll
      for (int q = 0; q < kMostQuads; ++q) {
        const int tile = part_ + (2 * q + lane_ / 16) * kParts;
        values[q] = tile < tiles ? source.At((k0 + tile) * kTileCols + lane_ % 16 * 4) : float4{};
        most = fmaxf(
            most, fmaxf(fmaxf(fabsf(values[q].x), fabsf(values[q].y)), fmaxf(fabsf(values[q].z), fabsf(values[q].w))));
      }
      const float scale = HalfScale(__uint_as_float(__reduce_max_sync(~0u, __float_as_uint(most))));
#pragma unroll
      for (int q = 0; q < kMostQuads; ++q) {
        const int tile = part_ + (2 * q + lane_ / 16) * kParts;
        if (tile >= tiles) continue;
        // Columns 4 j..4 j + 3 of the tile: two neighbouring lanes of one register.
        const int j = lane_ % 16, b = j / 8, word = j % 8 / 2, t = j % 2 * 2;
        auto* at = reinterpret_cast<uint32_t*>(memory_.x + ((tile * 2 + b) * NT + n / 8) * 32 + n % 8 * 4 + t) + word;
        at[0] = PackHalves(values[q].x * scale, values[q].y * scale);
        at[4] = PackHalves(values[q].z * scale, values[q].w * scale);
      }
      if (lane_ == 0) memory_.unscale[part_ * NT * 8 + n] = InverseOfPower(scale);
    }
    ConsumersSync();
  }

  // Adds the eight parts and writes the unit's sums. After the first barrier nobody reads the sums of the unit before.
  __device__ void Finish(int product, const Fill& fill, const float (&total)[NT][4]) {
    ConsumersSync();
    float* sums = memory_.sums + part_ * NT * 8 * kSumStride + group_ * kTileRows + lane_ / 4;
#pragma unroll
    for (int nt = 0; nt < NT; ++nt) {
      if (nt * 8 >= fill.chunk.count) break;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int n = nt * 8 + lane_ % 4 * 2 + i % 2;
        sums[n * kSumStride + i / 2 * 8] = total[nt][i] * memory_.unscale[part_ * NT * 8 + n];
      }
    }
    ConsumersSync();
    const int row = thread_ % 32;
    for (int n = thread_ / 32; n < fill.chunk.count; n += kConsumers / 32) {
      float sum = 0;
#pragma unroll
      for (int p = 0; p < kParts; ++p) sum += memory_.sums[(p * NT * 8 + n) * kSumStride + row];
      Write(product, fill, n, row, sum);
    }
  }

  // fill is this thread's group's; `row` of the unit may be the other group's.
  __device__ void Write(int product, const Fill& fill, int n, int row, float sum) {
    const int half = row / kTileRows;  // which tile of the unit
    if constexpr (kExperts) {
      const Columns& columns = args_.columns[product];
      if (product == 0) {
        const int32_t f = fill.row + row % kTileRows;
        if (f >= args_.ffn.width) return;
        if (args_.ffn.gate_packing == Packing::kHalf || args_.ffn.up_packing == Packing::kHalf) {
          sum *= RowScale((half == 0 ? args_.ffn.gate : args_.ffn.up)[fill.chunk.matrix], f);
        }
        __stcg(args_.gate_up +
                   ((int64_t{fill.chunk.first + n} * columns.slices + fill.slice) * 2 + half) * args_.ffn.width + f,
               sum);
        return;
      }
      const int32_t d = fill.row - group_ * kTileRows + row;
      if (d >= args_.ffn.hidden) return;
      if (args_.ffn.down_packing == Packing::kHalf) sum *= RowScale(args_.ffn.down[fill.chunk.matrix], d);
      const int64_t slot = args_.ffn.order[fill.chunk.first + n];
      __stcg(args_.partial + (slot * columns.slices + fill.slice) * args_.ffn.hidden + d, sum);
    } else {
      const int m = fill.chunk.matrix;
      const DeviceMatrix& matrix = args_.linear[m];
      const int32_t r = fill.row - group_ * kTileRows + row, slices = args_.columns[0].slices;
      if (r >= matrix.rows) return;
      sum *= RowScale(matrix, r);
      const int64_t t = fill.chunk.first + n;
      if (slices == 1) {
        args_.linear_out[m][t * matrix.rows + r] = sum + (args_.bias[m] != nullptr ? args_.bias[m][r] : 0.0f);
      } else {
        __stcg(args_.partial + args_.partial_at[m] + (t * slices + fill.slice) * matrix.rows + r, sum);
      }
    }
  }

  __device__ static float RowScale(const DeviceMatrix& matrix, int32_t row) {
    return matrix.packing == Packing::kHalf ? __ldg(reinterpret_cast<const float*>(matrix.scales) + row) : 1.0f;
  }

  const DecodeMemory<NT>& memory_;
  const DecodeArgs& args_;
  int thread_, lane_, part_, group_;
  int32_t next_;
};

// out += weight * down of each token's slots, in slot order.
__device__ inline void CombineSlots(const DecodeArgs& args, int64_t thread, int64_t threads) {
  const ExpertFfnLaunch& ffn = args.ffn;
  const int32_t slices = args.columns[1].slices;
  for (int64_t i = thread; i < int64_t{ffn.rows} * ffn.hidden; i += threads) {
    const int64_t t = i / ffn.hidden, d = i % ffn.hidden;
    float sum = ffn.out[i];
    for (int32_t k = 0; k < ffn.slots && ffn.expert[t * ffn.slots + k] >= 0; ++k) {
      const int64_t slot = t * ffn.slots + k;
      float y = 0;
      for (int32_t s = 0; s < slices; ++s) y += __ldcg(args.partial + (slot * slices + s) * ffn.hidden + d);
      sum += ffn.weight[slot] * y;
    }
    ffn.out[i] = sum;
  }
}
__device__ inline void AddSlices(const DecodeArgs& args, int64_t thread, int64_t threads) {
  const int32_t slices = args.columns[0].slices;
  for (int m = 0; m < args.linears; ++m) {
    const int32_t rows = args.linear[m].rows;
    for (int64_t i = thread; i < int64_t{args.rows} * rows; i += threads) {
      const int64_t t = i / rows, r = i % rows;
      float sum = args.bias[m] != nullptr ? args.bias[m][r] : 0.0f;
      for (int32_t s = 0; s < slices; ++s)
        sum += __ldcg(args.partial + args.partial_at[m] + (t * slices + s) * rows + r);
      args.linear_out[m][i] = sum;
    }
  }
}

template <int NT, bool kExperts>
__global__ void __launch_bounds__(kDecodeThreads, 1) DecodeKernel(const __grid_constant__ DecodeArgs args) {
  extern __shared__ __align__(128) std::byte shared_bytes[];
  const DecodeMemory<NT> memory(shared_bytes, args);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  if (thread == 0) {
    for (int i = 0; i < args.slots_of_ring; ++i) {
      BarrierInit(&memory.shared->full[i], kFillArrivals);
      BarrierInit(&memory.shared->empty[i], kParts);
    }
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async;" ::: "memory");  // the copies see the barriers
#endif
  }
  int job_count = 0;
  if constexpr (kExperts) {
    job_count = *args.ffn.job_count;
    for (int j = thread; j < job_count; j += kDecodeThreads) memory.jobs[j] = args.ffn.jobs[j];
  }
  __syncthreads();
  if (thread >= kConsumers) {
    if constexpr (kExperts) {
      ListChunks(memory, args, job_count, lane);
    } else if (lane == 0) {
      ListLinears(memory, args);
    }
    __syncwarp();
  }
  __syncthreads();
  if (thread >= kConsumers) {
    Streamer<NT, kExperts> streamer(memory, args, lane);
    streamer.Product(0);
    if constexpr (kExperts) streamer.Product(1);
    return;
  }
  Consumer<NT, kExperts> consumer(memory, args, thread);
  consumer.Product(0);
  const int64_t global_thread = int64_t{blockIdx.x} * kConsumers + thread, threads = int64_t{gridDim.x} * kConsumers;
  if constexpr (kExperts) {
    GridSync(args.sync, 1, thread);
    consumer.Product(1);
    GridSync(args.sync, 2, thread);
    CombineSlots(args, global_thread, threads);
    LeaveSync(args.sync, thread);
  } else if (args.columns[0].slices > 1) {
    GridSync(args.sync, 1, thread);
    AddSlices(args, global_thread, threads);
    LeaveSync(args.sync, thread);
  }
}

}  // namespace thermoe::cuda
