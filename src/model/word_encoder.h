// SPDX-License-Identifier: Apache-2.0
// The last step of encoding: one word to token ids.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "model/merge.h"
#include "thermoe/status.h"
#include "thermoe/tokenizer.h"

namespace thermoe {

// Immutable and safe to share between threads, each with its own scratch.
class WordEncoder {
 public:
  virtual ~WordEncoder() = default;

  // Appends the ids of `word` (non-empty valid UTF-8). Errors: kInvalidArgument for a character that the
  // vocabulary can write in no way.
  virtual Status Encode(std::string_view word, MergeScratch* scratch, std::vector<TokenId>* ids) const = 0;

  // "byte-level BPE": for Tokenizer::Describe().
  virtual std::string_view kind() const = 0;
};

}  // namespace thermoe
