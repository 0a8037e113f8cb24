// SPDX-License-Identifier: Apache-2.0
// PCRE2 behind a small, thread-safe face: compiled once, matched with bounded memory and no recursion.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "thermoe/status.h"

namespace thermoe {

// What one thread needs while matching; reused between calls, never shared.
class RegexScratch {
 public:
  RegexScratch();
  ~RegexScratch();
  RegexScratch(const RegexScratch&) = delete;
  RegexScratch& operator=(const RegexScratch&) = delete;

 private:
  friend class Regex;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

struct RegexMatch {
  bool found = false;
  size_t begin = 0;  // bytes in the subject
  size_t end = 0;
};

// A pattern as tokenizer libraries write it (Oniguruma or Rust syntax), immutable.
class Regex {
 public:
  // Errors: kUnsupported with PCRE2's explanation, or for syntax that PCRE2 would read differently.
  static Result<Regex> Compile(std::string_view pattern);

  // The leftmost match that starts at or after `from` (the start of a character); found = false if there is
  // none. `subject` must be valid UTF-8. Errors: kResourceExhausted when the pattern backtracks too much.
  Status Find(std::string_view subject, size_t from, RegexScratch* scratch, RegexMatch* match) const;

  const std::string& pattern() const { return pattern_; }

 private:
  struct Code;
  std::string pattern_;
  std::shared_ptr<const Code> code_;
};

}  // namespace thermoe
