// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "kernels/select.h"

namespace thermoe::kernels {
namespace {

void Softmax(const float* logits, int64_t n, double* out) {
  const double most = *std::max_element(logits, logits + n);
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += out[i] = std::exp(logits[i] - most);
  for (int64_t i = 0; i < n; ++i) out[i] /= sum;
}

// The K best experts by score: what the plain model keeps, in falling order; ties go to the lower index.
void PlainSlots(const float* logits, int64_t experts, int32_t slots, int32_t* plain) {
  int32_t all[kMaxExperts];
  for (int32_t e = 0; e < experts; ++e) all[e] = e;
  std::partial_sort(all, all + slots, all + experts,
                    [&](int32_t a, int32_t b) { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); });
  std::copy_n(all, slots, plain);
}

// With scores s = softmax(z), kept mass m = sum of the kept s and plain mass M = sum of the K best:
// w = s / m where the model normalises, else s M / m. The sets stay as they are.
void SelectRowBackward(const SelectBackwardArgs& args, int64_t t) {
  const Selection& selection = *args.selection;
  const int64_t experts = args.logits.cols;
  const int32_t* expert = selection.expert.row(t);
  float* dlogits = args.dlogits.row(t);
  std::fill_n(dlogits, experts, 0.0f);
  int32_t kept = 0;
  while (kept < selection.slots && expert[kept] >= 0) ++kept;
  if (kept == 0) return;  // padding
  double scores[kMaxExperts], dscores[kMaxExperts] = {};
  Softmax(args.logits.row(t), experts, scores);
  double mass = 0, weighted = 0;  // sum of w dw
  for (int32_t k = 0; k < kept; ++k) {
    mass += scores[expert[k]];
    weighted += static_cast<double>(args.weight.row(t)[k]) * args.dweight.row(t)[k];
  }
  double slope = 1 / mass;  // dw / ds at fixed mass
  if (!args.options.normalise) {
    int32_t plain[kMaxSlots];
    PlainSlots(args.logits.row(t), experts, selection.slots, plain);
    double plain_mass = 0;
    for (int32_t k = 0; k < selection.slots; ++k) plain_mass += scores[plain[k]];
    for (int32_t k = 0; k < selection.slots; ++k) dscores[plain[k]] += weighted / plain_mass;
    slope = plain_mass / mass;
  }
  for (int32_t k = 0; k < kept; ++k) dscores[expert[k]] += slope * args.dweight.row(t)[k] - weighted / mass;
  double mean = 0;
  for (int64_t e = 0; e < experts; ++e) mean += scores[e] * dscores[e];
  for (int64_t e = 0; e < experts; ++e) dlogits[e] = static_cast<float>(scores[e] * (dscores[e] - mean));
}

}  // namespace

void SelectExpertsBackward(const SelectBackwardArgs& args, int64_t first, int64_t rows) {
  const int64_t tokens = args.logits.rows, experts = args.logits.cols;
  const Selection& selection = *args.selection;
  THERMOE_CHECK(experts <= kMaxExperts && selection.slots <= kMaxSlots && selection.slots <= experts);
  THERMOE_CHECK(selection.expert.rows == tokens && args.dlogits.rows == tokens && args.dlogits.cols == experts);
  THERMOE_CHECK(args.weight.rows == tokens && args.weight.cols == selection.slots &&
                args.dweight.size() == args.weight.size());
  for (int64_t t = first; t < first + rows; ++t) SelectRowBackward(args, t);
}

}  // namespace thermoe::kernels
