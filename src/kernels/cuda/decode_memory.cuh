// SPDX-License-Identifier: Apache-2.0
// What the decode kernel is given, what it keeps in shared memory, and the list of its work. decode_plan.h says how the
// work is cut.
#pragma once

#include "kernels/cuda/decode_tile.cuh"
#include "kernels/cuda/matrix_kernels.h"

namespace thermoe::cuda {

inline constexpr int kConsumers = 2 * kGroupTiles * 32;
inline constexpr int kDecodeThreads = kConsumers + 128;  // of the last four warps one works: registers go by four

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
  uint32_t chunk_capacity = 0, job_capacity = 0;
  int32_t slots_of_ring = 0, slot_bytes = 0;  // a slot: both row groups of a fill, half of the bytes each
  int32_t slice_tiles = 0;                    // most tiles of a slice
  uint32_t* sync = nullptr;
  const float* x = nullptr;
  int32_t rows = 0;
  // Linears.
  DeviceMatrix linear[kMostLinears];
  const float* bias[kMostLinears] = {};
  float* linear_out[kMostLinears] = {};
  int64_t partial_at[kMostLinears] = {};  // into partial: [rows, pieces, out]; used where pieces > 1
  int32_t linears = 0;
  // Experts.
  ExpertFfnLaunch ffn;
  float* gate_up = nullptr;  // [T * K by order, pieces of D, {gate, up}, F]
  float* partial = nullptr;  // experts: [T * K by token and slot, pieces of F, D]
};

// What the streaming warp tells the others about a fill.
struct alignas(16) Fill {
  uint8_t end;          // of a product: no weights
  uint8_t fresh, last;  // first fill of a slice's activations; last fill of units that are summed
  uint8_t tiles;        // of columns in this fill
  Packing packing[2];   // of the two row groups
  ReadMode mode;
  uint8_t x_tile;       // where the tiles begin in the slice
  uint8_t room[2];      // tiles of columns that the fill has room for, by group
  uint8_t count, both;  // of the chunk
  int16_t piece, matrix;
  int32_t row[2];  // first rows of the two groups
  int32_t first;   // of the chunk
  int32_t chunk;   // which
};
static_assert(sizeof(Fill) == 32);

// Shared memory, in this order.
struct DecodeShared {
  uint64_t full[kMostSlots], empty[kMostSlots];
  Fill fill[kMostSlots];
  int32_t chunks, weight_sum;
};
constexpr size_t LineUp(size_t bytes) { return (bytes + 127) / 128 * 128; }
constexpr size_t ListBytes(uint32_t chunk_capacity) { return (sizeof(Chunk) + 4) * chunk_capacity + 4; }
// Scales that undo those of the activations: [segments, rows].
constexpr size_t UnscaleBytes(int groups, int32_t slice_tiles) {
  return static_cast<size_t>(CeilDiv(slice_tiles, kSegmentTiles) * groups * 8) * 4;
}
constexpr size_t BeginBytes(int groups, int32_t slice_tiles) {
  return static_cast<size_t>(slice_tiles * 2 * groups * 64);
}
constexpr size_t FragmentBytes(int groups, int32_t slice_tiles) {
  return static_cast<size_t>(slice_tiles * groups) * 1024;
}
constexpr size_t SlotMapBytes(const DecodeArgs& args) {
  return 2 * static_cast<size_t>(args.ffn.rows * args.ffn.slots);
}
constexpr size_t DecodeFixedBytes(int groups, const DecodeArgs& args) {
  return LineUp(sizeof(DecodeShared)) + LineUp(ListBytes(args.chunk_capacity)) +
         LineUp(sizeof(Job) * args.job_capacity) + LineUp(SlotMapBytes(args)) +
         LineUp(UnscaleBytes(groups, args.slice_tiles)) + LineUp(2 * BeginBytes(groups, args.slice_tiles)) +
         LineUp(FragmentBytes(groups, args.slice_tiles));
}

template <int NT>
struct DecodeMemory {
  DecodeShared* shared;
  Chunk* chunk;     // [chunks]
  int32_t* before;  // [chunks + 1] weights of the chunks before
  Job* jobs;
  uint16_t* chunk_of;  // experts: [T * K] by token and slot
  float* unscale;      // [segments, 8 NT]
  float4* begin;       // [2 row groups, slice tiles, 2, NT, 4]
  uint4* x;            // [slice tiles, 2, NT, 32]
  std::byte* ring;

  __device__ DecodeMemory(std::byte* at, const DecodeArgs& args) {
    const auto take = [&](size_t bytes) {
      std::byte* part = at;
      at += LineUp(bytes);
      return part;
    };
    shared = reinterpret_cast<DecodeShared*>(take(sizeof(DecodeShared)));
    chunk = reinterpret_cast<Chunk*>(take(ListBytes(args.chunk_capacity)));
    before = reinterpret_cast<int32_t*>(chunk + args.chunk_capacity);
    jobs = reinterpret_cast<Job*>(take(sizeof(Job) * args.job_capacity));
    chunk_of = reinterpret_cast<uint16_t*>(take(SlotMapBytes(args)));
    unscale = reinterpret_cast<float*>(take(UnscaleBytes(NT, args.slice_tiles)));
    begin = reinterpret_cast<float4*>(take(2 * BeginBytes(NT, args.slice_tiles)));
    x = reinterpret_cast<uint4*>(take(FragmentBytes(NT, args.slice_tiles)));
    ring = at;
  }
};

__device__ inline void ConsumersSync() { asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory"); }

// All blocks' consumers have come here, and see what the others wrote before. `round`: 1, 2, ... in one launch.
__device__ inline void GridSync(uint32_t* sync, uint32_t round, int thread) {
  ConsumersSync();
  if (thread == 0) {
    const uint32_t all = round * gridDim.x;
    uint32_t seen;
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(sync) : "memory");
    do {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(sync) : "memory");
    } while (seen < all);
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

// Units of rows of a matrix: two groups each.
constexpr int32_t RowUnits(int32_t rows) { return CeilDiv(rows, 2 * kGroupRows); }

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
      pieces = CeilDiv(merged.count, args.row_limit);
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

// Every matrix, its rows of activations cut likewise. A chunk weighs its units of rows.
template <int NT>
__device__ void ListLinears(const DecodeMemory<NT>& memory, const DecodeArgs& args) {
  int32_t chunks = 0, weights = 0;
  for (int m = 0; m < args.linears; ++m) {
    for (int32_t first = 0; first < args.rows; first += args.row_limit) {
      const int32_t count = min(args.row_limit, args.rows - first);
      memory.chunk[chunks] = {m, first, count, count};
      memory.before[chunks++] = weights;
      weights += RowUnits(args.linear[m].rows);
    }
  }
  memory.before[chunks] = weights;
  memory.shared->chunks = chunks;
  memory.shared->weight_sum = weights;
}

// Where things are in the division of a product's work among the blocks.
template <bool kExperts>
struct Division {
  uint32_t scale;  // a chunk weighs its `before` times this; experts: the weight of a unit times the units of a chunk
  uint32_t all;

  __device__ Division(const Columns& columns, uint32_t weight_sum)
      : scale(static_cast<uint32_t>((kExperts ? columns.row_units : 1) * columns.pieces)), all(weight_sum * scale) {}
  __device__ uint32_t Begin(uint32_t block) const { return static_cast<uint32_t>(uint64_t{all} * block / gridDim.x); }
  __device__ uint32_t BlockOf(uint32_t at) const {
    return static_cast<uint32_t>((uint64_t{at + 1} * gridDim.x - 1) / all);
  }
};

// Which pieces of a chunk's rows were written: bit p. By one warp, the same for all lanes.
template <int NT, bool kExperts>
__device__ uint32_t WrittenPieces(const DecodeMemory<NT>& memory, const Columns& columns, int32_t c, int32_t row_unit,
                                  int32_t row_units, int lane) {
  const Division<kExperts> division(columns, static_cast<uint32_t>(memory.shared->weight_sum));
  const auto weight = static_cast<uint32_t>(kExperts ? memory.before[c + 1] - memory.before[c] : 1);
  bool written = false;
  if (lane < columns.pieces) {
    const int32_t slice = lane / columns.slice_pieces, in_slice = lane - slice * columns.slice_pieces;
    const int32_t here = min(columns.slice_pieces, columns.pieces - slice * columns.slice_pieces);
    const int32_t unit = slice * columns.slice_pieces * row_units + row_unit * here + in_slice;
    const uint32_t at = static_cast<uint32_t>(memory.before[c]) * division.scale + static_cast<uint32_t>(unit) * weight;
    written = in_slice + 1 == here || division.BlockOf(at) != division.BlockOf(at + weight);
  }
  return __ballot_sync(~0u, written);
}

}  // namespace thermoe::cuda
