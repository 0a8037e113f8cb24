// SPDX-License-Identifier: Apache-2.0
// All threads read rows as the file has them into one of some pinned buffers while the others cross the link and are packed on the device: three
// stages that overlap, and the host's is a copy. The buffers are small, so that what was read is still in the processor's caches when the
// device fetches it: memory's bandwidth is then needed for the file alone. A buffer is sent on its way by one of the threads that read the next.
#include "kernels/cuda/upload.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/errors.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/pack.h"

namespace thermoe::cuda {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kBufferBytes = int64_t{8} << 20;
constexpr size_t kBuffers = 4;
constexpr int64_t kPieceBytes = int64_t{64} << 10;  // read by a thread at a time
constexpr int64_t kAlign = 256;
constexpr int kLinkRounds = 4, kLinkCopies = 16;

double SecondsSince(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }
int64_t Aligned(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

int64_t LoRowBytes(const WeightMatrix& m) { return m.type == DType::kNested8 ? NestedLoRowBytes(m.cols) : 0; }
// The most that a group of rows takes of a buffer, beside kChunkSlack.
int64_t GroupBytes(const WeightMatrix& m) { return std::min<int64_t>(kGroupRows, m.rows) * (m.row_bytes() + LoRowBytes(m)); }
constexpr int64_t kChunkSlack = 2 * kAlign;

// Rows of a matrix, whole groups of them, and where they lie in a buffer.
struct Chunk {
  const UploadItem* item;
  int64_t first_row, rows;
  int64_t at, lo_at;
};

class Uploader {
 public:
  Uploader(std::span<const UploadItem> items, std::span<const MappedFile> files, ThreadPool* threads)
      : items_(items), files_(files), threads_(threads), failed_(static_cast<size_t>(threads->size())) {}
  ~Uploader();
  Uploader(const Uploader&) = delete;
  Uploader& operator=(const Uploader&) = delete;

  Status Start();
  Status Run();
  Status MeasureLink();
  const kernels::LoadFacts& facts() const { return facts_; }

 private:
  struct Buffer {
    PinnedMemory host;
    DeviceMemory device;
    cudaEvent_t crossed = nullptr, packed = nullptr;
    std::vector<Chunk> chunks;
    int64_t bytes = 0;  // that they take
  };
  struct Piece {
    const std::byte* from;
    std::byte* to;
    int64_t bytes;
  };

  void Check(cudaError_t error) {
    if (health_.ok()) health_ = CudaStatus(error, "loading weights");
  }
  void NextChunks(Buffer* buffer);
  void AddPieces(const std::byte* from, std::byte* to, int64_t bytes);
  Status FillAndSend(const Buffer& fill, const Buffer* send);
  Status ReadPiece(const Piece& piece) const;
  void Send(const Buffer& buffer);
  cudaError_t Place(const Chunk& chunk, const std::byte* buffer) const;

  std::span<const UploadItem> items_;
  std::span<const MappedFile> files_;
  ThreadPool* threads_;
  Status health_ = Status::Ok();
  kernels::LoadFacts facts_;

  int device_ = 0;
  int64_t buffer_bytes_ = kBufferBytes;
  std::array<Buffer, kBuffers> buffers_;
  cudaStream_t link_ = nullptr, packing_ = nullptr;

  size_t item_ = 0;  // what comes next
  int64_t row_ = 0;  // of it
  std::vector<Piece> pieces_;   // of the buffer that is being filled
  std::vector<Status> failed_;  // by thread
};

Uploader::~Uploader() {
  for (cudaStream_t stream : {link_, packing_}) {
    if (stream == nullptr) continue;
    cudaStreamSynchronize(stream);  // after an error copies may still be under way
    cudaStreamDestroy(stream);
  }
  for (const Buffer& buffer : buffers_) {
    for (cudaEvent_t event : {buffer.crossed, buffer.packed}) {
      if (event != nullptr) cudaEventDestroy(event);
    }
  }
}

Status Uploader::Start() {
  for (const UploadItem& item : items_) {  // a group of very long rows may be larger than a buffer
    THERMOE_CHECK(!item.matrix->interleaved());
    buffer_bytes_ = std::max(buffer_bytes_, GroupBytes(*item.matrix) + kChunkSlack);
  }
  Check(cudaGetDevice(&device_));
  for (cudaStream_t* stream : {&link_, &packing_}) Check(cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking));
  for (Buffer& buffer : buffers_) {
    Result<PinnedMemory> host = PinnedMemory::Allocate(buffer_bytes_);
    if (!host.ok()) return host.status();
    Result<DeviceMemory> device = DeviceMemory::Allocate(buffer_bytes_, "weights on their way");
    if (!device.ok()) return device.status();
    buffer.host = std::move(host).value(), buffer.device = std::move(device).value();
    for (cudaEvent_t* event : {&buffer.crossed, &buffer.packed}) Check(cudaEventCreateWithFlags(event, cudaEventDisableTiming));
  }
  return health_;
}

// What comes next, as much as fits; no bytes when all is done.
void Uploader::NextChunks(Buffer* buffer) {
  int64_t at = 0;
  buffer->chunks.clear();
  while (item_ < items_.size()) {
    const WeightMatrix& m = *items_[item_].matrix;
    const int64_t groups = (buffer_bytes_ - at - kChunkSlack) / GroupBytes(m);
    if (groups <= 0) break;
    Chunk chunk{&items_[item_], row_, std::min(m.rows - row_, groups * kGroupRows), at, 0};
    chunk.lo_at = Aligned(at + chunk.rows * m.row_bytes());
    at = Aligned(chunk.lo_at + chunk.rows * LoRowBytes(m));
    buffer->chunks.push_back(chunk);
    row_ += chunk.rows;
    if (row_ == m.rows) row_ = 0, ++item_;
  }
  buffer->bytes = at;
}

void Uploader::AddPieces(const std::byte* from, std::byte* to, int64_t bytes) {
  facts_.bytes += bytes;
  for (int64_t at = 0; at < bytes; at += kPieceBytes) pieces_.push_back({from + at, to + at, std::min(kPieceBytes, bytes - at)});
}

Status Uploader::FillAndSend(const Buffer& fill, const Buffer* send) {
  pieces_.clear();
  for (const Chunk& chunk : fill.chunks) {
    const WeightMatrix& m = *chunk.item->matrix;
    AddPieces(m.row(chunk.first_row), fill.host.data() + chunk.at, chunk.rows * m.row_bytes());
    if (LoRowBytes(m) > 0) AddPieces(m.lo_row(chunk.first_row), fill.host.data() + chunk.lo_at, chunk.rows * LoRowBytes(m));
  }
  threads_->ParallelFor(static_cast<int64_t>(pieces_.size()) + 1, [&](int64_t i, int thread) {
    if (i == 0) {
      if (send != nullptr) Send(*send);
      return;
    }
    Status read = ReadPiece(pieces_[static_cast<size_t>(i - 1)]);
    if (!read.ok()) failed_[static_cast<size_t>(thread)] = std::move(read);
  });
  for (const Status& status : failed_) THERMOE_RETURN_IF_ERROR(status);
  return Status::Ok();
}

// Through the file: the first touch of a mapped page costs more than the copy of its 4 KiB. What was made in memory is there already.
Status Uploader::ReadPiece(const Piece& piece) const {
  const auto bytes = static_cast<size_t>(piece.bytes);
  for (const MappedFile& file : files_) {
    const std::byte* begin = file.bytes().data();
    if (piece.from >= begin && piece.from < begin + file.bytes().size()) {
      return file.Read(static_cast<size_t>(piece.from - begin), {piece.to, bytes});
    }
  }
  std::memcpy(piece.to, piece.from, bytes);
  return Status::Ok();
}

// From any thread.
void Uploader::Send(const Buffer& buffer) {
  Check(cudaSetDevice(device_));
  Check(cudaStreamWaitEvent(link_, buffer.packed));
  Check(cudaMemcpyAsync(buffer.device.data(), buffer.host.data(), static_cast<size_t>(buffer.bytes), cudaMemcpyHostToDevice, link_));
  Check(cudaEventRecord(buffer.crossed, link_));
  Check(cudaStreamWaitEvent(packing_, buffer.crossed));
  for (const Chunk& chunk : buffer.chunks) Check(Place(chunk, buffer.device.data()));
  Check(cudaEventRecord(buffer.packed, packing_));
}

cudaError_t Uploader::Place(const Chunk& chunk, const std::byte* buffer) const {
  const WeightMatrix& m = *chunk.item->matrix;
  std::byte* to = chunk.item->to;
  if (!chunk.item->packed) {
    return cudaMemcpyAsync(to + chunk.first_row * m.row_bytes(), buffer + chunk.at, static_cast<size_t>(chunk.rows * m.row_bytes()),
                           cudaMemcpyDeviceToDevice, packing_);
  }
  return PackRows({m.type, View(m.type, m.rows, m.cols, to), buffer + chunk.at, buffer + chunk.lo_at, chunk.first_row, chunk.rows}, packing_);
}

Status Uploader::Run() {
  const auto start = Clock::now();
  const Buffer* filled = nullptr;
  for (size_t b = 0; health_.ok(); b = (b + 1) % kBuffers) {
    Buffer& buffer = buffers_[b];
    NextChunks(&buffer);
    if (buffer.bytes == 0) break;
    Check(cudaEventSynchronize(buffer.crossed));
    const auto reading = Clock::now();
    THERMOE_RETURN_IF_ERROR(FillAndSend(buffer, filled));
    facts_.read_seconds += SecondsSince(reading);
    filled = &buffer;
  }
  if (filled != nullptr) Send(*filled);
  Check(cudaStreamSynchronize(packing_));
  facts_.seconds = SecondsSince(start);
  return health_;
}

// By copies of a buffer, with nothing else to do: the best of some rounds, since others may use what lies between. Where an idle processor slows
// the link down, loading is faster than that; it is at least as fast as it was then.
Status Uploader::MeasureLink() {
  const Buffer& buffer = buffers_[0];
  cudaEvent_t begin = nullptr, end = nullptr;
  for (cudaEvent_t* event : {&begin, &end}) Check(cudaEventCreate(event));
  for (int round = 0; round < kLinkRounds; ++round) {
    Check(cudaEventRecord(begin, link_));
    for (int i = 0; i < kLinkCopies; ++i) {
      Check(cudaMemcpyAsync(buffer.device.data(), buffer.host.data(), static_cast<size_t>(buffer_bytes_), cudaMemcpyHostToDevice, link_));
    }
    Check(cudaEventRecord(end, link_));
    Check(cudaStreamSynchronize(link_));
    float ms = 0;
    Check(cudaEventElapsedTime(&ms, begin, end));
    const double bytes = static_cast<double>(buffer_bytes_) * kLinkCopies;
    if (ms > 0) facts_.link_bytes_per_s = std::max(facts_.link_bytes_per_s, bytes / (1e-3 * static_cast<double>(ms)));
  }
  for (cudaEvent_t event : {begin, end}) cudaEventDestroy(event);
  if (facts_.seconds > 0) facts_.link_bytes_per_s = std::max(facts_.link_bytes_per_s, static_cast<double>(facts_.bytes) / facts_.seconds);
  return health_;
}

}  // namespace

Result<kernels::LoadFacts> Upload(std::span<const UploadItem> items, std::span<const MappedFile> files, ThreadPool* threads) {
  Uploader uploader(items, files, threads);
  THERMOE_RETURN_IF_ERROR(uploader.Start());
  THERMOE_RETURN_IF_ERROR(uploader.Run());
  THERMOE_RETURN_IF_ERROR(uploader.MeasureLink());
  return uploader.facts();
}

}  // namespace thermoe::cuda
