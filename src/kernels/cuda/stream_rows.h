// SPDX-License-Identifier: Apache-2.0
// Products for the rows of decoding, bound by the bytes of the weights (stream_rows.cu): as few_rows.h, for at most kStreamRows rows
// and columns in multiples of 64. False: not these.
#pragma once

#include <span>

#include "kernels/cuda/few_rows.h"

namespace thermoe::cuda {

inline constexpr int32_t kStreamRows = 64, kStreamSlots = 2048;  // rows of a linear; slots (rows times K) of experts
inline constexpr int32_t kPassedSlots = 16;  // up to so many slots of experts, inner values are passed word by word
inline constexpr int32_t kHalfRows = 256;                       // rows that norms and attention leave as halves, too

bool LinearOfStreamedRows(std::span<const LinearLaunch> launches, cudaStream_t stream);
// Whether it takes so many rows of these in one launch.
bool StreamsAtOnce(std::span<const LinearLaunch> launches, int32_t rows);
bool ExpertsOfStreamedRows(const ExpertFfnLaunch& launch, SlotSums* sums, cudaStream_t stream);
// Whether that takes what a gate picks (SelectLaunch.picks).
bool TakesPicks(const ExpertFfnLaunch& launch);
size_t StreamedLinearScratch(int32_t rows, int32_t in);
// `given`, or x [rows, cols] as half_rows.cuh has it, made in `room` by a launch.
const __half* HalvesOf(const float* x, const __half* given, void* room, int32_t rows, int32_t cols, cudaStream_t stream);

// By these or, where they do not serve, by few_rows.h's.
inline bool LinearOfRows(std::span<const LinearLaunch> launches, cudaStream_t stream) {
  return LinearOfStreamedRows(launches, stream) || LinearOfFewRows(launches, stream);
}
inline bool ExpertsOfRows(const ExpertFfnLaunch& launch, SlotSums* sums, cudaStream_t stream) {
  return ExpertsOfStreamedRows(launch, sums, stream) || ExpertsOfFewRows(launch, sums, stream);
}

}  // namespace thermoe::cuda
