// SPDX-License-Identifier: Apache-2.0
#include "text_input.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "base/errors.h"
#include "base/utf8.h"
#include "interrupt.h"
#include "terminal.h"

namespace thermoe {
namespace {

// Far above any text to continue or score, far below what endless files (/dev/zero) would fill.
constexpr size_t kMostBytes = size_t{1} << 30;

}  // namespace

Result<std::string> ReadFile(const std::string& path) {
  const bool standard_input = path == "-";
  std::error_code error;
  if (!standard_input && std::filesystem::is_directory(path, error)) {
    return InvalidArgument("{}: is a folder; a text file is needed", path);
  }
  const int file = standard_input ? STDIN_FILENO : open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) {
    if (errno == ENOENT) return NotFound("{}: no such file; check the path", path);
    return InvalidArgument("{}: cannot be read: {}; check its permissions", path, std::strerror(errno));
  }
  std::string text;
  std::string buffer(1 << 16, '\0');
  ssize_t got = 0;
  // A pipe whose writer is slow must not hold up Ctrl-C.
  while (WaitForInput(file) && text.size() <= kMostBytes &&
         (got = read(file, buffer.data(), buffer.size())) > 0) {
    text.append(buffer, 0, static_cast<size_t>(got));
  }
  const int read_error = got < 0 ? errno : 0;
  if (!standard_input) close(file);
  if (Interrupted()) return InterruptedStatus();
  const std::string source = standard_input ? "standard input" : path;
  if (read_error != 0) return InvalidArgument("{}: cannot be read: {}", source, std::strerror(read_error));
  if (text.size() > kMostBytes) return InvalidArgument("{}: is longer than 1 GiB; give a shorter text", source);
  return text;
}

Result<std::string> ReadTextFile(const std::string& path) {
  Result<std::string> text = ReadFile(path);
  if (!text.ok()) return text;
  THERMOE_RETURN_IF_ERROR(CheckUtf8(*text, path == "-" ? "standard input" : path));
  if (text->starts_with(kByteOrderMark)) text->erase(0, kByteOrderMark.size());
  return text;
}

Status CheckUtf8(const std::string& text, const std::string& source) {
  const size_t at = FindInvalidUtf8(text);
  if (at == std::string::npos) return Status::Ok();
  return InvalidArgument("{}: invalid UTF-8 at byte {} (0x{:02x}); convert the text to UTF-8, for example with iconv",
                         source, WithCommas(static_cast<int64_t>(at)), static_cast<unsigned char>(text[at]));
}

}  // namespace thermoe
