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

}  // namespace thermoe::kernels::reference
