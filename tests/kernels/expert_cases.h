// SPDX-License-Identifier: Apache-2.0
// Cases of ExpertFfn: random selections with empty experts, padding rows and dropped slots.
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/op_cases.h"
#include "kernels/op_table.h"

namespace thermoe::kernels {

// Selection with its storage. Grouping follows the contract in ops.h, written apart from select.cc.
struct OwnedSelection {
  std::vector<int32_t> expert, order;
  std::vector<float> weight;
  std::vector<Planes> planes;
  std::vector<Selection::Job> jobs;
  Selection view;

  void Group(int64_t tokens, int32_t slots) {
    std::map<std::pair<int32_t, int>, std::vector<int32_t>> groups;  // kBoth before kHi
    for (size_t at = 0; at < expert.size(); ++at) {
      if (expert[at] >= 0)
        groups[{expert[at], planes[at] == Planes::kBoth ? 0 : 1}].push_back(static_cast<int32_t>(at));
    }
    for (const auto& [key, members] : groups) {
      jobs.push_back({key.first, key.second == 0 ? Planes::kBoth : Planes::kHi, static_cast<int32_t>(order.size()),
                      static_cast<int32_t>(members.size())});
      order.insert(order.end(), members.begin(), members.end());
    }
    view.slots = slots;
    view.expert = {expert.data(), tokens, slots};
    view.weight = {weight.data(), tokens, slots};
    view.planes = {planes.data(), tokens, slots};
    view.jobs = jobs;
    view.job_count = static_cast<int32_t>(jobs.size());
    view.order = order;
  }
};

struct ExpertShape {
  DType type = DType::kF32;
  int64_t tokens = 0, hidden = 0, width = 0;
  int32_t experts = 0, slots = 0;
  Layout layout = Layout::kRows;
  double rounding = 0;  // of activations, as RoundedSumBound
};

struct ExpertFixture {
  ExpertShape shape;
  std::vector<std::shared_ptr<Matrix>> gate, up, down;
  std::vector<FfnWeights> experts;
  std::vector<float> x, before;
  OwnedSelection selection;
};

// Token 1 is padding (selects nothing) when there are several tokens; others keep 1..K slots.
inline void ChooseExperts(Random& random, ExpertFixture* f) {
  const ExpertShape& s = f->shape;
  for (int64_t t = 0; t < s.tokens; ++t) {
    std::vector<int32_t> some;
    for (int32_t e = 0; e < s.experts; ++e) some.push_back(e);
    for (size_t i = some.size(); i > 1; --i) std::swap(some[i - 1], some[random.Below(i)]);
    const auto kept = static_cast<int32_t>(t == 1       ? 0
                                           : t % 3 == 0 ? s.slots
                                                        : 1 + random.Below(static_cast<uint64_t>(s.slots)));
    const auto full = static_cast<int32_t>(random.Below(static_cast<uint64_t>(s.slots) + 1));
    for (int32_t k = 0; k < s.slots; ++k) {
      f->selection.expert.push_back(k < kept ? some[static_cast<size_t>(k)] : -1);
      f->selection.weight.push_back(k < kept ? static_cast<float>((1 - 0.1 * k) * (0.2 + random.Uniform())) : 0.0f);
      f->selection.planes.push_back(s.type == DType::kNested8 && k >= full ? Planes::kHi : Planes::kBoth);
    }
  }
  f->selection.Group(s.tokens, s.slots);
}

inline std::shared_ptr<ExpertFixture> MakeExperts(Random& random, const ExpertShape& shape) {
  auto f = std::make_shared<ExpertFixture>();
  f->shape = shape;
  for (int32_t e = 0; e < shape.experts; ++e) {
    f->gate.push_back(RandomMatrix(random, shape.type, shape.width, shape.hidden, shape.layout));
    f->up.push_back(RandomMatrix(random, shape.type, shape.width, shape.hidden, shape.layout));
    f->down.push_back(RandomMatrix(random, shape.type, shape.hidden, shape.width, shape.layout));
    f->experts.push_back({f->gate.back()->view, f->up.back()->view, f->down.back()->view});
  }
  // Gate sums of size 2 or so, where silu bends.
  f->x = RandomFloats(random, shape.tokens * shape.hidden, 2 / std::sqrt(static_cast<double>(shape.hidden)));
  f->before = RandomFloats(random, shape.tokens * shape.hidden);
  ChooseExperts(random, f.get());
  return f;
}

inline std::vector<float> RunExperts(const Ops& ops, const ExpertFixture& f) {
  const ExpertShape& s = f.shape;
  const int64_t slots = s.tokens * s.slots;
  std::vector<float> inner(static_cast<size_t>(slots * s.width), kPoison),
      slot_out(static_cast<size_t>(slots * s.hidden), kPoison);
  std::vector<float> out = f.before;
  ops.ExpertFfn({{f.x.data(), s.tokens, s.hidden},
                 f.experts,
                 &f.selection.view,
                 {inner.data(), slots, s.width},
                 {slot_out.data(), slots, s.hidden},
                 {out.data(), s.tokens, s.hidden}});
  return out;
}

// down(silu(gate x) * up x) of one slot with first-order bounds: errors of gate and up pass through silu and the
// product; inner's errors pass through |down|.
inline void SlotInDouble(const ExpertFixture& f, size_t e, Planes planes, const float* x, std::vector<double>* y,
                         std::vector<double>* error) {
  const ExpertShape& s = f.shape;
  std::vector<double> inner, inner_error;
  for (int64_t r = 0; r < s.width; ++r) {
    const DotSum gate = DotInDouble(f.gate[e]->values(planes), r, x, s.hidden);
    const DotSum up = DotInDouble(f.up[e]->values(planes), r, x, s.hidden);
    const double silu = gate.sum / (1 + std::exp(-gate.sum));
    inner.push_back(silu * up.sum);
    inner_error.push_back(kSiluSlope * RoundedSumBound(s.hidden, gate.magnitude, s.rounding) * std::fabs(up.sum) +
                          std::fabs(silu) * RoundedSumBound(s.hidden, up.magnitude, s.rounding) + SwiGluBound(silu * up.sum, up.sum));
  }
  for (int64_t r = 0; r < s.hidden; ++r) {
    const DotSum down = DotInDouble(f.down[e]->values(planes), r, inner.data(), s.width);
    y->push_back(down.sum);
    error->push_back(RoundedSumBound(s.width, down.magnitude, s.rounding));
    for (int64_t i = 0; i < s.width; ++i) {
      error->back() += std::fabs(f.down[e]->values(planes)[static_cast<size_t>(r * s.width + i)]) *
                       inner_error[static_cast<size_t>(i)];
    }
  }
}

inline OpCase ExpertCase(Random& random, const ExpertShape& shape) {
  OpCase c;
  c.name = "ExpertFfn " + std::string(TraitsOf(shape.type).name) + " T=" + std::to_string(shape.tokens) +
           " D=" + std::to_string(shape.hidden) + " F=" + std::to_string(shape.width) +
           " E=" + std::to_string(shape.experts) + " K=" + std::to_string(shape.slots);
  const std::shared_ptr<ExpertFixture> f = MakeExperts(random, shape);
  c.inputs = {
      {"x", f->x}, {"out", f->before}, {"gate", ToFloats(f->gate[0]->both)}, {"down", ToFloats(f->down[0]->both)}};
  c.want.assign(f->before.begin(), f->before.end());
  for (const float value : f->before) c.bound.push_back(kUnit * (shape.slots + 2) * std::fabs(value));
  for (size_t at = 0; at < f->selection.expert.size(); ++at) {
    if (f->selection.expert[at] < 0) continue;
    const size_t t = at / static_cast<size_t>(shape.slots);
    std::vector<double> y, error;
    SlotInDouble(*f, static_cast<size_t>(f->selection.expert[at]), f->selection.planes[at],
                 f->x.data() + t * static_cast<size_t>(shape.hidden), &y, &error);
    for (size_t i = 0; i < y.size(); ++i) {
      const size_t o = t * static_cast<size_t>(shape.hidden) + i;
      c.want[o] += f->selection.weight[at] * y[i];
      c.bound[o] +=
          f->selection.weight[at] * error[i] + kUnit * (shape.slots + 2) * std::fabs(f->selection.weight[at] * y[i]);
    }
  }
  c.run = [f](const Ops& ops) { return RunExperts(ops, *f); };
  return c;
}

}  // namespace thermoe::kernels
