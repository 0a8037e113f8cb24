// SPDX-License-Identifier: Apache-2.0
#include "base/utf8.h"

#include <cstdint>

namespace thermoe {
namespace {

// Length of the well-formed character at text[i], 0 if malformed. `*truncated` is set when the bytes
// there are a proper prefix of some well-formed character.
// `*malformed` is then how many bytes from i on belong together: the longest prefix of a well-formed character.
size_t CharacterLength(std::string_view text, size_t i, bool* truncated, size_t* malformed) {
  *truncated = false;
  *malformed = 1;
  const auto byte = [&](size_t j) { return static_cast<uint8_t>(text[j]); };
  const uint8_t lead = byte(i);
  if (lead < 0x80) return 1;
  size_t length = 0;
  uint8_t low = 0x80, high = 0xbf;  // allowed range of the second byte
  if (lead >= 0xc2 && lead <= 0xdf) {
    length = 2;
  } else if (lead >= 0xe0 && lead <= 0xef) {
    length = 3;
    if (lead == 0xe0) low = 0xa0;
    if (lead == 0xed) high = 0x9f;
  } else if (lead >= 0xf0 && lead <= 0xf4) {
    length = 4;
    if (lead == 0xf0) low = 0x90;
    if (lead == 0xf4) high = 0x8f;
  } else {
    return 0;
  }
  for (size_t k = 1; k < length; ++k) {
    *malformed = k;
    if (i + k >= text.size()) {
      *truncated = true;
      return 0;
    }
    const uint8_t b = byte(i + k);
    if (b < (k == 1 ? low : 0x80) || b > (k == 1 ? high : 0xbf)) return 0;
  }
  return length;
}

}  // namespace

size_t FindInvalidUtf8(std::string_view text) {
  bool truncated = false;
  size_t malformed = 0;
  for (size_t i = 0; i < text.size();) {
    const size_t length = CharacterLength(text, i, &truncated, &malformed);
    if (length == 0) return i;
    i += length;
  }
  return std::string_view::npos;
}

size_t CompleteUtf8Prefix(std::string_view text) {
  // Only the last three bytes can belong to an unfinished character.
  for (size_t back = 1; back <= 3 && back <= text.size(); ++back) {
    const size_t i = text.size() - back;
    if ((static_cast<uint8_t>(text[i]) & 0xc0) == 0x80) continue;
    bool truncated = false;
    size_t malformed = 0;
    CharacterLength(text, i, &truncated, &malformed);
    return truncated ? i : text.size();
  }
  return text.size();
}

std::string ReplaceInvalidUtf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  bool truncated = false;
  size_t malformed = 0;
  for (size_t i = 0; i < text.size();) {
    const size_t length = CharacterLength(text, i, &truncated, &malformed);
    if (length > 0) {
      out.append(text.substr(i, length));
      i += length;
    } else {
      out += "\xef\xbf\xbd";
      i += malformed;
    }
  }
  return out;
}

}  // namespace thermoe
