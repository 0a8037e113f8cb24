// SPDX-License-Identifier: Apache-2.0
// An expert of random weights on the device, and what it makes of a row in double arithmetic.
#pragma once

#include <array>
#include <cmath>
#include <memory>
#include <vector>

#include "kernels/on_device.h"
#include "kernels/op_table.h"

namespace thermoe::cuda {

// Gate, up and down.
struct PackedExpert {
  PackedExpert(Random& random, DType type, int32_t hidden, int32_t width) {
    for (size_t i = 0; i < views.size(); ++i) {
      const int32_t rows = i < 2 ? width : hidden, cols = i < 2 ? hidden : width;
      matrices[i] = kernels::RandomMatrix(random, type, rows, cols);
      std::vector<std::byte> bytes(static_cast<size_t>(PackedBytes(type, rows, cols)));
      Pack(matrices[i]->view, bytes.data());
      packed[i] = std::make_unique<OnDevice<std::byte>>(bytes);
      views[i] = View(type, rows, cols, packed[i]->data());
    }
  }
  std::vector<double> Of(Planes planes, const std::vector<double>& x) const {
    std::vector<double> inner = Product(0, planes, x);
    const std::vector<double> up = Product(1, planes, x);
    for (size_t i = 0; i < inner.size(); ++i) inner[i] *= up[i] / (1 + std::exp(-inner[i]));
    return Product(2, planes, inner);
  }
  std::array<std::shared_ptr<kernels::Matrix>, 3> matrices;
  std::array<std::unique_ptr<OnDevice<std::byte>>, 3> packed;
  std::array<DeviceMatrix, 3> views;

 private:
  std::vector<double> Product(size_t matrix, Planes planes, const std::vector<double>& x) const {
    const std::vector<double>& values = matrices[matrix]->values(planes);
    std::vector<double> out(values.size() / x.size());
    for (size_t r = 0; r < out.size(); ++r) {
      for (size_t c = 0; c < x.size(); ++c) out[r] += values[r * x.size() + c] * x[c];
    }
    return out;
  }
};

}  // namespace thermoe::cuda
