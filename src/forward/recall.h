// SPDX-License-Identifier: Apache-2.0
// Sparse passes: rows that pass again with slightly changed deltas keep what their experts gave them, where their input
// has changed least (docs/test-time-training.md, "Passing again").
#pragma once

#include <cstdint>
#include <vector>

#include "base/views.h"
#include "model/config.h"

namespace thermoe {

// What the routed experts of each layer were given for a session's positions, and gave: of the last time they computed
// it.
class Recall {
 public:
  // Room for positions [first, first + count). `share` of the rows that pass again have their experts computed.
  Recall(const ModelConfig& config, int32_t first, int32_t count, float share);
  static int64_t BytesFor(const ModelConfig& config, int64_t count) {
    return 2 * count * config.layers * config.hidden * static_cast<int64_t>(sizeof(float));
  }

  float share() const { return share_; }
  // Whether there is anything of this position. Rows of `input` and `output` are positions from the first one on.
  bool holds(int32_t layer, int32_t position) const {
    return has_room(position) && layers_[static_cast<size_t>(layer)].held[at(position)];
  }
  MutRows input(int32_t layer, int32_t position, int64_t rows) {
    return View(layers_[static_cast<size_t>(layer)].input, position, rows);
  }
  MutRows output(int32_t layer, int32_t position, int64_t rows) {
    return View(layers_[static_cast<size_t>(layer)].output, position, rows);
  }
  // Keeps a position's rows, where there is room for it.
  void Keep(int32_t layer, int32_t position, const float* input, const float* output);

 private:
  struct Layer {
    std::vector<float> input, output;  // [count, D]
    std::vector<uint8_t> held;         // [count]
  };

  bool has_room(int32_t position) const { return position >= first_ && position - first_ < count_; }
  size_t at(int32_t position) const { return static_cast<size_t>(position - first_); }
  MutRows View(std::vector<float>& buffer, int32_t position, int64_t rows) const {
    return {buffer.data() + (position - first_) * int64_t{hidden_}, rows, hidden_};
  }

  int32_t first_, count_, hidden_;
  float share_;
  std::vector<Layer> layers_;
};

struct StepContext;

// Marks in the workspace which rows of the step, passing again, keep what the experts of this layer gave them;
// `step.h()` is what the experts would be given. The other rows of the step are not looked at, and which rows are
// marked depends only on the rows of the same session.
void ChooseRecalled(StepContext& step, int32_t layer);
// After the experts: x += what the marked rows had kept; what the others were given and got is kept. `before`: x before
// them.
void ApplyRecall(StepContext& step, int32_t layer, ConstRows before);

}  // namespace thermoe
