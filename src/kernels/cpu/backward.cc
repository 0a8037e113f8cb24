// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/cpu_ops.h"
#include "kernels/reference/reference.h"
#include "kernels/select.h"

namespace thermoe::kernels::cpu {

void CpuOps::AddRow(const AddRowArgs& args) const { reference::AddRow(args); }
void CpuOps::Gain(const GainArgs& args) const { reference::Gain(args); }
void CpuOps::LowRank(const LowRankArgs& args) const { reference::LowRank(args); }
void CpuOps::ScaleSlots(const ScaleSlotsArgs& args) const { reference::ScaleSlots(args); }
void CpuOps::ExpertInner(const ExpertInnerArgs& args) const { reference::ExpertInner(args); }
void CpuOps::LinearBackward(const LinearBackwardArgs& args) const { reference::LinearBackward(args); }
void CpuOps::RmsNormBackward(const RmsNormBackwardArgs& args) const { reference::RmsNormBackward(args); }
void CpuOps::GainBackward(const GainBackwardArgs& args) const { reference::GainBackward(args); }
void CpuOps::SumRows(const SumRowsArgs& args) const { reference::SumRows(args); }
void CpuOps::LowRankBackward(const LowRankBackwardArgs& args) const { reference::LowRankBackward(args); }
void CpuOps::ClampBackward(const ClampBackwardArgs& args) const { reference::ClampBackward(args); }
void CpuOps::AttentionBackward(const AttentionBackwardArgs& args) const { reference::AttentionBackward(args); }
void CpuOps::ExpertFfnBackward(const ExpertFfnBackwardArgs& args) const { reference::ExpertFfnBackward(args); }
void CpuOps::SelectBackward(const SelectBackwardArgs& args) const { SelectExpertsBackward(args); }
void CpuOps::ScaleSlotsBackward(const ScaleSlotsBackwardArgs& args) const { reference::ScaleSlotsBackward(args); }
void CpuOps::SwiGluBackward(const SwiGluBackwardArgs& args) const { reference::SwiGluBackward(args); }
void CpuOps::AddBackward(const AddBackwardArgs& args) const { reference::AddBackward(args); }
void CpuOps::LossBackward(const LossBackwardArgs& args) const { reference::LossBackward(args); }

}  // namespace thermoe::kernels::cpu
