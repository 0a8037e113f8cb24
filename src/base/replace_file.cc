// SPDX-License-Identifier: Apache-2.0
#include "base/replace_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "base/errors.h"

namespace thermoe {
namespace {

Status CannotWrite(const std::string& path) {
  const int cause = errno;
  if (cause == ENOSPC || cause == EDQUOT) return ResourceExhausted("{}: cannot be written: the disk is full; free some of it", path);
  return InvalidArgument("{}: cannot be written: {}; name another file", path, std::strerror(cause));
}

bool WriteAll(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t wrote = ::write(fd, bytes.data(), bytes.size());
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) return false;
    bytes.remove_prefix(static_cast<size_t>(wrote));
  }
  return true;
}

}  // namespace

Status ReplaceFile(const std::string& path, std::string_view bytes) {
  const std::string pending = fmt::format("{}.{}.part", path, ::getpid());
  const int fd = ::open(pending.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return CannotWrite(path);
  bool ok = WriteAll(fd, bytes) && ::fsync(fd) == 0;
  if (ok) {
    ok = ::close(fd) == 0;
  } else {
    const int cause = errno;
    ::close(fd);
    errno = cause;
  }
  if (ok && std::rename(pending.c_str(), path.c_str()) == 0) return Status::Ok();
  const Status failure = CannotWrite(path);
  ::unlink(pending.c_str());
  return failure;
}

}  // namespace thermoe
