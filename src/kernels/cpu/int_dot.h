// SPDX-License-Identifier: Apache-2.0
// Interleaved quantised weights (model/interleave.h) times activations quantised to 8 bits, for any Isa and its Int
// (int_*.h). A block of 32 columns is summed exactly, in integers; blocks are added in rising order in float, one
// multiply-add each: an output depends neither on how many tokens share the tile nor on the planes' origin.
#pragma once

#include <cstring>

#include "kernels/cpu/kernel_table.h"

namespace thermoe::kernels::cpu {

// x as codes: x[k] is about scale[k / 32] * code[k], code in [-127, 127], scale = (largest magnitude of the block) /
// 127.
template <class Isa>
void QuantiseRow(const float* x, int64_t cols, std::byte* out) {
  std::byte* side = out + cols;
  for (int64_t b = 0; b < cols / 32; ++b) {
    const float* from = x + b * 32;
    float most = 0;
    for (int i = 0; i < 32; ++i) {
      const float magnitude = from[i] < 0 ? -from[i] : from[i];
      most = magnitude > most || magnitude != magnitude ? magnitude : most;  // not a number goes on to the scale
    }
    const float inverse = most > 0 ? 127.0f / most : 0.0f;
    int8_t codes[32];
    int32_t sum = 0;
    for (int i = 0; i < 32; ++i) {
      // Adding 1.5 * 2^23 leaves the rounded integer in the low bits, whatever the instruction set.
      const float shifted = from[i] * inverse + 12582912.0f;
      int32_t bits;
      __builtin_memcpy(&bits, &shifted, 4);
      codes[i] = static_cast<int8_t>(static_cast<uint32_t>(bits) & 0xffu);
      sum += codes[i];
    }
    std::memcpy(out + b * 32, codes, 32);
    const QuantSide values{most / 127.0f, -128 * sum, -8 * sum, -0.5f * static_cast<float>(sum)};
    std::memcpy(side + b * static_cast<int64_t>(sizeof(QuantSide)), &values, sizeof(values));
  }
}

// acc[t] += the dot products of block b for the lanes of one part of a group.
template <class Int, IntPacking kPacking, int kTokens>
inline __attribute__((always_inline)) void AddIntBlock(const std::byte* codes, const std::byte* lo,
                                                       const std::byte* const (&x)[kTokens], int64_t at,
                                                       typename Int::I* sums) {
  if constexpr (kPacking == IntPacking::kQ8) {
#pragma GCC unroll 8
    for (int q = 0; q < 8; ++q) {
      const typename Int::I w = Int::Load(codes + q * 64);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) sums[t] = Int::DotFull(sums[t], w, Int::Four(x[t] + at + 4 * q));
    }
  } else {
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      const typename Int::I packed = Int::Load(codes + q * 64);
      typename Int::I low, high;  // columns 4 q.. and 16 further on
      if constexpr (kPacking == IntPacking::kQ4) {
        low = Int::LowNibbles(packed);
        high = Int::HighNibbles(packed);
      } else if constexpr (kPacking == IntPacking::kHi) {
        low = Int::JoinLow(packed, Int::Eights());
        high = Int::JoinHigh(packed, Int::HighEights());
      } else {
        const typename Int::I packed_lo = Int::Load(lo + q * 64);
        low = Int::JoinLow(packed, packed_lo);
        high = Int::JoinHigh(packed, packed_lo);
      }
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        const typename Int::I x_low = Int::Four(x[t] + at + 4 * q), x_high = Int::Four(x[t] + at + 16 + 4 * q);
        if constexpr (kPacking == IntPacking::kQ4) {
          sums[t] = Int::DotSmall(Int::DotSmall(sums[t], low, x_low), high, x_high);
        } else {
          sums[t] = Int::DotFull(Int::DotFull(sums[t], low, x_low), high, x_high);
        }
      }
    }
  }
}

// One group of 16 rows for kTokens tokens from `token` on.
template <class Isa, class Int, IntPacking kPacking, int kTokens>
void IntTile(const IntDotArgs& args, int64_t group, int64_t token) {
  using F = typename Isa::F;
  constexpr int64_t kBlockBytes = kPacking == IntPacking::kQ8 ? 512 : 256;
  const std::byte* scales = args.data + group * args.group_bytes;
  const std::byte* codes = scales + args.scale_bytes;
  const std::byte* lo = kPacking == IntPacking::kBoth ? args.lo + group * args.lo_group_bytes : nullptr;
  const std::byte* x[kTokens];
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) x[t] = args.x[token + t];
  const int64_t side_at = args.blocks * 32;
  for (int part = 0; part < 16 / Isa::kWidth; ++part) {
    const int64_t lane_bytes = part * Isa::kWidth * 4;
    F acc[kTokens];
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) acc[t] = Isa::Zero();
    for (int64_t b = 0; b < args.blocks; ++b) {
      typename Int::I sums[kTokens];
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        const std::byte* side = x[t] + side_at + b * static_cast<int64_t>(sizeof(QuantSide));
        sums[t] = Int::Start(side, kPacking == IntPacking::kQ4);
      }
      const std::byte* block = codes + b * kBlockBytes;
      if constexpr (kTokens <= 4) {  // few products per weight: streaming from memory, so ask ahead
#pragma GCC unroll 8
        for (int64_t i = 0; i < kBlockBytes; i += 64) __builtin_prefetch(block + kPrefetchAhead + i);
        if constexpr (kPacking == IntPacking::kBoth) {
#pragma GCC unroll 4
          for (int64_t i = 0; i < 256; i += 64) __builtin_prefetch(lo + b * 256 + kPrefetchAhead + i);
        }
      }
      AddIntBlock<Int, kPacking, kTokens>(block + lane_bytes, lo + (lo == nullptr ? 0 : b * 256 + lane_bytes), x,
                                          b * 32, sums);
      const F scale = Int::Scales(scales + b * 32 + part * Isa::kWidth * 2);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        const std::byte* side = x[t] + side_at + b * static_cast<int64_t>(sizeof(QuantSide));
        F sum = Int::ToFloat(sums[t]);
        if constexpr (kPacking == IntPacking::kHi) sum = Isa::Add(sum, Int::BroadcastFloat(side + 12));
        acc[t] = Isa::Fma(sum, Isa::Mul(scale, Int::BroadcastFloat(side)), acc[t]);
      }
    }
    const int64_t row = group * 16 + part * Isa::kWidth;
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      F out = acc[t];
      if (args.bias != nullptr) out = Isa::Add(out, Isa::Load(args.bias + row));
      Isa::Store(args.y[token + t] + args.y_at + row, out);
    }
  }
}

template <class Isa, class Int, IntPacking kPacking>
void IntDotPacked(const IntDotArgs& args) {
  for (int64_t group = 0; group < args.groups; ++group) {
    int64_t step = 0;
    for (int64_t token = 0; token < args.tokens; token += step) {
      // Tiles of nearly equal size.
      const int64_t left = args.tokens - token, tiles = (left + Int::kTokens - 1) / Int::kTokens;
      step = (left + tiles - 1) / tiles;
      switch (step) {
        case 1: IntTile<Isa, Int, kPacking, 1>(args, group, token); break;
        case 2: IntTile<Isa, Int, kPacking, 2>(args, group, token); break;
        case 3: IntTile<Isa, Int, kPacking, 3>(args, group, token); break;
        case 4: IntTile<Isa, Int, kPacking, 4>(args, group, token); break;
        case 5:
          if constexpr (Int::kTokens >= 5) IntTile<Isa, Int, kPacking, 5>(args, group, token);
          break;
        case 6:
          if constexpr (Int::kTokens >= 6) IntTile<Isa, Int, kPacking, 6>(args, group, token);
          break;
        case 7:
          if constexpr (Int::kTokens >= 7) IntTile<Isa, Int, kPacking, 7>(args, group, token);
          break;
        case 8:
          if constexpr (Int::kTokens >= 8) IntTile<Isa, Int, kPacking, 8>(args, group, token);
          break;
      }
    }
  }
}

template <class Isa, class Int>
void IntDot(const IntDotArgs& args) {
  switch (args.packing) {
    case IntPacking::kQ8: return IntDotPacked<Isa, Int, IntPacking::kQ8>(args);
    case IntPacking::kQ4: return IntDotPacked<Isa, Int, IntPacking::kQ4>(args);
    case IntPacking::kBoth: return IntDotPacked<Isa, Int, IntPacking::kBoth>(args);
    case IntPacking::kHi: return IntDotPacked<Isa, Int, IntPacking::kHi>(args);
  }
}

}  // namespace thermoe::kernels::cpu
