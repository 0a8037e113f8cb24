// SPDX-License-Identifier: Apache-2.0
// The bytes of a TOML file as toml++ may see them.
#pragma once

#include <string>
#include <string_view>

#include "thermoe/status.h"

namespace thermoe {

// A text in ASCII alone: every other byte is spelt as a mark and two digits. A letter beyond ASCII where toml++ 3.3 looks for
// blanks can lead it to where it told the compiler that nothing leads, and nothing else needs to see such letters.
class TomlText {
 public:
  // kInvalidArgument for what no TOML file has (`path` names it), or what would take more stack than there may be.
  static Result<TomlText> Create(std::string_view text, const std::string& path);

  const std::string& spelt() const { return spelt_; }
  // What a piece of the text was before it was spelt.
  std::string Read(std::string_view piece) const;
  // A sentence of toml++ about the character there (both from 1), with letters instead of marks.
  std::string ReadError(std::string_view sentence, size_t line, size_t column) const;

 private:
  // The letter that is spelt at `at`, with its number; "" if there is none.
  std::string LetterAt(size_t at) const;

  char mark_ = 0;  // 0: the text is ASCII
  std::string spelt_;
};

}  // namespace thermoe
