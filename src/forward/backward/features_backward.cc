// SPDX-License-Identifier: Apache-2.0
// Feature alignment: first and second moments of activations pulled towards those of a calibration text (after Mirza et al.
// 2023, "ActMAD", arXiv 2211.12870, for the residual stream).
//
// loss = 1/L sum over layers of mean over channels of (m - mu)^2 / (v + e) + (sqrt(s + e) - sqrt(v + e))^2 / (v + e),
// m and s: mean and variance over the segment's tokens, mu and v: the stored ones, e = 1e-6.
#include <cmath>

#include "forward/backward/learn.h"

namespace thermoe {

void FeaturesBackward(Learning& learning, int32_t layer, ConstRows x, MutRows dx) {
  constexpr double kEpsilon = 1e-6;
  const FeatureStatistics& features = *learning.features;
  learning.loss_rows = 1;  // one loss for the whole segment
  const double share = 1.0 / (static_cast<double>(features.layers) * static_cast<double>(x.cols)), rows = static_cast<double>(x.rows);
  for (int64_t c = 0; c < x.cols; ++c) {
    const auto at = static_cast<size_t>(layer * x.cols + c);
    double mean = 0, variance = 0;
    for (int64_t t = 0; t < x.rows; ++t) mean += x.row(t)[c];
    mean /= rows;
    for (int64_t t = 0; t < x.rows; ++t) variance += (x.row(t)[c] - mean) * (x.row(t)[c] - mean);
    variance /= rows;
    const double norm = features.variance[at] + kEpsilon, stored = std::sqrt(norm), deviation = std::sqrt(variance + kEpsilon);
    const double off = mean - features.mean[at], wide = deviation - stored;
    learning.loss_nats += share * (off * off + wide * wide) / norm;
    const double dmean = 2 * share * off / norm / rows, dwide = 2 * share * wide / norm / deviation / rows;
    for (int64_t t = 0; t < x.rows; ++t) dx.row(t)[c] += static_cast<float>(dmean + dwide * (x.row(t)[c] - mean));
  }
}

}  // namespace thermoe
