// SPDX-License-Identifier: Apache-2.0
#include <vector>

#include "base/check.h"
#include "kernels/reference/reference.h"

namespace thermoe::kernels::reference {

void LinearBackward(const LinearBackwardArgs& args) {
  const WeightMatrix& weight = args.weight;
  THERMOE_CHECK(args.dy.cols == weight.rows && args.dx.cols == weight.cols && args.dx.rows == args.dy.rows);
  std::vector<float> w(static_cast<size_t>(weight.cols));
  std::vector<double> sums(args.dx.data, args.dx.data + args.dx.size());
  for (int64_t r = 0; r < weight.rows; ++r) {
    DecodeRow(weight, r, Planes::kBoth, w.data());
    for (int64_t t = 0; t < args.dy.rows; ++t) {
      const double dy = args.dy.row(t)[r];
      double* sum = sums.data() + t * weight.cols;
      for (int64_t i = 0; i < weight.cols; ++i) sum[i] += dy * w[static_cast<size_t>(i)];
    }
  }
  for (int64_t i = 0; i < args.dx.size(); ++i) args.dx.data[i] = static_cast<float>(sums[static_cast<size_t>(i)]);
}

}  // namespace thermoe::kernels::reference
