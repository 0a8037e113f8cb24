// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace thermoe::cuda {

// What numbers are divided by again and again: shorter code than a division's.
struct Divisor {
  uint32_t by = 1, inverse = 0;
  Divisor() = default;
  __host__ __device__ explicit Divisor(uint32_t divisor) : by(divisor), inverse(UINT32_MAX / divisor) {}
  __device__ uint32_t Quotient(uint32_t of) const {
    const uint32_t close = __umulhi(of, inverse);  // it or, at most, one less
    return close + (of - close * by >= by ? 1 : 0);
  }
};

}  // namespace thermoe::cuda
