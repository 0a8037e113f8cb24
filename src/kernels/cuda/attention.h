// SPDX-License-Identifier: Apache-2.0
// Keys and values in half precision on the device, and causal attention over them (online softmax: Milakov and Gimelshein 2018,
// arXiv 1805.02867; tiles: Dao et al. 2022, arXiv 2205.14135; split along the context for decoding).
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace thermoe::cuda {

// Places of a step's rows.
struct RowTable {
  const int32_t* sequence = nullptr;  // [T] into tables
  const int32_t* position = nullptr;  // [T]
  const int32_t* tables = nullptr;    // [sequences, stride] block numbers
  int32_t stride = 0;
};

// Keys and values of one layer: [blocks, kv_heads, kKvBlock, head_dim].
struct HalfKv {
  __half* keys = nullptr;
  __half* values = nullptr;
  int32_t kv_heads = 0, head_dim = 0;
};

struct StoreLaunch {
  const float* k = nullptr;  // [T, kv_heads * head_dim]
  const float* v = nullptr;
  RowTable rows;
  HalfKv cache;
  int64_t count = 0;  // T
};
void StoreKv(const StoreLaunch& launch, cudaStream_t stream);

struct AttentionLaunch {
  const float* q = nullptr;  // [T, heads * head_dim]
  RowTable rows;
  HalfKv cache;
  int32_t heads = 0;
  float scale = 0;
  float* out = nullptr;
  int64_t count = 0;  // T
  // Rows [0, single) are of sequences that have one row each; the others come in runs of one sequence with rising positions.
  int64_t single = 0;
  int32_t longest = 0;  // positions of the longest of them, at least: what launches are planned for
  void* scratch = nullptr;  // AttentionScratch bytes
  bool wgmma = true;         // may use Hopper's own tensor-core instructions
  uint32_t* taken = nullptr;  // [2] what blocks of attend_many.cu count, zero between launches; null: attention.cu does it
  __half* halves = nullptr;  // out once more as half_rows.cuh has it, or null; only where all rows are single and WritesHalves
  bool unread = false;       // nobody reads out but the product that follows among the launches
};
bool WritesHalves(const AttentionLaunch& launch);
inline constexpr int32_t kMostHeadDim = 512;
// For steps with up to `singles` single rows.
int64_t AttentionScratch(int64_t singles, int32_t heads, int32_t head_dim);
void Attention(const AttentionLaunch& launch, cudaStream_t stream);

}  // namespace thermoe::cuda
