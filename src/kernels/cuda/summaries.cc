// SPDX-License-Identifier: Apache-2.0
// CudaOps at the end of a step: what its logits come to, and how the host hears of it.
#include <algorithm>
#include <atomic>

#include "kernels/cuda/cuda_ops.h"

namespace thermoe::cuda {
namespace {

// Counts wrap around.
bool Missing(uint32_t asked, uint32_t come) { return static_cast<int32_t>(asked - come) > 0; }

}  // namespace

bool CudaOps::SummariesAreThere() const {
  const volatile uint32_t *told = told_.as<uint32_t>(), *draws = draws_told();
  return !Missing(oldest().summaries_asked, *told) && !Missing(oldest().draws_asked, *draws);
}

// The kernel's last word is there some microseconds before its end is seen.
void CudaOps::FinishSummaries() const {
  constexpr int kLooks = 4096;  // between questions whether it came to an end without that
  LaunchPending();
  Side& side = oldest();
  const volatile uint32_t *told = told_.as<uint32_t>(), *draws = draws_told();
  for (int look = 1; Missing(side.summaries_asked, *told) || Missing(side.draws_asked, *draws); ++look) {
    if (look % kLooks != 0) continue;
    if (cudaStreamQuery(stream_) != cudaErrorNotReady) break;
    (void)cudaGetLastError();  // that is no error
  }
  if (overlapped_ && !Missing(side.summaries_asked, *told) && !Missing(side.draws_asked, *draws)) {
    side.under_way = false;
  } else if (*told == summaries_asked_ && *draws == draws_asked_ && !staged_since_) {
    Reuse();
  } else {
    Synchronise();
    summaries_asked_ = side.summaries_asked = *told, draws_asked_ = side.draws_asked = *draws;
  }
  std::atomic_thread_fence(std::memory_order_acquire);
  side.records_here = side.records_under_way;
  std::copy_n(side.summaries.as<kernels::LogitSummary>(), side.summarised.size(), side.summarised.data());
  ReadDraws(&side);
}

void CudaOps::EnsureSummaries(int64_t rows) const {
  if (rows <= summary_rows_) return;
  LaunchPending();
  Synchronise();
  const int64_t bytes = SummaryScratch(rows) + Bytes<uint32_t>(rows + 1);
  Result<DeviceMemory> memory = DeviceMemory::Allocate(bytes, "summaries of logits");
  if (!memory.ok()) return Check(memory.status());
  for (Side& side : sides_) {
    Result<PinnedMemory> pinned = PinnedMemory::Allocate(Bytes<kernels::LogitSummary>(rows));
    if (!pinned.ok()) return Check(pinned.status());
    side.summaries = std::move(pinned).value();
  }
  summary_memory_ = std::move(memory).value();
  summary_rows_ = rows;
  Check(cudaMemsetAsync(summary_memory_.data(), 0, static_cast<size_t>(bytes), stream_), "clearing memory");
  DropGraphs();  // they have the old addresses
}

}  // namespace thermoe::cuda
