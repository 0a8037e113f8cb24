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
    const Division<kExperts> division(columns, static_cast<uint32_t>(memory_.shared->weight_sum));
    const uint32_t begin = division.Begin(blockIdx.x), end = division.Begin(blockIdx.x + 1);
    const int32_t chunks = memory_.shared->chunks;
    int c = 0;
    while (c < chunks && static_cast<uint32_t>(memory_.before[c + 1]) * division.scale <= begin) ++c;
    for (; c < chunks; ++c) {
      const uint32_t start = static_cast<uint32_t>(memory_.before[c]) * division.scale;
      if (start >= end) break;
      const Chunk chunk = memory_.chunk[c];
      const int32_t row_units = kExperts ? columns.row_units : RowUnits(args_.linear[chunk.matrix].rows);
      const int32_t weight = kExperts ? memory_.before[c + 1] - memory_.before[c] : 1;
      const int32_t from = CeilDiv(static_cast<int32_t>(begin > start ? begin - start : 0), weight);
      const int32_t to = min(CeilDiv(static_cast<int32_t>(end - start), weight), row_units * columns.pieces);
      if (from < to) Units(product, c, chunk, row_units, from, to);
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

  __device__ __forceinline__ void Units(int product, int c, const Chunk& chunk, int32_t row_units, int32_t from,
                                        int32_t to) {
    const Columns& columns = args_.columns[product];
    const bool together = kExperts && product == 0;  // gate and up
    const DeviceMatrix* matrix = &args_.linear[chunk.matrix];
    if constexpr (kExperts) {
      matrix = (product == 1 ? args_.ffn.down : group_ == 1 ? args_.ffn.up : args_.ffn.gate) + chunk.matrix;
    }
    const Piece own = PieceOf(*matrix, kExperts ? ModeOf(chunk) : ReadMode::kBoth, columns.piece_tiles);
    const uint32_t counts = own.rooms | static_cast<uint32_t>(chunk.count << 16 | chunk.both << 24);
    const int32_t slice_units = row_units * columns.slice_pieces;
    int32_t slice = from / slice_units, left = from - slice * slice_units;
    int32_t here_pieces = min(columns.slice_pieces, columns.pieces - slice * columns.slice_pieces);
    int32_t row_unit = left / here_pieces, in_slice = left - row_unit * here_pieces;
    uint32_t fresh = 1;
    for (int32_t u = from; u < to; ++u) {
      const int32_t piece = slice * columns.slice_pieces + in_slice;
      const bool run_ends = in_slice + 1 == here_pieces || u + 1 == to;
      const int32_t k0 = piece * columns.piece_tiles, tiles = min(columns.piece_tiles, columns.k_tiles - k0);
      const int32_t row_group = together ? row_unit : 2 * row_unit + (group_ & 1);
      const int32_t bytes = row_group < own.row_groups ? own.bytes : 0;
      const int32_t fill_bytes = __reduce_add_sync(~0u, bytes);
      const std::byte* at = own.from + (int64_t{row_group} * columns.k_tiles + k0) * own.bytes;
      const int32_t x0 = in_slice * columns.piece_tiles, row0 = (together ? row_unit : 2 * row_unit) * kGroupRows;
      for (int32_t done = 0; done < tiles; done += own.step) {
        const int32_t here = min(own.step, tiles - done);
        const uint32_t last = run_ends && done + own.step >= tiles;
        WaitForSlot();
        uint64_t* full = &memory_.shared->full[slot_];
        if (lane_ == 0) {
          auto* fill = reinterpret_cast<uint4*>(&memory_.shared->fill[slot_]);
          fill[0] = {fresh << 8 | last << 16 | static_cast<uint32_t>(here) << 24,
                     own.packings | static_cast<uint32_t>(x0 + done) << 24, counts,
                     static_cast<uint32_t>(piece | chunk.matrix << 16)};
          fill[1] = {static_cast<uint32_t>(row0), static_cast<uint32_t>(together ? row0 : row0 + kGroupRows),
                     static_cast<uint32_t>(chunk.first), static_cast<uint32_t>(c)};
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
      if (++in_slice == here_pieces) {
        in_slice = 0;
        if (++row_unit == row_units) {
          row_unit = 0;
          ++slice;
          here_pieces = min(columns.slice_pieces, columns.pieces - slice * columns.slice_pieces);
          fresh = 1;
        }
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
