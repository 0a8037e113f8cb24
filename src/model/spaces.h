// SPDX-License-Identifier: Apache-2.0
// SentencePiece's marker for a space, and the exact shortcut it allows.
#pragma once

#include <string_view>

#include "thermoe/status.h"

namespace thermoe {

inline constexpr std::string_view kSpaceMarker = "\xe2\x96\x81";  // U+2581

// Whether some marker follows another character: "a▁", but not "▁▁a".
inline bool HasInnerSpaceMarker(std::string_view text) {
  while (text.starts_with(kSpaceMarker)) text.remove_prefix(kSpaceMarker.size());
  return text.find(kSpaceMarker) != std::string_view::npos;
}

// Calls encode(part) for the parts of `text` cut before each marker that follows another character. Where no token
// has an inner marker, no merge crosses these places, so that encoding the parts gives what encoding the whole
// would, without a heap over the whole text.
template <typename Encode>
Status ForEachPart(std::string_view text, bool cut, const Encode& encode) {
  if (!cut) return encode(text);
  size_t begin = 0;
  while (begin < text.size()) {
    size_t at = begin;
    while (text.substr(at).starts_with(kSpaceMarker)) at += kSpaceMarker.size();
    size_t end = text.find(kSpaceMarker, at);
    if (end == std::string_view::npos) end = text.size();
    if (Status status = encode(text.substr(begin, end - begin)); !status.ok()) return status;
    begin = end;
  }
  return Status::Ok();
}

}  // namespace thermoe
