// SPDX-License-Identifier: Apache-2.0
#include "model/spm.h"

#include <array>
#include <bit>
#include <cstdint>

#include "base/errors.h"
#include "model/spaces.h"
#include "model/unicode.h"

namespace thermoe {
namespace {

// Ranks sort scores from high to low: the bits of a float, made monotonic, then reversed. Only a NaN could give
// kNoRank.
uint32_t RankOfScore(float score) {
  const uint32_t bits = std::bit_cast<uint32_t>(score + 0.0f);  // -0 becomes 0
  const uint32_t ascending = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return ~ascending;
}

class SentencePieceBpe final : public WordEncoder {
 public:
  SentencePieceBpe(const Vocabulary& vocabulary, const std::vector<float>& scores, TokenId unknown)
      : vocabulary_(vocabulary), byte_tokens_(FindByteTokens(vocabulary)), unknown_(unknown) {
    ranks_.reserve(scores.size());
    for (const float score : scores) ranks_.push_back(RankOfScore(score));
    for (TokenId id = 0; id < vocabulary.size(); ++id) {
      if (!vocabulary.IsMergeable(id)) continue;
      longest_ = std::max(longest_, vocabulary.Written(id).size());
      cut_at_spaces_ = cut_at_spaces_ && !HasInnerSpaceMarker(vocabulary.Written(id));
    }
  }

  Status Encode(std::string_view word, MergeScratch* scratch, std::vector<TokenId>* ids) const override {
    return ForEachPart(word, cut_at_spaces_, [&](std::string_view part) { return EncodePart(part, scratch, ids); });
  }

  std::string_view kind() const override { return "SentencePiece BPE"; }

 private:
  TokenId FindMergeable(std::string_view text) const {
    const TokenId id = text.size() > longest_ ? kNoToken : vocabulary_.Find(text);
    return id != kNoToken && vocabulary_.IsMergeable(id) ? id : kNoToken;
  }

  Status EncodePart(std::string_view part, MergeScratch* scratch, std::vector<TokenId>* ids) const {
    auto& symbols = scratch->symbols;
    symbols.clear();
    for (size_t i = 0; i < part.size();) {
      const size_t end = i + Utf8Length(part[i]);
      symbols.push_back({static_cast<uint32_t>(i), static_cast<uint32_t>(end), FindMergeable(part.substr(i, end - i))});
      i = end;
    }
    MergeSymbols(scratch, [&](const MergeSymbol& a, const MergeSymbol& b) -> MergeOutcome {
      const TokenId id = FindMergeable(part.substr(a.begin, b.end - a.begin));
      if (id == kNoToken) return {};
      return {ranks_[static_cast<size_t>(id)], id};
    });
    for (const MergeSymbol& symbol : symbols) {
      if (symbol.id != kNoToken) {
        ids->push_back(symbol.id);
      } else {
        THERMOE_RETURN_IF_ERROR(AppendBytes(part.substr(symbol.begin, symbol.end - symbol.begin), ids));
      }
    }
    return Status::Ok();
  }

  Status AppendBytes(std::string_view character, std::vector<TokenId>* ids) const {
    const size_t before = ids->size();
    for (const char c : character) {
      const TokenId id = byte_tokens_[static_cast<uint8_t>(c)];
      if (id != kNoToken) {
        ids->push_back(id);
        continue;
      }
      if (unknown_ == kNoToken) {
        return InvalidArgument("the model's vocabulary has no token for {}; leave it out", Quote(character));
      }
      ids->resize(before);
      ids->push_back(unknown_);
      break;
    }
    return Status::Ok();
  }

  const Vocabulary& vocabulary_;
  std::vector<uint32_t> ranks_;  // [vocabulary]
  std::array<TokenId, 256> byte_tokens_;
  TokenId unknown_;
  size_t longest_ = 0;  // bytes of the longest token that merging can give
  bool cut_at_spaces_ = true;
};

}  // namespace

std::shared_ptr<const WordEncoder> MakeSentencePieceBpe(const Vocabulary& vocabulary, const std::vector<float>& scores,
                                                        TokenId unknown) {
  return std::make_shared<SentencePieceBpe>(vocabulary, scores, unknown);
}

}  // namespace thermoe
