// SPDX-License-Identifier: Apache-2.0
#include "output.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "base/errors.h"

namespace thermoe {
namespace {

int g_write_error = 0;  // errno of the first write that failed

}  // namespace

void Print(std::string_view text) {
  errno = 0;
  if (std::fwrite(text.data(), 1, text.size(), stdout) < text.size() && g_write_error == 0) g_write_error = errno;
}

Status FlushOutput() {
  errno = 0;
  if (std::fflush(stdout) != 0 && g_write_error == 0) g_write_error = errno;
  if (g_write_error == 0) return Status::Ok();
  return {StatusCode::kInternal, fmt::format("cannot write to standard output: {}", std::strerror(g_write_error))};
}

void PrintNote(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
}

Status WriteFile(const std::string& path, std::string_view text, std::string_view flag) {
  errno = 0;
  std::FILE* file = std::fopen(path.c_str(), "we");
  bool good = file != nullptr && std::fwrite(text.data(), 1, text.size(), file) == text.size();
  if (file != nullptr) good = std::fclose(file) == 0 && good;
  if (good) return Status::Ok();
  return InvalidArgument("{}: cannot be written: {}; choose another file with {}", path, std::strerror(errno), flag);
}

std::string XmlText(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '<') {
      out += "&lt;";
    } else if (c == '>') {
      out += "&gt;";
    } else if (c == '&') {
      out += "&amp;";
    } else if (c == '"') {
      out += "&quot;";
    } else if ((byte < 0x20 && c != '\n' && c != '\t') || byte == 0x7f) {
      out += "\xef\xbf\xbd";  // no XML may hold it: U+FFFD
    } else {
      out += c;
    }
  }
  return out;
}

}  // namespace thermoe
