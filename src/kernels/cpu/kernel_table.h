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

// --- Products with the transposed weight: x[t][c] += sum over rows r of dy[t][r] * w[r, c]. ---

// out[a][c] += sum over steps s of coef[a][s * coef_step] * w[s, c], each a chain of multiply-adds in rising s.
struct AddProductArgs {
  const float* const* coef = nullptr;  // [rows]
  int64_t coef_step = 1;
  int64_t steps = 0;
  const std::byte* w = nullptr;  // rows of `cols` floats, w_stride bytes apart
  int64_t w_stride = 0;
  float* const* out = nullptr;  // [rows], from column out_at on
  int64_t out_at = 0;
  int64_t rows = 0, cols = 0;
};

// Columns [first, first + cols) of weight rows as floats; dy's chain of multiply-adds goes through the rows in rising order.
struct TransposedArgs {
  MatrixTile weight;
  int64_t first = 0, cols = 0;       // first: a multiple of 32
  const float* const* dy = nullptr;  // [tokens], of weight's first row on
  float* const* out = nullptr;       // [tokens] += from column 0 on
  int64_t tokens = 0;
  float* scratch = nullptr;  // [kTransposedScratchFloats], 64-byte aligned
};
// 64 rows by 64 columns of floats (16 KiB) stay in L1 beside 64 floats of six tokens.
static constexpr int64_t kTransposedPanel = 64;
static constexpr int64_t kTransposedScratchFloats = kTransposedPanel * kTransposedPanel;

// The same for interleaved weights, in integers. Chunks of 128 rows: a token's dy as words of 13 bits and a scale, weights as words
// of 13 bits with one scale for 128 rows and 32 columns, two rows of a column side by side, made for each chunk and used by all
// tokens. 128 products of twice 12 bits and a sign stay below 2^31, so a chunk's sum is exact; chunks are added in rising order,
// one multiply-add each. Rounding is below 2^-12 of the largest value of a chunk.
// Half the byte products' rate and twice that of float ones (measured on a core of Zen 5: 265, 532 and 131 multiply-adds a ns).
// Tried: bf16 products (VDPBF16PS), which do 247, are coarser, and not on every AVX-512 machine; chunks of 64 rows (with a bit
// more for each word), 6 % slower. Byte products would need dy times the scale of each (row, 32 columns) as new codes: some 6
// operations for 16 values, where the product of those takes 8.
static constexpr int64_t kChunkRows = 128;
static constexpr int64_t kMostTaskBlocks = 8;    // of a call
static constexpr int64_t kWordPairBytes = 128;  // of 32 columns and 2 rows
static constexpr float kLargestWord = 4095;
// Scales below this are 0: what they belong to changes nothing, and their inverse might overflow.
static constexpr float kLeastScale = 1e-32f;

// For the rows of one call of Int::StorePairs, as words by row: what codes are multiplied by (columns 0 to 15, and 16 to 31),
// and what is added then.
struct WordScales {
  const std::byte* first = nullptr;
  const std::byte* last = nullptr;
  const std::byte* offset = nullptr;
};

// Gradients as words: for each chunk [rows] x 64 words, then [rows] scales.
struct WordRows {
  const std::byte* data = nullptr;
  int64_t rows = 0;
  int64_t chunk_bytes() const { return (rows * (2 * kChunkRows + 4) + 63) / 64 * 64; }
};

struct IntTransposedArgs {
  IntPacking packing = IntPacking::kQ8_0;
  int64_t groups = 0;                   // of 16 rows: all of the matrix
  int64_t first_block = 0, blocks = 0;  // of 32 columns; at most kMostTaskBlocks
  int64_t matrix_blocks = 0;            // all there are
  const std::byte* data = nullptr;      // the first group
  int64_t group_bytes = 0;
  int64_t scales_at = 0, codes_at = 0;
  const std::byte* lo = nullptr;  // kBoth
  int64_t lo_group_bytes = 0;
  WordRows dy;
  const int32_t* row = nullptr;  // [tokens] of dy
  float* const* out = nullptr;   // [tokens] += from column 0 on
  int64_t tokens = 0;
  std::byte* panel = nullptr;  // scratch [kChunkRows / 2 * kWordPairBytes], 64-byte aligned
};

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

// Some values of AdamArgs (backward_ops.h).
struct AdamTile {
  const float* gradient = nullptr;
  float *m = nullptr, *v = nullptr, *x = nullptr;
  int64_t n = 0;
  float share = 0, beta1 = 0, beta2 = 0, rate = 0, square = 0;
};

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

  void (*add_product)(const AddProductArgs& args) = nullptr;
  void (*transposed)(const TransposedArgs& args) = nullptr;
  void (*int_transposed)(const IntTransposedArgs& args) = nullptr;
  // Row `row` of `out` (whose data is meant to be written), chunk after chunk.
  void (*quantise_words)(const float* dy, int64_t cols, const WordRows& out, int64_t row, std::byte* data) = nullptr;
  // dx[i] += r gain[i] dy[i] - x[i] r^3 / n * sum(x gain dy), r as in rms_norm.
  void (*rms_norm_backward)(const float* x, const float* gain, const float* dy, int64_t n, float epsilon, float* dx) = nullptr;
  // gate, up: gradients of scale * dout . (silu(gate) up), in place. Returns dout . (silu(gate) up).
  float (*swiglu_backward)(const float* dout, float scale, int64_t n, float* gate, float* up) = nullptr;
  // logits become scale times their gradient; returns the loss. target < 0: entropy.
  float (*loss_backward)(int64_t target, float scale, int64_t n, float* logits) = nullptr;
  // scores [n] become p = softmax(scale * scores), dp [n] becomes scale * p * (dp - along).
  void (*softmax_backward)(float* scores, float* dp, int64_t n, float scale, float along) = nullptr;
  // m and v; returns the sum of v.
  float (*adam_moments)(const AdamTile& tile) = nullptr;
  // x -= rate * m / (sqrt(v * square) + floor)
  void (*adam_values)(const AdamTile& tile, float floor) = nullptr;
};

// Null where the build has no such instructions. Whether the machine has them is dispatch.cc's business.
const KernelTable* PortableKernels();
const KernelTable* Avx2Kernels();
const KernelTable* Avx512Kernels();

}  // namespace thermoe::kernels::cpu
