// SPDX-License-Identifier: Apache-2.0
// Gradients of operations on single rows.
#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/select.h"

namespace thermoe::kernels::cpu {

void CpuOps::RmsNormBackward(const RmsNormBackwardArgs& args) const {
  const int64_t n = args.x.cols;
  THERMOE_CHECK(static_cast<int64_t>(args.gain.size()) == n && args.dy.rows == args.x.rows && args.dy.cols == n);
  THERMOE_CHECK(args.dx.rows == args.x.rows && args.dx.cols == n);
  ForEachRow(args.x.rows, n, [&](int64_t t) {
    kernels_->rms_norm_backward(args.x.row(t), args.gain.data(), args.dy.row(t), n, args.epsilon, args.dx.row(t));
  });
}

void CpuOps::ClampBackward(const ClampBackwardArgs& args) const {
  THERMOE_CHECK(args.x.rows == args.dx.rows && args.x.cols == args.dx.cols);
  ForEachRow(args.dx.rows, args.dx.cols, [&](int64_t t) {
    const float* x = args.x.row(t);
    float* dx = args.dx.row(t);
    for (int64_t i = 0; i < args.dx.cols; ++i) dx[i] = std::fabs(x[i]) > args.limit ? 0.0f : dx[i];
  });
}

void CpuOps::SwiGluBackward(const SwiGluBackwardArgs& args) const {
  const int64_t n = args.dout.cols;
  THERMOE_CHECK(args.gate.rows == args.dout.rows && args.gate.cols == n && args.up.rows == args.dout.rows &&
                args.up.cols == n);
  // An exp and a division cost about eight multiply-adds.
  ForEachRow(args.dout.rows, n * 8, [&](int64_t t) {
    kernels_->swiglu_backward(args.dout.row(t), 1.0f, n, args.gate.row(t), args.up.row(t));
  });
}

void CpuOps::AddBackward(const AddBackwardArgs& args) const {
  const int64_t n = args.x.cols;
  THERMOE_CHECK(args.gate.rows == args.x.rows && args.gate.cols == 1 && args.dgate.size() == args.gate.size());
  THERMOE_CHECK(args.dout.rows == args.x.rows && args.dout.cols == n && args.dx.rows == args.x.rows &&
                args.dx.cols == n);
  ForEach(args.x.rows, args.x.size() >= kForkElements, [&](int64_t t, int thread) {
    const float sigmoid = 1.0f / (1.0f + std::exp(-args.gate.row(t)[0]));
    const float *x = args.x.row(t), *dout = args.dout.row(t);
    float sum = 0;
    float* to = &sum;
    DotArgs dot;
    dot.weight = {Packing::kF32, 1, n, reinterpret_cast<const std::byte*>(x), n * 4, nullptr, 0};
    dot.x = &dout;
    dot.y = &to;
    dot.tokens = 1;
    dot.scratch = scratch(thread).dot.data();
    kernels_->dot(dot);
    args.dgate.row(t)[0] = sum * sigmoid * (1 - sigmoid);
    for (int64_t i = 0; i < n; ++i) args.dx.row(t)[i] = sigmoid * dout[i];
  });
}

void CpuOps::LossBackward(const LossBackwardArgs& args) const {
  const auto rows = static_cast<size_t>(args.logits.rows);
  const int64_t n = args.logits.cols;
  THERMOE_CHECK(args.targets.size() == rows && args.scale.size() == rows && args.loss.size() == rows);
  ForEachRow(args.logits.rows, n * 8, [&](int64_t row) {
    const auto t = static_cast<size_t>(row);
    const int32_t target = args.targets[t];
    if (target < 0) {
      std::fill_n(args.logits.row(row), n, 0.0f);
      args.loss[t] = 0;
      return;
    }
    const bool entropy = args.kind == LossKind::kEntropy;
    THERMOE_CHECK(entropy || target < n);
    args.loss[t] = kernels_->loss_backward(entropy ? -1 : target, args.scale[t], n, args.logits.row(row));
  });
}

// All tensors at once: many are small. Tiles are the same whatever the number of threads, and so is the order of their sums.
void CpuOps::Adam(std::span<const AdamArgs> tensors) const {
  constexpr int64_t kTile = 2048;  // the four arrays' are 32 KiB
  adam_tasks_.clear();
  int64_t values = 0;
  for (size_t tensor = 0; tensor < tensors.size(); ++tensor) {
    const AdamArgs& args = tensors[tensor];
    const auto n = static_cast<int64_t>(args.x.size());
    THERMOE_CHECK(args.gradient.size() == args.x.size() && args.m.size() == args.x.size() && args.v.size() == args.x.size());
    for (int64_t at = 0; at < n; at += kTile) {
      adam_tasks_.push_back({{args.gradient.data() + at, args.m.data() + at, args.v.data() + at, args.x.data() + at, std::min(kTile, n - at),
                              args.share, args.beta1, args.beta2, args.rate, args.square}, tensor});
    }
    values += n;
  }
  ForEach(static_cast<int64_t>(adam_tasks_.size()), 4 * values >= kForkElements, [&](int64_t index, int) {
    AdamTask& task = adam_tasks_[static_cast<size_t>(index)];
    task.sum = kernels_->adam_moments(task.tile);
    if (tensors[task.tensor].damping == 0) kernels_->adam_values(task.tile, tensors[task.tensor].epsilon);
  });
  for (size_t first = 0, end = 0; first < adam_tasks_.size(); first = end) {
    const AdamArgs& args = tensors[adam_tasks_[first].tensor];
    double sum = 0;
    for (end = first; end < adam_tasks_.size() && adam_tasks_[end].tensor == adam_tasks_[first].tensor; ++end) sum += adam_tasks_[end].sum;
    if (args.damping == 0) continue;
    const auto typical = static_cast<float>(std::sqrt(sum / static_cast<double>(args.x.size()) * args.square));
    for (size_t task = first; task < end; ++task) kernels_->adam_values(adam_tasks_[task].tile, args.epsilon + args.damping * typical);
  }
}

void CpuOps::SelectBackward(const SelectBackwardArgs& args) const {
  // An expert costs an exp in double and its share of a partial sort.
  ForEachRow(args.logits.rows, args.logits.cols * 64, [&](int64_t t) { SelectExpertsBackward(args, t, 1); });
}

}  // namespace thermoe::kernels::cpu
