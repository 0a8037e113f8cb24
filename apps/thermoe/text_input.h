// SPDX-License-Identifier: Apache-2.0
// Text from files and pipes: always whole, always checked to be UTF-8.
#pragma once

#include <string>

#include "thermoe/status.h"

namespace thermoe {

// The bytes of `path` ("-": standard input). Errors: kNotFound, kInvalidArgument (a folder, unreadable, longer than
// 1 GiB).
Result<std::string> ReadFile(const std::string& path);
// ReadFile, then CheckUtf8. A byte-order mark at the start, which some editors write, is left out.
Result<std::string> ReadTextFile(const std::string& path);

// kInvalidArgument names `source`, the offset and the byte.
Status CheckUtf8(const std::string& text, const std::string& source);

}  // namespace thermoe
