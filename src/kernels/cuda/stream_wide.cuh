// SPDX-License-Identifier: Apache-2.0
// What the warps of a block of stream_rows.cu that multiply do of large linears of more than 16 rows. By mma a warp would load every fragment of the rows from shared memory
// for each 16 rows of weights; here four warps, a warpgroup, have 64 rows of weights as finished halves in registers, and the tensor cores take the rows from shared
// memory themselves (wgmma).
#pragma once

#include "kernels/cuda/prefill_weights.cuh"
#include "kernels/cuda/stream_warps.cuh"

namespace thermoe::cuda {

inline constexpr int kGroupWarps = 4;  // of a warpgroup, a row tile each
inline constexpr int kWideWays = 2;    // units are of whole warpgroups' tiles
inline constexpr int kWideEights = 4;  // rows of activations, by eights
// Sums of all warps but the eights that a warp adds up itself.
inline constexpr int kWideSumBytes = kWarps * (kWideEights - 1) * 32 * static_cast<int>(sizeof(float4));

// Rows as the tensor cores want them: of each 64 columns, one row after the other, 128 bytes with their 16-byte pieces exchanged (WgmmaDescriptor).
__host__ __device__ constexpr int WideTileBytes(int rows) { return (rows + 7) / 8 * 8 * kTileCols * static_cast<int>(sizeof(__half)); }

#if __CUDA_ARCH_FEAT_SM90_ALL

// All rows of a linear, by the warps that multiply: four rows of 64 columns at once, so that lines come whole and what a lane has of 32 columns (half_rows.cuh), a
// word of each of four pieces, falls into other banks than the other lanes'.
__device__ inline void LoadWideRows(const StreamArgs& args, std::byte* to) {
  constexpr int kTogether = 8, kRowsAtOnce = 4;  // loads that do not wait for each other; rows of a warp
  const int warp = WarpNumber(), lane = static_cast<int>(threadIdx.x % 32), word = lane % 4, half = lane / 4 % 2, row_of_four = lane / 8;
  const int tile_bytes = WideTileBytes(args.rows), all = args.k_tiles * ((args.rows + kRowsAtOnce - 1) / kRowsAtOnce);
  int tile = warp % args.k_tiles, row = warp / args.k_tiles * kRowsAtOnce + row_of_four;  // of the next load
#pragma unroll 1
  for (int first = warp; first < all; first += kTogether * kWarps) {
    uint4 v[kTogether];
    int place[kTogether];  // -1: there is no such row
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      place[j] = row < args.rows ? tile * tile_bytes + row * kRowTileBytes : -1;
      if (place[j] >= 0) v[j] = __ldcg(reinterpret_cast<const uint4*>(args.x + int64_t{row} * args.cols + tile * kTileCols) + lane % 8);
      for (tile += kWarps; tile >= args.k_tiles; tile -= args.k_tiles) row += kRowsAtOnce;
    }
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      if (place[j] < 0) continue;
      std::byte* row_at = to + place[j] + word * 4;
      const int swizzle = place[j] / kRowTileBytes % 8;
#pragma unroll
      for (int piece = 0; piece < 4; ++piece) *reinterpret_cast<uint32_t*>(row_at + ((half * 4 + piece) ^ swizzle) * 16) = Word(v[j], piece);
    }
  }
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  MeetMultiplying();
}

// Four sums of a lane: two rows of weights, 8 apart, by two of activations.
__device__ inline float4 FourOf(const float (&sum)[64], int eight) {
  float4 four{sum[0], sum[1], sum[2], sum[3]};
#pragma unroll
  for (int n = 1; n < kWideEights; ++n) {
    if (n == eight) four = {sum[4 * n], sum[4 * n + 1], sum[4 * n + 2], sum[4 * n + 3]};
  }
  return four;
}

// The sums of a row tile are those of its warps, each of a share of the columns. A warp adds up and stores some eights of activations itself; the others' sums it
// leaves for theirs. Short code: all warps go the same way.
template <Packing kPacking>
__device__ void EndWideUnit(const StreamArgs& args, const Cut& cut, const Unit<1>& u, float* partial, int tile, int part, const float (&sum)[64]) {
  const int warp = WarpNumber(), lane = static_cast<int>(threadIdx.x % 32), own = kWideEights >> cut.share_log, first = part * own;
  float4* const place = reinterpret_cast<float4*>(partial) + lane;
  const auto left_by = [&](int w, int share, int eight) { return place + (w * (kWideEights - 1) + eight - (eight < share * own ? 0 : own)) * 32; };
  const auto meet = [&] { asm volatile("bar.sync %0, %1;" ::"r"(1 + tile / kGroupWarps), "r"(32 * kGroupWarps << cut.share_log) : "memory"); };
  meet();  // those before have been added
#pragma unroll
  for (int n = 0; n < kWideEights; ++n) {
    if (n < first || n >= first + own) *left_by(warp, part, n) = {sum[4 * n], sum[4 * n + 1], sum[4 * n + 2], sum[4 * n + 3]};
  }
  const int rows = u.m[0].rows, row = (u.tile + tile) * kTileRows + lane / 4;
  const float* bias = args.bias[u.which];
  float scale[2] = {1, 1}, more[2] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (row + 8 * half >= rows) continue;
    if (bias != nullptr) more[half] = bias[row + 8 * half];
    if constexpr (kPacking == Packing::kHalf) scale[half] = reinterpret_cast<const float*>(u.m[0].scales)[row + 8 * half];
  }
  meet();
#pragma unroll 1
  for (int n = first; n < first + own; ++n) {
    const float4 mine = FourOf(sum, n);
    float4 total{};
#pragma unroll
    for (int s = 0; s < kWideEights; ++s) {
      if (s >= cut.share) break;
      const float4 four = s == part ? mine : *left_by(warp + (s - part) * kGroupWarps, s, n);
      total.x += four.x, total.y += four.y, total.z += four.z, total.w += four.w;
    }
    const float whole[2][2] = {{total.x, total.y}, {total.z, total.w}};
    const int column = n * 8 + lane % 4 * 2;
    float* to = args.out[u.which] + int64_t{column} * rows + row;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int half = i / 2, next = i % 2;
      if (row + 8 * half >= rows || column + next >= args.rows) continue;
      const float value = kPacking == Packing::kHalf ? whole[half][next] * scale[half] + more[half] : whole[half][next] + more[half];
      float* at = to + 8 * half + (next != 0 ? rows : 0);
      if (args.adds) atomicAdd(at, value);  // nobody else adds there: the same sum, but nothing waits for what was there
      else *at = value;
    }
  }
}

// Multiplies this block's units, once the rows are there.
template <Packing kPacking>
__device__ void ConsumeWide(const Work<kPacking, 4, Stage::kLinear>& work, const Places& places) {
  using R = Ring<kPacking, false>;
  constexpr int kTiles = Work<kPacking, 4, Stage::kLinear>::kTiles, kSteps = kTileCols / 16;
  const StreamArgs& args = work.args;
  const Cut cut = work.cut;
  BlockBarriers& b = *places.barriers;
  const int warp = WarpNumber(), lane = static_cast<int>(threadIdx.x % 32), group = warp / kGroupWarps;
  const int tile = (group >> cut.share_log) * kGroupWarps + warp % kGroupWarps, part = group & (cut.share - 1);
  const int x_tile_bytes = WideTileBytes(args.rows), chunk_bytes = cut.tiles * R::kTile;
  if (work.UnitAt(0) >= cut.units) return WaitForBefore();
  WaitForBefore();
  LoadWideRows(args, places.rows);
  const uint64_t rows = WgmmaDescriptor(places.rows);
  Turn stage;
#pragma unroll 1
  for (int k = 0, unit = work.UnitAt(0); unit < cut.units; unit = work.UnitAt(++k)) {
    const Unit<1> u = work.Open(unit);
    float sum[64];  // of which 32 rows take a quarter
    Fragment fragment[kSteps];
    int accumulate = 0, column_tile = part;
#pragma unroll 1
    for (int step = 0; step < cut.steps; ++step, stage.Next(work.ring.stages)) {
      BarrierWait(&b.full[stage.at], stage.phase);
      const std::byte* chunk = places.ring + stage.at * work.ring.stage_bytes + part * chunk_bytes;
#pragma unroll 1
      for (int h = 0; h < kTiles && column_tile < args.k_tiles; ++h, column_tile += cut.share, chunk += chunk_bytes << cut.share_log) {
        TileWords<kPacking> words;
        words.template Load<false>(chunk, cut.tiles, tile, lane);
        const uint64_t x = rows + static_cast<uint64_t>(column_tile * x_tile_bytes >> 4);
        const auto multiply = [&]<int kStep>() {
          fragment[kStep] = words.template Step<kStep, false>();
          WgmmaFence();
          Wgmma<8 * kWideEights>::Multiply(sum, fragment[kStep], x + 2 * kStep, accumulate);
          WgmmaCommit();
          accumulate = 1;
          WgmmaWait<kSteps - 1>();  // the next fragment's registers are free
        };
        multiply.template operator()<0>();
        multiply.template operator()<1>();
        multiply.template operator()<2>();
        multiply.template operator()<3>();
      }
      __syncwarp();
      WarpArrives(&b.empty[stage.at], lane);
    }
    WgmmaWait<0>();
    if (part >= args.k_tiles) {  // none of the columns are this warp's
#pragma unroll
      for (int i = 0; i < 4 * kWideEights; ++i) sum[i] = 0;
    }
    EndWideUnit<kPacking>(args, cut, u, places.partial, tile, part, sum);
  }
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace thermoe::cuda
