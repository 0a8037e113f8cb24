// SPDX-License-Identifier: Apache-2.0
#include "base/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/errors.h"

namespace thermoe {

Result<MappedFile> MappedFile::Open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe must not block
  if (fd < 0) {
    if (errno == ENOENT) return NotFound("{}: no such file; check the path", path);
    return InvalidArgument("{}: cannot be opened ({}); check its permissions", path, std::strerror(errno));
  }
  struct stat info {};
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd);
    return InvalidArgument("{}: is not a regular file; give a .gguf file or a model folder", path);
  }
  if (info.st_size == 0) {
    ::close(fd);
    return Corrupt("{}: is empty; download it again", path);
  }
  void* map = ::mmap(nullptr, static_cast<size_t>(info.st_size), PROT_READ, MAP_SHARED, fd, 0);
  if (map == MAP_FAILED) {
    const int map_errno = errno;
    ::close(fd);
    return ResourceExhausted("{}: cannot be mapped ({})", path, std::strerror(map_errno));
  }
  MappedFile file;
  file.path_ = path;
  file.fd_ = fd;
  file.data_ = static_cast<const std::byte*>(map);
  file.size_ = static_cast<size_t>(info.st_size);
  return file;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(fd_, other.fd_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
  if (fd_ >= 0) ::close(fd_);
}

Status MappedFile::Read(size_t offset, std::span<std::byte> to) const {
  while (!to.empty()) {
    const ssize_t got = ::pread(fd_, to.data(), to.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return Corrupt("{}: cannot be read at byte {} ({}); check the disk", path_, offset, std::strerror(errno));
    if (got == 0) {
      struct stat now {};
      const auto end = ::fstat(fd_, &now) == 0 ? static_cast<size_t>(now.st_size) : offset;
      return Corrupt("{}: ends at byte {}, it had {} when it was opened; download it again", path_, std::min(end, offset), size_);
    }
    offset += static_cast<size_t>(got);
    to = to.subspan(static_cast<size_t>(got));
  }
  return Status::Ok();
}

}  // namespace thermoe
