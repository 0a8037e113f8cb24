// SPDX-License-Identifier: Apache-2.0
// Tokens drawn of rows of logits (kernels::DrawArgs). All calls are asynchronous.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/draw_code.h"
#include "kernels/residency.h"

namespace thermoe::cuda {

// 2^x of a difference of logits x times hi + lo: e to the difference divided by a temperature.
struct ExpScale {
  float hi = 1.44269502e+00f, lo = 1.92596299e-08f;  // log2(e): temperature 1
};
ExpScale ScaleOf(float temperature);  // > 0

// One draw, as the device reads it.
struct alignas(16) DrawRow {
  double uniform = 0;
  int32_t row = 0;
  int32_t top_k = 0;        // 0: all
  float top_p = 1;          // 1: all
  float least = 0;          // a logit so far above the largest (or below) is kept: log(min_p)
  float penalty = 1;
  int32_t recent = 0;       // how many
  int64_t recent_at = 0;    // where they begin
  ExpScale scale{0, 0};     // hi 0: the largest
};
static_assert(sizeof(DrawRow) == 48);
DrawRow MakeDraw(const kernels::TokenDraw& draw, int64_t recent_at);

// A recent token and its logit before the penalty.
struct SeenLogit {
  int32_t id;
  float logit;
};

inline constexpr int64_t kMostDrawVocab = int64_t{1} << 19;  // ids; longer rows are not drawn of

struct DrawLaunch {
  float* logits = nullptr;            // [rows, vocab]; changed by penalties and restored
  int64_t vocab = 0;
  const DrawRow* draws = nullptr;     // [count] in pinned host memory
  const int32_t* recent = nullptr;    // of all draws, in pinned host memory
  SeenLogit* seen = nullptr;          // scratch: as many
  int32_t count = 0;
  kernels::DrawnToken* out = nullptr;  // [count] in pinned host memory
  uint32_t* done = nullptr;           // blocks that are done; zero between launches
  uint32_t* told = nullptr;           // in pinned host memory: `number`, once `out` is there
  uint32_t number = 0;
  int32_t* largest = nullptr;         // [kMostAhead] of the first rows, as SummariseLaunch left them: the token takes its place
};
void Draw(const DrawLaunch& launch, cudaStream_t stream);

}  // namespace thermoe::cuda
