// SPDX-License-Identifier: Apache-2.0
// Weights on their way to the device: all threads pack into one of some pinned buffers while others are copied. The buffers are small, so that
// what is packed is still in the processor's caches when the device fetches it: memory's bandwidth is what limits, and reading the file is then
// all that it is needed for.
#include <algorithm>
#include <chrono>

#include "base/errors.h"
#include "kernels/cuda/cuda_ops.h"

namespace thermoe::cuda {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kBufferBytes = int64_t{8} << 20;
constexpr int kBuffers = 4;
constexpr int64_t kPieceGroups = 1;  // of rows, packed by a thread at a time: some 0.3 MiB
constexpr int kLinkCopies = 32;

double SecondsSince(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

}  // namespace

// Groups of rows of a matrix, or all of it, that share a buffer with others.
struct CudaOps::UploadChunk {
  const UploadItem* item;
  int64_t first, count;  // groups
  int64_t staged;        // begins there in the buffer: as in the matrix if whole, else its three ranges one after the other
  bool whole;
};

// The next chunks that fit a buffer; `next` and `group` go on from them. A matrix that fits a buffer is not divided.
int64_t CudaOps::FillBuffer(std::span<const UploadItem> items, size_t* next, int64_t* group, std::vector<UploadChunk>* chunks) {
  int64_t bytes = 0;
  chunks->clear();
  while (*next < items.size()) {
    const UploadItem& item = items[*next];
    const WeightMatrix& m = *item.matrix;
    const int64_t groups = GroupsOf(m.rows);
    UploadChunk chunk{&item, *group, groups - *group, bytes, false};
    if (item.bytes <= kBufferBytes) {
      if (bytes + item.bytes > kBufferBytes) break;
      chunk.whole = true;
      bytes += item.bytes;
    } else {
      int64_t each = 0;
      for (const PackedRange& range : RangesOf(m.type, m.rows, m.cols, 0, 1)) each += range.bytes;
      chunk.count = std::min(chunk.count, std::max<int64_t>((kBufferBytes - bytes) / each, bytes == 0 ? 1 : 0));
      if (chunk.count == 0) break;
      bytes += chunk.count * each;
    }
    chunks->push_back(chunk);
    *group += chunk.count;
    if (*group == groups) *group = 0, ++*next;
  }
  return bytes;
}

void CudaOps::PackChunks(std::span<const UploadChunk> chunks, std::byte* buffer) {
  struct Piece {
    const UploadChunk* chunk;
    int64_t first, count;  // groups of the matrix
  };
  std::vector<Piece> pieces;
  for (const UploadChunk& chunk : chunks) {
    for (int64_t g = 0; g < chunk.count; g += kPieceGroups) pieces.push_back({&chunk, chunk.first + g, std::min(kPieceGroups, chunk.count - g)});
  }
  threads_->ParallelFor(static_cast<int64_t>(pieces.size()), [&](int64_t i, int) {
    const Piece& piece = pieces[static_cast<size_t>(i)];
    const UploadChunk& chunk = *piece.chunk;
    const WeightMatrix& m = *chunk.item->matrix;
    const auto all = RangesOf(m.type, m.rows, m.cols, chunk.first, chunk.count), mine = RangesOf(m.type, m.rows, m.cols, piece.first, piece.count);
    std::array<std::byte*, 3> places{};
    int64_t before = 0;
    for (size_t p = 0; p < all.size(); ++p) {
      places[p] = buffer + chunk.staged + (chunk.whole ? mine[p].at : before + mine[p].at - all[p].at);
      before += all[p].bytes;
    }
    PackGroups(m, piece.first, piece.count, places);
  });
}

// Whole matrices that follow one another lie so in the buffer too: one copy.
void CudaOps::CopyChunks(std::span<const UploadChunk> chunks, const std::byte* buffer, std::byte* base) {
  const auto copy = [&](int64_t to, int64_t from, int64_t bytes) {
    Check(cudaMemcpyAsync(base + to, buffer + from, static_cast<size_t>(bytes), cudaMemcpyDefault, stream_), "loading weights");
  };
  for (size_t i = 0; i < chunks.size();) {
    const UploadChunk& chunk = chunks[i];
    int64_t bytes = 0;
    for (; i < chunks.size() && chunks[i].whole; ++i) bytes += chunks[i].item->bytes;
    if (bytes > 0) {
      copy(chunk.item->to, chunk.staged, bytes);
      continue;
    }
    const WeightMatrix& m = *chunk.item->matrix;
    int64_t from = chunk.staged;
    for (const PackedRange& range : RangesOf(m.type, m.rows, m.cols, chunk.first, chunk.count)) {
      if (range.bytes > 0) copy(chunk.item->to + range.at, from, range.bytes);
      from += range.bytes;
    }
    ++i;
  }
}

Status CudaOps::Upload(std::span<const UploadItem> items, std::byte* base) {
  int64_t largest = kBufferBytes;
  for (const UploadItem& item : items) {  // a group of very long rows may be larger than a buffer
    const WeightMatrix& m = *item.matrix;
    int64_t each = 0;
    for (const PackedRange& range : RangesOf(m.type, m.rows, m.cols, 0, 1)) each += range.bytes;
    largest = std::max(largest, each);
  }
  PinnedMemory buffers[kBuffers];
  cudaEvent_t copied[kBuffers] = {};
  for (int b = 0; b < kBuffers; ++b) {
    Result<PinnedMemory> pinned = PinnedMemory::Allocate(largest);
    if (!pinned.ok()) return pinned.status();
    buffers[b] = std::move(pinned).value();
    Check(cudaEventCreateWithFlags(&copied[b], cudaEventDisableTiming), "loading weights");
  }
  const auto start = Clock::now();
  std::vector<UploadChunk> chunks;
  size_t next = 0;
  int64_t group = 0;
  for (int b = 0; next < items.size(); b = (b + 1) % kBuffers) {
    load_.bytes += FillBuffer(items, &next, &group, &chunks);
    Check(cudaEventSynchronize(copied[b]), "loading weights");
    const auto packing = Clock::now();
    PackChunks(chunks, buffers[b].data());
    load_.pack_seconds += SecondsSince(packing);
    CopyChunks(chunks, buffers[b].data(), base);
    Check(cudaEventRecord(copied[b], stream_), "loading weights");
  }
  Synchronise();
  load_.seconds = SecondsSince(start);
  for (cudaEvent_t event : copied) cudaEventDestroy(event);
  MeasureLink(buffers[0], largest);
  return health_;
}

// By copies of a buffer to memory that nobody uses.
void CudaOps::MeasureLink(const PinnedMemory& from, int64_t bytes) {
  Result<DeviceMemory> target = DeviceMemory::Allocate(std::max<int64_t>(bytes, 1), "measuring the link");
  if (!target.ok() || bytes == 0) return;
  cudaEvent_t begin = nullptr, end = nullptr;
  for (cudaEvent_t* event : {&begin, &end}) Check(cudaEventCreate(event), "measuring the link");
  Check(cudaEventRecord(begin, stream_), "measuring the link");
  for (int i = 0; i < kLinkCopies; ++i) {
    Check(cudaMemcpyAsync(target->data(), from.data(), static_cast<size_t>(bytes), cudaMemcpyDefault, stream_), "measuring the link");
  }
  Check(cudaEventRecord(end, stream_), "measuring the link");
  Synchronise();
  float ms = 0;
  Check(cudaEventElapsedTime(&ms, begin, end), "measuring the link");
  if (ms > 0) load_.link_bytes_per_s = static_cast<double>(bytes) * kLinkCopies / (1e-3 * static_cast<double>(ms));
  for (cudaEvent_t event : {begin, end}) cudaEventDestroy(event);
}

}  // namespace thermoe::cuda
