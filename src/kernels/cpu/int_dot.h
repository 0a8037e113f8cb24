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
// Codes are rounded to nearest, halves to even, from the product with 127 / largest: the same on every instruction set.
// A block with a value that is not a number has a scale that is not one either.
template <class Int>
void QuantiseRow(const float* x, int64_t cols, std::byte* out) {
  std::byte* side = out + cols;
  for (int64_t b = 0; b < cols / 32; ++b) {
    const float most = Int::LargestMagnitude(x + b * 32);
    int32_t first, last;  // sums of the codes of the first and last 16 columns
    Int::QuantiseBlock(x + b * 32, most > 0 ? 127.0f / most : 0.0f, out + b * 32, &first, &last);
    const int32_t sum = first + last;
    const float scale = most / 127.0f, total = static_cast<float>(sum);
    const QuantSide values{scale, -128 * sum, -8 * sum, -120.5f * total, -scale * total, -8 * first};
    std::memcpy(side + b * static_cast<int64_t>(sizeof(QuantSide)), &values, sizeof(values));
  }
}

// Bytes of codes of 16 rows and 32 columns; scales likewise (model/interleave.h).
constexpr int BitPlanes(IntPacking p) {
  return p == IntPacking::kQ6K ? 2 : p == IntPacking::kQ5_0 || p == IntPacking::kQ5_1 || p == IntPacking::kQ5K ? 1 : 0;
}
constexpr int64_t CodeBytes(IntPacking p) { return p == IntPacking::kQ8_0 ? 512 : 256 + 64 * BitPlanes(p); }
constexpr bool IsMinK(IntPacking p) { return p == IntPacking::kQ4K || p == IntPacking::kQ5K; }
constexpr int64_t ScaleBytes(IntPacking p) {
  return IsMinK(p) ? 0 : p == IntPacking::kQ5_1 ? 64 : p == IntPacking::kMXFP4 ? 16 : 32;
}
// Whether codes go to the product with all of a byte's values, made signed by -128, or as they are, below 64.
constexpr bool IsFull(IntPacking p) {
  return p == IntPacking::kQ8_0 || p == IntPacking::kIQ4NL || p == IntPacking::kBoth;
}
// Largest code that goes to the product, where not all of a byte's values may occur.
constexpr int LargestCode(IntPacking p) {
  return BitPlanes(p) == 2 ? 63 : BitPlanes(p) == 1 || p == IntPacking::kMXFP4 ? 31 : 15;
}
constexpr int IntSums(IntPacking p) { return p == IntPacking::kQ6K ? 2 : 1; }  // of columns with a scale of their own

// Signed values behind nibbles, raised by 128 and by 16.
alignas(16) constexpr uint8_t kIQ4NLRaised[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                                  129, 141, 153, 166, 181, 197, 217, 241};
alignas(16) constexpr uint8_t kMXFP4Raised[16] = {16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4};

// What the sums of a token start from: minus what the codes were raised by, times the sum of the token's codes.
template <class Int, IntPacking kPacking>
inline __attribute__((always_inline)) void StartSums(const std::byte* side,
                                                     typename Int::I (&sums)[IntSums(kPacking)]) {
  if constexpr (IsFull(kPacking)) {
    sums[0] = Int::StartFull(side);
  } else if constexpr (kPacking == IntPacking::kQ4_0) {
    sums[0] = Int::Four(side + 8);
  } else if constexpr (kPacking == IntPacking::kQ5_0 || kPacking == IntPacking::kMXFP4) {
    sums[0] = Int::template ShiftLeft<1>(Int::Four(side + 8));
  } else if constexpr (kPacking == IntPacking::kQ6K) {
    const typename Int::I first = Int::Four(side + 20);
    sums[0] = Int::template ShiftLeft<2>(first);
    sums[1] = Int::template ShiftLeft<2>(Int::Sub(Int::Four(side + 8), first));
  } else {
    sums[0] = Int::Fill(0);
  }
}

// The codes of four columns, and of the four 16 further on, for the lanes of a part. `bits`: the part's first bit
// plane.
template <class Int, IntPacking kPacking>
inline __attribute__((always_inline)) void LoadCodes(const std::byte* codes, const std::byte* lo, const std::byte* bits,
                                                     int q, typename Int::I* low, typename Int::I* high) {
  const typename Int::I packed = Int::Load(codes + q * 64);
  if constexpr (kPacking == IntPacking::kBoth) {
    const typename Int::I packed_lo = Int::Load(lo + q * 64);
    *low = Int::JoinLow(packed, packed_lo);
    *high = Int::JoinHigh(packed, packed_lo);
  } else {
    *low = Int::LowNibbles(packed);
    *high = Int::HighNibbles(packed);
    if constexpr (kPacking == IntPacking::kIQ4NL || kPacking == IntPacking::kMXFP4) {
      const uint8_t* table = kPacking == IntPacking::kIQ4NL ? kIQ4NLRaised : kMXFP4Raised;
      *low = Int::Lookup(table, *low);
      *high = Int::Lookup(table, *high);
    }
    if constexpr (BitPlanes(kPacking) >= 1) {
      *low = Int::SetBits(*low, bits + q * 16, 16);
      *high = Int::SetBits(*high, bits + q * 16 + 8, 16);
    }
    if constexpr (BitPlanes(kPacking) == 2) {
      *low = Int::SetBits(*low, bits + 64 + q * 16, 32);
      *high = Int::SetBits(*high, bits + 64 + q * 16 + 8, 32);
    }
  }
}

template <class Int, IntPacking kPacking>
inline __attribute__((always_inline)) typename Int::I Dot4(typename Int::I sum, typename Int::I w, typename Int::I x) {
  if constexpr (IsFull(kPacking)) {
    return Int::DotFull(sum, w, x);
  } else {
    return Int::DotSmall(sum, w, x);
  }
}

// sums[t] += the dot products of a block for the lanes of one part of a group.
template <class Int, IntPacking kPacking, int kTokens>
inline __attribute__((always_inline)) void AddIntBlock(const std::byte* codes, const std::byte* lo,
                                                       const std::byte* bits, const std::byte* const (&x)[kTokens],
                                                       int64_t at,
                                                       typename Int::I (&sums)[kTokens][IntSums(kPacking)]) {
  using I = typename Int::I;
  constexpr int kLast = IntSums(kPacking) - 1;
  if constexpr (kPacking == IntPacking::kQ8_0) {
#pragma GCC unroll 8
    for (int q = 0; q < 8; ++q) {
      const I w = Int::Load(codes + q * 64);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) sums[t][0] = Int::DotFull(sums[t][0], w, Int::Four(x[t] + at + 4 * q));
    }
  } else if constexpr (Int::kPairs && !IsFull(kPacking)) {
    // Products stay in pairs of 16 bits as long as they fit there.
    constexpr int kFits = 32767 / (2 * 127 * LargestCode(kPacking)), kPerQ = kLast == 0 ? 2 : 1, kRun = kFits / kPerQ;
    I pairs[kTokens][kLast + 1];
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      I low, high;
      LoadCodes<Int, kPacking>(codes, lo, bits, q, &low, &high);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        const I first = Int::Pairs(low, Int::Four(x[t] + at + 4 * q)),
                second = Int::Pairs(high, Int::Four(x[t] + at + 16 + 4 * q));
        const bool begins = q % kRun == 0;
        pairs[t][0] = begins ? first : Int::AddHalves(pairs[t][0], first);
        pairs[t][kLast] = begins && kLast > 0 ? second : Int::AddHalves(pairs[t][kLast], second);
        if (q % kRun == kRun - 1 || q == 3) {
          sums[t][0] = Int::AddPairs(sums[t][0], pairs[t][0]);
          if (kLast > 0) sums[t][kLast] = Int::AddPairs(sums[t][kLast], pairs[t][kLast]);
        }
      }
    }
  } else if constexpr (kLast == 0 && kTokens <= 2) {
    // Few tokens: two chains of additions hide an addition's latency (4-bit weights from L2: a fifth faster).
    I other[kTokens];
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      I low, high;
      LoadCodes<Int, kPacking>(codes, lo, bits, q, &low, &high);
#pragma GCC unroll 2
      for (int t = 0; t < kTokens; ++t) {
        sums[t][0] = Dot4<Int, kPacking>(sums[t][0], low, Int::Four(x[t] + at + 4 * q));
        other[t] = Dot4<Int, kPacking>(q == 0 ? Int::Fill(0) : other[t], high, Int::Four(x[t] + at + 16 + 4 * q));
      }
    }
#pragma GCC unroll 2
    for (int t = 0; t < kTokens; ++t) sums[t][0] = Int::Add(sums[t][0], other[t]);
  } else {
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      I low, high;
      LoadCodes<Int, kPacking>(codes, lo, bits, q, &low, &high);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        sums[t][0] = Dot4<Int, kPacking>(sums[t][0], low, Int::Four(x[t] + at + 4 * q));
        sums[t][kLast] = Dot4<Int, kPacking>(sums[t][kLast], high, Int::Four(x[t] + at + 16 + 4 * q));
      }
    }
  }
}

// KScales (model/interleave.h) as bytes: [8] blocks, scale [16] and min [16] of each.
inline __attribute__((always_inline)) void UnpackSixes(const std::byte* low, const std::byte* high, std::byte* out) {
  for (int b = 0; b < 4; ++b) {
    for (int l = 0; l < 16; ++l) {
      const auto nibbles = static_cast<uint8_t>(low[b * 16 + l]);
      const auto first = static_cast<uint8_t>(high[l]), second = static_cast<uint8_t>(high[16 + l]);
      out[b * 32 + l] = static_cast<std::byte>((nibbles & 15) | (first >> (2 * b) & 3) << 4);
      out[(b + 4) * 32 + l] = static_cast<std::byte>(nibbles >> 4 | (second >> (2 * b) & 3) << 4);
    }
  }
}

// The scales of a block for the lanes of a part, and its minimums where the type has them.
template <class Isa, class Int, IntPacking kPacking>
inline __attribute__((always_inline)) void LoadScales(const std::byte* super, const std::byte* scales, int part,
                                                      typename Isa::F* scale, typename Isa::F* min) {
  const int64_t halves_at = part * Isa::kWidth * 2, bytes_at = part * Isa::kWidth;
  if constexpr (IsMinK(kPacking)) {  // products of 11 and 6 bits are exact
    *scale = Isa::Mul(Int::Scales(super + halves_at), Int::ToFloat(Int::Bytes(scales + bytes_at)));
    *min = Isa::Mul(Int::Scales(super + 32 + halves_at), Int::ToFloat(Int::Bytes(scales + 16 + bytes_at)));
  } else if constexpr (kPacking == IntPacking::kQ6K) {
    *scale = Int::Scales(super + halves_at);
  } else if constexpr (kPacking == IntPacking::kMXFP4) {
    *scale = Int::PowerOf2(scales + bytes_at);
  } else {
    *scale = Int::Scales(scales + halves_at);
    if constexpr (kPacking == IntPacking::kQ5_1) *min = Isa::Sub(Isa::Zero(), Int::Scales(scales + 32 + halves_at));
  }
}

// One group of 16 rows for kTokens tokens from `token` on.
// `kAhead`: its weights come from memory, so ask for them ahead of use.
template <class Isa, class Int, IntPacking kPacking, int kTokens, bool kAhead>
void IntTile(const IntDotArgs& args, int64_t group, int64_t token) {
  using F = typename Isa::F;
  constexpr int64_t kBlockBytes = CodeBytes(kPacking), kSideBytes = static_cast<int64_t>(sizeof(QuantSide));
  constexpr int64_t kSuperBytes = IsMinK(kPacking) ? 256 : kPacking == IntPacking::kQ6K ? 32 : 0;
  constexpr int64_t kGroupBlockBytes = kBlockBytes + ScaleBytes(kPacking) + kSuperBytes / 8;  // all of a block's bytes
  alignas(64) std::byte sixes[IsMinK(kPacking) ? 256 : 1];  // of the 256 columns at hand
  const std::byte* supers = args.data + group * args.group_bytes;
  const std::byte* scales = supers + args.scales_at;
  const std::byte* codes = supers + args.codes_at;
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
      typename Int::I sums[kTokens][IntSums(kPacking)];
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) StartSums<Int, kPacking>(x[t] + side_at + b * kSideBytes, sums[t]);
      const std::byte* block = codes + b * kBlockBytes;
      if (kAhead && part == 0) {  // a later part finds them in cache
        // A group's scales lie before its codes: from its begin on, so that nothing is left out. With the codes alone
        // asked for, 2 of a Q4_0 group's 18 KiB were not, and 4-bit weights came at 22 GB/s instead of 26 where memory
        // gives 30.
        const std::byte* ahead = supers + b * kGroupBlockBytes + kPrefetchAhead;
#pragma GCC unroll 10
        for (int64_t i = 0; i < kGroupBlockBytes; i += 64) __builtin_prefetch(ahead + i, 0, 2);
        if constexpr (kPacking == IntPacking::kBoth) {
#pragma GCC unroll 4
          for (int64_t i = 0; i < 256; i += 64) __builtin_prefetch(lo + b * 256 + kPrefetchAhead + i, 0, 2);
        }
      }
      AddIntBlock<Int, kPacking, kTokens>(block + lane_bytes, lo + (lo == nullptr ? 0 : b * 256 + lane_bytes),
                                          block + 256 + part * Isa::kWidth / 2, x, b * 32, sums);
      const std::byte* block_scales = scales + b * ScaleBytes(kPacking);
      if constexpr (IsMinK(kPacking)) {
        if (b % 8 == 0) {
          const std::byte* packed = supers + b / 8 * kSuperBytes + 64;
          UnpackSixes(packed, packed + 64, sixes);
          UnpackSixes(packed + 96, packed + 160, sixes + 16);
        }
        block_scales = sixes + b % 8 * 32;
      }
      F scale, min;
      LoadScales<Isa, Int, kPacking>(supers + b / 8 * kSuperBytes, block_scales, part, &scale, &min);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        const std::byte* side = x[t] + side_at + b * kSideBytes;
        F sum;
        if constexpr (kPacking == IntPacking::kQ6K) {  // below 2^24: exact as floats too
          const std::byte* own = block_scales + part * Isa::kWidth;
          sum = Int::ToFloat(Int::Add(Int::Multiply(Int::SignedBytes(own), sums[t][0]),
                                      Int::Multiply(Int::SignedBytes(own + 16), sums[t][1])));
        } else {
          sum = Int::ToFloat(sums[t][0]);
        }
        // A nibble n stands for 16 (n - 8) + 7.5; both terms and their sum are exact.
        if constexpr (kPacking == IntPacking::kHi) sum = Isa::Fma(sum, Isa::Set(16.0f), Int::BroadcastFloat(side + 12));
        acc[t] = Isa::Fma(sum, Isa::Mul(scale, Int::BroadcastFloat(side)), acc[t]);
        if constexpr (IsMinK(kPacking) || kPacking == IntPacking::kQ5_1) {
          acc[t] = Isa::Fma(min, Int::BroadcastFloat(side + 16), acc[t]);
        }
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

// The first tile of a group's tokens brings its weights near; later ones find them there.
template <class Isa, class Int, IntPacking kPacking, int kTokens>
void IntTileAt(const IntDotArgs& args, int64_t group, int64_t token) {
  if constexpr (kTokens <= Int::kTokens) {
    if (token == 0) {
      IntTile<Isa, Int, kPacking, kTokens, true>(args, group, token);
    } else {
      IntTile<Isa, Int, kPacking, kTokens, false>(args, group, token);
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
        case 1: IntTileAt<Isa, Int, kPacking, 1>(args, group, token); break;
        case 2: IntTileAt<Isa, Int, kPacking, 2>(args, group, token); break;
        case 3: IntTileAt<Isa, Int, kPacking, 3>(args, group, token); break;
        case 4: IntTileAt<Isa, Int, kPacking, 4>(args, group, token); break;
        case 5: IntTileAt<Isa, Int, kPacking, 5>(args, group, token); break;
        case 6: IntTileAt<Isa, Int, kPacking, 6>(args, group, token); break;
        case 7: IntTileAt<Isa, Int, kPacking, 7>(args, group, token); break;
        case 8: IntTileAt<Isa, Int, kPacking, 8>(args, group, token); break;
      }
    }
  }
}

template <class Isa, class Int>
void IntDot(const IntDotArgs& args) {
  switch (args.packing) {
    case IntPacking::kQ8_0: return IntDotPacked<Isa, Int, IntPacking::kQ8_0>(args);
    case IntPacking::kQ4_0: return IntDotPacked<Isa, Int, IntPacking::kQ4_0>(args);
    case IntPacking::kQ5_0: return IntDotPacked<Isa, Int, IntPacking::kQ5_0>(args);
    case IntPacking::kQ5_1: return IntDotPacked<Isa, Int, IntPacking::kQ5_1>(args);
    case IntPacking::kQ4K: return IntDotPacked<Isa, Int, IntPacking::kQ4K>(args);
    case IntPacking::kQ5K: return IntDotPacked<Isa, Int, IntPacking::kQ5K>(args);
    case IntPacking::kQ6K: return IntDotPacked<Isa, Int, IntPacking::kQ6K>(args);
    case IntPacking::kIQ4NL: return IntDotPacked<Isa, Int, IntPacking::kIQ4NL>(args);
    case IntPacking::kMXFP4: return IntDotPacked<Isa, Int, IntPacking::kMXFP4>(args);
    case IntPacking::kBoth: return IntDotPacked<Isa, Int, IntPacking::kBoth>(args);
    case IntPacking::kHi: return IntDotPacked<Isa, Int, IntPacking::kHi>(args);
  }
}

}  // namespace thermoe::kernels::cpu
