// SPDX-License-Identifier: Apache-2.0
#include "engine/delta_scale.h"

#include <algorithm>
#include <cmath>

namespace thermoe {
namespace {

// How much faster deltas shrink that have overshot so far, all in all: no text should end worse than the plain model.
constexpr double kHaste = 2;

// In lanes that a compiler may put side by side, always added up in the same order.
double Dot(std::span<const float> a, std::span<const float> b) {
  constexpr size_t kLanes = 8;
  std::array<double, kLanes> sums = {};
  size_t i = 0;
  for (; i + kLanes <= a.size(); i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) sums[lane] += static_cast<double>(a[i + lane]) * b[i + lane];
  }
  for (; i < a.size(); ++i) sums[0] += static_cast<double>(a[i]) * b[i];
  double sum = 0;
  for (const double each : sums) sum += each;
  return sum;
}

void Multiply(std::span<float> values, double by) {
  const auto factor = static_cast<float>(by);
  for (float& value : values) value *= factor;
}

// A of the low-rank groups is no change by itself: B alone is scaled.
template <typename Visitor>
void VisitScaled(const DeltaLayout& layout, const DeltaScope& scope, const Visitor& visit) {
  for (const DeltaTensor& tensor : layout.tensors()) {
    if (!scope.Includes(tensor) || tensor.part == DeltaPart::kA) continue;
    visit(tensor, static_cast<size_t>(tensor.offset), static_cast<size_t>(tensor.size()));
  }
}

}  // namespace

size_t DeltaScale::PartOf(const DeltaTensor& tensor) const {
  if (!HasLayers(tensor.group)) return 0;
  return tensor.layer >= first_last_layer_ ? 1 : 2;
}

double DeltaScale::scale(size_t part) const { return std::exp(parts_[part].log_scale); }

void DeltaScale::Begin(const DeltaLayout& layout, const DeltaScope& scope, std::span<const float> gradient,
                       std::span<float> values) {
  if (!learns()) return;
  std::array<double, kParts> slope_nats = {}, undo;
  VisitScaled(layout, scope, [&](const DeltaTensor& tensor, size_t at, size_t size) {
    slope_nats[PartOf(tensor)] += Dot(gradient.subspan(at, size), values.subspan(at, size));
  });
  for (size_t index = 0; index < kParts; ++index) {
    Part& part = parts_[index];
    undo[index] = 1 / scale(index);
    if (!std::isfinite(slope_nats[index])) continue;
    part.squares += slope_nats[index] * slope_nats[index];
    part.sum += slope_nats[index];
    const double haste = part.sum > 0 && slope_nats[index] > 0 ? kHaste : 1;
    const double step = haste * rate_ * slope_nats[index] / std::sqrt(1 + part.squares);
    part.log_scale = std::clamp(part.log_scale - step, std::log(kLeast), std::log(kMost));
  }
  VisitScaled(layout, scope, [&](const DeltaTensor& tensor, size_t at, size_t size) {
    Multiply(values.subspan(at, size), undo[PartOf(tensor)]);
  });
}

void DeltaScale::End(const DeltaLayout& layout, const DeltaScope& scope, std::span<float> values) const {
  if (!learns()) return;
  VisitScaled(layout, scope, [&](const DeltaTensor& tensor, size_t at, size_t size) {
    Multiply(values.subspan(at, size), scale(PartOf(tensor)));
  });
}

}  // namespace thermoe
