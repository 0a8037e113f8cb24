// SPDX-License-Identifier: Apache-2.0
#include "model/vocabulary.h"

#include <algorithm>

#include "base/check.h"
#include "base/errors.h"

namespace thermoe {

void Vocabulary::Resize(int64_t count) {
  THERMOE_CHECK(count >= 0 && count <= kMaxTokens && tokens_.empty());
  tokens_.resize(static_cast<size_t>(count));
  by_text_.reserve(static_cast<size_t>(count));
}

Status Vocabulary::Set(int64_t id, std::string written, TokenKind kind) {
  if (!Contains(id)) return Corrupt("token {} has id {}, outside the vocabulary of {}", Quote(written), id, size());
  Token& token = tokens_[static_cast<size_t>(id)];
  if (token.kind != TokenKind::kHole) {
    return Corrupt("tokens {} and {} share id {}", Quote(token.written), Quote(written), id);
  }
  token.written = std::move(written);
  token.bytes = token.written;
  token.kind = kind;
  const auto [other, inserted] = by_text_.emplace(token.written, static_cast<TokenId>(id));
  if (!inserted) return Corrupt("token {} stands there twice, as {} and {}", Quote(token.written), other->second, id);
  return Status::Ok();
}

TokenId Vocabulary::Find(std::string_view written) const {
  const auto found = by_text_.find(written);
  return found == by_text_.end() ? kNoToken : found->second;
}

std::string ByteTokenName(uint8_t byte) { return fmt::format("<0x{:02X}>", byte); }

int ByteTokenValue(std::string_view written) {
  if (written.size() != 6 || !written.starts_with("<0x") || written[5] != '>') return -1;
  int value = 0;
  for (const char c : written.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

std::array<TokenId, 256> FindByteTokens(const Vocabulary& vocabulary) {
  std::array<TokenId, 256> ids{};
  for (size_t b = 0; b < 256; ++b) ids[b] = vocabulary.Find(ByteTokenName(static_cast<uint8_t>(b)));
  return ids;
}

namespace {

// The ends that model families use in their chat or document formats; llama.cpp keeps the like list.
constexpr std::string_view kWellKnownEnds[] = {
    "<|im_end|>", "<|eot_id|>",    "<|eom_id|>",           "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<|return|>",
    "<|call|>",   "<end_of_turn>", "<end_of_utterance>",   "</s>",    "<eos>",         "<EOT>",           "[EOT]",
    "[EOS]",      "<|EOT|>",       "<｜end▁of▁sentence｜>"};

constexpr std::string_view kOtherTurnMarkers[] = {"<|im_start|>",
                                                  "<|start_header_id|>",
                                                  "<|end_header_id|>",
                                                  "<|begin_of_text|>",
                                                  "<|system|>",
                                                  "<|user|>",
                                                  "<|assistant|>",
                                                  "<|start|>",
                                                  "<start_of_turn>",
                                                  "[INST]",
                                                  "[/INST]",
                                                  "[SYSTEM_PROMPT]",
                                                  "[/SYSTEM_PROMPT]",
                                                  "<s>",
                                                  "<｜begin▁of▁sentence｜>",
                                                  "<｜User｜>",
                                                  "<｜Assistant｜>"};

}  // namespace

bool IsTurnMarker(std::string_view written) {
  const auto in = [&](const auto& list) {
    return std::find(std::begin(list), std::end(list), written) != std::end(list);
  };
  return in(kWellKnownEnds) || in(kOtherTurnMarkers);
}

std::vector<TokenId> FindEndTokens(const Vocabulary& vocabulary, const std::vector<TokenId>& stated) {
  std::vector<TokenId> ids = stated;
  const auto special = [&](std::string_view written) {
    const TokenId id = vocabulary.Find(written);
    return id != kNoToken && vocabulary.IsSpecial(id) ? id : kNoToken;
  };
  // In gpt-oss's format <|end|> closes one message of several; the turn ends with <|return|> or <|call|>.
  const bool end_is_inner = special("<|return|>") != kNoToken && special("<|call|>") != kNoToken;
  for (const std::string_view written : kWellKnownEnds) {
    if (end_is_inner && written == "<|end|>") continue;
    if (const TokenId id = special(written); id != kNoToken) ids.push_back(id);
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

std::string Quote(std::string_view text) {
  constexpr size_t kShownBytes = 40;
  std::string out = "'";
  for (const char c : text.substr(0, kShownBytes)) {
    if (c >= 0x20 && c < 0x7f) {
      out += c;
    } else {
      out += fmt::format("\\x{:02x}", static_cast<uint8_t>(c));
    }
  }
  out += text.size() > kShownBytes ? "...'" : "'";
  return out;
}

}  // namespace thermoe
