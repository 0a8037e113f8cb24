// SPDX-License-Identifier: Apache-2.0
// Finds the tokens that are taken out of a text before anything else is done with it.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "thermoe/tokenizer.h"

namespace thermoe {

// The flags are those of Hugging Face's AddedToken.
struct AddedToken {
  std::string text;  // as it is matched; not empty
  TokenId id = kNoToken;
  bool special = false;      // not looked for in text from users
  bool single_word = false;  // only where no word character stands beside it
  bool lstrip = false;       // takes the white space before it along
  bool rstrip = false;       // and after it
};

// A stretch of text, or the token that was found there.
struct TextSegment {
  std::string_view text;  // empty where id is set
  TokenId id = kNoToken;
};

// Leftmost-longest matching. A step looks at no more than the longest token's bytes, so that a text costs
// O(text x longest), in practice one table look-up a byte.
class AddedTokenMatcher {
 public:
  AddedTokenMatcher() = default;
  explicit AddedTokenMatcher(std::vector<AddedToken> tokens);

  bool empty() const { return tokens_.empty(); }

  // Appends the segments of `text` (valid UTF-8) in order.
  void Split(std::string_view text, std::vector<TextSegment>* segments) const;

 private:
  // The longest token that `text` begins with, or nullptr.
  const AddedToken* Longest(std::string_view text) const;

  std::vector<AddedToken> tokens_;  // sorted by text, each text once
  struct Range {
    uint32_t begin = 0, end = 0;
  };
  std::array<Range, 256> by_first_byte_{};  // of tokens_
};

}  // namespace thermoe
