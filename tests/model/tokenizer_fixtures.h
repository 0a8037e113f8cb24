// SPDX-License-Identifier: Apache-2.0
// Vocabularies for the tokenizer tests: the fixtures' own, and small ones written out here.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <fstream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/random.h"
#include "model/tokenizer_factory.h"
#include "model/unicode.h"

namespace thermoe {

inline std::string ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

inline std::string FixturePath(const std::string& name) { return std::string(THERMOE_FIXTURES) + "/" + name; }

using TokenizerPtr = std::shared_ptr<const Tokenizer>;

// tests/fixtures/tokenizer.json: byte-level BPE of 8192 tokens, qwen2's pattern.
inline TokenizerPtr EmberTokenizer() {
  static const TokenizerPtr tokenizer = [] {
    auto made = MakeHuggingFaceTokenizer("fixtures", ReadText(FixturePath("tokenizer.json")),
                                         ReadText(FixturePath("qwen3moe/tokenizer_config.json")),
                                         ReadText(FixturePath("qwen3moe/generation_config.json")));
    EXPECT_TRUE(made.ok()) << made.status().message();
    return made.ok() ? *made : nullptr;
  }();
  return tokenizer;
}

// The same vocabulary in GGUF's terms.
inline GgufTokenizerSpec EmberGgufSpec() {
  const auto json = nlohmann::json::parse(ReadText(FixturePath("tokenizer.json")));
  GgufTokenizerSpec spec;
  spec.source = "ember.gguf";
  spec.model = "gpt2";
  spec.pre = "qwen2";
  spec.tokens.resize(json["model"]["vocab"].size());
  spec.types.assign(spec.tokens.size(), 1);
  for (const auto& [text, id] : json["model"]["vocab"].items()) spec.tokens[id.get<size_t>()] = text;
  for (const auto& token : json["added_tokens"]) spec.types[token["id"].get<size_t>()] = 3;
  for (const auto& merge : json["model"]["merges"]) {
    spec.merges.push_back(merge[0].get<std::string>() + " " + merge[1].get<std::string>());
  }
  spec.bos = spec.eos = 0;
  return spec;
}

// A SentencePiece vocabulary: <unk> <s> </s>, 256 byte tokens, then what stands here. Scores fall with the id, as
// trainers write them.
inline GgufTokenizerSpec SmallSpmSpec() {
  GgufTokenizerSpec spec;
  spec.source = "spm.gguf";
  spec.model = "llama";
  const auto add = [&](const std::string& text, int32_t type) {
    spec.scores.push_back(type == 1 ? -static_cast<float>(spec.tokens.size()) : 0.0f);
    spec.tokens.push_back(text);
    spec.types.push_back(type);
  };
  add("<unk>", 2);
  add("<s>", 3);
  add("</s>", 3);
  for (int b = 0; b < 256; ++b) {
    constexpr char kHex[] = "0123456789ABCDEF";
    add(std::string("<0x") + kHex[b >> 4] + kHex[b & 15] + ">", 6);
  }
  for (const char* text :
       {"▁t", "he", "▁the", "▁▁", "▁▁▁▁", "in", "ing", "▁a", "er", "</", "s>", "llo", "▁he", "▁hello"}) {
    add(text, 1);
  }
  for (const char* text : {"▁", "t", "h", "e", "i", "n", "g", "a", "r", "l", "o", "s", "<", "/", ">", "é", "."})
    add(text, 1);
  return spec;
}

inline TokenizerPtr MustMake(Result<TokenizerPtr> made) {
  EXPECT_TRUE(made.ok()) << made.status().message();
  return made.ok() ? *made : nullptr;
}

inline std::vector<TokenId> MustEncode(const Tokenizer& tokenizer, std::string_view text, EncodeOptions options = {}) {
  auto ids = tokenizer.Encode(text, options);
  EXPECT_TRUE(ids.ok()) << ids.status().message();
  return ids.ok() ? *ids : std::vector<TokenId>{};
}

// The written forms of the tokens of `text`.
inline std::vector<std::string> Pieces(const Tokenizer& tokenizer, std::string_view text, EncodeOptions options = {}) {
  std::vector<std::string> pieces;
  for (const TokenId id : MustEncode(tokenizer, text, options)) pieces.emplace_back(tokenizer.TokenBytes(id, true));
  return pieces;
}

// Valid UTF-8 of up to `characters` characters, of all lengths and of the kinds that pre-tokenisers tell apart.
inline std::string RandomText(Random* random, size_t characters) {
  std::string text;
  const size_t count = 1 + random->Below(characters);
  for (size_t i = 0; i < count; ++i) {
    uint32_t c = 0;
    switch (random->Below(8)) {
      case 0: c = static_cast<uint32_t>(random->Below(0x80)); break;
      case 1: c = "  \n\r\t '"[random->Below(7)]; break;
      case 2: c = static_cast<uint32_t>('a' + random->Below(26)); break;
      case 3: c = static_cast<uint32_t>('0' + random->Below(10)); break;
      case 4: c = 0x80 + static_cast<uint32_t>(random->Below(0x780)); break;
      case 5: c = 0x800 + static_cast<uint32_t>(random->Below(0xd000)); break;
      case 6: c = 0xe000 + static_cast<uint32_t>(random->Below(0x2000)); break;
      default: c = 0x10000 + static_cast<uint32_t>(random->Below(0x100000)); break;
    }
    AppendUtf8(c, &text);
  }
  return text;
}

inline std::string Repeat(std::string_view part, size_t bytes) {
  std::string text;
  while (text.size() < bytes) text += part;
  return text;
}

}  // namespace thermoe
