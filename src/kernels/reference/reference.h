// SPDX-License-Identifier: Apache-2.0
// The specification: each operation in plain scalar code, sums in double.
#pragma once

#include "kernels/ops.h"

namespace thermoe::kernels::reference {

void Embed(const WeightMatrix& table, std::span<const int32_t> ids, MutRows out);
void RmsNorm(const RmsNormArgs& args);
void Linear(const LinearArgs& args);
void Rope(const RopeArgs& args);
void StoreKv(const StoreKvArgs& args);
void Attention(const AttentionArgs& args);
void ExpertFfn(const ExpertFfnArgs& args);
void SwiGlu(const SwiGluArgs& args);
void Add(const AddArgs& args);

void AddRow(const AddRowArgs& args);
void Gain(const GainArgs& args);
void LowRank(const LowRankArgs& args);
void ScaleSlots(const ScaleSlotsArgs& args);
void ExpertInner(const ExpertInnerArgs& args);
void LinearBackward(const LinearBackwardArgs& args);
void RmsNormBackward(const RmsNormBackwardArgs& args);
void GainBackward(const GainBackwardArgs& args);
void SumRows(const SumRowsArgs& args);
void RowChange(const RowChangeArgs& args);
void LowRankBackward(const LowRankBackwardArgs& args);
void ClampBackward(const ClampBackwardArgs& args);
void AttentionBackward(const AttentionBackwardArgs& args);
void ExpertFfnBackward(const ExpertFfnBackwardArgs& args);
void ScaleSlotsBackward(const ScaleSlotsBackwardArgs& args);
void SwiGluBackward(const SwiGluBackwardArgs& args);
void AddBackward(const AddBackwardArgs& args);
void LossBackward(const LossBackwardArgs& args);
void Adam(const AdamArgs& args);

}  // namespace thermoe::kernels::reference
