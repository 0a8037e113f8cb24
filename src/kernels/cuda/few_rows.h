// SPDX-License-Identifier: Apache-2.0
// Products for few rows of activations, bound by the bytes of the weights: what decoding does where stream_rows.h does not serve
// (few_rows.cu). Right for any number of rows, but weights are read again for each 32. Same meaning as matrix_kernels.h, whose launches
// they serve; false: not these packings.
#pragma once

#include <span>

#include "kernels/cuda/matrix_kernels.h"

namespace thermoe::cuda {

bool LinearOfFewRows(std::span<const LinearLaunch> launches, cudaStream_t stream);

// Leaves what each slot gave in `slot_out`; AddSlots or a norm that adds them first (rows.h) does the rest.
struct SlotSums {
  const float* slot_out = nullptr;  // [T * K, hidden], by token * K + slot
  const float* weight = nullptr;    // [T, K]
  const int32_t* expert = nullptr;  // [T, K], -1: empty
  int32_t slots = 0;
};
bool ExpertsOfFewRows(const ExpertFfnLaunch& launch, SlotSums* sums, cudaStream_t stream);
// Scratch of experts, here and in stream_rows.h: inner products as halves, then at these bytes what each slot gave, and the rows as halves.
struct ExpertScratchParts {
  size_t slot_out = 0, rows = 0, total = 0;
};
ExpertScratchParts PartsOfExpertScratch(int32_t hidden, int32_t width, int32_t slots, int32_t rows);

}  // namespace thermoe::cuda
