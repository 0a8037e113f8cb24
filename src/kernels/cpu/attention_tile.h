// SPDX-License-Identifier: Apache-2.0
// Softmax attention over a block table, for any Isa: one pass with a running maximum (Milakov and Gimelshein 2018,
// "Online normalizer calculation for softmax"). Queries that read the same keys go together through each block, so
// keys and values are read once for all of them; a query's own additions are those it would have alone.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cpu/dot.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/vec_math.h"
#include "runtime/kv_layout.h"

namespace thermoe::kernels::cpu {

// Views into AttentionTileArgs::state and the running maxima.
struct AttentionState {
  float* sums[kMaxQueries];    // [padded head_dim] running sum of p * value
  float* scores[kMaxQueries];  // [kKvBlock] scores of this block, then p = exp(score - maximum)
  float* lanes[kMaxQueries];   // [kKvBlock] running sum of p, by position in block
  float maximum[kMaxQueries];
};

// Scores of the first n positions of a block become p; sums of earlier blocks move to the new maximum.
template <class Isa>
void SoftmaxBlock(AttentionState& state, int32_t query, int32_t n, float scale, int32_t head_dim) {
  using F = typename Isa::F;
  constexpr int kVectors = kKvBlock / Isa::kWidth;
  float* scores = state.scores[query];
  F s[kVectors];
  for (int i = 0; i < kVectors; ++i) s[i] = Isa::Mul(Isa::Load(scores + i * Isa::kWidth), Isa::Set(scale));
  if (n < kKvBlock) {
    for (int i = 0; i < kVectors; ++i) Isa::Store(scores + i * Isa::kWidth, s[i]);
    for (int32_t j = n; j < kKvBlock; ++j) scores[j] = -__builtin_inff();  // exp gives 0
    for (int i = 0; i < kVectors; ++i) s[i] = Isa::Load(scores + i * Isa::kWidth);
  }
  float most = state.maximum[query];
  for (int i = 0; i < kVectors; ++i) {
    const float largest = Isa::Largest(s[i]);
    most = largest > most ? largest : most;
  }
  float* lanes = state.lanes[query];
  if (most != state.maximum[query]) {
    const F shrink = Exp<Isa>(Isa::Set(state.maximum[query] - most));
    for (int i = 0; i < kVectors; ++i) {
      Isa::Store(lanes + i * Isa::kWidth, Isa::Mul(shrink, Isa::Load(lanes + i * Isa::kWidth)));
    }
    float* sums = state.sums[query];
    for (int64_t d = 0; d < PaddedHead(head_dim); d += Isa::kWidth) {
      Isa::Store(sums + d, Isa::Mul(shrink, Isa::Load(sums + d)));
    }
    state.maximum[query] = most;
  }
  for (int i = 0; i < kVectors; ++i) {
    const F p = Exp<Isa>(Isa::Sub(s[i], Isa::Set(most)));
    Isa::Store(scores + i * Isa::kWidth, p);
    Isa::Store(lanes + i * Isa::kWidth, Isa::Add(Isa::Load(lanes + i * Isa::kWidth), p));
  }
}

// sums[q][d ..] += p[q][j] * value[j][d ..] for kVectors vectors and kQueries queries, j rising.
template <class Isa, int kQueries, int kVectors>
inline __attribute__((always_inline)) void ValueTile(AttentionState& state, int32_t query, const float* values,
                                                     int32_t n, int32_t head_dim, int64_t d) {
  using F = typename Isa::F;
  F acc[kQueries * kVectors];
#pragma GCC unroll 8
  for (int q = 0; q < kQueries; ++q) {
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) acc[q * kVectors + i] = Isa::Load(state.sums[query + q] + d + i * Isa::kWidth);
  }
  for (int32_t j = 0; j < n; ++j) {
    const float* value = values + static_cast<int64_t>(j) * head_dim + d;
    F v[kVectors];
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) v[i] = Isa::Load(value + i * Isa::kWidth);
#pragma GCC unroll 8
    for (int q = 0; q < kQueries; ++q) {
      const F p = Isa::Set(state.scores[query + q][j]);
#pragma GCC unroll 8
      for (int i = 0; i < kVectors; ++i) acc[q * kVectors + i] = Isa::Fma(p, v[i], acc[q * kVectors + i]);
    }
  }
#pragma GCC unroll 8
  for (int q = 0; q < kQueries; ++q) {
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) Isa::Store(state.sums[query + q] + d + i * Isa::kWidth, acc[q * kVectors + i]);
  }
}

template <class Isa, int kQueries>
void ValueBlock(AttentionState& state, int32_t query, const float* values, int32_t n, int32_t head_dim) {
  using F = typename Isa::F;
  constexpr int kVectors = Isa::kWidth == 16 ? 4 : 2;  // with 4 queries: 16 of 32, or 8 of 16 registers
  int64_t d = 0;
  for (; d + kVectors * Isa::kWidth <= head_dim; d += kVectors * Isa::kWidth) {
    ValueTile<Isa, kQueries, kVectors>(state, query, values, n, head_dim, d);
  }
  for (; d + Isa::kWidth <= head_dim; d += Isa::kWidth) {
    ValueTile<Isa, kQueries, 1>(state, query, values, n, head_dim, d);
  }
  if (d == head_dim) return;
  for (int q = 0; q < kQueries; ++q) {
    F acc = Isa::Load(state.sums[query + q] + d);
    for (int32_t j = 0; j < n; ++j) {
      const F v = Isa::LoadPart(values + static_cast<int64_t>(j) * head_dim + d, head_dim - d);
      acc = Isa::Fma(Isa::Set(state.scores[query + q][j]), v, acc);
    }
    Isa::Store(state.sums[query + q] + d, acc);
  }
}

// Queries [first, first + count) see the first n positions of block b.
template <class Isa>
void AttendBlock(const AttentionTileArgs& args, AttentionState& state, int64_t b, int32_t first, int32_t count,
                 int32_t n) {
  const int64_t at = args.blocks[b] * args.block_stride;
  // The product of kernel_table.h with keys in the place of weight rows.
  PanelArgs scores;
  scores.w = reinterpret_cast<const std::byte*>(args.keys + at);
  scores.stride_bytes = static_cast<int64_t>(args.head_dim) * 4;
  scores.rows = n;
  scores.cols = args.head_dim;
  scores.x = args.q + first;
  scores.tokens = count;
  scores.y = state.scores + first;
  PanelProduct<Isa>(scores);
  for (int32_t i = first; i < first + count; ++i) SoftmaxBlock<Isa>(state, i, n, args.scale, args.head_dim);
  int32_t i = first;
  for (; i + 4 <= first + count; i += 4) ValueBlock<Isa, 4>(state, i, args.values + at, n, args.head_dim);
  for (; i < first + count; ++i) ValueBlock<Isa, 1>(state, i, args.values + at, n, args.head_dim);
}

template <class Isa>
void FinishQuery(const AttentionTileArgs& args, const AttentionState& state, int32_t query) {
  using F = typename Isa::F;
  F total = Isa::Load(state.lanes[query]);
  if constexpr (Isa::kWidth < kKvBlock) total = Isa::Add(total, Isa::Load(state.lanes[query] + Isa::kWidth));
  const F scale = Isa::Set(1.0f / Isa::Sum(total));
  const float* sums = state.sums[query];
  float* out = args.out[query];
  int64_t d = 0;
  for (; d + Isa::kWidth <= args.head_dim; d += Isa::kWidth) Isa::Store(out + d, Isa::Mul(Isa::Load(sums + d), scale));
  if (d < args.head_dim) Isa::StorePart(out + d, Isa::Mul(Isa::Load(sums + d), scale), args.head_dim - d);
}

template <class Isa>
void AttentionTile(const AttentionTileArgs& args) {
  static_assert(kKvBlock == Isa::kWidth || kKvBlock == 2 * Isa::kWidth);
  AttentionState state;
  const int32_t queries = args.rows * args.group;
  const int64_t padded = PaddedHead(args.head_dim);
  for (int32_t i = 0; i < queries; ++i) {
    state.sums[i] = args.state + i * (padded + 2 * kKvBlock);
    state.scores[i] = state.sums[i] + padded;
    state.lanes[i] = state.scores[i] + kKvBlock;
    state.maximum[i] = -__builtin_inff();
    for (int64_t d = 0; d < padded; d += Isa::kWidth) Isa::Store(state.sums[i] + d, Isa::Zero());
    for (int j = 0; j < kKvBlock; j += Isa::kWidth) {
      Isa::Store(state.scores[i] + j, Isa::Zero());
      Isa::Store(state.lanes[i] + j, Isa::Zero());
    }
  }
  int32_t least = args.positions[0], most = least;
  for (int32_t r = 1; r < args.rows; ++r) {
    least = args.positions[r] < least ? args.positions[r] : least;
    most = args.positions[r] > most ? args.positions[r] : most;
  }
  for (int32_t b = 0; b <= most / kKvBlock; ++b) {
    const int32_t base = b * kKvBlock;
    if (base + kKvBlock - 1 <= least) {
      AttendBlock<Isa>(args, state, b, 0, queries, kKvBlock);
      continue;
    }
    for (int32_t r = 0; r < args.rows; ++r) {
      const int32_t seen = args.positions[r] - base + 1;
      if (seen <= 0) continue;
      AttendBlock<Isa>(args, state, b, r * args.group, args.group, seen < kKvBlock ? seen : kKvBlock);
    }
  }
  for (int32_t i = 0; i < queries; ++i) FinishQuery<Isa>(args, state, i);
}

}  // namespace thermoe::kernels::cpu
