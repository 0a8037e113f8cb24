// SPDX-License-Identifier: Apache-2.0
// Gradients of operations on single rows.
#include <cmath>

#include "base/check.h"
#include "kernels/reference/reference.h"

namespace thermoe::kernels::reference {

// With r = 1 / sqrt(mean(x^2) + epsilon): dx = r gain dy - x (r^3 / n) sum(x gain dy).
void RmsNormBackward(const RmsNormBackwardArgs& args) {
  const int64_t n = args.x.cols;
  THERMOE_CHECK(static_cast<int64_t>(args.gain.size()) == n && args.dy.rows == args.x.rows && args.dy.cols == n);
  THERMOE_CHECK(args.dx.rows == args.x.rows && args.dx.cols == n);
  for (int64_t t = 0; t < args.x.rows; ++t) {
    const float *x = args.x.row(t), *dy = args.dy.row(t);
    double squares = 0, along = 0;
    for (int64_t i = 0; i < n; ++i) {
      squares += static_cast<double>(x[i]) * x[i];
      along += static_cast<double>(x[i]) * args.gain[static_cast<size_t>(i)] * dy[i];
    }
    const double r = 1.0 / std::sqrt(squares / static_cast<double>(n) + args.epsilon);
    const double back = r * r * r * along / static_cast<double>(n);
    for (int64_t i = 0; i < n; ++i) {
      const double dx = r * args.gain[static_cast<size_t>(i)] * dy[i] - back * x[i];
      args.dx.row(t)[i] = static_cast<float>(args.dx.row(t)[i] + dx);
    }
  }
}

void ClampBackward(const ClampBackwardArgs& args) {
  THERMOE_CHECK(args.x.size() == args.dx.size());
  for (int64_t i = 0; i < args.dx.size(); ++i) {
    if (std::fabs(args.x.data[i]) > args.limit) args.dx.data[i] = 0;
  }
}

void SwiGluBackward(const SwiGluBackwardArgs& args) {
  THERMOE_CHECK(args.gate.size() == args.dout.size() && args.up.size() == args.dout.size());
  for (int64_t i = 0; i < args.dout.size(); ++i) {
    const double gate = args.gate.data[i], up = args.up.data[i], dout = args.dout.data[i];
    const double sigmoid = 1.0 / (1.0 + std::exp(-gate));
    args.gate.data[i] = static_cast<float>(dout * up * sigmoid * (1 + gate * (1 - sigmoid)));
    args.up.data[i] = static_cast<float>(dout * gate * sigmoid);
  }
}

void AddBackward(const AddBackwardArgs& args) {
  THERMOE_CHECK(args.gate.rows == args.x.rows && args.gate.cols == 1 && args.dgate.size() == args.gate.size());
  THERMOE_CHECK(args.dout.size() == args.x.size() && args.dx.size() == args.x.size());
  for (int64_t t = 0; t < args.x.rows; ++t) {
    const double sigmoid = 1.0 / (1.0 + std::exp(-static_cast<double>(args.gate.row(t)[0])));
    double sum = 0;
    for (int64_t i = 0; i < args.x.cols; ++i) {
      const double dout = args.dout.row(t)[i];
      sum += dout * args.x.row(t)[i];
      args.dx.row(t)[i] = static_cast<float>(sigmoid * dout);
    }
    args.dgate.row(t)[0] = static_cast<float>(sum * sigmoid * (1 - sigmoid));
  }
}

}  // namespace thermoe::kernels::reference
