// SPDX-License-Identifier: Apache-2.0
// The table of tokens: their written form, the bytes they stand for, and what kind they are.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "thermoe/status.h"
#include "thermoe/tokenizer.h"

namespace thermoe {

enum class TokenKind : uint8_t {
  kHole,  // an id that no token has
  kNormal,
  kUnknown,      // stands for text the vocabulary cannot write
  kControl,      // <|im_end|>: never part of running text
  kUserDefined,  // added by hand, matched in the text before anything else
  kUnused,
  kByte,  // "<0x0A>" of SentencePiece vocabularies
};

class Vocabulary {
 public:
  // No real vocabulary comes near; an id above is a damaged file, and must not make us allocate gigabytes.
  static constexpr int64_t kMaxTokens = 1 << 22;

  Vocabulary() = default;
  Vocabulary(Vocabulary&&) = default;
  Vocabulary& operator=(Vocabulary&&) = default;

  // `count` holes; call once, before Set. `count` <= kMaxTokens.
  void Resize(int64_t count);
  // Gives `id` its written form. kCorrupt if the id is out of range or taken, or if the text is another's.
  Status Set(int64_t id, std::string written, TokenKind kind);
  void SetKind(TokenId id, TokenKind kind) { tokens_[static_cast<size_t>(id)].kind = kind; }
  void SetBytes(TokenId id, std::string bytes) { tokens_[static_cast<size_t>(id)].bytes = std::move(bytes); }

  int32_t size() const { return static_cast<int32_t>(tokens_.size()); }
  bool Contains(int64_t id) const { return id >= 0 && id < size(); }
  const std::string& Written(TokenId id) const { return tokens_[static_cast<size_t>(id)].written; }
  const std::string& Bytes(TokenId id) const { return tokens_[static_cast<size_t>(id)].bytes; }
  TokenKind Kind(TokenId id) const { return tokens_[static_cast<size_t>(id)].kind; }
  TokenId Find(std::string_view written) const;

  // Not printed, and not matched in text from users.
  bool IsSpecial(TokenId id) const { return Kind(id) == TokenKind::kControl || Kind(id) == TokenKind::kUnknown; }
  // May come out of merging. Control, unknown and byte tokens may not, whatever the text spells: otherwise
  // "</" + "s>" would end a turn.
  bool IsMergeable(TokenId id) const {
    const TokenKind kind = Kind(id);
    return kind == TokenKind::kNormal || kind == TokenKind::kUserDefined || kind == TokenKind::kUnused;
  }

 private:
  struct Token {
    std::string written;
    std::string bytes;
    TokenKind kind = TokenKind::kHole;
  };
  std::vector<Token> tokens_;                              // [ids]
  std::unordered_map<std::string_view, TokenId> by_text_;  // views into tokens_
};

// "<0x0A>" for 10, SentencePiece's name of a byte token.
std::string ByteTokenName(uint8_t byte);
// The byte that `written` names, or -1.
int ByteTokenValue(std::string_view written);
// The token of each byte, kNoToken where the vocabulary has none.
std::array<TokenId, 256> FindByteTokens(const Vocabulary& vocabulary);

// `stated` (ids a file names as ends; out-of-range ones must be gone) and every token that is special and has
// the written form of a well-known end ("<|im_end|>", "</s>", ...); sorted, each once. A generation of a base
// model thus also stops at the chat end tokens its vocabulary has, which does no harm.
std::vector<TokenId> FindEndTokens(const Vocabulary& vocabulary, const std::vector<TokenId>& stated);
// Whether `written` marks the turns of a chat format: one of those ends, or "<|im_start|>", "[INST]" and the like. Such
// a token counts as a control token even where a file calls it user-defined, so that a user cannot write it.
bool IsTurnMarker(std::string_view written);

// "'text' (escaped)" for messages: at most 40 bytes, control and non-ASCII bytes as \xNN.
std::string Quote(std::string_view text);

}  // namespace thermoe
