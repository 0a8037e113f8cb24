// SPDX-License-Identifier: Apache-2.0
// UTF-8 as Unicode 15 table 3-7 defines it: no overlong forms, no surrogates, nothing above U+10FFFF.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace thermoe {

// What some editors begin a file with; no part of its text.
inline constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";

// Offset of the first byte that does not belong to a well-formed character, or npos.
size_t FindInvalidUtf8(std::string_view text);

// Length of the longest prefix that does not end inside a character. Malformed bytes count as complete.
size_t CompleteUtf8Prefix(std::string_view text);

// `text` with every malformed byte sequence replaced by U+FFFD.
std::string ReplaceInvalidUtf8(std::string_view text);

}  // namespace thermoe
