// SPDX-License-Identifier: Apache-2.0
#include "control/plant/toml_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "base/errors.h"
#include "base/utf8.h"
#include "model/unicode.h"

namespace thermoe {
namespace {

// In no name and no number, after no backslash: toml++ refuses a mark wherever TOML has no letters beyond ASCII.
constexpr std::string_view kMarks = "~^%$?!;&|`@<>*()/";
// Of the names of tables in tables, which recursion follows.
constexpr int kMostDots = 256;

bool IsAscii(char c) { return static_cast<unsigned char>(c) < 0x80; }

bool IsControl(char c) { return (static_cast<unsigned char>(c) < 0x20 && c != '\t' && c != '\n' && c != '\r') || c == 0x7f; }

// The first byte behind too many dots with nothing between them that parts names, or npos.
size_t FindLongName(std::string_view text) {
  int dots = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '.' && ++dots > kMostDots) return i;
    if (std::string_view("\n=,[{").find(text[i]) != std::string_view::npos) dots = 0;
  }
  return std::string_view::npos;
}

// One that the text has neither itself nor by an escape; 0: none.
char FreeMark(std::string_view text) {
  for (const char mark : kMarks) {
    const bool escaped = text.find(fmt::format("00{:02x}", mark)) != std::string_view::npos ||
                         text.find(fmt::format("00{:02X}", mark)) != std::string_view::npos;
    if (!escaped && text.find(mark) == std::string_view::npos) return mark;
  }
  return 0;
}

// The byte that two digits at the front spell.
bool ReadByte(std::string_view digits, unsigned* byte) {
  return digits.size() >= 2 && std::from_chars(digits.data(), digits.data() + 2, *byte, 16).ptr == digits.data() + 2;
}

}  // namespace

Result<TomlText> TomlText::Create(std::string_view text, const std::string& path) {
  const auto line = [&](size_t at) { return 1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(at), '\n'); };
  if (const auto control = std::find_if(text.begin(), text.end(), IsControl); control != text.end()) {
    return InvalidArgument("{}: line {}: there is a control character; give a text file in TOML", path, line(static_cast<size_t>(control - text.begin())));
  }
  if (const size_t bad = FindInvalidUtf8(text); bad != std::string_view::npos) {
    return InvalidArgument("{}: line {}: is not UTF-8; save the file as such", path, line(bad));
  }
  if (const size_t at = FindLongName(text); at != std::string_view::npos) {
    return InvalidArgument("{}: line {}: there are more than {} dots in one name or text; shorten it", path, line(at), kMostDots);
  }
  if (text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
  TomlText toml;
  if (std::all_of(text.begin(), text.end(), IsAscii)) {
    toml.spelt_ = text;
    return toml;
  }
  toml.mark_ = FreeMark(text);
  if (toml.mark_ == 0) {
    return InvalidArgument("{}: has letters beyond ASCII and every one of {}; leave one of these out", path, kMarks);
  }
  for (const char c : text) {
    if (IsAscii(c)) {
      toml.spelt_ += c;
    } else {
      toml.spelt_ += fmt::format("{}{:02x}", toml.mark_, static_cast<unsigned char>(c));
    }
  }
  return toml;
}

std::string TomlText::Read(std::string_view piece) const {
  if (mark_ == 0) return std::string(piece);
  std::string text;
  for (size_t i = 0; i < piece.size(); ++i) {
    unsigned byte = 0;
    if (piece[i] == mark_ && ReadByte(piece.substr(i + 1), &byte)) {
      text += static_cast<char>(byte);
      i += 2;
    } else {
      text += piece[i];
    }
  }
  return text;
}

std::string TomlText::LetterAt(size_t at) const {
  if (at >= spelt_.size() || spelt_[at] != mark_) return "";
  const std::string rest = Read(std::string_view(spelt_).substr(at, 3 * 4));  // a letter has at most four bytes
  const std::string letter = rest.substr(0, Utf8Length(rest.front()));
  if (FindInvalidUtf8(letter) != std::string::npos) return "";  // `at` is in the middle of one
  return fmt::format("{} (U+{:04X})", letter, CodePointAt(letter, 0));
}

std::string TomlText::ReadError(std::string_view sentence, size_t line, size_t column) const {
  if (mark_ == 0) return std::string(sentence);
  size_t at = 0;  // of the line
  for (size_t i = 1, end = 0; i < line && (end = spelt_.find('\n', at)) != std::string::npos; ++i) at = end + 1;
  std::string letter = LetterAt(at + column - 1);
  if (letter.empty()) letter = "a letter beyond ASCII";
  // What toml++ cut in the middle of a letter's spelling is left as a mark.
  std::string text;
  for (const char c : Read(sentence)) c == mark_ ? text += letter : text += c;
  return text;
}

}  // namespace thermoe
