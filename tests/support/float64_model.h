// SPDX-License-Identifier: Apache-2.0
// The forward pass with deltas once more, plain and in double, to differentiate numerically: shares no code with the
// engine but the decoding of weights. The choice of experts can be held, as a backward pass holds it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/model_impl.h"
#include "forward/backward/learn.h"
#include "forward/deltas.h"
#include "thermoe/steering.h"

namespace thermoe::testing {

// Which experts each token uses in each layer, and by which planes. [L][T * K], -1: an empty slot.
struct HeldChoice {
  std::vector<std::vector<int32_t>> expert;
  std::vector<std::vector<Planes>> planes;
};

// Keys and values of earlier tokens, constants. [L][position * kv_heads * head_dim], keys after norm and rope.
struct PastKeys {
  int32_t positions = 0;
  std::vector<std::vector<double>> keys, values;
};

struct Float64Segment {
  std::vector<int32_t> ids;
  std::vector<int32_t> targets;  // [ids] what each row learns; -1: nothing
  const PastKeys* past = nullptr;
  const DeltaLayout* layout = nullptr;
  const HeldChoice* held = nullptr;  // null: the plain model's own choice
  TttObjective objective = TttObjective::kNll;
  double confidence = 0;
  const FeatureStatistics* features = nullptr;
};

class Float64Model {
 public:
  // Decodes all weights.
  explicit Float64Model(const ModelImpl& model);

  // Mean loss over the rows that take part (feature alignment: of the segment) at `deltas` [segment.layout->size()].
  double Loss(const Float64Segment& segment, std::span<const double> deltas) const;

 private:
  struct Matrix {
    int64_t rows = 0, cols = 0;
    std::vector<float> values;  // [rows, cols], exact
  };
  struct Expert {
    Matrix gate, up, down;
  };
  struct Layer {
    Matrix q, k, v, o, gate, shared_gate;
    Expert shared;
    std::vector<Expert> experts, experts_hi;  // by both planes; by the hi plane (nested storage alone)
  };
  using Rows = std::vector<std::vector<double>>;  // [T][width]
  class Pass;

  static Matrix Decode(const WeightMatrix& weight, Planes planes = Planes::kBoth);
  static Expert Decode(const FfnWeights& weights, Planes planes = Planes::kBoth);

  const ModelImpl& model_;
  Matrix embedding_, output_;
  std::vector<Layer> layers_;
};

}  // namespace thermoe::testing
