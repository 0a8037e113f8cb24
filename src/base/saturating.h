// SPDX-License-Identifier: Apache-2.0
// Sizes of what is asked for, which may be far more than any machine has: sums and products that stop at the largest int64_t.
#pragma once

#include <concepts>
#include <cstdint>
#include <limits>

namespace thermoe {

// Of numbers that are not negative.
template <std::convertible_to<int64_t>... Numbers>
constexpr int64_t SaturatingProduct(Numbers... numbers) {
  int64_t product = 1;
  bool over = false, zero = false;
  const auto take = [&](int64_t number) {
    zero = zero || number == 0;
    over = __builtin_mul_overflow(product, number, &product) || over;
  };
  (take(numbers), ...);
  return zero ? 0 : over ? std::numeric_limits<int64_t>::max() : product;
}

template <std::convertible_to<int64_t>... Numbers>
constexpr int64_t SaturatingSum(Numbers... numbers) {
  int64_t sum = 0;
  bool over = false;
  ((over = __builtin_add_overflow(sum, static_cast<int64_t>(numbers), &sum) || over), ...);
  return over ? std::numeric_limits<int64_t>::max() : sum;
}

}  // namespace thermoe
