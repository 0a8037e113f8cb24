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
};

}  // namespace

std::unique_ptr<Ops> MakeReferenceOps() { return std::make_unique<ReferenceOps>(); }

}  // namespace thermoe::kernels
