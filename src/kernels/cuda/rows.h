// SPDX-License-Identifier: Apache-2.0
// Operations on rows of floats, one launch each; all pointers are the device's, all calls asynchronous and fit for a graph.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/few_rows.h"
#include "kernels/cuda/weight_layout.h"
#include "kernels/ops.h"

namespace thermoe::cuda {

struct NormLaunch {
  const float* x = nullptr;
  const float* gain = nullptr;  // [n]
  float* out = nullptr;         // may be x
  int64_t rows = 0;
  int32_t n = 0;
  float epsilon = 0;
  // First x += add, or what the slots gave, where there are any (x may then not be const).
  const float* add = nullptr;
  SlotSums slots;
  __half* halves = nullptr;  // out once more as half_rows.cuh has it, or null
};
void RmsNorm(const NormLaunch& launch, cudaStream_t stream);

// out [rows, hidden] += what the slots of a row gave.
void AddSlots(const SlotSums& sums, float* out, int64_t rows, int32_t hidden, cudaStream_t stream);

struct RopeLaunch {
  float* x = nullptr;  // [rows, heads * head_dim]
  const float* cosines = nullptr;
  const float* sines = nullptr;  // [rows, rope_dim / 2]
  int64_t rows = 0;
  int32_t heads = 0, head_dim = 0, rope_dim = 0;
  bool halves = true;
};
void Rope(const RopeLaunch& launch, cudaStream_t stream);

// out [rows, n] = gate / (1 + exp(-gate)) * up
void SwiGlu(const float* gate, const float* up, float* out, int64_t size, cudaStream_t stream);
// out [rows, n] += x, scaled by sigmoid(gate [rows]) where there is a gate
void Add(const float* x, const float* gate, float* out, int64_t rows, int64_t n, cudaStream_t stream);
void Clamp(float* x, int64_t size, float limit, cudaStream_t stream);
// out [rows, n] = x[picked[row]]
void Gather(const float* x, const int32_t* picked, float* out, int64_t rows, int64_t n, cudaStream_t stream);
// Angles that rows turn by.
struct AnglesLaunch {
  const int32_t* position = nullptr;         // [rows]
  const float* inverse_frequency = nullptr;  // [half]
  float *cosines = nullptr, *sines = nullptr;  // [rows, half]
  int64_t rows = 0;
  int32_t half = 0;
};
void Angles(const AnglesLaunch& launch, cudaStream_t stream);

// out [rows, cols] = rows `ids` of a table as the file has it (type: any of DType but kNested8).
struct EmbedLaunch {
  DType type = DType::kF32;
  const std::byte* table = nullptr;
  int64_t cols = 0, row_bytes = 0;
  const int32_t* ids = nullptr;  // negative: what `largest` has of the row
  float* out = nullptr;
  int64_t rows = 0;
  const int32_t* largest = nullptr;  // [kMostAhead] as SummariseLaunch left them
  AnglesLaunch angles{};  // of the same rows, or of none
};
void Embed(const EmbedLaunch& launch, cudaStream_t stream);

// Small pieces of pinned host memory to where they belong, all at once, or from there to pinned host memory; the host leaves them until it has
// waited for the stream, or for the word of a summary after them.
inline constexpr int kMostPieces = 12;
struct ScatterLaunch {
  struct Piece {
    std::byte* to;
    const std::byte* from;  // aligned to 16 bytes
    int64_t bytes;
  };
  Piece pieces[kMostPieces];
  int32_t count = 0;
};
void Scatter(const ScatterLaunch& launch, cudaStream_t stream);

// The same for a graph, which is told each time anew by what lies in pinned memory: this, then the pieces' bytes.
struct alignas(16) StepInputs {
  struct Piece {
    std::byte* to;      // aligned to 16 bytes
    int32_t at, bytes;  // from the first piece's bytes on; at: a multiple of 16
  };
  Piece pieces[kMostPieces];
  int32_t count, bytes;  // bytes: up to the last piece's end
  uint32_t number, unused;  // of the launch that takes it, from 1 on
};
inline constexpr int32_t kStepInputBytes = 64 << 10;  // there is room for, behind it; all of it may be read
struct InputsLaunch {
  const StepInputs* inputs = nullptr;
  const StepInputs* copied = nullptr;  // in device memory; counts where it has the launch's number
  uint32_t* launches = nullptr;        // so many were before
};
void TakeInputs(const InputsLaunch& launch, cudaStream_t stream);

// Summaries of rows of logits.
struct SummariseLaunch {
  const float* logits = nullptr;   // [rows, vocab]
  const int32_t* asked = nullptr;  // [rows]
  int64_t rows = 0, vocab = 0;
  kernels::LogitSummary* out = nullptr;  // [rows] in pinned host memory
  void* scratch = nullptr;               // SummaryScratch(rows) bytes, aligned to 16; of no other launch under way
  uint32_t* done = nullptr;              // [rows + 1] parts that are done, and rows; zero between launches
  uint32_t* launches = nullptr;          // so many have come to their end
  uint32_t* told = nullptr;              // the same in pinned host memory: once it is there, so is what this one gives
  int32_t* largest = nullptr;            // [kMostAhead] which logit is, of the first rows
  ScatterLaunch::Piece also{};           // goes to pinned host memory by the same launch; bytes 0: nothing does
};
void Summarise(const SummariseLaunch& launch, cudaStream_t stream);
int64_t SummaryScratch(int64_t rows);

}  // namespace thermoe::cuda
