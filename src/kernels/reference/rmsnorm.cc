// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "base/check.h"
#include "kernels/reference/reference.h"

namespace thermoe::kernels::reference {

void RmsNorm(const RmsNormArgs& args) {
  const int64_t n = args.x.cols;
  THERMOE_CHECK(static_cast<int64_t>(args.gain.size()) == n && args.out.rows == args.x.rows && args.out.cols == n);
  for (int64_t t = 0; t < args.x.rows; ++t) {
    const float* x = args.x.row(t);
    float* out = args.out.row(t);
    double squares = 0;
    for (int64_t i = 0; i < n; ++i) squares += static_cast<double>(x[i]) * x[i];
    const double scale = 1.0 / std::sqrt(squares / static_cast<double>(n) + args.epsilon);
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(x[i] * scale * args.gain[static_cast<size_t>(i)]);
  }
}

}  // namespace thermoe::kernels::reference
