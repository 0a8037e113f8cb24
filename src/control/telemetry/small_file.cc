// SPDX-License-Identifier: Apache-2.0
#include "control/telemetry/small_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>

namespace thermoe {

SmallFile ReadSmallFile(const std::string& path) {
  SmallFile file;
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (fd < 0) {
    file.error = errno;
    return file;
  }
  std::array<char, 4096> buffer;
  const ssize_t bytes = ::read(fd, buffer.data(), buffer.size());
  file.error = bytes < 0 ? errno : 0;
  ::close(fd);
  if (bytes > 0) file.text.assign(buffer.data(), static_cast<size_t>(bytes));
  while (!file.text.empty() && (file.text.back() == '\n' || file.text.back() == ' ')) file.text.pop_back();
  return file;
}

std::optional<int64_t> ParseInteger(const std::string& text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::optional<int64_t> ReadInteger(const std::string& path) {
  const SmallFile file = ReadSmallFile(path);
  return file.error == 0 ? ParseInteger(file.text) : std::nullopt;
}

}  // namespace thermoe
