// SPDX-License-Identifier: Apache-2.0
// Four floats at a time, for the hardware adapter: plain arithmetic that every target has, so results are the same
// wherever it runs.
#pragma once

#include <cstdint>
#include <cstring>

namespace thermoe::ttha {

typedef float Lanes __attribute__((vector_size(16)));
typedef int32_t IntLanes __attribute__((vector_size(16)));
inline constexpr int kLanes = 4;

inline Lanes Load(const float* from) {
  Lanes lanes;
  std::memcpy(&lanes, from, sizeof(lanes));
  return lanes;
}
inline void Store(float* to, Lanes lanes) { std::memcpy(to, &lanes, sizeof(lanes)); }
inline Lanes Fill(float value) { return Lanes{value, value, value, value}; }
inline float Sum(Lanes lanes) { return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]); }
inline Lanes Choose(IntLanes mask, Lanes yes, Lanes no) {
  return reinterpret_cast<Lanes>((mask & reinterpret_cast<IntLanes>(yes)) | (~mask & reinterpret_cast<IntLanes>(no)));
}
inline Lanes Clamp(Lanes x, float low, float high) {
  x = Choose(x > Fill(low), x, Fill(low));
  return Choose(x < Fill(high), x, Fill(high));
}

// e^x to 2e-7 relative, x clamped to [-80, 80]: 2^n times a polynomial of the rest (Cephes expf).
inline Lanes Exp(Lanes x) {
  x = Clamp(x, -80.0f, 80.0f);
  const Lanes rounded =
      (x * 1.44269504f + 12582912.0f);  // 1.5 * 2^23: the sum's last bits are the nearest whole number
  const Lanes n = rounded - 12582912.0f;
  const Lanes r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Lanes p = Fill(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const IntLanes power = (__builtin_convertvector(n, IntLanes) + 127) << 23;
  return p * reinterpret_cast<Lanes>(power);
}

inline Lanes Sigmoid(Lanes x) { return 1.0f / (1.0f + Exp(-x)); }
inline Lanes Tanh(Lanes x) { return 1.0f - 2.0f / (1.0f + Exp(2.0f * x)); }

// x^n for n >= 0 by squaring.
inline Lanes Power(Lanes x, int32_t n) {
  Lanes result = Fill(1);
  for (; n > 0; n >>= 1) {
    if ((n & 1) != 0) result *= x;
    x *= x;
  }
  return result;
}

}  // namespace thermoe::ttha
