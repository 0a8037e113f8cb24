// SPDX-License-Identifier: Apache-2.0
#include "kernels/reference/reference.h"

#include "kernels/dispatch.h"
#include "kernels/select.h"

namespace thermoe::kernels {
namespace {

class ReferenceOps final : public Ops {
 public:
  std::string_view name() const override { return "reference"; }
  void Embed(const WeightMatrix& table, std::span<const int32_t> ids, MutRows out) const override { reference::Embed(table, ids, out); }
  void RmsNorm(const RmsNormArgs& args) const override { reference::RmsNorm(args); }
  void Linear(const LinearArgs& args) const override { reference::Linear(args); }
  void Rope(const RopeArgs& args) const override { reference::Rope(args); }
  void StoreKv(const StoreKvArgs& args) const override { reference::StoreKv(args); }
  void Attention(const AttentionArgs& args) const override { reference::Attention(args); }
  void Select(const SelectArgs& args) const override { SelectExperts(args); }
  void ExpertFfn(const ExpertFfnArgs& args) const override { reference::ExpertFfn(args); }
  void SwiGlu(const SwiGluArgs& args) const override { reference::SwiGlu(args); }
  void Add(const AddArgs& args) const override { reference::Add(args); }

  void AddRow(const AddRowArgs& args) const override { reference::AddRow(args); }
  void Gain(const GainArgs& args) const override { reference::Gain(args); }
  void LowRank(const LowRankArgs& args) const override { reference::LowRank(args); }
  void ScaleSlots(const ScaleSlotsArgs& args) const override { reference::ScaleSlots(args); }
  void RowChange(const RowChangeArgs& args) const override { reference::RowChange(args); }
  void ExpertInner(const ExpertInnerArgs& args) const override { reference::ExpertInner(args); }
  void LinearBackward(const LinearBackwardArgs& args) const override { reference::LinearBackward(args); }
  void RmsNormBackward(const RmsNormBackwardArgs& args) const override { reference::RmsNormBackward(args); }
  void GainBackward(const GainBackwardArgs& args) const override { reference::GainBackward(args); }
  void SumRows(const SumRowsArgs& args) const override { reference::SumRows(args); }
  void LowRankBackward(const LowRankBackwardArgs& args) const override { reference::LowRankBackward(args); }
  void ClampBackward(const ClampBackwardArgs& args) const override { reference::ClampBackward(args); }
  void AttentionBackward(const AttentionBackwardArgs& args) const override { reference::AttentionBackward(args); }
  void ExpertFfnBackward(const ExpertFfnBackwardArgs& args) const override { reference::ExpertFfnBackward(args); }
  void SelectBackward(const SelectBackwardArgs& args) const override { SelectExpertsBackward(args, 0, args.logits.rows); }
  void ScaleSlotsBackward(const ScaleSlotsBackwardArgs& args) const override { reference::ScaleSlotsBackward(args); }
  void SwiGluBackward(const SwiGluBackwardArgs& args) const override { reference::SwiGluBackward(args); }
  void AddBackward(const AddBackwardArgs& args) const override { reference::AddBackward(args); }
  void LossBackward(const LossBackwardArgs& args) const override { reference::LossBackward(args); }
  void Adam(std::span<const AdamArgs> tensors) const override {
    for (const AdamArgs& args : tensors) reference::Adam(args);
  }
};

}  // namespace

std::unique_ptr<Ops> MakeReferenceOps() { return std::make_unique<ReferenceOps>(); }

}  // namespace thermoe::kernels
