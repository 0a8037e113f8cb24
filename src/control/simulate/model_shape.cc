// SPDX-License-Identifier: Apache-2.0
#include "base/errors.h"
#include "control/simulate/sim_scenario.h"
#include "model/synth.h"

namespace thermoe {

// The sizes of model/roles.cc's table.
Result<ModelShape> SimModelShape(const SimModel& model) {
  Result<ModelConfig> known = SynthConfig(model.arch);
  if (!known.ok()) return known.status();
  ModelConfig config = std::move(known).value();
  if (model.layers < 0 || model.layers > config.layers) {
    return InvalidArgument("{} has {} layers and not {}; give 1 to {}, or leave the key out for all", model.arch, config.layers,
                           model.layers, config.layers);
  }
  if (model.layers > 0) config.layers = model.layers;
  config.attention.rope_dim = config.head_dim;
  ModelShape shape;
  const auto matrix = [&](int64_t rows, int64_t cols) { return MatrixShape{model.type, rows, cols, false}; };
  const auto floats = [](int64_t rows, int64_t cols) { return MatrixShape{DType::kF32, rows, cols, false}; };
  const int64_t hidden = config.hidden, q_width = int64_t{config.heads} * config.head_dim;
  const int64_t kv_width = int64_t{config.kv_heads} * config.head_dim;
  LayerShape layer;
  layer.q = matrix(q_width, hidden);
  layer.k = layer.v = matrix(kv_width, hidden);
  layer.o = matrix(hidden, q_width);
  layer.gate = floats(config.experts, hidden);
  layer.expert_gate = matrix(config.expert_width, hidden);
  layer.expert_down = matrix(hidden, config.expert_width);
  if (model.nested) layer.expert_gate.type = layer.expert_down.type = DType::kNested8;
  if (config.shared_width > 0) {
    layer.shared_gate_proj = layer.shared_up = matrix(config.shared_width, hidden);
    layer.shared_down = matrix(hidden, config.shared_width);
    if (config.shared_gate) layer.shared_gate = floats(1, hidden);
  }
  if (config.attention.qk_norm == QkNorm::kPerHead) layer.q_norm = layer.k_norm = config.head_dim;
  if (config.attention.qk_norm == QkNorm::kWhole) layer.q_norm = q_width, layer.k_norm = kv_width;
  shape.layers.assign(static_cast<size_t>(config.layers), layer);
  shape.embedding = shape.output = matrix(config.vocab, hidden);
  shape.nested = model.nested;
  shape.config = std::move(config);
  return shape;
}

}  // namespace thermoe
