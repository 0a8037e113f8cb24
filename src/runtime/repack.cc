// SPDX-License-Identifier: Apache-2.0
#include "runtime/repack.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <new>
#include <utility>

#include "base/check.h"
#include "model/interleave.h"

namespace thermoe {
namespace {

// Matrices are rewritten in runs of about this much: few calls into the system, and little memory held twice.
constexpr int64_t kRewriteRunBytes = int64_t{16} << 20;
// Rows of a task: some tens of microseconds of work.
constexpr int64_t kTaskRows = 64;

bool IsMapped(const LoadedModel& model, const std::byte* data) {
  return std::any_of(model.files.begin(), model.files.end(), [&](const MappedFile& file) {
    return data >= file.bytes().data() && data < file.bytes().data() + file.bytes().size();
  });
}

// Lets the pages that lie wholly inside the ranges go. Neighbours go together: a call costs a message to every core.
void ForgetPages(std::vector<std::pair<const std::byte*, const std::byte*>>* ranges) {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  std::sort(ranges->begin(), ranges->end());
  for (size_t i = 0; i < ranges->size();) {
    const std::byte* begin = (*ranges)[i].first;
    const std::byte* end = (*ranges)[i].second;
    for (++i; i < ranges->size() && (*ranges)[i].first == end; ++i) end = (*ranges)[i].second;
    const auto first = (reinterpret_cast<uintptr_t>(begin) + page - 1) / page * page;
    const auto last = reinterpret_cast<uintptr_t>(end) / page * page;
    if (last > first) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
  }
}

void* MapMemory(size_t bytes) {
  void* map = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED) throw std::bad_alloc();
  ::madvise(map, bytes, MADV_HUGEPAGE);  // only asked for
  return map;
}

// Into one buffer.
void RepackTogether(const LoadedModel& model, std::initializer_list<WeightMatrix*> matrices, ThreadPool* threads,
                    std::vector<WeightBuffer>* buffers) {
  const auto takes_part = [](const WeightMatrix* m) { return !m->empty() && Interleavable(*m); };
  int64_t bytes = 0;
  for (const WeightMatrix* m : matrices) bytes += takes_part(m) ? AlignToLine(InterleavedBytes(*m)) : 0;
  if (bytes == 0) return;
  buffers->emplace_back(bytes);
  std::byte* to = buffers->back().data();
  std::vector<Rewrite> rewrites;
  for (WeightMatrix* m : matrices) {
    if (!takes_part(m)) continue;
    rewrites.push_back(InterleaveTo(*m, to, m));
    to += AlignToLine(InterleavedBytes(*m));
  }
  RunRewrites(model, rewrites, threads);
}

}  // namespace

WeightBuffer::WeightBuffer(int64_t bytes)
    : data_(static_cast<std::byte*>(MapMemory(static_cast<size_t>(bytes))), Free{static_cast<size_t>(bytes)}) {}
void WeightBuffer::Free::operator()(std::byte* p) const { ::munmap(p, bytes); }

bool Interleavable(const WeightMatrix& matrix) {
  return !matrix.interleaved() && matrix.type != DType::kNested8 && CanInterleave(matrix.type, matrix.rows, matrix.cols);
}

int64_t InterleavedBytes(const WeightMatrix& matrix) {
  return matrix.rows * RowBytes(matrix.type, matrix.cols, Layout::kInterleaved);
}

Rewrite InterleaveTo(WeightMatrix from, std::byte* to, WeightMatrix* result) {
  THERMOE_CHECK(Interleavable(from));
  *result = {from.type, from.rows, from.cols, to, nullptr, Layout::kInterleaved};
  return {from, kInterleave, [from, to, group_bytes = InterleavedGroupBytes(from.type, from.cols)](int64_t first) {
            InterleaveGroup(from.type, from.row(first), from.row_bytes(), from.cols, to + first / kInterleave * group_bytes);
          }};
}

void RunRewrites(const LoadedModel& model, std::span<const Rewrite> rewrites, ThreadPool* threads) {
  std::vector<std::pair<const Rewrite*, int64_t>> tasks;                       // of this run, and the first row
  std::vector<std::pair<const std::byte*, const std::byte*>> replaced;         // by this run
  int64_t bytes = 0;
  const auto run = [&] {
    threads->ParallelFor(static_cast<int64_t>(tasks.size()), [&](int64_t task, int) {
      const auto& [rewrite, begin] = tasks[static_cast<size_t>(task)];
      const int64_t end = std::min(begin + kTaskRows, rewrite->from.rows);
      for (int64_t row = begin; row < end; row += rewrite->step) rewrite->fill(row);
    });
    ForgetPages(&replaced);
    tasks.clear();
    replaced.clear();
    bytes = 0;
  };
  for (const Rewrite& rewrite : rewrites) {
    const WeightMatrix& from = rewrite.from;
    const bool mapped = IsMapped(model, from.data);
    for (int64_t row = 0; row < from.rows; row += kTaskRows) {
      const int64_t rows = std::min(kTaskRows, from.rows - row);
      tasks.emplace_back(&rewrite, row);
      if (mapped) replaced.emplace_back(from.row(row), from.row(row) + rows * from.row_bytes());
      bytes += rows * from.row_bytes();
      if (bytes >= kRewriteRunBytes) run();
    }
  }
  run();
}

void RepackDense(LoadedModel* model, ThreadPool* threads, std::vector<WeightBuffer>* buffers) {
  for (LayerWeights& layer : model->weights.layers) {
    RepackTogether(*model, {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.shared.gate, &layer.shared.up,
                            &layer.shared.down, &layer.shared_gate}, threads, buffers);
  }
  RepackTogether(*model, {&model->weights.output}, threads, buffers);
  // Of the embedding a step reads single rows: their pages come back, the others need no memory.
  const WeightMatrix& embedding = model->weights.embedding;
  if (embedding.data == model->weights.output.data || !IsMapped(*model, embedding.data)) return;
  std::vector<std::pair<const std::byte*, const std::byte*>> pages = {{embedding.data, embedding.row(embedding.rows)}};
  ForgetPages(&pages);
}

}  // namespace thermoe
