// SPDX-License-Identifier: Apache-2.0
// Byte-level BPE as a whole: the reference ids of the fixtures, and what must hold for any text.
#include "thermoe/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "base/utf8.h"
#include "model/tokenizer_fixtures.h"

namespace thermoe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Reference ids were made without bos.
constexpr EncodeOptions kPlain{.add_special = false, .parse_special = true};

void ExpectReference(const Tokenizer& tokenizer, const std::string& path) {
  const auto reference = nlohmann::json::parse(ReadText(path));
  ASSERT_FALSE(reference["texts"].empty()) << path;
  for (size_t i = 0; i < reference["texts"].size(); ++i) {
    const auto text = reference["texts"][i].get<std::string>();
    const auto ids = reference["ref"][i]["ids"].get<std::vector<TokenId>>();
    EXPECT_EQ(MustEncode(tokenizer, text, kPlain), ids) << path << ": " << text;
    EXPECT_EQ(tokenizer.Decode(ids), text);
  }
}

TEST(TokenizerTest, GivesReferenceIds) {
  for (const char* folder : {"mixtral", "olmoe", "qwen2moe", "qwen3moe"}) {
    ExpectReference(*EmberTokenizer(), FixturePath(std::string(folder) + "/reference.json"));
  }
  ExpectReference(*EmberTokenizer(), std::string(THERMOE_MODELS_DIR) + "/ember-22m-reference.json");
}

TEST(TokenizerTest, GgufGivesReferenceIds) {
  const TokenizerPtr tokenizer = MustMake(MakeGgufTokenizer(EmberGgufSpec()));
  ExpectReference(*tokenizer, std::string(THERMOE_MODELS_DIR) + "/ember-22m-reference.json");
}

TEST(TokenizerTest, FormatsAgree) {
  const TokenizerPtr gguf = MustMake(MakeGgufTokenizer(EmberGgufSpec()));
  Random random(11);
  for (int i = 0; i < 300; ++i) {
    const std::string text = RandomText(&random, 60);
    EXPECT_EQ(MustEncode(*gguf, text, kPlain), MustEncode(*EmberTokenizer(), text, kPlain)) << text;
  }
  EXPECT_EQ(gguf->Describe(), "byte-level BPE, qwen2 pre-tokeniser, 8192 tokens");
  EXPECT_EQ(EmberTokenizer()->Describe(), gguf->Describe());
  EXPECT_EQ(gguf->end_ids(), EmberTokenizer()->end_ids());
}

TEST(TokenizerTest, SpecialIdsOfEmber) {
  const Tokenizer& tokenizer = *EmberTokenizer();
  EXPECT_EQ(tokenizer.vocab_size(), 8192);
  EXPECT_EQ(tokenizer.bos(), 0);
  EXPECT_FALSE(tokenizer.adds_bos());
  EXPECT_THAT(tokenizer.end_ids(), ElementsAre(0, 2));
  EXPECT_TRUE(tokenizer.IsSpecial(1));
  EXPECT_FALSE(tokenizer.IsSpecial(3));
  EXPECT_FALSE(tokenizer.IsSpecial(-1));
  EXPECT_FALSE(tokenizer.IsSpecial(8192));
  EXPECT_EQ(tokenizer.Find("<|im_start|>"), 1);
  EXPECT_EQ(tokenizer.Find("!"), 3);
  EXPECT_EQ(tokenizer.Find("no such token"), kNoToken);
}

TEST(TokenizerTest, TokenBytesAndDecode) {
  const Tokenizer& tokenizer = *EmberTokenizer();
  EXPECT_EQ(tokenizer.TokenBytes(tokenizer.Find("Ġthe")), " the");
  EXPECT_EQ(tokenizer.TokenBytes(1), "");
  EXPECT_EQ(tokenizer.TokenBytes(1, true), "<|im_start|>");
  EXPECT_EQ(tokenizer.TokenBytes(-1), "");
  EXPECT_EQ(tokenizer.TokenBytes(1 << 30), "");
  EXPECT_EQ(tokenizer.Decode({}), "");
  EXPECT_EQ(tokenizer.Decode({1, tokenizer.Find("!"), 2}), "!");
  EXPECT_EQ(tokenizer.Decode({1, tokenizer.Find("!"), 2}, true), "<|im_start|>!<|im_end|>");
  // A lone continuation byte: byte 0x80 is written U+0122.
  EXPECT_EQ(tokenizer.Decode({tokenizer.Find("Ģ")}), "\xef\xbf\xbd");
}

TEST(TokenizerTest, SpecialTokensAreParsedOnlyOnRequest) {
  const Tokenizer& tokenizer = *EmberTokenizer();
  const std::string text = "a<|im_end|><|im_end|<|endoftext|>";
  const auto parsed = MustEncode(tokenizer, text);
  EXPECT_EQ(std::count(parsed.begin(), parsed.end(), 2), 1);
  EXPECT_EQ(std::count(parsed.begin(), parsed.end(), 0), 1);
  const auto plain = MustEncode(tokenizer, text, {.add_special = true, .parse_special = false});
  for (const TokenId id : plain) EXPECT_FALSE(tokenizer.IsSpecial(id)) << id;
  EXPECT_EQ(tokenizer.Decode(plain), text);
  EXPECT_EQ(tokenizer.Decode(parsed, true), text);
}

TEST(TokenizerTest, RoundTrip) {
  const Tokenizer& tokenizer = *EmberTokenizer();
  Random random(3);
  for (int i = 0; i < 1000; ++i) {
    const std::string text = RandomText(&random, 80);
    const auto ids = MustEncode(tokenizer, text);
    ASSERT_EQ(tokenizer.Decode(ids), text);
    for (const TokenId id : ids) ASSERT_TRUE(id >= 0 && id < tokenizer.vocab_size());
  }
  EXPECT_TRUE(MustEncode(tokenizer, "").empty());
}

TEST(TokenizerTest, RefusesInvalidUtf8WithOffset) {
  const struct {
    const char* text;
    const char* at;
  } rows[] = {{"\xff", "byte 0"},
              {"ab\xc3(", "byte 2"},
              {"\xed\xa0\x80", "byte 0"},
              {"\xc0\xaf", "byte 0"},
              {"\xe4\xbd\xa0\xe4\xbd", "byte 3"},
              {"\xf4\x90\x80\x80", "byte 0"}};
  for (const auto& row : rows) {
    const auto ids = EmberTokenizer()->Encode(row.text);
    ASSERT_FALSE(ids.ok());
    EXPECT_EQ(ids.status().code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(ids.status().message(), HasSubstr(row.at));
  }
}

TEST(TokenizerTest, LongInputsOfOneKind) {
  const Tokenizer& tokenizer = *EmberTokenizer();
  constexpr size_t kBytes = 1 << 20;
  for (const std::string_view part :
       {" ", "a", "A", "\n", "\n ", "\xf0\x9f\x99\x82", "7", "'", "\xcc\x81", "!?", "<|im_end|"}) {
    const std::string text = Repeat(part, kBytes) + "x";
    EXPECT_EQ(tokenizer.Decode(MustEncode(tokenizer, text)), text) << part;
  }
  EXPECT_EQ(MustEncode(tokenizer, Repeat("<|im_end|>", kBytes)).size(), kBytes / 10 + 1);
}

TEST(TokenizerTest, EveryNamedPreTokenizerTakesLongInputs) {
  GgufTokenizerSpec spec = EmberGgufSpec();
  for (const char* pre :
       {"default", "gpt-2", "llama-bpe", "qwen2", "qwen35", "seed-coder", "bailingmoe", "jais-2", "gpt-4o", "tekken",
        "deepseek-llm", "deepseek-coder", "deepseek-v3", "starcoder", "falcon", "bloom", "viking"}) {
    spec.pre = pre;
    const TokenizerPtr tokenizer = MustMake(MakeGgufTokenizer(spec));
    for (const std::string_view part : {" ", "a", "A", "\xe4\xbd\xa0", "7", "\xcc\x81", "!"}) {
      // The last character belongs to no class of deepseek-llm's, so that the spaces before it end no piece.
      const std::string text = Repeat(part, 50'000) + "\x01";
      EXPECT_EQ(tokenizer->Decode(MustEncode(*tokenizer, text)), text) << pre << " " << part;
    }
  }
}

TEST(TokenizerTest, ThreadsShareOneTokenizer) {
  const Tokenizer& tokenizer = *EmberTokenizer();
  Random random(5);
  const std::string text = RandomText(&random, 2000);
  const auto expected = MustEncode(tokenizer, text);
  std::vector<std::thread> threads;
  std::vector<int> same(4, 0);
  for (size_t t = 0; t < same.size(); ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 20; ++i) {
        const auto ids = tokenizer.Encode(text);
        same[t] += ids.ok() && *ids == expected ? 1 : 0;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_THAT(same, ElementsAre(20, 20, 20, 20));
}

// Any split of any ids: the pieces are valid UTF-8, and together what Decode gives.
void ExpectStreamsLikeDecode(const Tokenizer& tokenizer, const std::vector<TokenId>& ids, bool special) {
  TextStream stream(tokenizer, special);
  std::string whole;
  for (const TokenId id : ids) {
    const std::string piece = stream.Push(id);
    ASSERT_EQ(FindInvalidUtf8(piece), std::string::npos);
    whole += piece;
  }
  const std::string rest = stream.Finish();
  ASSERT_EQ(FindInvalidUtf8(rest), std::string::npos);
  ASSERT_EQ(whole + rest, tokenizer.Decode(ids, special));
}

TEST(TextStreamTest, PushesWhatDecodeGives) {
  Random random(17);
  const TokenizerPtr spm = MustMake(MakeGgufTokenizer(SmallSpmSpec()));
  for (const Tokenizer* tokenizer : {EmberTokenizer().get(), spm.get()}) {
    for (int i = 0; i < 2000; ++i) {
      // Half of the ids are among the first, where the single bytes are: broken characters of all kinds.
      std::vector<TokenId> ids(random.Below(30));
      const auto size = static_cast<uint64_t>(tokenizer->vocab_size());
      for (TokenId& id : ids) id = static_cast<TokenId>(random.Below(random.Below(2) == 0 ? 260 : size));
      ExpectStreamsLikeDecode(*tokenizer, ids, i % 2 == 0);
    }
  }
}

TEST(TextStreamTest, HoldsBackHalfACharacter) {
  const Tokenizer& tokenizer = *EmberTokenizer();
  const auto ids = MustEncode(tokenizer, "\xf0\x9f\x99\x82");  // four tokens of one byte each
  ASSERT_EQ(ids.size(), 4u);
  TextStream stream(tokenizer);
  EXPECT_EQ(stream.Push(ids[0]), "");
  EXPECT_EQ(stream.Push(ids[1]), "");
  EXPECT_EQ(stream.Push(ids[2]), "");
  EXPECT_EQ(stream.Push(ids[3]), "\xf0\x9f\x99\x82");
  EXPECT_EQ(stream.Finish(), "");
  EXPECT_EQ(stream.Push(ids[0]), "");
  EXPECT_EQ(stream.Finish(), "\xef\xbf\xbd");
}

}  // namespace
}  // namespace thermoe
