// SPDX-License-Identifier: Apache-2.0
// Rows of weights times rows of activations, for any Isa (vec_*.h). Two paths, the same additions (kernel_table.h):
// few tokens: decode in registers, use at once; many: decode a panel of weights once, then register tiles over it.
#pragma once

#include <cstring>

#include "kernels/cpu/kernel_table.h"
#include "model/formats.h"

namespace thermoe::kernels::cpu {

// Calls body.template operator()<packing>().
template <typename Body>
inline __attribute__((always_inline)) void WithPacking(Packing packing, const Body& body) {
  switch (packing) {
    case Packing::kF32: body.template operator()<Packing::kF32>(); return;
    case Packing::kF16: body.template operator()<Packing::kF16>(); return;
    case Packing::kBF16: body.template operator()<Packing::kBF16>(); return;
    case Packing::kQ8_0: body.template operator()<Packing::kQ8_0>(); return;
    case Packing::kQ4_0: body.template operator()<Packing::kQ4_0>(); return;
    case Packing::kNestedBoth: body.template operator()<Packing::kNestedBoth>(); return;
    case Packing::kNestedHi: body.template operator()<Packing::kNestedHi>(); return;
  }
}

// Bytes of 32 weights; of the hi plane for nested experts.
static constexpr int BlockBytes(Packing packing) {
  switch (packing) {
    case Packing::kF32: return 128;
    case Packing::kF16:
    case Packing::kBF16: return 64;
    case Packing::kQ8_0: return sizeof(BlockQ8_0);
    case Packing::kQ4_0: return sizeof(BlockQ4_0);
    case Packing::kNestedBoth:
    case Packing::kNestedHi: return sizeof(NestedHi);
  }
  return 0;
}

template <class Isa, Packing kPacking>
struct Decoder {
  // Bytes of a weight whose rows may end inside a block of 32; 0: the type has whole blocks only.
  static constexpr int64_t kElementBytes = kPacking == Packing::kF32                                 ? 4
                                           : kPacking == Packing::kF16 || kPacking == Packing::kBF16 ? 2
                                                                                                     : 0;
  static int64_t LeftOver(int64_t cols) { return kElementBytes > 0 ? cols % kQuantBlock : 0; }
  // The last n < 32 weights of a row, zeros after them.
  static void Tail(const std::byte* row, int64_t b, int64_t n, typename Isa::F* out) {
    std::byte padded[kQuantBlock * 4] = {};
    std::memcpy(padded, row + b * kQuantBlock * kElementBytes, static_cast<size_t>(n * kElementBytes));
    Isa::template Block<kElementBytes == 0 ? Packing::kF32 : kPacking>(padded, nullptr, 0, out);
  }
};

// Sums of kRows accumulators to y[0..kRows), plus bias.
template <class Isa, int kRows>
void StoreSums(const typename Isa::F* acc, int stride, const float* bias, float* y) {
  if constexpr (kRows >= 4) {
    Isa::StoreSum4(y, acc[0], acc[stride], acc[2 * stride], acc[3 * stride]);
    if constexpr (kRows > 4) {
      static_assert(kRows == 8);
      Isa::StoreSum4(y + 4, acc[4 * stride], acc[5 * stride], acc[6 * stride], acc[7 * stride]);
    }
  } else {
    for (int r = 0; r < kRows; ++r) y[r] = Isa::Sum(acc[r * stride]);
  }
  if (bias == nullptr) return;
  for (int r = 0; r < kRows; ++r) y[r] += bias[r];
}

// Asks for what the next kRows rows read, spread over the blocks of these rows. Rows are short (a few KiB) and start
// anywhere in a page, so the hardware's own prefetch loses a third to a half of the memory's speed here.
template <Packing kPacking, int kRows>
inline __attribute__((always_inline)) void PrefetchNextRows(const std::byte* weights, const std::byte* lo,
                                                            const MatrixTile& m, int64_t b) {
  constexpr int kBytes = kRows * BlockBytes(kPacking);  // of kRows blocks; rows follow each other without gaps
  const std::byte* next = weights + kRows * m.row_bytes + b * kBytes;
#pragma GCC unroll 16
  for (int i = 0; i < kBytes; i += 64) __builtin_prefetch(next + i);
  if constexpr (kPacking == Packing::kNestedBoth) {
    const std::byte* next_lo = lo + kRows * m.lo_row_bytes + b * kRows * 16;
#pragma GCC unroll 16
    for (int i = 0; i < kRows * 16; i += 64) __builtin_prefetch(next_lo + i);
  }
}

// acc[r][t] += w[r] . x[t] for one block of 32 columns, `at` being its first.
template <class Isa, int kRows, int kTokens>
inline __attribute__((always_inline)) void AddBlock(const typename Isa::F (*w)[Isa::kBlockVectors],
                                                    const float* const (&x)[kTokens], int64_t at,
                                                    typename Isa::F* acc) {
#pragma GCC unroll 4
  for (int i = 0; i < Isa::kBlockVectors; ++i) {
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      const typename Isa::F xv = Isa::Load(x[t] + at + i * Isa::kWidth);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) acc[r * kTokens + t] = Isa::Fma(w[r][i], xv, acc[r * kTokens + t]);
    }
  }
}

// Rows [row, row + kRows) for all of kTokens tokens, decoded in registers.
template <class Isa, Packing kPacking, int kRows, int kTokens>
void FusedTile(const DotArgs& args, int64_t row) {
  using F = typename Isa::F;
  const MatrixTile& m = args.weight;
  const std::byte* weights = m.data + row * m.row_bytes;
  const std::byte* lo = kPacking == Packing::kNestedBoth ? m.lo + row * m.lo_row_bytes : nullptr;
  const int64_t lo_row_bytes = kPacking == Packing::kNestedBoth ? m.lo_row_bytes : 0;
  const float* x[kTokens];
  for (int t = 0; t < kTokens; ++t) x[t] = args.x[t];
  F acc[kRows * kTokens];
#pragma GCC unroll 32
  for (int i = 0; i < kRows * kTokens; ++i) acc[i] = Isa::Zero();
  F w[kRows][Isa::kBlockVectors];
  const int64_t blocks = m.cols / kQuantBlock;
  for (int64_t b = 0; b < blocks; ++b) {
    PrefetchNextRows<kPacking, kRows>(weights, lo, m, b);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      Isa::template Block<kPacking>(weights + r * m.row_bytes, lo + r * lo_row_bytes, b, w[r]);
      // For few tokens one row's decoded block at a time: reading x again is free, registers are not.
      if constexpr (kTokens <= Isa::kRowwiseTokens) {
        AddBlock<Isa, 1, kTokens>(&w[r], x, b * kQuantBlock, acc + r * kTokens);
      }
    }
    if constexpr (kTokens > Isa::kRowwiseTokens) AddBlock<Isa, kRows, kTokens>(w, x, b * kQuantBlock, acc);
  }
  if (const int64_t left = Decoder<Isa, kPacking>::LeftOver(m.cols); left > 0) {
    float x_tail[kTokens][kQuantBlock] = {};
    const float* tails[kTokens];
    for (int t = 0; t < kTokens; ++t) {
      std::memcpy(x_tail[t], x[t] + blocks * kQuantBlock, static_cast<size_t>(left) * sizeof(float));
      tails[t] = x_tail[t];
    }
    for (int r = 0; r < kRows; ++r) Decoder<Isa, kPacking>::Tail(weights + r * m.row_bytes, blocks, left, w[r]);
    AddBlock<Isa, kRows, kTokens>(w, tails, 0, acc);
  }
  const float* bias = args.bias == nullptr ? nullptr : args.bias + row;
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) StoreSums<Isa, kRows>(acc + t, kTokens, bias, args.y[t] + args.y_at + row);
}

template <class Isa, Packing kPacking, int kTokens>
void FusedRows(const DotArgs& args) {
  constexpr int kRows = Isa::FusedRows(kTokens);
  int64_t row = 0;
  for (; row + kRows <= args.weight.rows; row += kRows) FusedTile<Isa, kPacking, kRows, kTokens>(args, row);
  for (; row < args.weight.rows; ++row) FusedTile<Isa, kPacking, 1, kTokens>(args, row);
}

// A few rows of floats and the tokens that they meet. With more than one chunk of columns the accumulators wait in
// `acc` between chunks; the additions are those of one long loop.
struct PanelArgs {
  const std::byte* w = nullptr;  // rows of `cols` floats, stride_bytes apart
  int64_t stride_bytes = 0;
  int64_t rows = 0, cols = 0;
  const float* const* x = nullptr;  // [tokens], read from column x_at on
  int64_t x_at = 0, tokens = 0;
  float* acc = nullptr;            // [tokens, kPanelRows] vectors; unused when first and last
  bool first = true, last = true;  // chunk of the row
  float* const* y = nullptr;       // [tokens], written at y_at on
  int64_t y_at = 0;
  const float* bias = nullptr;  // [rows] or null
};

template <class Isa, int kRows, int kTokens>
inline __attribute__((always_inline)) void PanelTile(const PanelArgs& args, int64_t row, int64_t token) {
  using F = typename Isa::F;
  const std::byte* w = args.w + row * args.stride_bytes;
  const int64_t stride_bytes = args.stride_bytes;
  const float* x[kTokens];
  for (int t = 0; t < kTokens; ++t) x[t] = args.x[token + t] + args.x_at;
  const bool whole_row = args.first && args.last;
  float* saved = whole_row ? nullptr : args.acc + (token * kPanelRows + row * kTokens) * Isa::kWidth;
  F acc[kRows * kTokens];
#pragma GCC unroll 32
  for (int i = 0; i < kRows * kTokens; ++i) acc[i] = args.first ? Isa::Zero() : Isa::Load(saved + i * Isa::kWidth);
  const int64_t whole = args.cols / Isa::kWidth * Isa::kWidth;
  for (int64_t k = 0; k < whole; k += Isa::kWidth) {
    F xv[kTokens];
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) xv[t] = Isa::Load(x[t] + k);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const F wv = Isa::Load(w + r * stride_bytes + k * 4);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) acc[r * kTokens + t] = Isa::Fma(wv, xv[t], acc[r * kTokens + t]);
    }
  }
  if (const int64_t left = args.cols - whole; left > 0) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const F wv = Isa::LoadPart(w + r * stride_bytes + whole * 4, left);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        acc[r * kTokens + t] = Isa::Fma(wv, Isa::LoadPart(x[t] + whole, left), acc[r * kTokens + t]);
      }
    }
  }
  if (!args.last) {
#pragma GCC unroll 32
    for (int i = 0; i < kRows * kTokens; ++i) Isa::Store(saved + i * Isa::kWidth, acc[i]);
    return;
  }
  const float* bias = args.bias == nullptr ? nullptr : args.bias + row;
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
    StoreSums<Isa, kRows>(acc + t, kTokens, bias, args.y[token + t] + args.y_at + row);
  }
}

template <class Isa, int kTokens>
void PanelTokens(const PanelArgs& args, int64_t token) {
  int64_t row = 0;
  for (; row + 4 <= args.rows; row += 4) PanelTile<Isa, 4, kTokens>(args, row, token);
  for (; row < args.rows; ++row) PanelTile<Isa, 1, kTokens>(args, row, token);
}

// Tokens in register tiles of nearly equal size: 4 + 4 is faster than 6 + 2.
template <class Isa>
void PanelProduct(const PanelArgs& args) {
  constexpr int kStep = Isa::kGemmTokens;
  static_assert(kStep <= 6 && kTokenTile % kStep == 0);
  int64_t step = 0;
  for (int64_t token = 0; token < args.tokens; token += step) {
    const int64_t left = args.tokens - token, tiles = (left + kStep - 1) / kStep;
    step = (left + tiles - 1) / tiles;
    switch (step) {
      case 1: PanelTokens<Isa, 1>(args, token); break;
      case 2:
        if constexpr (kStep >= 2) PanelTokens<Isa, 2>(args, token);
        break;
      case 3:
        if constexpr (kStep >= 3) PanelTokens<Isa, 3>(args, token);
        break;
      case 4:
        if constexpr (kStep >= 4) PanelTokens<Isa, 4>(args, token);
        break;
      case 5:
        if constexpr (kStep >= 5) PanelTokens<Isa, 5>(args, token);
        break;
      case 6:
        if constexpr (kStep >= 6) PanelTokens<Isa, 6>(args, token);
        break;
    }
  }
}

// Asks for the same block of the panel's next rows, into L2: it is needed only when all tokens have met this panel.
template <Packing kPacking>
inline __attribute__((always_inline)) void PrefetchNextPanel(const std::byte* row, const std::byte* lo_row,
                                                             const MatrixTile& m, int64_t b) {
  const std::byte* next = row + kPanelRows * m.row_bytes + b * BlockBytes(kPacking);
  __builtin_prefetch(next, 0, 2);
  if constexpr (BlockBytes(kPacking) > 64) __builtin_prefetch(next + 64, 0, 2);
  if constexpr (kPacking == Packing::kNestedBoth)
    __builtin_prefetch(lo_row + kPanelRows * m.lo_row_bytes + b * 16, 0, 2);
}

// Columns [first, first + cols) of some rows as floats, `stride` apart.
template <class Isa, Packing kPacking>
void DecodePanel(const MatrixTile& m, int64_t row, int64_t rows, int64_t first, int64_t cols, float* panel, int64_t stride) {
  typename Isa::F w[Isa::kBlockVectors];
  const int64_t blocks = cols / kQuantBlock, left = Decoder<Isa, kPacking>::LeftOver(cols);
  for (int64_t r = 0; r < rows; ++r) {
    const std::byte* weights = m.data + (row + r) * m.row_bytes;
    const std::byte* lo = kPacking == Packing::kNestedBoth ? m.lo + (row + r) * m.lo_row_bytes : nullptr;
    float* out = panel + r * stride;
    for (int64_t b = 0; b < blocks; ++b, out += kQuantBlock) {
      PrefetchNextPanel<kPacking>(weights, lo, m, first / kQuantBlock + b);
      Isa::template Block<kPacking>(weights, lo, first / kQuantBlock + b, w);
      for (int i = 0; i < Isa::kBlockVectors; ++i) Isa::Store(out + i * Isa::kWidth, w[i]);
    }
    if (left > 0) {
      Decoder<Isa, kPacking>::Tail(weights, first / kQuantBlock + blocks, left, w);
      for (int i = 0; i < Isa::kBlockVectors; ++i) Isa::Store(out + i * Isa::kWidth, w[i]);
    }
  }
}

// kPanelRows rows for at most kTokenTile tokens.
template <class Isa, Packing kPacking>
void PanelRows(const DotArgs& args, int64_t row, int64_t token, int64_t tokens) {
  const MatrixTile& m = args.weight;
  PanelArgs panel;
  panel.rows = m.rows - row < kPanelRows ? m.rows - row : kPanelRows;
  panel.x = args.x + token;
  panel.tokens = tokens;
  panel.acc = args.scratch + kPanelRows * kPanelCols;
  panel.y = args.y + token;
  panel.y_at = args.y_at + row;
  panel.bias = args.bias == nullptr ? nullptr : args.bias + row;
  for (int64_t at = 0; at < m.cols; at += kPanelCols) {
    panel.cols = m.cols - at < kPanelCols ? m.cols - at : kPanelCols;
    panel.first = at == 0;
    panel.last = at + kPanelCols >= m.cols;
    panel.x_at = at;
    if constexpr (kPacking == Packing::kF32) {
      panel.w = m.data + row * m.row_bytes + at * 4;
      panel.stride_bytes = m.row_bytes;
    } else {
      DecodePanel<Isa, kPacking>(m, row, panel.rows, at, panel.cols, args.scratch, kPanelCols);
      panel.w = reinterpret_cast<const std::byte*>(args.scratch);
      panel.stride_bytes = kPanelCols * 4;
    }
    PanelProduct<Isa>(panel);
  }
}

template <class Isa, Packing kPacking>
void DotPacked(const DotArgs& args) {
  switch (args.tokens) {
    case 0: return;
    case 1: FusedRows<Isa, kPacking, 1>(args); return;
    case 2: FusedRows<Isa, kPacking, 2>(args); return;
    case 3: FusedRows<Isa, kPacking, 3>(args); return;
    default: break;
  }
  if constexpr (Isa::kFusedTokens >= 5) {
    if (args.tokens == 4) return FusedRows<Isa, kPacking, 4>(args);
    if (args.tokens == 5) return FusedRows<Isa, kPacking, 5>(args);
  }
  if constexpr (Isa::kFusedTokens >= 6) {
    if (args.tokens == 6) return FusedRows<Isa, kPacking, 6>(args);
  }
  for (int64_t token = 0; token < args.tokens; token += kTokenTile) {
    const int64_t tokens = args.tokens - token < kTokenTile ? args.tokens - token : kTokenTile;
    for (int64_t row = 0; row < args.weight.rows; row += kPanelRows) {
      PanelRows<Isa, kPacking>(args, row, token, tokens);
    }
  }
}

template <class Isa>
void Dot(const DotArgs& args) {
  WithPacking(args.weight.packing, [&]<Packing kPacking>() { DotPacked<Isa, kPacking>(args); });
}

}  // namespace thermoe::kernels::cpu
