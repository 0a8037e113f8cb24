// SPDX-License-Identifier: Apache-2.0
// Moves quantised matrices from mapped files into the interleaved layout of the integer kernels, one at a time, letting go
// of the pages each replaces: the process never holds two copies of more than one matrix.
#pragma once

#include <cstddef>
#include <memory>

#include "model/loaded_model.h"
#include "runtime/threads.h"

namespace thermoe {

// Memory on a cache-line boundary.
class WeightBuffer {
 public:
  explicit WeightBuffer(int64_t bytes);
  std::byte* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(std::byte* p) const;
  };
  std::unique_ptr<std::byte, Free> data_;
};

// Whether Interleave can take this matrix: a quantised type of files, rows in 16s.
bool Interleavable(const WeightMatrix& matrix);
// What its copy takes.
int64_t InterleavedBytes(const WeightMatrix& matrix);

// An interleaved copy at `to` [InterleavedBytes]. Rows are shared between the threads.
WeightMatrix Interleave(const WeightMatrix& matrix, std::byte* to, ThreadPool* threads);

// Lets the mapped pages that lie wholly inside a matrix go; they come back from the file should anyone read them. Does
// nothing for a matrix that is not in one of the model's files.
void ForgetPages(const LoadedModel& model, const WeightMatrix& matrix);

// Interleaves the attention, gate, shared-expert and output matrices that can be; routed experts are ExpertStore's. The
// embedding stays as it is: a step reads single rows of it.
void RepackDense(LoadedModel* model, ThreadPool* threads, std::vector<WeightBuffer>* buffers);

}  // namespace thermoe
