// SPDX-License-Identifier: Apache-2.0
#include "model/byte_level.h"

#include <array>
#include <cstdint>

namespace thermoe {
namespace {

// Code points run to U+0143: 188 printable bytes stand for themselves, the other 68 take U+0100 onwards.
constexpr int kCodePoints = 256 + 68;

struct ByteMap {
  std::array<uint16_t, 256> character{};    // [byte] code point
  std::array<int16_t, kCodePoints> byte{};  // [code point] byte or -1
};

constexpr bool StandsForItself(int b) {
  return (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || (b >= 0xae && b <= 0xff);
}

constexpr ByteMap MakeByteMap() {
  ByteMap map;
  for (auto& b : map.byte) b = -1;
  int next = 256;
  for (int b = 0; b < 256; ++b) {
    const int character = StandsForItself(b) ? b : next++;
    map.character[static_cast<size_t>(b)] = static_cast<uint16_t>(character);
    map.byte[static_cast<size_t>(character)] = static_cast<int16_t>(b);
  }
  return map;
}

constexpr ByteMap kByteMap = MakeByteMap();
static_assert(kByteMap.character[' '] == 0x120 && kByteMap.byte[kCodePoints - 1] == 0xad);

}  // namespace

std::string ToByteLevel(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size() * 2);
  for (const char c : bytes) {
    const uint16_t character = kByteMap.character[static_cast<uint8_t>(c)];
    if (character < 0x80) {
      out += static_cast<char>(character);
    } else {
      out += static_cast<char>(0xc0 | (character >> 6));
      out += static_cast<char>(0x80 | (character & 0x3f));
    }
  }
  return out;
}

std::optional<std::string> FromByteLevel(std::string_view written) {
  std::string out;
  out.reserve(written.size());
  for (size_t i = 0; i < written.size(); ++i) {
    uint32_t character = static_cast<uint8_t>(written[i]);
    if (character >= 0x80) {
      // All characters of the map lie below U+0800: two bytes.
      if ((character & 0xe0) != 0xc0 || i + 1 >= written.size()) return std::nullopt;
      character = ((character & 0x1f) << 6) | (static_cast<uint8_t>(written[++i]) & 0x3f);
    }
    if (character >= kCodePoints || kByteMap.byte[character] < 0) return std::nullopt;
    out += static_cast<char>(kByteMap.byte[character]);
  }
  return out;
}

}  // namespace thermoe
