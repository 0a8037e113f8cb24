// SPDX-License-Identifier: Apache-2.0
// The warp that streams: weights from the first byte of the first product to the last byte of the last, whatever the
// other warps wait for, as far as the ring has room.
#pragma once

#include "kernels/cuda/decode_memory.cuh"

namespace thermoe::cuda {

// Lanes 0 to 5 copy the codes, the lo plane and the scales of two row groups.
template <int NT, bool kExperts>
class Streamer {
 public:
  __device__ Streamer(const DecodeMemory<NT>& memory, const DecodeArgs& args, int lane)
      : memory_(memory), args_(args), lane_(lane), group_(lane / 3), piece_(lane % 3) {}

  // The units of one product that fall to this block; then a fill that says so.
  __device__ __forceinline__ void Product(int product) {
    const Columns& columns = args_.columns[product];
    // A chunk weighs its `before` times `scale`; experts: the weight of a unit times the units of a chunk.
    const int64_t scale = kExperts ? int64_t{columns.row_units} * columns.pieces : columns.pieces;
    const int64_t all = memory_.shared->weight_sum * scale;
    const int64_t begin = all * blockIdx.x / gridDim.x, end = all * (blockIdx.x + 1) / gridDim.x;
    const int32_t chunks = memory_.shared->chunks;
    int c = 0;
    while (c < chunks && memory_.before[c + 1] * scale <= begin) ++c;
    for (bool first = true; c < chunks; ++c, first = false) {
      const int64_t start = memory_.before[c] * scale;
      if (start >= end) break;
      const Chunk chunk = memory_.chunk[c];
      const int32_t row_units = kExperts ? columns.row_units : RowUnits(args_.linear[chunk.matrix].rows);
      const int32_t weight = kExperts ? memory_.before[c + 1] - memory_.before[c] : 1;
      const int32_t skipped = first ? static_cast<int32_t>(begin - start) : 0;
      const int32_t from = CeilDiv(skipped, weight);
      const auto to =
          static_cast<int32_t>(min((end - start + weight - 1) / weight, int64_t{row_units} * columns.pieces));
      if (from < to) Units(product, chunk, row_units, from, to);
    }
    WaitForSlot();
    if (lane_ == 0) memory_.shared->fill[slot_].end = 1;
    ExpectBytes(&memory_.shared->full[slot_], 0, lane_);
    CopiesIssued(&memory_.shared->full[slot_], lane_);
    NextSlot();
  }

 private:
  // This lane's piece of a fill: bytes of one tile of columns of its group, and where they go.
  struct Piece {
    const std::byte* from;
    int32_t bytes, offset;
    int32_t step;        // tiles of columns of a fill
    int32_t row_groups;  // of the matrix
    uint32_t packings, rooms;
  };

  __device__ __forceinline__ Piece PieceOf(const DeviceMatrix& matrix, ReadMode mode, int32_t piece_tiles) const {
    const Packing packing = matrix.packing;
    const bool lo = HasLoPlane(packing) && !(packing == Packing::kPlanes8 && mode == ReadMode::kHi);
    const int32_t codes = kGroupTiles * CodeTileBytes(packing), los = lo ? codes : 0;
    const int32_t scales = kGroupTiles * ScaleTileBytes(packing);
    const int32_t room = min(args_.slot_bytes / 2 / (codes + los + scales), piece_tiles);
    const int32_t room0 = __shfl_sync(~0u, room, 0), room1 = __shfl_sync(~0u, room, 3), least = min(room0, room1);
    Piece out;
    out.from = piece_ == 0 ? matrix.hi : piece_ == 1 ? matrix.lo : matrix.scales;
    out.bytes = group_ > 1 ? 0 : piece_ == 0 ? codes : piece_ == 1 ? los : scales;
    out.offset = group_ * (args_.slot_bytes / 2) + room * (piece_ == 0 ? 0 : piece_ == 1 ? codes : codes + los);
    out.step = least > 1 ? least / kSegmentTiles * kSegmentTiles : 1;  // whole segments
    out.row_groups = CeilDiv(matrix.rows, kGroupRows);
    out.packings = static_cast<uint32_t>(__shfl_sync(~0u, static_cast<int>(packing), 0)) |
                   static_cast<uint32_t>(__shfl_sync(~0u, static_cast<int>(packing), 3)) << 8 |
                   static_cast<uint32_t>(mode) << 16;
    out.rooms = static_cast<uint32_t>(room0 | room1 << 8);
    return out;
  }

  __device__ __forceinline__ void Units(int product, const Chunk& chunk, int32_t row_units, int32_t from, int32_t to) {
    const Columns& columns = args_.columns[product];
    const bool together = kExperts && product == 0;  // gate and up
    const DeviceMatrix* matrix = &args_.linear[chunk.matrix];
    if constexpr (kExperts) {
      matrix = (product == 1 ? args_.ffn.down : group_ == 1 ? args_.ffn.up : args_.ffn.gate) + chunk.matrix;
    }
    const Piece own = PieceOf(*matrix, kExperts ? ModeOf(chunk) : ReadMode::kBoth, columns.piece_tiles);
    const uint32_t counts = own.rooms | static_cast<uint32_t>(chunk.count << 16 | chunk.both << 24);
    int32_t piece = from / row_units, row_unit = from - piece * row_units;
    uint32_t fresh = 1;
    for (int32_t u = from; u < to; ++u) {
      const int32_t k0 = piece * columns.piece_tiles, tiles = min(columns.piece_tiles, columns.k_tiles - k0);
      const int32_t row_group = together ? row_unit : 2 * row_unit + (group_ & 1);
      const int32_t bytes = row_group < own.row_groups ? own.bytes : 0;
      const int32_t fill_bytes = __reduce_add_sync(~0u, bytes);
      const std::byte* at = own.from + (int64_t{row_group} * columns.k_tiles + k0) * own.bytes;
      const int32_t x0 = piece % columns.slice_pieces * columns.piece_tiles;
      const int32_t row0 = (together ? row_unit : 2 * row_unit) * kGroupRows;
      for (int32_t done = 0; done < tiles; done += own.step) {
        const int32_t here = min(own.step, tiles - done);
        const uint32_t last = done + own.step >= tiles;
        WaitForSlot();
        uint64_t* full = &memory_.shared->full[slot_];
        if (lane_ == 0) {
          auto* fill = reinterpret_cast<uint4*>(&memory_.shared->fill[slot_]);
          fill[0] = {fresh << 8 | last << 16 | static_cast<uint32_t>(here) << 24,
                     own.packings | static_cast<uint32_t>(x0 + done) << 24, counts,
                     static_cast<uint32_t>(piece | chunk.matrix << 16)};
          fill[1] = {static_cast<uint32_t>(row0), static_cast<uint32_t>(together ? row0 : row0 + kGroupRows),
                     static_cast<uint32_t>(chunk.first), 0};
        }
        ExpectBytes(full, static_cast<uint32_t>(here * fill_bytes), lane_);
        __syncwarp();
        CopyPieces(memory_.ring + slot_ * args_.slot_bytes + own.offset, at, static_cast<uint32_t>(here * bytes), full,
                   lane_);
        CopiesIssued(full, lane_);
        NextSlot();
        at += own.step * own.bytes;
        fresh = 0;
      }
      if (++row_unit == row_units) {
        row_unit = 0;
        ++piece;
        if (piece % columns.slice_pieces == 0) fresh = 1;
      }
    }
  }

  __device__ __forceinline__ void WaitForSlot() {
    if (round_ > 0) BarrierWait(&memory_.shared->empty[slot_], (round_ - 1) & 1);
  }
  __device__ __forceinline__ void NextSlot() {
    if (++slot_ == args_.slots_of_ring) {
      slot_ = 0;
      ++round_;
    }
  }

  const DecodeMemory<NT>& memory_;
  const DecodeArgs& args_;
  int lane_, group_, piece_;
  int32_t slot_ = 0;
  uint32_t round_ = 0;
};

}  // namespace thermoe::cuda
