// SPDX-License-Identifier: Apache-2.0
// What tokenizers need to know of Unicode characters, beyond regular expressions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "thermoe/status.h"

namespace thermoe {

// Length in bytes of the character that starts with `lead`; the text must be valid UTF-8.
inline size_t Utf8Length(char lead) {
  const auto byte = static_cast<uint8_t>(lead);
  return byte < 0x80 ? 1 : byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;
}

// The character at text[i]; `text` must be valid UTF-8 and i the start of a character.
uint32_t CodePointAt(std::string_view text, size_t i);
// Start of the last character of a non-empty valid UTF-8 text.
size_t LastCharacter(std::string_view text);
void AppendUtf8(uint32_t code_point, std::string* out);

// Unicode's White_Space property, which is what \s means to the regex engines of tokenizer libraries.
bool IsWhiteSpace(uint32_t code_point);
// \w: letters, marks, numbers and connector punctuation.
bool IsWordCharacter(uint32_t code_point);

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };

// Unicode normalisation (UAX 15) in O(n log n). `text` must be valid UTF-8.
Result<std::string> NormaliseUnicode(std::string_view text, NormalForm form);

}  // namespace thermoe
