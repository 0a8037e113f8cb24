// SPDX-License-Identifier: Apache-2.0
// Number formats of weights: what a row of a matrix looks like in memory, and its exact values.
// Sources: the GGUF specification and ggml's block definitions; docs/nested-experts.md for kNested8.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace thermoe {

enum class DType : uint8_t {
  kF32,
  kF16,
  kBF16,
  kQ8_0,     // 32 signed bytes and a binary16 scale: d * c
  kQ4_0,     // 32 nibbles and a binary16 scale: d * (n - 8)
  kQ5_0,     // 32 codes of 5 bits and a binary16 scale: d * (c - 16)
  kQ5_1,     // 32 codes of 5 bits, a binary16 scale and minimum: d * c + m
  kQ4K,      // 256 nibbles; each 32 have a scale and a minimum of 6 bits: (d * s) * n - (dmin * m)
  kQ5K,      // the same with codes of 5 bits
  kQ6K,      // 256 codes of 6 bits; each 16 have a signed 8-bit scale: (d * s) * (c - 32)
  kIQ4NL,    // 32 nibbles that index a table of 16 bytes, and a binary16 scale
  kMXFP4,    // 32 floats of 4 bits (E2M1) and a scale that is a power of two (E8M0)
  kNested8,  // in memory only: Q8_0's codes as a hi plane (NestedHi) and a lo plane (NestedLo)
};
inline constexpr int kDTypes = 13;

// How the rows of a matrix lie in memory.
enum class Layout : uint8_t {
  kRows,         // one after the other, as files have them
  kInterleaved,  // in memory only: 16 rows together, for the integer kernels (interleave.h)
};

inline constexpr int kQuantBlock = 32;  // weights per scale, or per pair of scales, of every quantised type here

// Kernels and tests look into Q8_0 and Q4_0; the other blocks are in quant_blocks.h.
struct BlockQ8_0 {
  uint16_t d;       // binary16 scale
  int8_t codes[32];
};
static_assert(sizeof(BlockQ8_0) == 34);

struct BlockQ4_0 {
  uint16_t d;         // binary16 scale
  uint8_t nibbles[16];  // weight j: low half of byte j for j < 16, high half of byte j - 16 otherwise
};
static_assert(sizeof(BlockQ4_0) == 18);

// Code c in [-127, 127] = 16 * hi + lo, hi = c >> 4 (arithmetic) in [-8, 7], lo = c & 15. Nibbles are packed
// as in BlockQ4_0. Both planes: d * c, bit for bit Q8_0. Hi alone: d * (16 * hi + 7.5).
struct NestedHi {
  uint16_t d;          // binary16 scale
  uint8_t nibbles[16];  // hi + 8
};
static_assert(sizeof(NestedHi) == 18);
struct NestedLo {
  uint8_t nibbles[16];  // lo
};
static_assert(sizeof(NestedLo) == 16);

struct DTypeTraits {
  std::string_view name;  // "q8_0"
  int block_elements;     // 1 for plain floats
  int block_bytes;        // kNested8: of the hi plane
  int bits;               // of one weight, its share of the scales left out
};
const DTypeTraits& TraitsOf(DType type);

// Bytes of a row of `cols` weights; cols must be a multiple of block_elements. kNested8: the hi plane's.
// kInterleaved: a 16th of 16 rows.
int64_t RowBytes(DType type, int64_t cols, Layout layout = Layout::kRows);
constexpr int64_t NestedLoRowBytes(int64_t cols) { return cols / kQuantBlock * static_cast<int64_t>(sizeof(NestedLo)); }

// Which planes of a nested matrix are read. Other types are always read whole.
enum class Planes : uint8_t { kHi = 1, kBoth = 2 };

// A weight matrix as kernels see it: [rows, cols] row-major, y[r] = sum over c of w[r, c] * x[c].
struct WeightMatrix {
  DType type = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  const std::byte* data = nullptr;  // rows * RowBytes(type, cols, layout) bytes; kNested8: the hi plane
  const std::byte* lo = nullptr;    // kNested8: rows * NestedLoRowBytes(cols) bytes; else null
  Layout layout = Layout::kRows;

  bool empty() const { return data == nullptr; }
  bool interleaved() const { return layout == Layout::kInterleaved; }
  int64_t row_bytes() const { return RowBytes(type, cols, layout); }
  // Interleaved: only rows that begin a group of 16 have an address of their own.
  const std::byte* row(int64_t r) const { return data + r * row_bytes(); }
  const std::byte* lo_row(int64_t r) const { return lo + r * NestedLoRowBytes(cols); }
  // Bytes a full pass reads with these planes.
  int64_t bytes(Planes planes = Planes::kBoth) const {
    return rows * (row_bytes() + (type == DType::kNested8 && planes == Planes::kBoth ? NestedLoRowBytes(cols) : 0));
  }
};

// The definition of each format: weights of one row as floats. out: [matrix.cols].
void DecodeRow(const WeightMatrix& matrix, int64_t row, Planes planes, float* out);

// Encodes `cols` floats into a row of any type but kNested8: quant_blocks.h says how.
void EncodeRow(DType type, const float* values, int64_t cols, std::byte* out);

// Splits Q8_0 blocks into planes. hi, lo: [blocks].
void SplitPlanes(const BlockQ8_0* blocks, int64_t count, NestedHi* hi, NestedLo* lo);

}  // namespace thermoe
