// SPDX-License-Identifier: Apache-2.0
// A read-only memory map of a whole file; shared between processes, paged in on demand.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "thermoe/status.h"

namespace thermoe {

class MappedFile {
 public:
  // Errors: kNotFound, kInvalidArgument (a folder, an empty or unreadable file).
  static Result<MappedFile> Open(const std::string& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  const std::string& path() const { return path_; }
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  // Bytes from `offset` on, without the map: none of its pages is touched, which for much that is read once costs more than the copy.
  // kCorrupt: the file has become shorter, or cannot be read.
  Status Read(size_t offset, std::span<std::byte> to) const;

 private:
  MappedFile() = default;
  std::string path_;
  int fd_ = -1;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace thermoe
