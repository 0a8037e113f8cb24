// SPDX-License-Identifier: Apache-2.0
// Recorded operations with device addresses, and how runs of them become launches.
#pragma once

#include <span>
#include <variant>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/matrix_kernels.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/select.h"

namespace thermoe::cuda {

struct SwiGluNode {
  const float *gate = nullptr, *up = nullptr;
  float* out = nullptr;
  int64_t size = 0;
};
struct AddNode {
  const float *x = nullptr, *gate = nullptr;
  float* out = nullptr;
  int64_t rows = 0, n = 0;
};
struct ClampNode {
  float* x = nullptr;
  int64_t size = 0;
  float limit = 0;
};
struct GatherNode {
  const float* x = nullptr;
  const int32_t* picked = nullptr;
  float* out = nullptr;
  int64_t rows = 0, n = 0;
};

using Node = std::variant<InputsLaunch, EmbedLaunch, AnglesLaunch, NormLaunch, LinearLaunch, RopeLaunch, StoreLaunch, AttentionLaunch, SelectLaunch, ExpertFfnLaunch,
                          SwiGluNode, AddNode, ClampNode, GatherNode, SummariseLaunch>;

// Memory that launches one after another share.
struct LaunchRoom {
  __half* halves = nullptr;  // the newest rows that a norm or attention gave once more as halves, for the product that follows
  int64_t half_count = 0;
  uint32_t* attention_done = nullptr;  // [kAttendCounters] (attend_few.h), zero between launches
};

// Launches all of them in order on the stream.
cudaError_t Launch(std::span<const Node> nodes, const LaunchRoom& room, cudaStream_t stream);

}  // namespace thermoe::cuda
