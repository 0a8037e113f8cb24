// SPDX-License-Identifier: Apache-2.0
// Operations on single rows, for any Isa: norm, SwiGLU, sums, rope.
#pragma once

#include <cstdint>

#include "kernels/cpu/vec_math.h"

namespace thermoe::kernels::cpu {

// Four accumulators hide the FMA's latency; they are merged in a fixed order, so the result depends on n alone.
template <class Isa>
float SumOfSquares(const float* x, int64_t n) {
  using F = typename Isa::F;
  constexpr int64_t kWidth = Isa::kWidth;
  F a = Isa::Zero(), b = Isa::Zero(), c = Isa::Zero(), d = Isa::Zero();
  int64_t i = 0;
  for (; i + 4 * kWidth <= n; i += 4 * kWidth) {
    const F x0 = Isa::Load(x + i), x1 = Isa::Load(x + i + kWidth);
    const F x2 = Isa::Load(x + i + 2 * kWidth), x3 = Isa::Load(x + i + 3 * kWidth);
    a = Isa::Fma(x0, x0, a);
    b = Isa::Fma(x1, x1, b);
    c = Isa::Fma(x2, x2, c);
    d = Isa::Fma(x3, x3, d);
  }
  for (; i + kWidth <= n; i += kWidth) {
    const F x0 = Isa::Load(x + i);
    a = Isa::Fma(x0, x0, a);
  }
  if (i < n) {
    const F x0 = Isa::LoadPart(x + i, n - i);
    b = Isa::Fma(x0, x0, b);
  }
  return Isa::Sum(Isa::Add(Isa::Add(a, b), Isa::Add(c, d)));
}

template <class Isa>
void RmsNormRow(const float* x, const float* gain, int64_t n, float epsilon, float* out) {
  using F = typename Isa::F;
  constexpr int64_t kWidth = Isa::kWidth;
  const float mean = SumOfSquares<Isa>(x, n) / static_cast<float>(n);
  const F scale = Isa::Set(1.0f / __builtin_sqrtf(mean + epsilon));
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    Isa::Store(out + i, Isa::Mul(Isa::Mul(Isa::Load(x + i), scale), Isa::Load(gain + i)));
  }
  if (i < n) {
    const F scaled = Isa::Mul(Isa::LoadPart(x + i, n - i), scale);
    Isa::StorePart(out + i, Isa::Mul(scaled, Isa::LoadPart(gain + i, n - i)), n - i);
  }
}

template <class Isa>
inline __attribute__((always_inline)) typename Isa::F SwiGluLanes(typename Isa::F gate, typename Isa::F up) {
  const typename Isa::F e = Exp<Isa>(Isa::Sub(Isa::Zero(), gate));
  return Isa::Mul(Isa::Div(gate, Isa::Add(Isa::Set(1.0f), e)), up);
}

template <class Isa>
void SwiGluRow(const float* gate, const float* up, int64_t n, float* out) {
  constexpr int64_t kWidth = Isa::kWidth;
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) Isa::Store(out + i, SwiGluLanes<Isa>(Isa::Load(gate + i), Isa::Load(up + i)));
  if (i < n) {
    Isa::StorePart(out + i, SwiGluLanes<Isa>(Isa::LoadPart(gate + i, n - i), Isa::LoadPart(up + i, n - i)), n - i);
  }
}

template <class Isa>
void AddScaledRow(const float* x, float scale, int64_t n, float* out) {
  constexpr int64_t kWidth = Isa::kWidth;
  const typename Isa::F s = Isa::Set(scale);
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) Isa::Store(out + i, Isa::Fma(s, Isa::Load(x + i), Isa::Load(out + i)));
  if (i < n) Isa::StorePart(out + i, Isa::Fma(s, Isa::LoadPart(x + i, n - i), Isa::LoadPart(out + i, n - i)), n - i);
}

template <class Isa>
void AddWeightedRows(const float* const* x, const float* weight, int32_t count, int64_t n, float* out) {
  using F = typename Isa::F;
  constexpr int64_t kWidth = Isa::kWidth;
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    F sum = Isa::Zero();
    for (int32_t s = 0; s < count; ++s) sum = Isa::Fma(Isa::Set(weight[s]), Isa::Load(x[s] + i), sum);
    Isa::Store(out + i, Isa::Add(Isa::Load(out + i), sum));
  }
  if (i == n) return;
  F sum = Isa::Zero();
  for (int32_t s = 0; s < count; ++s) sum = Isa::Fma(Isa::Set(weight[s]), Isa::LoadPart(x[s] + i, n - i), sum);
  Isa::StorePart(out + i, Isa::Add(Isa::LoadPart(out + i, n - i), sum), n - i);
}

// Plain loops: each product and sum is rounded once (no contraction), so the compiler's choice of vectors is free.
template <class Isa>
void RopeRow(float* x, int32_t heads, int32_t head_dim, int32_t rope_dim, bool halves, const float* cosines,
             const float* sines) {
  const int32_t half = rope_dim / 2;
  for (int32_t h = 0; h < heads; ++h) {
    float* head = x + static_cast<int64_t>(h) * head_dim;
    if (halves) {
      for (int32_t i = 0; i < half; ++i) {
        const float a = head[i], b = head[i + half];
        head[i] = a * cosines[i] - b * sines[i];
        head[i + half] = b * cosines[i] + a * sines[i];
      }
    } else {
      for (int32_t i = 0; i < half; ++i) {
        const float a = head[2 * i], b = head[2 * i + 1];
        head[2 * i] = a * cosines[i] - b * sines[i];
        head[2 * i + 1] = b * cosines[i] + a * sines[i];
      }
    }
  }
}

}  // namespace thermoe::kernels::cpu
