// SPDX-License-Identifier: Apache-2.0
// Moves quantised matrices from mapped files into other layouts, some MiB at a time, letting go of the pages they replace: the
// process never holds two copies of more than that.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "model/loaded_model.h"
#include "runtime/threads.h"

namespace thermoe {

// Memory on a cache-line boundary, in large pages where the system has them: less work to fill and to walk.
class WeightBuffer {
 public:
  explicit WeightBuffer(int64_t bytes);  // throws std::bad_alloc
  std::byte* data() const { return data_.get(); }

 private:
  struct Free {
    size_t bytes;
    void operator()(std::byte* p) const;
  };
  std::unique_ptr<std::byte, Free> data_;
};

// Whether a matrix can be interleaved in memory: a quantised type of files, rows in 16s.
bool Interleavable(const WeightMatrix& matrix);
// Matrices begin on cache lines.
inline int64_t AlignToLine(int64_t bytes) { return (bytes + 63) / 64 * 64; }
// What its copy takes.
int64_t InterleavedBytes(const WeightMatrix& matrix);

// One matrix to be written anew: `fill` writes the `step` rows from `first` on to where they belong.
struct Rewrite {
  WeightMatrix from;
  int64_t step = 1;
  std::function<void(int64_t first)> fill;
};
// An interleaved copy at `to` [InterleavedBytes]; `result` is what it will be when `Run` has run.
// `result` may be where `from` came from.
Rewrite InterleaveTo(WeightMatrix from, std::byte* to, WeightMatrix* result);

// Runs all of them, some MiB at a time, rows shared between the threads, and lets go of the mapped pages that they replace (those
// come back from the file should anyone read them). A matrix that is not in one of the model's files is left alone.
void RunRewrites(const LoadedModel& model, std::span<const Rewrite> rewrites, ThreadPool* threads);

// Interleaves the attention, gate, shared-expert and output matrices that can be; routed experts are ExpertStore's. The
// embedding stays in the file, whose pages come back as a step reads single rows of it.
void RepackDense(LoadedModel* model, ThreadPool* threads, std::vector<WeightBuffer>* buffers);

}  // namespace thermoe
