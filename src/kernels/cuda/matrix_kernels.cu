// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "kernels/cuda/launches.h"
#include "kernels/cuda/matrix_kernels.h"
#include "kernels/cuda/one_row.h"
#include "kernels/cuda/prefill.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/stream_rows.h"

namespace thermoe::cuda {

size_t LinearScratch(int32_t rows, int32_t in) { return std::max(LinearPrefillScratch(rows, in), StreamedLinearScratch(rows, in)); }

cudaError_t Linear(const LinearLaunch& launch, cudaStream_t stream) { return LinearTogether({&launch, 1}, stream); }

cudaError_t LinearTogether(std::span<const LinearLaunch> launches, cudaStream_t stream) {
  if (launches.empty() || launches.front().rows == 0) return cudaSuccess;
  if (std::all_of(launches.begin(), launches.end(), PrefillsLinear)) return LinearPrefill(launches, stream);
  if (LinearOfRows(launches, stream)) return cudaSuccess;
  for (const LinearLaunch& launch : launches) {
    cudaError_t error = cudaSuccess;
    if (launch.weight.packing == Packing::kF32) {
      error = LinearPlain(launch, stream);
    } else if (PrefillsLinear(launch)) {
      error = LinearPrefill({&launch, 1}, stream);
    } else if (!LinearOfRows({&launch, 1}, stream)) {
      error = cudaErrorNotSupported;
    }
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

size_t ExpertFfnScratch(int32_t hidden, int32_t width, int32_t slots, int32_t rows) {
  return std::max({ExpertPlainScratch(width, slots, rows), PartsOfExpertScratch(hidden, width, slots, rows).total,
                   ExpertPrefillScratch(hidden, width, slots, rows)});
}

cudaError_t ExpertFfn(const ExpertFfnLaunch& launch, cudaStream_t stream) {
  if (launch.rows == 0) return cudaSuccess;
  if (PrefillsExperts(launch)) return ExpertPrefill(launch, stream);
  if (ExpertsOfOneRow(launch, stream)) return cudaGetLastError();
  if (SlotSums sums; ExpertsOfRows(launch, &sums, stream)) {
    AddSlots(sums, launch.out, launch.rows, launch.hidden, stream);
    return cudaGetLastError();
  }
  const auto floats = [](Packing packing) { return packing == Packing::kF32; };
  if (!floats(launch.gate_packing) || !floats(launch.up_packing) || !floats(launch.down_packing)) return cudaErrorNotSupported;
  return ExpertPlain(launch, stream);
}

}  // namespace thermoe::cuda
