// SPDX-License-Identifier: Apache-2.0
#include <utility>

#include "base/utf8.h"
#include "thermoe/tokenizer.h"

namespace thermoe {
namespace {

constexpr size_t kReplacementBytes = 3;  // U+FFFD in UTF-8

}  // namespace

TextStream::TextStream(const Tokenizer& tokenizer, bool special) : tokenizer_(&tokenizer), special_(special) {}

std::string TextStream::Push(TokenId id) {
  std::string_view bytes = tokenizer_->TokenBytes(id, special_);
  if (bytes.empty()) return "";
  if (at_start_) {
    at_start_ = false;
    // Only Decode knows whether the vocabulary has SentencePiece's leading space: it comes out shorter then.
    if (bytes.front() == ' ' && tokenizer_->Decode({id}, special_).size() < ReplaceInvalidUtf8(bytes).size()) {
      bytes.remove_prefix(1);
    }
  }
  pending_ += bytes;
  const size_t complete = CompleteUtf8Prefix(pending_);
  std::string out = ReplaceInvalidUtf8(pending_);
  // The rest is one unfinished character. Replacing it along with what comes before and taking it off again
  // shows broken bytes before it in the middle of a text, as Decode sees them.
  if (complete < pending_.size()) out.resize(out.size() - kReplacementBytes);
  pending_.erase(0, complete);
  return out;
}

std::string TextStream::Finish() { return ReplaceInvalidUtf8(std::exchange(pending_, std::string())); }

}  // namespace thermoe
