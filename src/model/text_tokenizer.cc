// SPDX-License-Identifier: Apache-2.0
#include "model/text_tokenizer.h"

#include <utility>

#include "base/check.h"
#include "base/errors.h"
#include "base/utf8.h"

namespace thermoe {
namespace {

// Symbols count bytes in 32 bits, and one text needs up to about 60 times its length while it is encoded.
constexpr size_t kMaxTextBytes = size_t{1} << 30;

// What one call of Encode works with.
struct EncodeScratch {
  std::vector<TextSegment> segments;
  std::vector<TextSegment> inner;
  Words words;
  MergeScratch merge;
};

class TextTokenizer final : public Tokenizer {
 public:
  explicit TextTokenizer(TokenizerParts parts)
      : parts_(std::move(parts)),
        all_(parts_.added),
        user_(WithoutSpecial(parts_.added)),
        all_normalised_(parts_.added_normalised),
        user_normalised_(WithoutSpecial(parts_.added_normalised)) {}

  Result<std::vector<TokenId>> Encode(std::string_view text, const EncodeOptions& options) const override;
  std::string_view TokenBytes(TokenId id, bool special) const override;
  std::string Decode(const std::vector<TokenId>& ids, bool special) const override;
  TokenId Find(std::string_view text) const override { return vocabulary().Find(text); }
  int32_t vocab_size() const override { return vocabulary().size(); }
  TokenId bos() const override { return parts_.bos; }
  bool adds_bos() const override { return parts_.adds_bos; }
  const std::vector<TokenId>& end_ids() const override { return parts_.end_ids; }
  bool IsSpecial(TokenId id) const override { return vocabulary().Contains(id) && vocabulary().IsSpecial(id); }
  std::string Describe() const override;

 private:
  const Vocabulary& vocabulary() const { return *parts_.vocabulary; }

  static std::vector<AddedToken> WithoutSpecial(std::vector<AddedToken> tokens) {
    std::erase_if(tokens, [](const AddedToken& token) { return token.special; });
    return tokens;
  }

  // A stretch of text between added tokens.
  Status EncodeStretch(std::string_view text, bool at_start, const AddedTokenMatcher& normalised,
                       EncodeScratch* scratch, std::vector<TokenId>* ids) const;
  Status EncodeWords(std::string_view text, bool at_start, EncodeScratch* scratch, std::vector<TokenId>* ids) const;

  TokenizerParts parts_;
  AddedTokenMatcher all_, user_;
  AddedTokenMatcher all_normalised_, user_normalised_;
};

Result<std::vector<TokenId>> TextTokenizer::Encode(std::string_view text, const EncodeOptions& options) const {
  if (text.size() > kMaxTextBytes) {
    return InvalidArgument("the text has {} bytes; encode at most {} at a time", text.size(), kMaxTextBytes);
  }
  if (const size_t bad = FindInvalidUtf8(text); bad != std::string_view::npos) {
    return InvalidArgument("the text is not valid UTF-8: byte {} (0x{:02x}) belongs to no character; convert it first",
                           bad, static_cast<uint8_t>(text[bad]));
  }
  std::vector<TokenId> ids;
  ids.reserve(text.size() / 3 + 1);
  if (options.add_special && parts_.adds_bos) ids.push_back(parts_.bos);
  EncodeScratch scratch;
  (options.parse_special ? all_ : user_).Split(text, &scratch.segments);
  const AddedTokenMatcher& normalised = options.parse_special ? all_normalised_ : user_normalised_;
  for (const TextSegment& segment : scratch.segments) {
    if (segment.id != kNoToken) {
      ids.push_back(segment.id);
      continue;
    }
    const bool at_start = segment.text.data() == text.data();
    Status status = EncodeStretch(segment.text, at_start, normalised, &scratch, &ids);
    if (!status.ok()) return status;
  }
  return ids;
}

Status TextTokenizer::EncodeStretch(std::string_view text, bool at_start, const AddedTokenMatcher& normalised,
                                    EncodeScratch* scratch, std::vector<TokenId>* ids) const {
  std::string changed;
  if (!parts_.normalizer.empty()) {
    Result<std::string> result = parts_.normalizer.Apply(text, &scratch->words.regex);
    if (!result.ok()) return result.status();
    changed = std::move(*result);
    text = changed;
  }
  if (normalised.empty()) return EncodeWords(text, at_start, scratch, ids);
  scratch->inner.clear();
  normalised.Split(text, &scratch->inner);
  for (const TextSegment& segment : scratch->inner) {
    if (segment.id != kNoToken) {
      ids->push_back(segment.id);
      continue;
    }
    const bool first = at_start && segment.text.data() == text.data();
    THERMOE_RETURN_IF_ERROR(EncodeWords(segment.text, first, scratch, ids));
  }
  return Status::Ok();
}

Status TextTokenizer::EncodeWords(std::string_view text, bool at_start, EncodeScratch* scratch,
                                  std::vector<TokenId>* ids) const {
  THERMOE_RETURN_IF_ERROR(parts_.pretokenizer.Split(text, at_start, &scratch->words));
  for (const std::string_view word : scratch->words.views) {
    THERMOE_RETURN_IF_ERROR(parts_.encoder->Encode(word, &scratch->merge, ids));
  }
  return Status::Ok();
}

std::string_view TextTokenizer::TokenBytes(TokenId id, bool special) const {
  if (!vocabulary().Contains(id)) return "";
  if (vocabulary().IsSpecial(id)) return special ? std::string_view(vocabulary().Written(id)) : "";
  return vocabulary().Bytes(id);
}

std::string TextTokenizer::Decode(const std::vector<TokenId>& ids, bool special) const {
  std::string bytes;
  for (const TokenId id : ids) bytes += TokenBytes(id, special);
  std::string_view text = bytes;
  if (parts_.strips_leading_space && text.starts_with(' ')) text.remove_prefix(1);
  return ReplaceInvalidUtf8(text);
}

std::string TextTokenizer::Describe() const {
  std::string out(parts_.encoder->kind());
  if (!parts_.pretokenizer_name.empty()) out += fmt::format(", {} pre-tokeniser", parts_.pretokenizer_name);
  return out + fmt::format(", {} tokens", vocab_size());
}

}  // namespace

std::shared_ptr<const Tokenizer> AssembleTokenizer(TokenizerParts parts) {
  THERMOE_CHECK(parts.vocabulary != nullptr && parts.encoder != nullptr);
  return std::make_shared<TextTokenizer>(std::move(parts));
}

}  // namespace thermoe
