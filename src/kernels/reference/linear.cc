// SPDX-License-Identifier: Apache-2.0
#include <vector>

#include "base/check.h"
#include "kernels/reference/reference.h"

namespace thermoe::kernels::reference {

void Linear(const LinearArgs& args) {
  const WeightMatrix& weight = args.weight;
  THERMOE_CHECK(args.x.cols == weight.cols && args.out.cols == weight.rows && args.out.rows == args.x.rows);
  THERMOE_CHECK(args.bias.empty() || static_cast<int64_t>(args.bias.size()) == weight.rows);
  std::vector<float> w(static_cast<size_t>(weight.cols));
  for (int64_t r = 0; r < weight.rows; ++r) {
    DecodeRow(weight, r, Planes::kBoth, w.data());
    for (int64_t t = 0; t < args.x.rows; ++t) {
      const float* x = args.x.row(t);
      double sum = args.bias.empty() ? 0.0 : args.bias[static_cast<size_t>(r)];
      for (int64_t i = 0; i < weight.cols; ++i) sum += static_cast<double>(w[static_cast<size_t>(i)]) * x[i];
      args.out.row(t)[r] = static_cast<float>(sum);
    }
  }
}

}  // namespace thermoe::kernels::reference
