// SPDX-License-Identifier: Apache-2.0
#include "output.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

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

}  // namespace thermoe
