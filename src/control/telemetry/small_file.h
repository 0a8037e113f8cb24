// SPDX-License-Identifier: Apache-2.0
// The one-line files of /sys and /proc, whatever they hold.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace thermoe {

struct SmallFile {
  int error = 0;     // errno; 0 when read
  std::string text;  // at most 4 KiB, without trailing white space
};

// Never blocks on a pipe or device.
SmallFile ReadSmallFile(const std::string& path);
// The whole text as a decimal integer; unknown for anything else: empty, signs other than a leading '-', text,
// overflow.
std::optional<int64_t> ParseInteger(const std::string& text);
std::optional<int64_t> ReadInteger(const std::string& path);

}  // namespace thermoe
