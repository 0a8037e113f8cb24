// SPDX-License-Identifier: Apache-2.0
// Float products in which an output is a chain of multiply-adds, lanes being columns: sums of outer products, and
// weights in rows of blocks or floats taken transposed.
#pragma once

#include <cstdint>

#include "kernels/cpu/dot.h"
#include "kernels/cpu/kernel_table.h"

namespace thermoe::kernels::cpu {

// Register tile: 4 x 6 accumulators, 4 vectors of w and a coefficient of 32 registers; 2 x 5, 2 and 1 of 16.
template <class Isa>
constexpr int ProductVectors() {
  return Isa::kWidth == 16 ? 4 : 2;
}
template <class Isa>
constexpr int ProductRows() {
  return Isa::kWidth == 16 ? 6 : 5;
}

// kRows rows from `row` on, kVectors vectors of columns from `column` on; `part`: lanes of the only vector, 0: all.
template <class Isa, int kRows, int kVectors>
inline __attribute__((always_inline)) void ProductTile(const AddProductArgs& args, int64_t row, int64_t column,
                                                       int64_t part) {
  using F = typename Isa::F;
  const float* coef[kRows];
  float* out[kRows];
  F acc[kRows * kVectors];
#pragma GCC unroll 8
  for (int a = 0; a < kRows; ++a) {
    coef[a] = args.coef[row + a];
    out[a] = args.out[row + a] + args.out_at + column;
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) {
      acc[a * kVectors + i] = part > 0 ? Isa::LoadPart(out[a], part) : Isa::Load(out[a] + i * Isa::kWidth);
    }
  }
  const std::byte* w = args.w + column * 4;
  for (int64_t s = 0; s < args.steps; ++s, w += args.w_stride) {
    F wv[kVectors];
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) wv[i] = part > 0 ? Isa::LoadPart(w, part) : Isa::Load(w + i * Isa::kWidth * 4);
#pragma GCC unroll 8
    for (int a = 0; a < kRows; ++a) {
      const F c = Isa::Set(coef[a][s * args.coef_step]);
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i) acc[a * kVectors + i] = Isa::Fma(c, wv[i], acc[a * kVectors + i]);
    }
  }
#pragma GCC unroll 8
  for (int a = 0; a < kRows; ++a) {
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) {
      if (part > 0) {
        Isa::StorePart(out[a], acc[a * kVectors + i], part);
      } else {
        Isa::Store(out[a] + i * Isa::kWidth, acc[a * kVectors + i]);
      }
    }
  }
}

template <class Isa, int kRows>
void ProductRowTile(const AddProductArgs& args, int64_t row) {
  constexpr int kVectors = ProductVectors<Isa>();
  int64_t c = 0;
  for (; c + kVectors * Isa::kWidth <= args.cols; c += kVectors * Isa::kWidth)
    ProductTile<Isa, kRows, kVectors>(args, row, c, 0);
  for (; c + Isa::kWidth <= args.cols; c += Isa::kWidth) ProductTile<Isa, kRows, 1>(args, row, c, 0);
  if (c < args.cols) ProductTile<Isa, kRows, 1>(args, row, c, args.cols - c);
}

template <class Isa, int kRows>
void ProductRowTileOf(int64_t rows, const AddProductArgs& args, int64_t row) {
  if (rows == kRows) return ProductRowTile<Isa, kRows>(args, row);
  if constexpr (kRows > 1) ProductRowTileOf<Isa, kRows - 1>(rows, args, row);
}

template <class Isa>
void AddProduct(const AddProductArgs& args) {
  constexpr int64_t kRows = ProductRows<Isa>();
  int64_t step = 0;
  for (int64_t row = 0; row < args.rows; row += step) {  // tiles of nearly equal size
    const int64_t left = args.rows - row, tiles = (left + kRows - 1) / kRows;
    step = (left + tiles - 1) / tiles;
    ProductRowTileOf<Isa, kRows>(step, args, row);
  }
}

// Asks for nothing ahead: rows are visited in order, and their pieces are long.
template <class Isa, Packing kPacking>
void TransposedPacked(const TransposedArgs& args) {
  const MatrixTile& m = args.weight;
  AddProductArgs product;
  product.rows = args.tokens;
  product.out = args.out;
  const float* dy[kTokenTile];
  for (int64_t token = 0; token < args.tokens; token += kTokenTile) {
    product.rows = args.tokens - token < kTokenTile ? args.tokens - token : kTokenTile;
    product.out = args.out + token;
    product.coef = dy;
    for (int64_t row = 0; row < m.rows; row += kTransposedPanel) {
      product.steps = m.rows - row < kTransposedPanel ? m.rows - row : kTransposedPanel;
      for (int64_t t = 0; t < product.rows; ++t) dy[t] = args.dy[token + t] + row;
      for (int64_t at = 0; at < args.cols; at += kTransposedPanel) {
        product.cols = args.cols - at < kTransposedPanel ? args.cols - at : kTransposedPanel;
        product.out_at = at;
        if constexpr (kPacking == Packing::kF32) {
          product.w = m.data + row * m.row_bytes + (args.first + at) * 4;
          product.w_stride = m.row_bytes;
        } else {
          DecodePanel<Isa, kPacking>(m, row, product.steps, args.first + at, product.cols, args.scratch,
                                     kTransposedPanel);
          product.w = reinterpret_cast<const std::byte*>(args.scratch);
          product.w_stride = kTransposedPanel * 4;
        }
        AddProduct<Isa>(product);
      }
    }
  }
}

template <class Isa>
void Transposed(const TransposedArgs& args) {
  WithPacking(args.weight.packing, [&]<Packing kPacking>() { TransposedPacked<Isa, kPacking>(args); });
}

}  // namespace thermoe::kernels::cpu
