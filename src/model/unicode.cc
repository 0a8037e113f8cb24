// SPDX-License-Identifier: Apache-2.0
#include "model/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "base/errors.h"

namespace thermoe {

uint32_t CodePointAt(std::string_view text, size_t i) {
  const auto byte = [&](size_t j) { return static_cast<uint32_t>(static_cast<uint8_t>(text[j])); };
  switch (Utf8Length(text[i])) {
    case 1: return byte(i);
    case 2: return ((byte(i) & 0x1f) << 6) | (byte(i + 1) & 0x3f);
    case 3: return ((byte(i) & 0x0f) << 12) | ((byte(i + 1) & 0x3f) << 6) | (byte(i + 2) & 0x3f);
    default:
      return ((byte(i) & 0x07) << 18) | ((byte(i + 1) & 0x3f) << 12) | ((byte(i + 2) & 0x3f) << 6) |
             (byte(i + 3) & 0x3f);
  }
}

size_t LastCharacter(std::string_view text) {
  size_t i = text.size() - 1;
  while (i > 0 && (static_cast<uint8_t>(text[i]) & 0xc0) == 0x80) --i;
  return i;
}

void AppendUtf8(uint32_t code_point, std::string* out) {
  utf8proc_uint8_t buffer[4];
  const auto length = utf8proc_encode_char(static_cast<utf8proc_int32_t>(code_point), buffer);
  out->append(reinterpret_cast<const char*>(buffer), static_cast<size_t>(length));
}

bool IsWhiteSpace(uint32_t c) {
  return (c >= 0x09 && c <= 0x0d) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

bool IsWordCharacter(uint32_t code_point) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(code_point))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC: return true;
    default: return false;
  }
}

namespace {

// Puts each run of combining marks in canonical order. utf8proc_map does this by insertion, which is quadratic
// in a run a hostile text can make as long as it likes.
void SortCombiningMarks(std::vector<utf8proc_int32_t>* text) {
  const auto combining = [](utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; };
  auto& t = *text;
  for (size_t i = 0; i < t.size();) {
    if (t[i] < 0x300 || combining(t[i]) == 0) {
      ++i;
      continue;
    }
    size_t end = i + 1;
    while (end < t.size() && combining(t[end]) != 0) ++end;
    std::stable_sort(t.begin() + static_cast<ptrdiff_t>(i), t.begin() + static_cast<ptrdiff_t>(end),
                     [&](auto a, auto b) { return combining(a) < combining(b); });
    i = end;
  }
}

}  // namespace

Result<std::string> NormaliseUnicode(std::string_view text, NormalForm form) {
  const bool compose = form == NormalForm::kNfc || form == NormalForm::kNfkc;
  const bool compatible = form == NormalForm::kNfkc || form == NormalForm::kNfkd;
  // Nothing below U+0300 changes under NFC, nothing in ASCII under any form: bytes below 0xcc (U+0300) or 0x80.
  const uint8_t first_active = form == NormalForm::kNfc ? 0xcc : 0x80;
  if (std::all_of(text.begin(), text.end(), [&](char c) { return static_cast<uint8_t>(c) < first_active; })) {
    return std::string(text);
  }
  const auto options = static_cast<utf8proc_option_t>(
      UTF8PROC_STABLE | (compose ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) | (compatible ? UTF8PROC_COMPAT : 0));
  std::vector<utf8proc_int32_t> buffer;
  buffer.reserve(text.size() + 1);
  for (size_t i = 0; i < text.size(); i += Utf8Length(text[i])) {
    utf8proc_int32_t parts[32];  // the longest decomposition, U+FDFA under NFKD, has 18
    int boundary = 0;
    const auto count =
        utf8proc_decompose_char(static_cast<utf8proc_int32_t>(CodePointAt(text, i)), parts, 32, options, &boundary);
    if (count < 0 || count > 32) return InvalidArgument("text cannot be normalised at byte {}", i);
    buffer.insert(buffer.end(), parts, parts + count);
  }
  SortCombiningMarks(&buffer);
  auto length = static_cast<utf8proc_ssize_t>(buffer.size());
  if (compose) length = utf8proc_normalize_utf32(buffer.data(), length, options);
  if (length < 0) return InvalidArgument("text cannot be normalised: {}", utf8proc_errmsg(length));
  std::string out;
  out.reserve(text.size());
  for (utf8proc_ssize_t i = 0; i < length; ++i) AppendUtf8(static_cast<uint32_t>(buffer[static_cast<size_t>(i)]), &out);
  return out;
}

}  // namespace thermoe
