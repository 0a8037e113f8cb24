// SPDX-License-Identifier: Apache-2.0
// Products with the transposed weight for interleaved matrices, in words (kernel_table.h), for any Isa and its Int.
#pragma once

#include <cstring>
#include <utility>

#include "kernels/cpu/int_dot.h"
#include "kernels/cpu/kernel_table.h"

namespace thermoe::kernels::cpu {

// What a code is less than the byte that LoadCodes gives; a code times 2^WordShift is a signed byte.
constexpr int WordRaise(IntPacking p) {
  switch (p) {
    case IntPacking::kQ8_0:
    case IntPacking::kIQ4NL:
    case IntPacking::kBoth: return 128;
    case IntPacking::kQ6K: return 32;
    case IntPacking::kQ5_0:
    case IntPacking::kQ5_1:
    case IntPacking::kQ5K:
    case IntPacking::kMXFP4: return 16;
    default: return 8;
  }
}
constexpr int WordShift(IntPacking p) {
  return WordRaise(p) == 128 ? 0 : WordRaise(p) == 32 ? 2 : WordRaise(p) == 16 ? 3 : 4;
}
constexpr bool HasOffsets(IntPacking p) { return IsMinK(p) || p == IntPacking::kQ5_1 || p == IntPacking::kHi; }

// What StorePairs needs for a chunk's rows and one block of 32 columns, and the panel's scale.
struct BlockScales {
  alignas(64) std::byte first[2 * kChunkRows], last[2 * kChunkRows], offset[2 * kChunkRows];
  float scale;
};
// The same as floats, on their way; `sixes` are of the 256 columns around the block.
struct ChunkScales {
  alignas(64) float first[kChunkRows], last[kChunkRows], offset[kChunkRows];
  alignas(64) std::byte sixes[kChunkRows / 16][256];
};

// `count` floats of a row's chunk (a multiple of 16) as words of at most kLargestWord; returns the scale, which is not a number where a float is none.
template <class Isa, class Int>
float QuantiseChunk(const float* x, int64_t count, std::byte* words) {
  using F = typename Isa::F;
  F most = Isa::Zero(), nothing = Isa::Zero();
  for (int64_t i = 0; i < count; i += Isa::kWidth) {
    const F v = Isa::Load(x + i);
    most = Isa::Max(most, Isa::Max(v, Isa::Sub(Isa::Zero(), v)));
    nothing = Isa::Fma(v, Isa::Zero(), nothing);
  }
  const float largest = Isa::Largest(most);
  const bool tiny = largest < kLeastScale;
  const F inverse = Isa::Set(tiny ? 0.0f : kLargestWord / largest);
  for (int64_t i = 0; i < count; i += Isa::kWidth) Int::StoreWords(Isa::Mul(Isa::Load(x + i), inverse), words + 2 * i);
  return (tiny ? 0.0f : largest / kLargestWord) + Isa::Sum(nothing);
}

template <class Isa, class Int>
void QuantiseWords(const float* dy, int64_t cols, const WordRows& out, int64_t row, std::byte* data) {
  for (int64_t at = 0; at < cols; at += kChunkRows, data += out.chunk_bytes()) {
    std::byte* words = data + row * 2 * kChunkRows;
    const float scale = QuantiseChunk<Isa, Int>(dy + at, cols - at < kChunkRows ? cols - at : kChunkRows, words);
    std::memcpy(data + out.rows * 2 * kChunkRows + row * 4, &scale, 4);
  }
}

// Bytes of signed codes: codes[q] are columns 4 q.. of the rows of a part.
template <class Isa, class Int, IntPacking kPacking>
inline __attribute__((always_inline)) void LoadSignedCodes(const std::byte* block, const std::byte* lo, int part,
                                                           typename Int::I (&codes)[8]) {
  const int64_t lane_bytes = part * Isa::kWidth * 4;
  if constexpr (kPacking == IntPacking::kQ8_0) {
#pragma GCC unroll 8
    for (int q = 0; q < 8; ++q) codes[q] = Int::Load(block + lane_bytes + q * 64);
  } else {
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      LoadCodes<Int, kPacking>(block + lane_bytes, lo + (lo == nullptr ? 0 : lane_bytes),
                               block + 256 + part * Isa::kWidth / 2, q, &codes[q], &codes[q + 4]);
    }
  }
#pragma GCC unroll 8
  for (int q = 0; q < 8; ++q) codes[q] = Int::SubBytes(codes[q], WordRaise(kPacking));
}

// Scales and offsets of a part of a group as floats; returns the bound of its weights' magnitudes.
template <class Isa, class Int, IntPacking kPacking>
inline __attribute__((always_inline)) typename Isa::F LoadWordScales(const std::byte* super,
                                                                     const std::byte* block_scales, int part,
                                                                     int64_t row, ChunkScales* scales) {
  using F = typename Isa::F;
  const auto magnitude = [](F a) { return Isa::Max(a, Isa::Sub(Isa::Zero(), a)); };
  const F largest = Isa::Set(static_cast<float>(128 >> WordShift(kPacking)));
  F scale, min;
  LoadScales<Isa, Int, kPacking>(super, block_scales, part, &scale, &min);
  if constexpr (kPacking == IntPacking::kQ6K) {
    const F first = Isa::Mul(scale, Int::ToFloat(Int::SignedBytes(block_scales + part * Isa::kWidth)));
    const F last = Isa::Mul(scale, Int::ToFloat(Int::SignedBytes(block_scales + part * Isa::kWidth + 16)));
    Isa::Store(scales->first + row, first);
    Isa::Store(scales->last + row, last);
    return Isa::Mul(Isa::Max(magnitude(first), magnitude(last)), largest);
  } else if constexpr (kPacking == IntPacking::kHi) {  // 16 (n - 8) + 7.5
    const F offset = Isa::Mul(scale, Isa::Set(7.5f));
    scale = Isa::Mul(scale, Isa::Set(16.0f));
    Isa::Store(scales->first + row, scale);
    Isa::Store(scales->offset + row, offset);
    return Isa::Add(Isa::Mul(magnitude(scale), largest), magnitude(offset));
  } else if constexpr (HasOffsets(kPacking)) {
    const F offset = Isa::Sub(Isa::Mul(scale, Isa::Set(static_cast<float>(WordRaise(kPacking)))), min);
    Isa::Store(scales->first + row, scale);
    Isa::Store(scales->offset + row, offset);
    return Isa::Add(Isa::Mul(magnitude(scale), largest), magnitude(offset));
  } else {
    Isa::Store(scales->first + row, scale);
    return Isa::Mul(magnitude(scale), largest);
  }
}

// Scales of groups [group, group + groups) and block b.
template <class Isa, class Int, IntPacking kPacking>
void ScaleChunk(const IntTransposedArgs& args, int64_t group, int64_t groups, int64_t b, ChunkScales* scales, BlockScales* out) {
  using F = typename Isa::F;
  constexpr int64_t kSuperBytes = IsMinK(kPacking) ? 256 : kPacking == IntPacking::kQ6K ? 32 : 0;
  constexpr int kParts = 16 / Isa::kWidth;
  F most = Isa::Zero();
  for (int64_t g = 0; g < groups; ++g) {
    const std::byte* data = args.data + (group + g) * args.group_bytes;
    const std::byte* super = data + b / 8 * kSuperBytes;
    const std::byte* block_scales = data + args.scales_at + b * ScaleBytes(kPacking);
    if constexpr (IsMinK(kPacking)) {
      if (b % 8 == 0 || b == args.first_block) {
        const std::byte* packed = super + 64;
        UnpackSixes(packed, packed + 64, scales->sixes[g]);
        UnpackSixes(packed + 96, packed + 160, scales->sixes[g] + 16);
      }
      block_scales = scales->sixes[g] + b % 8 * 32;
    }
    for (int part = 0; part < kParts; ++part) {
      most = Isa::Max(most, LoadWordScales<Isa, Int, kPacking>(super, block_scales, part, g * 16 + part * Isa::kWidth, scales));
    }
  }
  const float largest = Isa::Largest(most);
  const bool tiny = largest < kLeastScale;
  const float inverse = tiny ? 0.0f : kLargestWord / largest;
  // StorePairs multiplies code * 2^(8 + shift) and takes the product's upper bits, from 2^15 on.
  const F ratio = Isa::Set(inverse * static_cast<float>(128 >> WordShift(kPacking))), whole = Isa::Set(inverse);
  for (int64_t i = 0; i < groups * 16; i += Isa::kWidth) {
    Int::StoreWords(Isa::Mul(Isa::Load(scales->first + i), ratio), out->first + 2 * i);
    if constexpr (kPacking == IntPacking::kQ6K) Int::StoreWords(Isa::Mul(Isa::Load(scales->last + i), ratio), out->last + 2 * i);
    if constexpr (HasOffsets(kPacking)) Int::StoreWords(Isa::Mul(Isa::Load(scales->offset + i), whole), out->offset + 2 * i);
  }
  out->scale = tiny ? 0.0f : largest / kLargestWord;
}

// A group's codes of a block. Groups lie many KiB apart, so the hardware does not see these accesses coming.
template <IntPacking kPacking>
inline __attribute__((always_inline)) void PrefetchBlock(const IntTransposedArgs& args, int64_t group, int64_t b) {
  if (group >= args.groups) return;
  const std::byte* block = args.data + group * args.group_bytes + args.codes_at + b * CodeBytes(kPacking);
  for (int64_t i = 0; i < CodeBytes(kPacking); i += 64) __builtin_prefetch(block + i);
  if constexpr (kPacking == IntPacking::kBoth) {
    for (int64_t i = 0; i < 256; i += 64) __builtin_prefetch(args.lo + group * args.lo_group_bytes + b * 256 + i);
  }
}

// Where a panel's codes are.
struct PanelPlace {
  int64_t group = 0, b = 0;
};

// Groups from place.group on and block place.b as words in args.panel; those of `next` are asked for meanwhile.
template <class Isa, class Int, IntPacking kPacking>
void DecodeChunk(const IntTransposedArgs& args, PanelPlace place, int64_t groups, PanelPlace next, const BlockScales& scales) {
  const std::byte* last = kPacking == IntPacking::kQ6K ? scales.last : scales.first;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t group = place.group + g;
    const std::byte* block = args.data + group * args.group_bytes + args.codes_at + place.b * CodeBytes(kPacking);
    const std::byte* lo = kPacking == IntPacking::kBoth ? args.lo + group * args.lo_group_bytes + place.b * 256 : nullptr;
    PrefetchBlock<kPacking>(args, next.group + g, next.b);
    for (int part = 0; part < 16 / Isa::kWidth; ++part) {
      const int64_t row = g * 16 + part * Isa::kWidth;
      typename Int::I codes[8];
      LoadSignedCodes<Isa, Int, kPacking>(block, lo, part, codes);
      Int::template StorePairs<WordShift(kPacking), HasOffsets(kPacking)>(
          codes, {scales.first + 2 * row, last + 2 * row, scales.offset + 2 * row}, args.panel + row / 2 * kWordPairBytes);
    }
  }
}

// A panel times the words of kTokens tokens, added to 32 columns of their outputs.
struct WordTileArgs {
  const std::byte* panel = nullptr;
  int64_t pairs = 0;
  float scale = 0;
  const std::byte* words = nullptr;  // the chunk's
  const std::byte* scales = nullptr;
  const int32_t* row = nullptr;
  float* const* out = nullptr;
  int64_t out_at = 0;
};

// Every index is a constant before optimisation begins: GCC 12 may unroll loops over tokens too late to keep sums in registers.
template <class Isa, class Int, int... kToken>
inline __attribute__((always_inline)) void WordTile(const WordTileArgs& args, int64_t token, std::integer_sequence<int, kToken...>) {
  using F = typename Isa::F;
  using I = typename Int::I;
  using Sum = typename Int::WordSum;
  const int32_t* row = args.row + token;
  const std::byte* const x[] = {args.words + row[kToken] * 2 * kChunkRows...};
  for (int64_t column = 0; column < 32; column += 2 * Isa::kWidth) {
    Sum low[] = {(static_cast<void>(kToken), Int::NoWords())...}, high[] = {(static_cast<void>(kToken), Int::NoWords())...};
    const std::byte* w = args.panel + column * 4;
    const int64_t end = args.pairs * 4;
    int64_t at = 0;
    do {
      const I first = Int::Load(w), second = Int::Load(w + Isa::kWidth * 4);
      const auto add = [&](I pair, Sum& low_sum, Sum& high_sum) __attribute__((always_inline)) {
        low_sum = Int::DotWords(low_sum, first, pair);
        high_sum = Int::DotWords(high_sum, second, pair);
      };
      (add(Int::Four(x[kToken] + at), low[kToken], high[kToken]), ...);
      at += 4;
      w += kWordPairBytes;
    } while (at < end);
    const auto store = [&](int t, Sum low_sum, Sum high_sum) __attribute__((always_inline)) {
      const F scale = Isa::Mul(Isa::Set(args.scale), Int::BroadcastFloat(args.scales + row[t] * 4));
      float* out = args.out[token + t] + args.out_at + column;
      Isa::Store(out, Isa::Fma(Int::WordsToFloat(low_sum), scale, Isa::Load(out)));
      Isa::Store(out + Isa::kWidth, Isa::Fma(Int::WordsToFloat(high_sum), scale, Isa::Load(out + Isa::kWidth)));
    };
    (store(kToken, low[kToken], high[kToken]), ...);
  }
}

template <class Isa, class Int, int kTokens>
void WordTileOf(int64_t tokens, const WordTileArgs& args, int64_t token) {
  if (tokens == kTokens) return WordTile<Isa, Int>(args, token, std::make_integer_sequence<int, kTokens>());
  if constexpr (kTokens > 1) WordTileOf<Isa, Int, kTokens - 1>(tokens, args, token);
}

template <class Isa, class Int, IntPacking kPacking>
void IntTransposedPacked(const IntTransposedArgs& args) {
  ChunkScales scales;
  BlockScales of_blocks[kMostTaskBlocks];
  WordTileArgs tile;
  tile.panel = args.panel;
  tile.row = args.row;
  tile.out = args.out;
  tile.words = args.dy.data;
  for (int64_t group = 0; group < args.groups; group += kChunkRows / 16, tile.words += args.dy.chunk_bytes()) {
    const int64_t left_groups = args.groups - group, groups = left_groups < kChunkRows / 16 ? left_groups : kChunkRows / 16;
    tile.pairs = groups * 8;
    tile.scales = tile.words + args.dy.rows * 2 * kChunkRows;
    // All blocks' at once: each is a chain of some hundred cycles, the division among them.
    for (int64_t b = 0; b < args.blocks; ++b) {
      ScaleChunk<Isa, Int, kPacking>(args, group, groups, args.first_block + b, &scales, &of_blocks[b]);
    }
    for (int64_t b = 0; b < args.blocks; ++b) {
      PanelPlace next{group, args.first_block + b + 1};
      if (b + 1 == args.blocks) next = {group + groups, args.first_block};
      // After the last comes the next task, most likely: the columns that follow.
      if (next.group >= args.groups) next = {0, args.first_block + args.blocks};
      if (next.b == args.matrix_blocks) next.group = args.groups;
      DecodeChunk<Isa, Int, kPacking>(args, {group, args.first_block + b}, groups, next, of_blocks[b]);
      tile.scale = of_blocks[b].scale;
      tile.out_at = b * 32;
      int64_t step = 0;
      for (int64_t token = 0; token < args.tokens; token += step) {  // tiles of nearly equal size
        const int64_t left = args.tokens - token, tiles = (left + Int::kWordTokens - 1) / Int::kWordTokens;
        step = (left + tiles - 1) / tiles;
        WordTileOf<Isa, Int, Int::kWordTokens>(step, tile, token);
      }
    }
  }
}

template <class Isa, class Int>
void IntTransposed(const IntTransposedArgs& args) {
  switch (args.packing) {
    case IntPacking::kQ8_0: return IntTransposedPacked<Isa, Int, IntPacking::kQ8_0>(args);
    case IntPacking::kQ4_0: return IntTransposedPacked<Isa, Int, IntPacking::kQ4_0>(args);
    case IntPacking::kQ5_0: return IntTransposedPacked<Isa, Int, IntPacking::kQ5_0>(args);
    case IntPacking::kQ5_1: return IntTransposedPacked<Isa, Int, IntPacking::kQ5_1>(args);
    case IntPacking::kQ4K: return IntTransposedPacked<Isa, Int, IntPacking::kQ4K>(args);
    case IntPacking::kQ5K: return IntTransposedPacked<Isa, Int, IntPacking::kQ5K>(args);
    case IntPacking::kQ6K: return IntTransposedPacked<Isa, Int, IntPacking::kQ6K>(args);
    case IntPacking::kIQ4NL: return IntTransposedPacked<Isa, Int, IntPacking::kIQ4NL>(args);
    case IntPacking::kMXFP4: return IntTransposedPacked<Isa, Int, IntPacking::kMXFP4>(args);
    case IntPacking::kBoth: return IntTransposedPacked<Isa, Int, IntPacking::kBoth>(args);
    case IntPacking::kHi: return IntTransposedPacked<Isa, Int, IntPacking::kHi>(args);
  }
}

}  // namespace thermoe::kernels::cpu
