// SPDX-License-Identifier: Apache-2.0
// Gradients of operations on single rows, for any Isa.
#pragma once

#include <cstdint>

#include "kernels/cpu/rows.h"
#include "kernels/cpu/vec_math.h"

namespace thermoe::kernels::cpu {

template <class Isa>
void RmsNormBackwardRow(const float* x, const float* gain, const float* dy, int64_t n, float epsilon, float* dx) {
  using F = typename Isa::F;
  constexpr int64_t kWidth = Isa::kWidth;
  const auto count = static_cast<float>(n);
  const float r = 1.0f / __builtin_sqrtf(SumOfSquares<Isa>(x, n) / count + epsilon);
  F along = Isa::Zero();
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    along = Isa::Fma(Isa::Mul(Isa::Load(x + i), Isa::Load(gain + i)), Isa::Load(dy + i), along);
  }
  if (i < n) {
    const int64_t left = n - i;
    along = Isa::Fma(Isa::Mul(Isa::LoadPart(x + i, left), Isa::LoadPart(gain + i, left)), Isa::LoadPart(dy + i, left),
                     along);
  }
  const F forth = Isa::Set(r), back = Isa::Set(-r * r * r * (Isa::Sum(along) / count));
  const auto lanes = [&](F xv, F gv, F dv, F before) {
    return Isa::Fma(Isa::Mul(forth, gv), dv, Isa::Fma(back, xv, before));
  };
  for (i = 0; i + kWidth <= n; i += kWidth) {
    Isa::Store(dx + i, lanes(Isa::Load(x + i), Isa::Load(gain + i), Isa::Load(dy + i), Isa::Load(dx + i)));
  }
  if (i < n) {
    const int64_t left = n - i;
    Isa::StorePart(dx + i,
                   lanes(Isa::LoadPart(x + i, left), Isa::LoadPart(gain + i, left), Isa::LoadPart(dy + i, left),
                         Isa::LoadPart(dx + i, left)),
                   left);
  }
}

// With s = sigmoid(gate): gate' = scale dout up s (1 + gate (1 - s)), up' = scale dout gate s.
template <class Isa>
float SwiGluBackwardRow(const float* dout, float scale, int64_t n, float* gate, float* up) {
  using F = typename Isa::F;
  constexpr int64_t kWidth = Isa::kWidth;
  const F one = Isa::Set(1.0f), factor = Isa::Set(scale);
  F along = Isa::Zero();
  const auto lanes = [&](F g, F u, F d, F* dgate, F* dup) {
    const F s = Isa::Div(one, Isa::Add(one, Exp<Isa>(Isa::Sub(Isa::Zero(), g))));
    const F silu = Isa::Mul(g, s), scaled = Isa::Mul(factor, d);
    along = Isa::Fma(Isa::Mul(silu, u), d, along);
    *dgate = Isa::Mul(Isa::Mul(scaled, u), Isa::Fma(silu, Isa::Sub(one, s), s));
    *dup = Isa::Mul(scaled, silu);
  };
  F dgate, dup;
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    lanes(Isa::Load(gate + i), Isa::Load(up + i), Isa::Load(dout + i), &dgate, &dup);
    Isa::Store(gate + i, dgate);
    Isa::Store(up + i, dup);
  }
  if (i < n) {
    const int64_t left = n - i;
    lanes(Isa::LoadPart(gate + i, left), Isa::LoadPart(up + i, left), Isa::LoadPart(dout + i, left), &dgate, &dup);
    Isa::StorePart(gate + i, dgate, left);
    Isa::StorePart(up + i, dup, left);
  }
  return Isa::Sum(along);
}

// Lanes past the end of a row count as the smallest float: their exponentials are 0.
template <class Isa>
inline __attribute__((always_inline)) typename Isa::F LoadLogits(const float* x, int64_t left) {
  if (left >= Isa::kWidth) return Isa::Load(x);
  float lanes[Isa::kWidth];
  for (int64_t i = 0; i < Isa::kWidth; ++i) lanes[i] = i < left ? x[i] : -3.4e38f;
  return Isa::Load(lanes);
}
template <class Isa>
inline __attribute__((always_inline)) void StoreLogits(float* x, typename Isa::F a, int64_t left) {
  if (left >= Isa::kWidth) {
    Isa::Store(x, a);
  } else {
    Isa::StorePart(x, a, left);
  }
}

template <class Isa>
float LargestOf(const float* x, int64_t n) {
  typename Isa::F most = LoadLogits<Isa>(x, n);
  for (int64_t i = Isa::kWidth; i < n; i += Isa::kWidth) most = Isa::Max(LoadLogits<Isa>(x + i, n - i), most);
  return Isa::Largest(most);
}

// With e = exp(z - largest), E = sum e, log p = z - largest - log E: the gradient is scale (e / E - [target]), or for
// the entropy H = log E - sum e (z - largest) / E scale times -(e / E) (log p + H).
template <class Isa>
float LossBackwardRow(int64_t target, float scale, int64_t n, float* logits) {
  using F = typename Isa::F;
  constexpr int64_t kWidth = Isa::kWidth;
  const float largest = LargestOf<Isa>(logits, n);
  const float target_logit = target < 0 ? 0.0f : logits[target];
  const F most = Isa::Set(largest);
  F total = Isa::Zero(), weighted = Isa::Zero();
  for (int64_t i = 0; i < n; i += kWidth) {
    const F z = Isa::Sub(LoadLogits<Isa>(logits + i, n - i), most), e = Exp<Isa>(z);
    total = Isa::Add(total, e);
    if (target < 0) {
      // Where the exponential is 0 the logit may be infinite.
      weighted = Isa::Fma(e, Isa::Max(Isa::Set(-105.0f), z), weighted);
    } else {
      StoreLogits<Isa>(logits + i, e, n - i);
    }
  }
  const float sum = Isa::Sum(total), log_sum = __builtin_logf(sum);
  if (target >= 0) {
    const F factor = Isa::Set(scale / sum);
    for (int64_t i = 0; i < n; i += kWidth) {
      StoreLogits<Isa>(logits + i, Isa::Mul(LoadLogits<Isa>(logits + i, n - i), factor), n - i);
    }
    logits[target] -= scale;
    return log_sum - (target_logit - largest);
  }
  const float mean = Isa::Sum(weighted) / sum;  // of z - largest
  const F factor = Isa::Set(-scale / sum);
  for (int64_t i = 0; i < n; i += kWidth) {  // log p + H = z - largest - mean
    const F z = Isa::Sub(LoadLogits<Isa>(logits + i, n - i), most);
    const F apart = Isa::Sub(Isa::Max(Isa::Set(-105.0f), z), Isa::Set(mean));
    StoreLogits<Isa>(logits + i, Isa::Mul(Isa::Mul(factor, Exp<Isa>(z)), apart), n - i);
  }
  return log_sum - mean;
}

template <class Isa>
void SoftmaxBackwardRow(float* scores, float* dp, int64_t n, float scale, float along) {
  using F = typename Isa::F;
  constexpr int64_t kWidth = Isa::kWidth;
  const float largest = LargestOf<Isa>(scores, n);
  const F most = Isa::Set(largest), factor = Isa::Set(scale);
  F total = Isa::Zero();
  for (int64_t i = 0; i < n; i += kWidth) {
    const F e = Exp<Isa>(Isa::Mul(Isa::Sub(LoadLogits<Isa>(scores + i, n - i), most), factor));
    total = Isa::Add(total, e);
    StoreLogits<Isa>(scores + i, e, n - i);
  }
  const F share = Isa::Set(1.0f / Isa::Sum(total)), middle = Isa::Set(along);
  for (int64_t i = 0; i < n; i += kWidth) {
    const int64_t left = n - i;
    const F p = Isa::Mul(LoadLogits<Isa>(scores + i, left), share);
    const F ds = Isa::Mul(Isa::Mul(p, factor), Isa::Sub(LoadLogits<Isa>(dp + i, left), middle));
    StoreLogits<Isa>(scores + i, p, left);
    StoreLogits<Isa>(dp + i, ds, left);
  }
}

template <class Isa>
float AdamMoments(const AdamTile& tile) {
  using F = typename Isa::F;
  const F share = Isa::Set(tile.share), beta1 = Isa::Set(tile.beta1), beta2 = Isa::Set(tile.beta2);
  const F rest1 = Isa::Set(1 - tile.beta1), rest2 = Isa::Set(1 - tile.beta2);
  F total = Isa::Zero();
  const auto lanes = [&](F g, F* m, F* v) {
    g = Isa::Mul(g, share);
    *m = Isa::Fma(beta1, *m, Isa::Mul(rest1, g));
    *v = Isa::Fma(beta2, *v, Isa::Mul(Isa::Mul(rest2, g), g));
    total = Isa::Add(total, *v);
  };
  int64_t i = 0;
  for (; i + Isa::kWidth <= tile.n; i += Isa::kWidth) {
    F m = Isa::Load(tile.m + i), v = Isa::Load(tile.v + i);
    lanes(Isa::Load(tile.gradient + i), &m, &v);
    Isa::Store(tile.m + i, m);
    Isa::Store(tile.v + i, v);
  }
  if (const int64_t left = tile.n - i; left > 0) {
    F m = Isa::LoadPart(tile.m + i, left), v = Isa::LoadPart(tile.v + i, left);
    lanes(Isa::LoadPart(tile.gradient + i, left), &m, &v);
    Isa::StorePart(tile.m + i, m, left);
    Isa::StorePart(tile.v + i, v, left);
  }
  return Isa::Sum(total);
}

template <class Isa>
void AdamValues(const AdamTile& tile, float floor) {
  using F = typename Isa::F;
  const F square = Isa::Set(tile.square), least = Isa::Set(floor), rate = Isa::Set(tile.rate);
  const auto lanes = [&](F m, F v, F x) {
    const F width = Isa::Add(Isa::Sqrt(Isa::Mul(v, square)), least);
    return Isa::Sub(x, Isa::Div(Isa::Mul(rate, m), width));
  };
  int64_t i = 0;
  for (; i + Isa::kWidth <= tile.n; i += Isa::kWidth) {
    Isa::Store(tile.x + i, lanes(Isa::Load(tile.m + i), Isa::Load(tile.v + i), Isa::Load(tile.x + i)));
  }
  if (const int64_t left = tile.n - i; left > 0) {
    Isa::StorePart(tile.x + i,
                   lanes(Isa::LoadPart(tile.m + i, left), Isa::LoadPart(tile.v + i, left), Isa::LoadPart(tile.x + i, left)),
                   left);
  }
}

}  // namespace thermoe::kernels::cpu
