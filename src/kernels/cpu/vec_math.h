// SPDX-License-Identifier: Apache-2.0
// exp for any Isa, lane by lane, so that a value does not depend on its place in a vector.
#pragma once

namespace thermoe::kernels::cpu {

// Within 2 ulp of e^x for normal results; gradual underflow to 0 below -103.98, +inf above 88.73, NaN for NaN.
// Cody and Waite's reduction x = n ln 2 + r, |r| <= ln 2 / 2, with ln 2 in two parts (the first has 10 bits, so that
// n * part is exact), then the degree-6 polynomial of Moshier's Cephes library (expf).
template <class Isa>
inline __attribute__((always_inline)) typename Isa::F Exp(typename Isa::F x) {
  using F = typename Isa::F;
  // The clamps put x second: Min and Max return their second operand where either is NaN.
  x = Isa::Max(Isa::Set(-105.0f), Isa::Min(Isa::Set(90.0f), x));
  // Adding and subtracting 1.5 * 2^23 rounds to a whole number.
  const F magic = Isa::Set(12582912.0f);
  const F n = Isa::Sub(Isa::Add(Isa::Mul(x, Isa::Set(1.44269504088896341f)), magic), magic);
  F r = Isa::Fma(n, Isa::Set(-0.693359375f), x);
  r = Isa::Fma(n, Isa::Set(2.12194440e-4f), r);
  F p = Isa::Set(1.9875691500e-4f);
  p = Isa::Fma(p, r, Isa::Set(1.3981999507e-3f));
  p = Isa::Fma(p, r, Isa::Set(8.3334519073e-3f));
  p = Isa::Fma(p, r, Isa::Set(4.1665795894e-2f));
  p = Isa::Fma(p, r, Isa::Set(1.6666665459e-1f));
  p = Isa::Fma(p, r, Isa::Set(5.0000001201e-1f));
  p = Isa::Fma(p, Isa::Mul(r, r), r);
  return Isa::Scale2(Isa::Add(p, Isa::Set(1.0f)), n);
}

}  // namespace thermoe::kernels::cpu
