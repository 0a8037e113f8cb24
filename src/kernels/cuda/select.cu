// SPDX-License-Identifier: Apache-2.0
// Selection from logits that are there.
#include "kernels/cuda/choose.cuh"

namespace thermoe::cuda {
namespace {

template <int kLane>
__global__ void __launch_bounds__(1024) SelectOneBlockKernel(SelectLaunch l) {
  SelectByBlock<kLane>(l);
}

template <int kLane>
__global__ void __launch_bounds__(1024) JoinKernel(SelectLaunch l, Batch* batch) {
  const SelectRules rules = *l.rules;
  if (BatchAware(l, rules)) Join<kLane>(l, rules, batch);
}

template <int kLane>
__global__ void ChooseKernel(SelectLaunch l, const Batch* batch, RowTotals* totals) {
  const int64_t t = int64_t{blockIdx.x} * (blockDim.x / 32) + threadIdx.x / 32;
  if (t >= l.rows) return;
  Keep(ChooseRow(l, *l.rules, t, Softmax<kLane>(l.logits + t * l.experts, l.experts), batch, nullptr), &totals[t]);
}

__global__ void __launch_bounds__(1024) DispatchKernel(SelectLaunch l, const RowTotals* totals) {
  AddTotals(totals, l.rows, l.counts);
  Dispatch(l, starts, nullptr);
}

// Warps whose counters fit beside each other.
int DispatchWarps(int experts, int64_t slots) {
  const int fit = 140 * 1024 / (2 * experts * 4);
  const auto useful = static_cast<int>((slots + 63) / 64);
  return fit < 1 ? 1 : min(min(fit, 32), useful < 1 ? 1 : useful);
}

template <int kLane>
void Launch(const SelectLaunch& l, cudaStream_t stream) {
  if (l.rows <= kOneBlockRows) {
    const int warps = max(DispatchWarps(l.experts, int64_t{l.rows} * l.slots), min(32, l.rows));
    const int bytes = warps * 2 * l.experts * 4;
    cudaFuncSetAttribute(SelectOneBlockKernel<kLane>, cudaFuncAttributeMaxDynamicSharedMemorySize, 150 * 1024);
    if (bytes <= 150 * 1024) {
      SelectOneBlockKernel<kLane><<<1, 32 * warps, static_cast<size_t>(bytes), stream>>>(l);
      return;
    }
  }
  auto* batch = static_cast<Batch*>(l.scratch);
  auto* totals = reinterpret_cast<RowTotals*>(batch + 1);
  JoinKernel<kLane><<<1, 1024, 0, stream>>>(l, batch);
  ChooseKernel<kLane><<<static_cast<unsigned>((l.rows + 3) / 4), 128, 0, stream>>>(l, batch, totals);
  const int warps = DispatchWarps(l.experts, int64_t{l.rows} * l.slots), bytes = warps * 2 * l.experts * 4;
  cudaFuncSetAttribute(DispatchKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 150 * 1024);
  DispatchKernel<<<1, 32 * warps, static_cast<size_t>(bytes), stream>>>(l, totals);
}

}  // namespace

int64_t SelectScratch(int64_t rows) {
  return static_cast<int64_t>(sizeof(Batch)) + rows * static_cast<int64_t>(sizeof(RowTotals));
}

void Select(const SelectLaunch& l, cudaStream_t stream) {
  if (l.rows == 0) return;
  if (l.experts <= 32) return Launch<1>(l, stream);
  if (l.experts <= 64) return Launch<2>(l, stream);
  if (l.experts <= 128) return Launch<4>(l, stream);
  if (l.experts <= 256) return Launch<8>(l, stream);
  Launch<32>(l, stream);
}

}  // namespace thermoe::cuda
