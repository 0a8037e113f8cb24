// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "kernels/reference/reference.h"

namespace thermoe::kernels::reference {
namespace {

// With p = softmax(z), H = -sum p log p: d(-log p[target]) / dz = p - [target], dH / dz = -p (log p + H).
float LossOfRow(LossKind kind, int32_t target, double scale, float* z, int64_t n) {
  const double most = *std::max_element(z, z + n);
  double total = 0;
  for (int64_t i = 0; i < n; ++i) total += std::exp(z[i] - most);
  const double log_total = most + std::log(total);
  const auto log_p = [&](int64_t i) { return z[i] - log_total; };
  double loss = 0;
  if (kind == LossKind::kNll) {
    loss = -log_p(target);
    for (int64_t i = 0; i < n; ++i) z[i] = static_cast<float>(scale * (std::exp(log_p(i)) - (i == target ? 1 : 0)));
  } else {
    for (int64_t i = 0; i < n; ++i) loss -= std::exp(log_p(i)) * log_p(i);
    for (int64_t i = 0; i < n; ++i) z[i] = static_cast<float>(-scale * std::exp(log_p(i)) * (log_p(i) + loss));
  }
  return static_cast<float>(loss);
}

}  // namespace

void LossBackward(const LossBackwardArgs& args) {
  const auto rows = static_cast<size_t>(args.logits.rows);
  THERMOE_CHECK(args.targets.size() == rows && args.scale.size() == rows && args.loss.size() == rows);
  for (size_t t = 0; t < rows; ++t) {
    float* z = args.logits.row(static_cast<int64_t>(t));
    const int32_t target = args.targets[t];
    if (target < 0) {
      std::fill_n(z, args.logits.cols, 0.0f);
      args.loss[t] = 0;
      continue;
    }
    THERMOE_CHECK(target < args.logits.cols || args.kind != LossKind::kNll);
    args.loss[t] = LossOfRow(args.kind, target, args.scale[t], z, args.logits.cols);
  }
}

}  // namespace thermoe::kernels::reference
