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

// Rows of keep_gate and keep_up for a slot; null where it is not kept.
struct Kept {
  float* gate = nullptr;
  float* up = nullptr;
};
Kept KeptRows(const ExpertFfnArgs& args, int64_t slot) {
  const int64_t at = slot - args.keep_first * args.selection->slots;
  if (args.keep_gate.data == nullptr || at < 0 || at >= args.keep_rows * args.selection->slots) return {};
  return {args.keep_gate.row(at), args.keep_up.row(at)};
}

// One slot: inner = silu(gate x) * (up x), out = down inner; the matrices are read by `planes`.
void Slot(const FfnWeights& expert, Planes planes, const float* x, Kept kept, float* inner, float* out) {
  std::vector<float> w(static_cast<size_t>(expert.gate.cols));
  for (int64_t r = 0; r < expert.gate.rows; ++r) {
    DecodeRow(expert.gate, r, planes, w.data());
    const double gate = Dot(w, x);
    DecodeRow(expert.up, r, planes, w.data());
    const double up = Dot(w, x);
    inner[r] = static_cast<float>(gate / (1.0 + std::exp(-gate)) * up);
    if (kept.gate == nullptr) continue;
    kept.gate[r] = static_cast<float>(gate);
    kept.up[r] = static_cast<float>(up);
  }
  w.resize(static_cast<size_t>(expert.down.cols));
  for (int64_t r = 0; r < expert.down.rows; ++r) {
    DecodeRow(expert.down, r, planes, w.data());
    out[r] = static_cast<float>(Dot(w, inner));
  }
}

}  // namespace

void ExpertFfn(const ExpertFfnArgs& args) {
  const Selection& selection = *args.selection;
  THERMOE_CHECK(args.keep_gate.data == nullptr || (args.keep_gate.rows >= args.keep_rows * selection.slots &&
                                                   args.keep_up.size() == args.keep_gate.size()));
  for (int32_t j = 0; j < selection.job_count; ++j) {
    const Selection::Job& job = selection.jobs[static_cast<size_t>(j)];
    for (int32_t i = job.first; i < job.first + job.count; ++i) {
      const int32_t slot = selection.order[static_cast<size_t>(i)];
      Slot(args.experts[static_cast<size_t>(job.expert)], job.planes, args.x.row(slot / selection.slots),
           KeptRows(args, slot), args.inner.row(i), args.slot_out.row(slot));
    }
  }
  for (int64_t t = 0; t < args.x.rows; ++t) {
    float* out = args.out.row(t);
    for (int32_t k = 0; k < selection.slots && selection.expert.row(t)[k] >= 0; ++k) {
      const float weight = selection.weight.row(t)[k];
      const float* y = args.slot_out.row(t * selection.slots + k);
      for (int64_t i = 0; i < args.out.cols; ++i) out[i] += weight * y[i];
    }
  }
}

void SwiGlu(const SwiGluArgs& args) {
  THERMOE_CHECK(args.gate.size() == args.up.size() && args.out.size() == args.up.size());
  for (int64_t i = 0; i < args.out.size(); ++i) {
    const double gate = args.gate.data[i];
    args.out.data[i] = static_cast<float>(gate / (1.0 + std::exp(-gate)) * args.up.data[i]);
  }
}

void Add(const AddArgs& args) {
  THERMOE_CHECK(args.x.rows == args.out.rows && args.x.cols == args.out.cols);
  for (int64_t t = 0; t < args.out.rows; ++t) {
    float scale = 1;
    if (args.gate.data != nullptr) scale = static_cast<float>(1.0 / (1.0 + std::exp(-static_cast<double>(args.gate.row(t)[0]))));
    for (int64_t i = 0; i < args.out.cols; ++i) args.out.row(t)[i] += scale * args.x.row(t)[i];
  }
}

}  // namespace thermoe::kernels::reference
