// SPDX-License-Identifier: Apache-2.0
// Memory of the CPU backend that lives from call to call. It grows to the largest step seen, so a running engine
// allocates nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

namespace thermoe::kernels::cpu {

// Floats on a cache-line boundary. Growing loses the contents.
class FloatBuffer {
 public:
  void Reserve(int64_t floats) {
    if (floats <= capacity_) return;
    data_.reset(static_cast<float*>(::operator new(static_cast<size_t>(floats) * sizeof(float), kAlign)));
    capacity_ = floats;
  }
  float* data() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kAlign{64};
  struct Free {
    void operator()(float* p) const { ::operator delete(p, kAlign); }
  };
  std::unique_ptr<float, Free> data_;
  int64_t capacity_ = 0;
};

// Of one thread of the team; on its own cache lines.
struct alignas(64) ThreadScratch {
  FloatBuffer dot;              // [kDotScratchFloats]
  FloatBuffer up;               // [tokens of a job, tile rows] up projections
  std::vector<float*> up_rows;  // [tokens of a job] into `up`
  FloatBuffer decoded;          // rows of a matrix whose type has no float kernel
  FloatBuffer attention;        // AttentionStateFloats(kMaxQueries, head_dim)
  // Backward.
  FloatBuffer sums;                // [tokens of a task, columns of a task] gradients on their way
  std::vector<float*> sum_rows;    // [tokens of a task] into `sums`
  std::vector<const float*> from;  // [tokens of a task] rows that begin at some of the weight's rows
  FloatBuffer scores, dscores;     // [rows of an attention tile, positions]
};

// Gradients that meet transposed weights.
struct GradientRows {
  std::vector<const float*> x;  // [count] as floats
  std::vector<int32_t> words;   // [count] rows of `codes`
  FloatBuffer codes;            // a WordRows's data
};

// Where the rows of one product lie: the first `count` entries are set by the operation that runs.
struct RowPointers {
  std::vector<const float*> x;
  std::vector<const std::byte*> codes;  // the same rows for the integer kernels; null where none needs them
  std::vector<float*> y;

  void Reserve(int64_t count) {
    if (static_cast<size_t>(count) <= x.size()) return;
    x.resize(static_cast<size_t>(count));
    codes.resize(static_cast<size_t>(count));
    y.resize(static_cast<size_t>(count));
  }
};

}  // namespace thermoe::kernels::cpu
