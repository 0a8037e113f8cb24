// SPDX-License-Identifier: Apache-2.0
#include "text_input.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <system_error>

#include "base/errors.h"
#include "base/utf8.h"
#include "interrupt.h"
#include "terminal.h"

namespace thermoe {

Result<std::string> ReadFile(const std::string& path) {
  const bool standard_input = path == "-";
  std::error_code error;
  if (!standard_input && std::filesystem::is_directory(path, error)) {
    return InvalidArgument("{}: is a folder; a text file is needed", path);
  }
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> owned(nullptr, std::fclose);
  if (!standard_input) owned.reset(std::fopen(path.c_str(), "rb"));
  std::FILE* file = standard_input ? stdin : owned.get();
  if (file == nullptr) {
    if (errno == ENOENT) return NotFound("{}: no such file", path);
    return InvalidArgument("{}: cannot be read: {}", path, std::strerror(errno));
  }
  std::string text;
  char buffer[1 << 16];
  while (const size_t got = std::fread(buffer, 1, sizeof(buffer), file)) text.append(buffer, got);
  if (Interrupted()) return InterruptedStatus();
  if (std::ferror(file) != 0) {
    return InvalidArgument("{}: cannot be read: {}", standard_input ? "standard input" : path, std::strerror(errno));
  }
  return text;
}

Result<std::string> ReadTextFile(const std::string& path) {
  Result<std::string> text = ReadFile(path);
  if (text.ok()) THERMOE_RETURN_IF_ERROR(CheckUtf8(*text, path == "-" ? "standard input" : path));
  return text;
}

Status CheckUtf8(const std::string& text, const std::string& source) {
  const size_t at = FindInvalidUtf8(text);
  if (at == std::string::npos) return Status::Ok();
  return InvalidArgument("{}: invalid UTF-8 at byte {} (0x{:02x}); convert the text to UTF-8, for example with iconv",
                         source, WithCommas(static_cast<int64_t>(at)), static_cast<unsigned char>(text[at]));
}

}  // namespace thermoe
