// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <vector>

#include "base/check.h"
#include "kernels/reference/reference.h"

namespace thermoe::kernels::reference {
namespace {

double Dot(const std::vector<float>& w, const float* x) {
  double sum = 0;
  for (size_t i = 0; i < w.size(); ++i) sum += static_cast<double>(w[i]) * x[i];
  return sum;
}

// dx[i] += sum over rows r of w[r, i] * dy[r]
void AddTransposed(const WeightMatrix& w, Planes planes, const float* dy, std::vector<double>* dx) {
  std::vector<float> row(static_cast<size_t>(w.cols));
  for (int64_t r = 0; r < w.rows; ++r) {
    DecodeRow(w, r, planes, row.data());
    for (size_t i = 0; i < row.size(); ++i) (*dx)[i] += static_cast<double>(dy[r]) * row[i];
  }
}

// With a = silu(gate) up and da = down^T dout: dweight = a . da, and weight da goes on through SwiGLU, gate and up.
void SlotBackward(const ExpertFfnBackwardArgs& args, const Selection::Job& job, int32_t slot) {
  const Selection& selection = *args.selection;
  const FfnWeights& expert = args.experts[static_cast<size_t>(job.expert)];
  float *gate = args.gate.row(slot), *up = args.up.row(slot);
  std::vector<double> da(static_cast<size_t>(args.gate.cols));
  AddTransposed(expert.down, job.planes, args.dout.row(slot / selection.slots), &da);
  double dweight = 0;
  const double weight = selection.weight.data[slot];
  for (size_t i = 0; i < da.size(); ++i) {
    const double g = gate[i], u = up[i], sigmoid = 1.0 / (1.0 + std::exp(-g));
    dweight += g * sigmoid * u * da[i];
    gate[i] = static_cast<float>(weight * da[i] * u * sigmoid * (1 + g * (1 - sigmoid)));
    up[i] = static_cast<float>(weight * da[i] * g * sigmoid);
  }
  args.dweight.data[slot] = static_cast<float>(dweight);
  std::vector<double> dx(static_cast<size_t>(args.slot_dx.cols));
  AddTransposed(expert.gate, job.planes, gate, &dx);
  AddTransposed(expert.up, job.planes, up, &dx);
  for (size_t i = 0; i < dx.size(); ++i) args.slot_dx.row(slot)[i] = static_cast<float>(dx[i]);
}

}  // namespace

void ExpertInner(const ExpertInnerArgs& args) {
  const Selection& selection = *args.selection;
  std::vector<float> w(static_cast<size_t>(args.x.cols));
  for (int32_t j = 0; j < selection.job_count; ++j) {
    const Selection::Job& job = selection.jobs[static_cast<size_t>(j)];
    const FfnWeights& expert = args.experts[static_cast<size_t>(job.expert)];
    for (int32_t i = job.first; i < job.first + job.count; ++i) {
      const int32_t slot = selection.order[static_cast<size_t>(i)];
      const float* x = args.x.row(slot / selection.slots);
      for (int64_t r = 0; r < args.gate.cols; ++r) {
        DecodeRow(expert.gate, r, job.planes, w.data());
        args.gate.row(slot)[r] = static_cast<float>(Dot(w, x));
        DecodeRow(expert.up, r, job.planes, w.data());
        args.up.row(slot)[r] = static_cast<float>(Dot(w, x));
      }
    }
  }
}

void ExpertFfnBackward(const ExpertFfnBackwardArgs& args) {
  const Selection& selection = *args.selection;
  for (int64_t i = 0; i < args.dweight.size(); ++i) args.dweight.data[i] = 0;
  for (int32_t j = 0; j < selection.job_count; ++j) {
    const Selection::Job& job = selection.jobs[static_cast<size_t>(j)];
    for (int32_t i = job.first; i < job.first + job.count; ++i) {
      SlotBackward(args, job, selection.order[static_cast<size_t>(i)]);
    }
  }
  for (int64_t t = 0; t < args.dx.rows; ++t) {
    float* dx = args.dx.row(t);
    for (int32_t k = 0; k < selection.slots && selection.expert.row(t)[k] >= 0; ++k) {
      const float* slot = args.slot_dx.row(t * selection.slots + k);
      for (int64_t i = 0; i < args.dx.cols; ++i) dx[i] += slot[i];
    }
  }
}

}  // namespace thermoe::kernels::reference
