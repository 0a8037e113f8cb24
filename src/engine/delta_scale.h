// SPDX-License-Identifier: Apache-2.0
// How large a session's deltas should be, learnt beside them (docs/adr/0012-deltas-learn-their-size.md).
//
// Each part of the deltas (at the output, in the last layers, in the layers below) is c times what the optimiser's
// steps add up to. Before a step the gradient of a segment that the deltas have not learnt from says what log c should
// do: x = <gradient, deltas>, in nats of the segment, is above 0 where they overshoot. log c moves by -rate * x /
// sqrt(1 + sum of x^2 so far): adaptive steps (Duchi et al. 2011, JMLR 12) that do not depend on how large x is. They
// are larger downwards where the sum of x so far is above 0: the loss is close to convex in c, so that sum bounds what
// the deltas have cost.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "forward/deltas.h"

namespace thermoe {

class DeltaScale {
 public:
  static constexpr size_t kParts = 3;
  static constexpr double kLeast = 0.25, kMost = 4;  // c

  struct Part {
    double log_scale = 0, squares = 0, sum = 0;  // log c, sums of x^2 and x
    bool operator==(const Part&) const = default;
  };

  // `rate` 0: c stays 1 and nothing is touched.
  DeltaScale(double rate, int32_t first_last_layer) : rate_(rate), first_last_layer_(first_last_layer) {}

  // Before the optimiser's step. `gradient` is a sum over rows. Values of what `scope` includes become what steps add
  // up to.
  void Begin(const DeltaLayout& layout, const DeltaScope& scope, std::span<const float> gradient,
             std::span<float> values);
  // After it: they are deltas again.
  void End(const DeltaLayout& layout, const DeltaScope& scope, std::span<float> values) const;

  bool learns() const { return rate_ > 0; }
  double scale(size_t part) const;
  const std::array<Part, kParts>& parts() const { return parts_; }
  void Restore(const std::array<Part, kParts>& parts) { parts_ = parts; }

 private:
  size_t PartOf(const DeltaTensor& tensor) const;

  double rate_ = 0;
  int32_t first_last_layer_ = 0;
  std::array<Part, kParts> parts_;
};

}  // namespace thermoe
