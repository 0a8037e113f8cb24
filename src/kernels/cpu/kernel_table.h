// SPDX-License-Identifier: Apache-2.0
// What one instruction set provides to the CPU backend: a table of functions over raw pointers, no threads and no
// allocation. cpu_ops.h schedules them.
//
// Rule for everything included by *_avx2.cc and *_avx512.cc: no function with external linkage is defined there but
// the one that returns the table, and none of another header's inline functions is called. Otherwise the linker may
// keep their copy, compiled for the wider machine, for callers on every machine.
#pragma once

#include <cstddef>
#include <cstdint>

namespace thermoe::kernels::cpu {

// How a row of weights is read: the DType and, for nested experts, the planes.
enum class Packing : uint8_t { kF32, kF16, kBF16, kQ8_0, kQ4_0, kNestedBoth, kNestedHi };

// Consecutive rows of a weight matrix.
struct MatrixTile {
  Packing packing = Packing::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  const std::byte* data = nullptr;  // the first row; rows lie row_bytes apart
  int64_t row_bytes = 0;
  const std::byte* lo = nullptr;  // kNestedBoth: the lo plane's first row
  int64_t lo_row_bytes = 0;
};

// y[t][y_at + r] = dot(weight row r, x[t]) + bias[r].
// The additions of one output: one accumulator vector of the ISA's width, lane l adding the products of columns
// l, l + width, ... in rising order; then lanes i and i + width / 2 are added, halving down to one; then the bias.
// It is the same on every path, so an output does not depend on how many rows or tokens are computed with it.
struct DotArgs {
  MatrixTile weight;
  const float* const* x = nullptr;  // [tokens] rows of `cols` floats
  float* const* y = nullptr;        // [tokens]
  int64_t y_at = 0;
  int64_t tokens = 0;
  const float* bias = nullptr;  // [weight.rows] or null
  float* scratch = nullptr;     // [kDotScratchFloats], 64-byte aligned
};

// How an interleaved matrix (model/interleave.h) is read; the last two: kNested8 by both planes and by the hi plane.
enum class IntPacking : uint8_t { kQ8_0, kQ4_0, kQ5_0, kQ5_1, kQ4K, kQ5K, kQ6K, kIQ4NL, kMXFP4, kBoth, kHi };

// A row of activations for the integer kernels: [cols] codes, then one of these for each block of 32.
struct QuantSide {
  float scale;      // x is about scale * code
  int32_t sum_128;  // -128 times the sum of the codes
  int32_t sum_8;    // -8 times
  float hi_offset;  // -120.5 times: what nibbles of a hi plane are raised by, 128 less the mid-point of 7.5
  float minus_sum;  // -scale times
  int32_t first_8;  // -8 times the sum of the first 16 codes
};
static constexpr int64_t QuantRowBytes(int64_t cols) { return cols + cols / 32 * static_cast<int64_t>(sizeof(QuantSide)); }

// y[t][y_at + r] = dot(weight row r, x[t]) + bias[r] for groups of 16 rows. An output is the sum over blocks of 32 columns, in
// rising order, of (an exact integer dot product) * (weight scale * activation scale), one multiply-add each, and another for
// the minimums of the types that have them; then the bias.
struct IntDotArgs {
  IntPacking packing = IntPacking::kQ8_0;
  int64_t groups = 0;
  int64_t blocks = 0;               // of 32 columns
  const std::byte* data = nullptr;  // the first group
  int64_t group_bytes = 0;
  int64_t scales_at = 0, codes_at = 0;  // from a group's begin (GroupShape)
  const std::byte* lo = nullptr;    // kBoth: the first group's lo plane
  int64_t lo_group_bytes = 0;
  const std::byte* const* x = nullptr;  // [tokens] rows of QuantRowBytes
  float* const* y = nullptr;            // [tokens]
  int64_t y_at = 0;
  int64_t tokens = 0;
  const float* bias = nullptr;      // [groups * 16] or null
};
// How far ahead of use a product asks for weights, into L2: some 300 ns at 27 GB/s a core, a loaded memory's access twice over. With
// 2 KiB into L1 4-bit weights were read 20 % more slowly (41 against 51 GB/s; 4 to 16 KiB into L2 are alike).
static constexpr int64_t kPrefetchAhead = 8192;

// The panel product's blocking (many tokens). A panel of 8 x 512 floats (16 KiB) and the 512 columns of a register
// tile's 6 tokens (12 KiB) share an L1 of 32 KiB or more. 96 tokens of up to 2,048 columns (768 KiB) are read from L2
// once a panel; each token tile decodes the weights again, which costs some 4 % of its product.
static constexpr int64_t kPanelRows = 8;
static constexpr int64_t kPanelCols = 512;
static constexpr int64_t kTokenTile = 96;  // a multiple of every Isa::kGemmTokens
// The panel, then one accumulator vector (at most 16 floats) per token and row.
static constexpr int64_t kDotScratchFloats = kPanelRows * kPanelCols + kTokenTile * kPanelRows * 16;

// Queries of some rows of one sequence against one kv head: query i belongs to row i / group. Block b of the cache is
// visited in rising order, and its positions in rising order, for each query alone.
struct AttentionTileArgs {
  const float* const* q = nullptr;  // [rows * group] rows of head_dim floats
  float* const* out = nullptr;      // the same
  int32_t rows = 0;
  int32_t group = 0;
  const int32_t* positions = nullptr;  // [rows]
  const int32_t* blocks = nullptr;     // the sequence's block table
  const float* keys = nullptr;         // the kv head's first block
  const float* values = nullptr;
  int64_t block_stride = 0;  // floats from one block to the next
  int32_t head_dim = 0;
  float scale = 0;
  float* state = nullptr;  // scratch [AttentionStateFloats(rows * group, head_dim)], 64-byte aligned
};

// Most queries of one attention tile: 16 rows of a model without grouping, or 4 rows of groups of 8.
constexpr int kMaxQueries = 32;

// Per query: head_dim accumulators (padded), 16 scores, 16 lanes of the sum.
static constexpr int64_t PaddedHead(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }
static constexpr int64_t AttentionStateFloats(int64_t queries, int64_t head_dim) {
  return queries * (PaddedHead(head_dim) + 32);
}

struct KernelTable {
  const char* name = nullptr;  // "avx512"

  void (*dot)(const DotArgs& args) = nullptr;
  void (*int_dot)(const IntDotArgs& args) = nullptr;
  // out: QuantRowBytes(cols)
  void (*quantise_row)(const float* x, int64_t cols, std::byte* out) = nullptr;
  // out[i] = x[i] / sqrt(mean(x^2) + epsilon) * gain[i]; out may be x.
  void (*rms_norm)(const float* x, const float* gain, int64_t n, float epsilon, float* out) = nullptr;
  // out[i] = gate[i] / (1 + exp(-gate[i])) * up[i]; out may be gate. exp within 2 ulp (vec_math.h).
  void (*swiglu)(const float* gate, const float* up, int64_t n, float* out) = nullptr;
  // out[i] += scale * x[i]
  void (*add_scaled)(const float* x, float scale, int64_t n, float* out) = nullptr;
  // out[i] += sum over s in order of weight[s] * x[s][i]
  void (*add_weighted)(const float* const* x, const float* weight, int32_t count, int64_t n, float* out) = nullptr;
  // One row of `heads` heads in place; halves: pairs (i, i + rope_dim / 2), else (2 i, 2 i + 1).
  void (*rope)(float* x, int32_t heads, int32_t head_dim, int32_t rope_dim, bool halves, const float* cosines,
               const float* sines) = nullptr;
  void (*attention_tile)(const AttentionTileArgs& args) = nullptr;
};

// Null where the build has no such instructions. Whether the machine has them is dispatch.cc's business.
const KernelTable* PortableKernels();
const KernelTable* Avx2Kernels();
const KernelTable* Avx512Kernels();

}  // namespace thermoe::kernels::cpu
