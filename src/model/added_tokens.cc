// SPDX-License-Identifier: Apache-2.0
#include "model/added_tokens.h"

#include <algorithm>
#include <utility>

#include "model/unicode.h"

namespace thermoe {
namespace {

size_t SpaceBefore(std::string_view text) {
  size_t begin = text.size();
  while (begin > 0) {
    const size_t last = LastCharacter(text.substr(0, begin));
    if (!IsWhiteSpace(CodePointAt(text, last))) break;
    begin = last;
  }
  return text.size() - begin;
}

size_t SpaceAfter(std::string_view text) {
  size_t end = 0;
  while (end < text.size() && IsWhiteSpace(CodePointAt(text, end))) end += Utf8Length(text[end]);
  return end;
}

bool StandsAlone(std::string_view text, size_t begin, size_t end) {
  if (begin > 0 && IsWordCharacter(CodePointAt(text, LastCharacter(text.substr(0, begin))))) return false;
  return end == text.size() || !IsWordCharacter(CodePointAt(text, end));
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::stable_sort(tokens_.begin(), tokens_.end(), [](const auto& a, const auto& b) { return a.text < b.text; });
  // Normalisation can make two texts equal; the first that was listed stays.
  tokens_.erase(
      std::unique(tokens_.begin(), tokens_.end(), [](const auto& a, const auto& b) { return a.text == b.text; }),
      tokens_.end());
  for (uint32_t i = 0; i < tokens_.size(); ++i) {
    Range& range = by_first_byte_[static_cast<uint8_t>(tokens_[i].text[0])];
    if (range.end == 0) range.begin = i;
    range.end = i + 1;
  }
}

const AddedToken* AddedTokenMatcher::Longest(std::string_view text) const {
  const Range range = by_first_byte_[static_cast<uint8_t>(text[0])];
  auto begin = tokens_.begin() + range.begin;
  auto end = tokens_.begin() + range.end;
  const AddedToken* longest = nullptr;
  // [begin, end) are the tokens that share the first `depth` bytes with the text; a token of just these bytes
  // sorts first among them.
  for (size_t depth = 1; begin != end; ++depth) {
    if (begin->text.size() == depth) longest = &*begin++;
    if (depth == text.size()) break;
    const auto byte = static_cast<uint8_t>(text[depth]);
    begin = std::partition_point(begin, end, [&](const auto& t) { return static_cast<uint8_t>(t.text[depth]) < byte; });
    end = std::partition_point(begin, end, [&](const auto& t) { return static_cast<uint8_t>(t.text[depth]) == byte; });
  }
  return longest;
}

void AddedTokenMatcher::Split(std::string_view text, std::vector<TextSegment>* segments) const {
  size_t done = 0;  // end of what has been appended
  for (size_t at = 0; at < text.size();) {
    const Range range = by_first_byte_[static_cast<uint8_t>(text[at])];
    const AddedToken* token = range.begin == range.end ? nullptr : Longest(text.substr(at));
    if (token == nullptr) {
      ++at;
      continue;
    }
    size_t begin = at;
    size_t end = at + token->text.size();
    at = end;
    if (token->single_word && !StandsAlone(text, begin, end)) continue;
    if (token->lstrip) begin -= SpaceBefore(text.substr(done, begin - done));
    if (token->rstrip) end += SpaceAfter(text.substr(end));
    if (begin > done) segments->push_back({text.substr(done, begin - done), kNoToken});
    segments->push_back({{}, token->id});
    done = at = end;
  }
  if (done < text.size()) segments->push_back({text.substr(done), kNoToken});
}

}  // namespace thermoe
