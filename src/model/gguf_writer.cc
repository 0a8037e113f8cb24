// SPDX-License-Identifier: Apache-2.0
#include "model/gguf_writer.h"

#include <fcntl.h>
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "base/errors.h"
#include "model/file_errors.h"
#include "model/gguf_format.h"

namespace thermoe {
namespace {

// Large enough that a write call costs nothing, small enough to stay in the second-level cache.
constexpr int64_t kPieceBytes = 1 << 20;

constexpr uint64_t Padded(uint64_t bytes) { return (bytes + kGgufAlignment - 1) / kGgufAlignment * kGgufAlignment; }

template <typename T>
void Append(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}
void AppendType(std::string& out, GgufType type) { Append(out, static_cast<uint32_t>(type)); }
void AppendText(std::string& out, std::string_view text) {
  Append(out, static_cast<uint64_t>(text.size()));
  out.append(text);
}

// A file under a temporary name until Commit(); gone if that is never reached.
class PendingFile {
 public:
  explicit PendingFile(const std::string& path) : path_(path), pending_path_(path + ".partial") {}
  ~PendingFile() {
    if (fd_ < 0) return;
    ::close(fd_);
    ::unlink(pending_path_.c_str());
  }
  PendingFile(const PendingFile&) = delete;
  PendingFile& operator=(const PendingFile&) = delete;

  Status Open(uint64_t bytes) {
    bytes_ = bytes;
    fd_ = ::open(pending_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd_ < 0) return Failure();
    // Finds a full disk now, not half an hour later. Not every file system can tell.
    if (::fallocate(fd_, 0, 0, static_cast<off_t>(bytes)) != 0 && errno != EOPNOTSUPP && errno != ENOSYS) {
      return Failure();
    }
    return Status::Ok();
  }

  Status Write(const void* data, size_t count) {
    const char* from = static_cast<const char*>(data);
    while (count > 0) {
      const ssize_t written = ::write(fd_, from, count);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) return Failure();
      from += written;
      count -= static_cast<size_t>(written);
    }
    return Status::Ok();
  }

  Status Commit() {
    if (::close(std::exchange(fd_, -1)) != 0 || std::rename(pending_path_.c_str(), path_.c_str()) != 0) {
      const Status failure = Failure();
      ::unlink(pending_path_.c_str());
      return failure;
    }
    return Status::Ok();
  }

 private:
  Status Failure() const {
    const int code = errno;
    if (code == ENOSPC || code == EDQUOT || code == EFBIG) {
      return ResourceExhausted("{}: needs {} bytes and there is no room ({}); free some space or write elsewhere",
                               path_, Grouped(bytes_), std::strerror(code));
    }
    if (code == ENOENT || code == ENOTDIR) {
      return NotFound("{}: its folder does not exist; make it first, or write elsewhere", path_);
    }
    return InvalidArgument("{}: cannot be written ({}); check the folder's permissions", path_, std::strerror(code));
  }

  std::string path_;
  std::string pending_path_;
  uint64_t bytes_ = 0;
  int fd_ = -1;
};

}  // namespace

void GgufWriter::SetInt(std::string_view key, uint32_t value) {
  AppendText(metadata_, key);
  AppendType(metadata_, GgufType::kU32);
  Append(metadata_, value);
  ++metadata_count_;
}

void GgufWriter::SetFloat(std::string_view key, float value) {
  AppendText(metadata_, key);
  AppendType(metadata_, GgufType::kF32);
  Append(metadata_, value);
  ++metadata_count_;
}

void GgufWriter::SetBool(std::string_view key, bool value) {
  AppendText(metadata_, key);
  AppendType(metadata_, GgufType::kBool);
  Append(metadata_, static_cast<uint8_t>(value));
  ++metadata_count_;
}

void GgufWriter::SetText(std::string_view key, std::string_view value) {
  AppendText(metadata_, key);
  AppendType(metadata_, GgufType::kText);
  AppendText(metadata_, value);
  ++metadata_count_;
}

void GgufWriter::SetTexts(std::string_view key, const std::vector<std::string>& values) {
  AppendText(metadata_, key);
  AppendType(metadata_, GgufType::kArray);
  AppendType(metadata_, GgufType::kText);
  Append(metadata_, static_cast<uint64_t>(values.size()));
  for (const std::string& value : values) AppendText(metadata_, value);
  ++metadata_count_;
}

void GgufWriter::SetInts(std::string_view key, const std::vector<int32_t>& values) {
  AppendText(metadata_, key);
  AppendType(metadata_, GgufType::kArray);
  AppendType(metadata_, GgufType::kI32);
  Append(metadata_, static_cast<uint64_t>(values.size()));
  for (int32_t value : values) Append(metadata_, value);
  ++metadata_count_;
}

Status GgufWriter::AddTensor(std::string name, DType type, std::vector<int64_t> shape, Fill fill) {
  const DTypeTraits& traits = TraitsOf(type);
  const int64_t elements = CheckedElements(shape);
  if (shape.empty() || shape.size() > kGgufMostDimensions || elements < 1) {
    return InvalidArgument("tensor {} has shape {}, which GGUF cannot hold", name, ShapeText(shape));
  }
  const int64_t cols = shape.back();
  if (cols % traits.block_elements != 0) {
    return InvalidArgument("tensor {} has rows of {} weights, but {} comes in blocks of {}; choose another type", name,
                           cols, traits.name, traits.block_elements);
  }
  tensors_.push_back(
      {std::move(name), type, std::move(shape), std::move(fill), elements / cols, RowBytes(type, cols), data_bytes_});
  data_bytes_ += Padded(static_cast<uint64_t>(tensors_.back().rows * tensors_.back().row_bytes));
  return Status::Ok();
}

std::string GgufWriter::Header() const {
  std::string header;
  Append(header, kGgufMagic);
  Append(header, kGgufVersion);
  Append(header, static_cast<uint64_t>(tensors_.size()));
  Append(header, metadata_count_);
  header += metadata_;
  for (const Tensor& tensor : tensors_) {
    AppendText(header, tensor.name);
    Append(header, static_cast<uint32_t>(tensor.shape.size()));
    for (auto extent = tensor.shape.rbegin(); extent != tensor.shape.rend(); ++extent) {
      Append(header, static_cast<uint64_t>(*extent));  // innermost first
    }
    Append(header, GgmlOfDType(tensor.type));
    Append(header, tensor.offset);
  }
  header.resize(Padded(header.size()), '\0');
  return header;
}

Status GgufWriter::Write(const std::string& path, const Progress& progress) const {
  const std::string header = Header();
  PendingFile file(path);
  THERMOE_RETURN_IF_ERROR(file.Open(header.size() + data_bytes_));
  THERMOE_RETURN_IF_ERROR(file.Write(header.data(), header.size()));
  std::vector<std::byte> piece;
  uint64_t done = 0;
  for (const Tensor& tensor : tensors_) {
    const int64_t piece_rows = std::clamp<int64_t>(kPieceBytes / tensor.row_bytes, 1, tensor.rows);
    for (int64_t row = 0; row < tensor.rows; row += piece_rows) {
      const int64_t rows = std::min(piece_rows, tensor.rows - row);
      const auto used = static_cast<uint64_t>(rows * tensor.row_bytes);
      const bool last = row + rows == tensor.rows;
      // The last piece carries the padding up to the next tensor.
      const uint64_t padding = last ? Padded(static_cast<uint64_t>(tensor.rows * tensor.row_bytes)) -
                                          static_cast<uint64_t>(tensor.rows * tensor.row_bytes)
                                    : 0;
      piece.assign(used + padding, std::byte{0});
      tensor.fill(row, rows, piece.data());
      THERMOE_RETURN_IF_ERROR(file.Write(piece.data(), piece.size()));
      done += piece.size();
      if (progress && !progress(static_cast<double>(done) / static_cast<double>(data_bytes_))) {
        return {StatusCode::kCancelled, fmt::format("{}: writing was stopped, nothing is left of it", path)};
      }
    }
  }
  return file.Commit();
}

}  // namespace thermoe
