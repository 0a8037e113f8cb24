// SPDX-License-Identifier: Apache-2.0
// One backend's forward operations with another's gradients, and, where asked, a choice of experts that was made
// elsewhere.
#pragma once

#include <algorithm>
#include <functional>
#include <numeric>
#include <vector>

#include "kernels/ops.h"
#include "kernels/select.h"
#include "support/float64_model.h"

namespace thermoe::testing {

class MixedOps : public kernels::Ops {
 public:
  MixedOps(const kernels::Ops& forward, const kernels::Ops& backward, const HeldChoice* held = nullptr)
      : forward_(forward), backward_(backward), held_(held) {}

  std::string_view name() const override { return forward_.name(); }
  void Embed(const WeightMatrix& table, std::span<const int32_t> ids, MutRows out) const override {
    forward_.Embed(table, ids, out);
  }
  void RmsNorm(const kernels::RmsNormArgs& args) const override { forward_.RmsNorm(args); }
  void Linear(const kernels::LinearArgs& args) const override { forward_.Linear(args); }
  void Rope(const kernels::RopeArgs& args) const override { forward_.Rope(args); }
  void StoreKv(const kernels::StoreKvArgs& args) const override { forward_.StoreKv(args); }
  void Attention(const kernels::AttentionArgs& args) const override { forward_.Attention(args); }
  void ExpertFfn(const kernels::ExpertFfnArgs& args) const override { forward_.ExpertFfn(args); }
  void SwiGlu(const kernels::SwiGluArgs& args) const override { forward_.SwiGlu(args); }
  void Add(const kernels::AddArgs& args) const override { forward_.Add(args); }
  void AddRow(const kernels::AddRowArgs& args) const override { forward_.AddRow(args); }
  void Gain(const kernels::GainArgs& args) const override { forward_.Gain(args); }
  void LowRank(const kernels::LowRankArgs& args) const override { forward_.LowRank(args); }
  void ScaleSlots(const kernels::ScaleSlotsArgs& args) const override { forward_.ScaleSlots(args); }
  void ExpertInner(const kernels::ExpertInnerArgs& args) const override { forward_.ExpertInner(args); }

  // Called once a layer, in order. The held experts get the weights that the model's rule gives them.
  void Select(const kernels::SelectArgs& args) const override {
    forward_.Select(args);
    if (held_ == nullptr) return;
    kernels::Selection& out = *args.out;
    const size_t layer = layer_++ % held_->expert.size();
    for (int64_t t = 0; t < out.expert.rows; ++t) {
      const float* scores = out.scores.row(t);
      const int32_t* experts = held_->expert[layer].data() + t * args.slots;
      const auto score = [&](int64_t slot) { return experts[slot] < 0 ? 0 : scores[experts[slot]]; };
      std::vector<float> best(scores, scores + args.logits.cols);
      std::partial_sort(best.begin(), best.begin() + args.slots, best.end(), std::greater<>());
      const float plain = std::accumulate(best.begin(), best.begin() + args.slots, 0.0f);
      float mass = 0;
      for (int64_t k = 0; k < args.slots; ++k) mass += score(k);
      for (int64_t k = 0; k < args.slots; ++k)
        out.weight.row(t)[k] = score(k) * (args.options.normalise ? 1 : plain) / mass;
      std::copy_n(experts, args.slots, out.expert.row(t));
      std::copy_n(held_->planes[layer].begin() + t * args.slots, args.slots, out.planes.row(t));
    }
    kernels::DispatchSelection(args.logits.cols, &out);
  }

  void LinearBackward(const kernels::LinearBackwardArgs& args) const override { backward_.LinearBackward(args); }
  void RmsNormBackward(const kernels::RmsNormBackwardArgs& args) const override { backward_.RmsNormBackward(args); }
  void GainBackward(const kernels::GainBackwardArgs& args) const override { backward_.GainBackward(args); }
  void RowChange(const kernels::RowChangeArgs& args) const override { backward_.RowChange(args); }
  void SumRows(const kernels::SumRowsArgs& args) const override { backward_.SumRows(args); }
  void LowRankBackward(const kernels::LowRankBackwardArgs& args) const override { backward_.LowRankBackward(args); }
  void ClampBackward(const kernels::ClampBackwardArgs& args) const override { backward_.ClampBackward(args); }
  void AttentionBackward(const kernels::AttentionBackwardArgs& args) const override {
    backward_.AttentionBackward(args);
  }
  void ExpertFfnBackward(const kernels::ExpertFfnBackwardArgs& args) const override {
    backward_.ExpertFfnBackward(args);
  }
  void SelectBackward(const kernels::SelectBackwardArgs& args) const override { backward_.SelectBackward(args); }
  void ScaleSlotsBackward(const kernels::ScaleSlotsBackwardArgs& args) const override {
    backward_.ScaleSlotsBackward(args);
  }
  void SwiGluBackward(const kernels::SwiGluBackwardArgs& args) const override { backward_.SwiGluBackward(args); }
  void AddBackward(const kernels::AddBackwardArgs& args) const override { backward_.AddBackward(args); }
  void LossBackward(const kernels::LossBackwardArgs& args) const override { backward_.LossBackward(args); }
  void Adam(std::span<const kernels::AdamArgs> tensors) const override { backward_.Adam(tensors); }

 private:
  const kernels::Ops& forward_;
  const kernels::Ops& backward_;
  const HeldChoice* held_;
  mutable size_t layer_ = 0;
};

}  // namespace thermoe::testing
