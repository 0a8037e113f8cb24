// SPDX-License-Identifier: Apache-2.0
// A session's deltas in the forward pass, and their gradients.
#include <algorithm>
#include <cmath>
#include <vector>

#include "base/check.h"
#include "kernels/reference/reference.h"

namespace thermoe::kernels::reference {
namespace {

// out[t, j] = sum over i of x[t, i] * w[i, j], or where `transposed` of x[t, i] * w[j, i]; added where `add`.
void Product(ConstRows x, ConstRows w, bool transposed, bool add, MutRows out) {
  THERMOE_CHECK(x.rows == out.rows && x.cols == (transposed ? w.cols : w.rows));
  THERMOE_CHECK(out.cols == (transposed ? w.rows : w.cols));
  for (int64_t t = 0; t < out.rows; ++t) {
    for (int64_t j = 0; j < out.cols; ++j) {
      double sum = add ? out.row(t)[j] : 0.0;
      for (int64_t i = 0; i < x.cols; ++i) {
        sum += static_cast<double>(x.row(t)[i]) * (transposed ? w.row(j)[i] : w.row(i)[j]);
      }
      out.row(t)[j] = static_cast<float>(sum);
    }
  }
}

// out[i, j] += sum over rows t of x[t, i] * y[t, j]
void AddOuter(ConstRows x, ConstRows y, MutRows out) {
  THERMOE_CHECK(x.rows == y.rows && out.rows == x.cols && out.cols == y.cols);
  for (int64_t i = 0; i < out.rows; ++i) {
    for (int64_t j = 0; j < out.cols; ++j) {
      double sum = out.row(i)[j];
      for (int64_t t = 0; t < x.rows; ++t) sum += static_cast<double>(x.row(t)[i]) * y.row(t)[j];
      out.row(i)[j] = static_cast<float>(sum);
    }
  }
}

}  // namespace

void AddRow(const AddRowArgs& args) {
  THERMOE_CHECK(static_cast<int64_t>(args.x.size()) == args.out.cols);
  for (int64_t t = 0; t < args.out.rows; ++t) {
    for (int64_t i = 0; i < args.out.cols; ++i) args.out.row(t)[i] += args.x[static_cast<size_t>(i)];
  }
}

void Gain(const GainArgs& args) {
  THERMOE_CHECK(static_cast<int64_t>(args.gain.size()) == args.x.cols);
  for (int64_t t = 0; t < args.x.rows; ++t) {
    for (int64_t i = 0; i < args.x.cols; ++i) args.x.row(t)[i] *= 1 + args.gain[static_cast<size_t>(i)];
  }
}

void LowRank(const LowRankArgs& args) {
  THERMOE_CHECK(args.a.rows <= kMaxRank && args.b.rows == args.a.rows);
  Product(args.x, args.a, true, false, args.inner);
  Product(args.inner, args.b, false, true, args.out);
}

void ScaleSlots(const ScaleSlotsArgs& args) {
  THERMOE_CHECK(args.weight.rows == args.expert.rows && args.weight.cols == args.expert.cols);
  for (int64_t at = 0; at < args.weight.size(); ++at) {
    const int32_t e = args.expert.data[at];
    if (e < 0) continue;
    args.weight.data[at] = static_cast<float>(args.weight.data[at] *
                                              std::exp(static_cast<double>(args.log_scale[static_cast<size_t>(e)])));
  }
}

void Adam(const AdamArgs& args) {
  const size_t n = args.x.size();
  THERMOE_CHECK(args.gradient.size() == n && args.m.size() == n && args.v.size() == n);
  double sum = 0;
  for (size_t i = 0; i < n; ++i) {
    const double g = static_cast<double>(args.gradient[i]) * args.share;
    args.m[i] = static_cast<float>(args.m[i] + (1.0 - args.beta1) * (g - args.m[i]));
    args.v[i] = static_cast<float>(args.v[i] + (1.0 - args.beta2) * (g * g - args.v[i]));
    sum += args.v[i];
  }
  const double floor = args.epsilon + args.damping * std::sqrt(sum / static_cast<double>(n) * args.square);
  for (size_t i = 0; i < n; ++i) {
    args.x[i] = static_cast<float>(args.x[i] - args.rate * args.m[i] / (std::sqrt(static_cast<double>(args.v[i]) * args.square) + floor));
  }
}

void RowChange(const RowChangeArgs& args) {
  THERMOE_CHECK(args.old.rows == args.x.rows && args.old.cols == args.x.cols && static_cast<int64_t>(args.change.size()) == args.x.rows);
  for (int64_t t = 0; t < args.x.rows; ++t) {
    double moved = 0, length = 1e-30;
    for (int64_t i = 0; i < args.x.cols; ++i) {
      const double old = args.old.row(t)[i], step = args.x.row(t)[i] - old;
      moved += step * step;
      length += old * old;
    }
    args.change[static_cast<size_t>(t)] = static_cast<float>(moved / length);
  }
}

void GainBackward(const GainBackwardArgs& args) {
  const int64_t n = args.dy.cols;
  THERMOE_CHECK(args.x.rows == args.dy.rows && args.x.cols == n);
  THERMOE_CHECK(args.gain.empty() || static_cast<int64_t>(args.gain.size()) == n);
  THERMOE_CHECK(args.dgain.empty() || static_cast<int64_t>(args.dgain.size()) == n);
  for (int64_t i = 0; i < n && !args.dgain.empty(); ++i) {
    double sum = args.dgain[static_cast<size_t>(i)];
    for (int64_t t = 0; t < args.dy.rows; ++t) sum += static_cast<double>(args.x.row(t)[i]) * args.dy.row(t)[i];
    args.dgain[static_cast<size_t>(i)] = static_cast<float>(sum);
  }
  if (!args.gain.empty()) Gain({args.gain, args.dy});
}

void SumRows(const SumRowsArgs& args) {
  THERMOE_CHECK(static_cast<int64_t>(args.out.size()) == args.x.cols);
  for (int64_t i = 0; i < args.x.cols; ++i) {
    double sum = args.out[static_cast<size_t>(i)];
    for (int64_t t = 0; t < args.x.rows; ++t) sum += args.x.row(t)[i];
    args.out[static_cast<size_t>(i)] = static_cast<float>(sum);
  }
}

void LowRankBackward(const LowRankBackwardArgs& args) {
  THERMOE_CHECK(args.a.rows <= kMaxRank && args.b.rows == args.a.rows);
  AddOuter(args.inner, args.dy, args.db);
  Product(args.dy, args.b, true, false, args.dinner);
  AddOuter(args.dinner, args.x, args.da);
  if (args.dx.data != nullptr) Product(args.dinner, args.a, false, true, args.dx);
}

void ScaleSlotsBackward(const ScaleSlotsBackwardArgs& args) {
  THERMOE_CHECK(args.weight.rows == args.expert.rows && args.weight.cols == args.expert.cols);
  THERMOE_CHECK(args.dweight.size() == args.weight.size() && args.dlog_scale.size() == args.log_scale.size());
  std::vector<double> sums(args.dlog_scale.begin(), args.dlog_scale.end());
  for (int64_t at = 0; at < args.dweight.size(); ++at) {
    const int32_t e = args.expert.data[at];
    if (e < 0) continue;
    const double scaled = args.dweight.data[at] * std::exp(static_cast<double>(args.log_scale[static_cast<size_t>(e)]));
    sums[static_cast<size_t>(e)] += scaled * args.weight.data[at];
    args.dweight.data[at] = static_cast<float>(scaled);
  }
  std::transform(sums.begin(), sums.end(), args.dlog_scale.begin(), [](double sum) { return static_cast<float>(sum); });
}

}  // namespace thermoe::kernels::reference
