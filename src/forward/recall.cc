// SPDX-License-Identifier: Apache-2.0
#include "forward/recall.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "forward/step.h"

namespace thermoe {
namespace {

// body(first, count, recall) for runs of neighbouring rows of one session that keep what their experts give.
template <typename Body>
void ForEachSession(const StepContext& step, Body&& body) {
  const std::vector<BatchRow>& rows = step.batch.rows;
  for (size_t first = 0, end = 0; first < rows.size(); first = end) {
    for (end = first + 1; end < rows.size() && rows[end].recall == rows[first].recall;) ++end;
    if (rows[first].recall != nullptr)
      body(static_cast<int64_t>(first), static_cast<int64_t>(end - first), *rows[first].recall);
  }
}

// How far the run's rows have moved since; infinite for those that nothing is known of.
void Changes(const StepContext& step, int32_t layer, int64_t first, int64_t count, Recall& recall,
             std::span<float> change) {
  std::fill(change.begin(), change.end(), INFINITY);
  const auto known = [&](int64_t i) {
    const int32_t passed = step.batch.rows[static_cast<size_t>(first + i)].passed;
    return passed >= 0 && recall.holds(layer, passed);
  };
  for (int64_t i = 0, end = 0; i < count; i = end) {
    for (end = i + 1; end < count && known(i) && known(end);) ++end;
    if (!known(i)) continue;
    const int32_t passed = step.batch.rows[static_cast<size_t>(first + i)].passed;
    step.ops.RowChange({{step.h().row(first + i), end - i, step.config.hidden},
                        recall.input(layer, passed, end - i),
                        change.subspan(static_cast<size_t>(i), static_cast<size_t>(end - i))});
  }
}

}  // namespace

Recall::Recall(const ModelConfig& config, int32_t first, int32_t count, float share)
    : first_(first), count_(count), hidden_(config.hidden), share_(share), layers_(static_cast<size_t>(config.layers)) {
  for (Layer& layer : layers_) {
    layer.input.resize(static_cast<size_t>(count) * static_cast<size_t>(hidden_));
    layer.output.resize(layer.input.size());
    layer.held.resize(static_cast<size_t>(count));
  }
}

void Recall::Keep(int32_t layer, int32_t position, const float* input, const float* output) {
  if (!has_room(position)) return;
  Layer& kept = layers_[static_cast<size_t>(layer)];
  kept.held[at(position)] = 1;
  std::copy_n(input, hidden_, this->input(layer, position, 1).data);
  std::copy_n(output, hidden_, this->output(layer, position, 1).data);
}

void ChooseRecalled(StepContext& step, int32_t layer) {
  Workspace& ws = step.ws;
  std::fill_n(ws.recalled.begin(), step.tokens(), uint8_t{0});
  ForEachSession(step, [&](int64_t first, int64_t count, Recall& recall) {
    const auto again = [&](int64_t i) { return step.batch.rows[static_cast<size_t>(first + i)].passed >= 0; };
    const std::span<float> change = std::span(ws.row_change).first(static_cast<size_t>(count));
    Changes(step, layer, first, count, recall, change);
    int64_t passing = 0;
    for (int64_t i = 0; i < count; ++i) {
      if (again(i)) ws.row_order[static_cast<size_t>(passing++)] = static_cast<int32_t>(i);
    }
    const auto computed =
        static_cast<int64_t>(std::ceil(static_cast<double>(recall.share()) * static_cast<double>(passing)));
    const std::span<int32_t> order = std::span(ws.row_order).first(static_cast<size_t>(passing));
    std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      const float x = change[static_cast<size_t>(a)], y = change[static_cast<size_t>(b)];
      return x != y ? x > y : a < b;
    });
    for (int64_t i = computed; i < passing; ++i) {
      const int32_t row = order[static_cast<size_t>(i)];
      if (change[static_cast<size_t>(row)] < INFINITY) ws.recalled[static_cast<size_t>(first + row)] = 1;
    }
  });
}

void ApplyRecall(StepContext& step, int32_t layer, ConstRows before) {
  const int64_t width = step.config.hidden;
  ForEachSession(step, [&](int64_t first, int64_t count, Recall& recall) {
    for (int64_t t = first; t < first + count; ++t) {
      const BatchRow& row = step.batch.rows[static_cast<size_t>(t)];
      float* x = step.x().row(t);
      if (step.ws.recalled[static_cast<size_t>(t)] != 0) {
        const float* given = recall.output(layer, row.passed, 1).data;
        for (int64_t i = 0; i < width; ++i) x[i] += given[i];
        if (row.position != row.passed)
          recall.Keep(layer, row.position, recall.input(layer, row.passed, 1).data, given);
        continue;
      }
      float* given = step.ws.given.data();
      for (int64_t i = 0; i < width; ++i) given[i] = x[i] - before.row(t)[i];
      recall.Keep(layer, row.position, step.h().row(t), given);
    }
  });
}

}  // namespace thermoe
