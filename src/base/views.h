// SPDX-License-Identifier: Apache-2.0
// Non-owning views of row-major matrices.
#pragma once

#include <cstdint>
#include <type_traits>

namespace thermoe {

template <typename T>
struct Rows {
  T* data = nullptr;  // [rows, cols] row-major, contiguous
  int64_t rows = 0;
  int64_t cols = 0;

  T* row(int64_t r) const { return data + r * cols; }
  int64_t size() const { return rows * cols; }
  operator Rows<const T>() const requires(!std::is_const_v<T>) { return {data, rows, cols}; }
};

using MutRows = Rows<float>;
using ConstRows = Rows<const float>;

}  // namespace thermoe
