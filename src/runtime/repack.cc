// SPDX-License-Identifier: Apache-2.0
#include "runtime/repack.h"

#include <sys/mman.h>
#include <unistd.h>

#include <new>

#include "base/check.h"
#include "model/interleave.h"

namespace thermoe {
namespace {

constexpr std::align_val_t kAlign{64};

}  // namespace

WeightBuffer::WeightBuffer(int64_t bytes) : data_(static_cast<std::byte*>(::operator new(static_cast<size_t>(bytes), kAlign))) {}
void WeightBuffer::Free::operator()(std::byte* p) const { ::operator delete(p, kAlign); }

bool Interleavable(const WeightMatrix& matrix) {
  return !matrix.interleaved() && matrix.type != DType::kNested8 && CanInterleave(matrix.type, matrix.rows, matrix.cols);
}

int64_t InterleavedBytes(const WeightMatrix& matrix) {
  return matrix.rows * RowBytes(matrix.type, matrix.cols, Layout::kInterleaved);
}

WeightMatrix Interleave(const WeightMatrix& matrix, std::byte* to, ThreadPool* threads) {
  THERMOE_CHECK(Interleavable(matrix));
  const int64_t row_bytes = matrix.row_bytes(), group_bytes = InterleavedGroupBytes(matrix.type, matrix.cols);
  threads->ParallelFor(matrix.rows / kInterleave, [&](int64_t group, int) {
    InterleaveGroup(matrix.type, matrix.data + group * kInterleave * row_bytes, row_bytes, matrix.cols, to + group * group_bytes);
  });
  return {matrix.type, matrix.rows, matrix.cols, to, nullptr, Layout::kInterleaved};
}

void ForgetPages(const LoadedModel& model, const WeightMatrix& matrix) {
  bool mapped = false;
  for (const MappedFile& file : model.files) {
    const std::span<const std::byte> bytes = file.bytes();
    mapped = mapped || (matrix.data >= bytes.data() && matrix.data < bytes.data() + bytes.size());
  }
  if (!mapped) return;
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<uintptr_t>(matrix.data) + page - 1) / page * page;
  const auto end = (reinterpret_cast<uintptr_t>(matrix.data) + static_cast<uintptr_t>(matrix.bytes())) / page * page;
  if (end > begin) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

void RepackDense(LoadedModel* model, ThreadPool* threads, std::vector<WeightBuffer>* buffers) {
  const auto repack = [&](WeightMatrix* matrix) {
    if (matrix->empty() || !Interleavable(*matrix)) return;
    buffers->emplace_back(InterleavedBytes(*matrix));
    const WeightMatrix from = *matrix;
    *matrix = Interleave(from, buffers->back().data(), threads);
    ForgetPages(*model, from);
  };
  for (LayerWeights& layer : model->weights.layers) {
    for (WeightMatrix* matrix : {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.shared.gate, &layer.shared.up,
                                 &layer.shared.down, &layer.shared_gate}) {
      repack(matrix);
    }
  }
  repack(&model->weights.output);
}

}  // namespace thermoe
