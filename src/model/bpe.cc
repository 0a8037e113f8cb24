// SPDX-License-Identifier: Apache-2.0
#include "model/bpe.h"

#include <algorithm>
#include <bit>
#include <memory>
#include <utility>

#include "base/errors.h"
#include "model/byte_level.h"
#include "model/spaces.h"
#include "model/unicode.h"

namespace thermoe {

MergeTable::MergeTable(size_t merges) {
  const size_t slots = std::bit_ceil(std::max<size_t>(2 * merges, 16));
  entries_.resize(slots);
  mask_ = slots - 1;
  shift_ = 64 - std::countr_zero(slots);
}

void MergeTable::Insert(TokenId left, TokenId right, MergeOutcome outcome, bool replace) {
  const uint64_t key = Key(left, right);
  size_t i = Slot(key);
  while (entries_[i].key != kEmpty && entries_[i].key != key) i = (i + 1) & mask_;
  if (entries_[i].key == key && !replace) return;
  entries_[i] = {key, outcome};
}

bool ParseMerge(std::string_view line, Merge* merge) {
  const size_t space = line.find(' ', 1);
  if (space == std::string_view::npos || space + 1 == line.size()) return false;
  merge->left = std::string(line.substr(0, space));
  merge->right = std::string(line.substr(space + 1));
  return true;
}

namespace {

Result<MergeTable> BuildMergeTable(const Vocabulary& vocabulary, const std::vector<Merge>& merges,
                                   const BpeOptions& options) {
  MergeTable table(merges.size());
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const Merge& merge = merges[rank];
    const TokenId left = vocabulary.Find(merge.left);
    const TokenId right = vocabulary.Find(merge.right);
    const TokenId merged = vocabulary.Find(merge.left + merge.right);
    if (left == kNoToken || right == kNoToken || merged == kNoToken) {
      return Corrupt("merge {} of {} and {} names a token that the vocabulary lacks", rank, Quote(merge.left),
                     Quote(merge.right));
    }
    if (!vocabulary.IsMergeable(merged)) continue;
    table.Insert(left, right, {static_cast<uint32_t>(rank), merged}, options.last_duplicate_wins);
  }
  return table;
}

class ByteLevelBpe final : public WordEncoder {
 public:
  Status Init(const Vocabulary& vocabulary, const std::vector<Merge>& merges, const BpeOptions& options) {
    Result<MergeTable> table = BuildMergeTable(vocabulary, merges, options);
    if (!table.ok()) return table.status();
    table_ = std::move(*table);
    for (size_t b = 0; b < 256; ++b) {
      const char byte = static_cast<char>(b);
      bytes_[b] = vocabulary.Find(ToByteLevel({&byte, 1}));
    }
    if (!options.ignore_merges) return Status::Ok();
    for (TokenId id = 0; id < vocabulary.size(); ++id) {
      if (vocabulary.Kind(id) != TokenKind::kNormal) continue;
      if (std::optional<std::string> bytes = FromByteLevel(vocabulary.Written(id))) whole_words_.emplace(*bytes, id);
    }
    return Status::Ok();
  }

  Status Encode(std::string_view word, MergeScratch* scratch, std::vector<TokenId>* ids) const override {
    if (!whole_words_.empty()) {
      if (const auto found = whole_words_.find(word); found != whole_words_.end()) {
        ids->push_back(found->second);
        return Status::Ok();
      }
    }
    auto& symbols = scratch->symbols;
    symbols.clear();
    for (uint32_t i = 0; i < word.size(); ++i) {
      const TokenId id = bytes_[static_cast<uint8_t>(word[i])];
      if (id == kNoToken) {
        return InvalidArgument("the model's vocabulary has no token for byte 0x{:02x}; leave out {}",
                               static_cast<uint8_t>(word[i]), Quote(word));
      }
      symbols.push_back({i, i + 1, id});
    }
    MergeSymbols(scratch, [this](const MergeSymbol& a, const MergeSymbol& b) { return table_.Find(a.id, b.id); });
    for (const MergeSymbol& symbol : symbols) ids->push_back(symbol.id);
    return Status::Ok();
  }

  std::string_view kind() const override { return "byte-level BPE"; }

 private:
  struct Hash : std::hash<std::string_view> {
    using is_transparent = void;
  };
  MergeTable table_;
  std::array<TokenId, 256> bytes_{};
  std::unordered_map<std::string, TokenId, Hash, std::equal_to<>> whole_words_;  // by raw bytes
};

class CharacterBpe final : public WordEncoder {
 public:
  CharacterBpe(const Vocabulary& vocabulary, const BpeOptions& options)
      : vocabulary_(vocabulary), options_(options), byte_tokens_(FindByteTokens(vocabulary)) {}

  Status Init(const std::vector<Merge>& merges) {
    Result<MergeTable> table = BuildMergeTable(vocabulary_, merges, options_);
    if (!table.ok()) return table.status();
    table_ = std::move(*table);
    cut_at_spaces_ = !options_.ignore_merges && vocabulary_.Find(kSpaceMarker) != kNoToken;
    for (const Merge& merge : merges) {
      cut_at_spaces_ = cut_at_spaces_ && !HasInnerSpaceMarker(merge.left + merge.right);
    }
    return Status::Ok();
  }

  Status Encode(std::string_view word, MergeScratch* scratch, std::vector<TokenId>* ids) const override {
    if (options_.ignore_merges) {
      const TokenId id = vocabulary_.Find(word);
      if (id != kNoToken && vocabulary_.Kind(id) == TokenKind::kNormal) {
        ids->push_back(id);
        return Status::Ok();
      }
    }
    return ForEachPart(word, cut_at_spaces_, [&](std::string_view part) { return EncodePart(part, scratch, ids); });
  }

  std::string_view kind() const override { return "character BPE"; }

 private:
  Status EncodePart(std::string_view part, MergeScratch* scratch, std::vector<TokenId>* ids) const {
    scratch->symbols.clear();
    for (size_t i = 0; i < part.size(); i += Utf8Length(part[i])) {
      const std::string_view character = part.substr(i, Utf8Length(part[i]));
      const TokenId id = vocabulary_.Find(character);
      if (id != kNoToken) {
        scratch->symbols.push_back({static_cast<uint32_t>(i), static_cast<uint32_t>(i + character.size()), id});
      } else {
        THERMOE_RETURN_IF_ERROR(AddUnknown(character, static_cast<uint32_t>(i), &scratch->symbols));
      }
    }
    MergeSymbols(scratch, [this](const MergeSymbol& a, const MergeSymbol& b) { return table_.Find(a.id, b.id); });
    for (const MergeSymbol& symbol : scratch->symbols) ids->push_back(symbol.id);
    return Status::Ok();
  }

  Status AddUnknown(std::string_view character, uint32_t at, std::vector<MergeSymbol>* symbols) const {
    bool bytes = options_.byte_fallback;
    for (const char c : character) bytes = bytes && byte_tokens_[static_cast<uint8_t>(c)] != kNoToken;
    if (bytes) {
      for (const char c : character) {
        symbols->push_back({at, at + 1, byte_tokens_[static_cast<uint8_t>(c)]});
        ++at;
      }
      return Status::Ok();
    }
    if (options_.unknown == kNoToken) {
      return InvalidArgument("the model's vocabulary has no token for {}; leave it out", Quote(character));
    }
    const auto end = static_cast<uint32_t>(at + character.size());
    if (options_.fuse_unknown && !symbols->empty() && symbols->back().id == options_.unknown) {
      symbols->back().end = end;
    } else {
      symbols->push_back({at, end, options_.unknown});
    }
    return Status::Ok();
  }

  const Vocabulary& vocabulary_;
  BpeOptions options_;
  std::array<TokenId, 256> byte_tokens_;
  MergeTable table_;
  bool cut_at_spaces_ = false;
};

}  // namespace

Result<std::shared_ptr<const WordEncoder>> MakeByteLevelBpe(const Vocabulary& vocabulary,
                                                            const std::vector<Merge>& merges,
                                                            const BpeOptions& options) {
  auto encoder = std::make_shared<ByteLevelBpe>();
  THERMOE_RETURN_IF_ERROR(encoder->Init(vocabulary, merges, options));
  return std::shared_ptr<const WordEncoder>(std::move(encoder));
}

Result<std::shared_ptr<const WordEncoder>> MakeCharacterBpe(const Vocabulary& vocabulary,
                                                            const std::vector<Merge>& merges,
                                                            const BpeOptions& options) {
  auto encoder = std::make_shared<CharacterBpe>(vocabulary, options);
  THERMOE_RETURN_IF_ERROR(encoder->Init(merges));
  return std::shared_ptr<const WordEncoder>(std::move(encoder));
}

}  // namespace thermoe
