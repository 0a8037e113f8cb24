// SPDX-License-Identifier: Apache-2.0
// Base64 (RFC 4648, padded) for binary data inside JSON.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace thermoe {

// Appends the text of `bytes` to anything with push_back(char).
template <typename Out>
void AppendBase64(std::span<const uint8_t> bytes, Out* out) {
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const size_t left = bytes.size() - i;
    const uint32_t group = static_cast<uint32_t>(bytes[i]) << 16 |
                           static_cast<uint32_t>(left > 1 ? bytes[i + 1] : 0) << 8 |
                           static_cast<uint32_t>(left > 2 ? bytes[i + 2] : 0);
    out->push_back(kDigits[group >> 18]);
    out->push_back(kDigits[group >> 12 & 63]);
    out->push_back(left > 1 ? kDigits[group >> 6 & 63] : '=');
    out->push_back(left > 2 ? kDigits[group & 63] : '=');
  }
}

// Nothing when `text` is not the whole of what AppendBase64 writes.
std::optional<std::vector<uint8_t>> DecodeBase64(std::string_view text);

}  // namespace thermoe
