// SPDX-License-Identifier: Apache-2.0
// Short makers of Status values with fmt formatting, and early return.
#pragma once

#include <fmt/format.h>

#include "thermoe/status.h"

namespace thermoe {

template <typename... Args>
Status InvalidArgument(fmt::format_string<Args...> format, Args&&... args) {
  return {StatusCode::kInvalidArgument, fmt::format(format, std::forward<Args>(args)...)};
}
template <typename... Args>
Status NotFound(fmt::format_string<Args...> format, Args&&... args) {
  return {StatusCode::kNotFound, fmt::format(format, std::forward<Args>(args)...)};
}
template <typename... Args>
Status Corrupt(fmt::format_string<Args...> format, Args&&... args) {
  return {StatusCode::kCorrupt, fmt::format(format, std::forward<Args>(args)...)};
}
template <typename... Args>
Status Unsupported(fmt::format_string<Args...> format, Args&&... args) {
  return {StatusCode::kUnsupported, fmt::format(format, std::forward<Args>(args)...)};
}
template <typename... Args>
Status ResourceExhausted(fmt::format_string<Args...> format, Args&&... args) {
  return {StatusCode::kResourceExhausted, fmt::format(format, std::forward<Args>(args)...)};
}

}  // namespace thermoe

// Returns the Status of `expression` from the enclosing function unless it is ok.
#define THERMOE_RETURN_IF_ERROR(expression)                         \
  do {                                                              \
    if (::thermoe::Status status_ = (expression); !status_.ok()) return status_; \
  } while (false)
