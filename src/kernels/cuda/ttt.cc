// SPDX-License-Identifier: Apache-2.0
// Test-time training runs on the cpu backend. The engine refuses it on the GPU before any of these could be called.
#include "base/check.h"
#include "kernels/cuda/cuda_ops.h"

namespace thermoe::cuda {

void CudaOps::AddRow(const kernels::AddRowArgs& /*args*/) const { THERMOE_CHECK(false); }
void CudaOps::Gain(const kernels::GainArgs& /*args*/) const { THERMOE_CHECK(false); }
void CudaOps::LowRank(const kernels::LowRankArgs& /*args*/) const { THERMOE_CHECK(false); }
void CudaOps::ScaleSlots(const kernels::ScaleSlotsArgs& /*args*/) const { THERMOE_CHECK(false); }
void CudaOps::RowChange(const kernels::RowChangeArgs& /*args*/) const { THERMOE_CHECK(false); }
void CudaOps::ExpertInner(const kernels::ExpertInnerArgs& /*args*/) const { THERMOE_CHECK(false); }
void CudaOps::LinearBackward(const kernels::LinearBackwardArgs& /*args*/) const { THERMOE_CHECK(false); }
void CudaOps::RmsNormBackward(const kernels::RmsNormBackwardArgs& /*args*/) const { THERMOE_CHECK(false); }
void CudaOps::GainBackward(const kernels::GainBackwardArgs& /*args*/) const { THERMOE_CHECK(false); }
void CudaOps::SumRows(const kernels::SumRowsArgs& /*args*/) const { THERMOE_CHECK(false); }
void CudaOps::LowRankBackward(const kernels::LowRankBackwardArgs& /*args*/) const { THERMOE_CHECK(false); }
void CudaOps::ClampBackward(const kernels::ClampBackwardArgs& /*args*/) const { THERMOE_CHECK(false); }
void CudaOps::AttentionBackward(const kernels::AttentionBackwardArgs& /*args*/) const { THERMOE_CHECK(false); }
void CudaOps::ExpertFfnBackward(const kernels::ExpertFfnBackwardArgs& /*args*/) const { THERMOE_CHECK(false); }
void CudaOps::SelectBackward(const kernels::SelectBackwardArgs& /*args*/) const { THERMOE_CHECK(false); }
void CudaOps::ScaleSlotsBackward(const kernels::ScaleSlotsBackwardArgs& /*args*/) const { THERMOE_CHECK(false); }
void CudaOps::SwiGluBackward(const kernels::SwiGluBackwardArgs& /*args*/) const { THERMOE_CHECK(false); }
void CudaOps::AddBackward(const kernels::AddBackwardArgs& /*args*/) const { THERMOE_CHECK(false); }
void CudaOps::LossBackward(const kernels::LossBackwardArgs& /*args*/) const { THERMOE_CHECK(false); }
void CudaOps::Adam(std::span<const kernels::AdamArgs> /*tensors*/) const { THERMOE_CHECK(false); }

}  // namespace thermoe::cuda
