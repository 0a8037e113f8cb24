// SPDX-License-Identifier: Apache-2.0
// SentencePiece-style vocabularies: GGUF's "llama" model and its Hugging Face twin, byte fallback, spaces.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "model/tokenizer_fixtures.h"

namespace thermoe {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr EncodeOptions kPlain{.add_special = false, .parse_special = true};
constexpr EncodeOptions kUserText{.add_special = false, .parse_special = false};

TokenizerPtr SmallSpm() { return MustMake(MakeGgufTokenizer(SmallSpmSpec())); }

TEST(SpmTest, MergesByScore) {
  const TokenizerPtr tokenizer = SmallSpm();
  // "▁he" merges from "▁" + "he"; "▁hello" wins once "llo" stands beside it, which needs "lo" first: there is none.
  EXPECT_THAT(Pieces(*tokenizer, "the thing", kPlain), ElementsAre(" the", " t", "h", "ing"));
  EXPECT_THAT(Pieces(*tokenizer, "hi", kPlain), ElementsAre(" ", "h", "i"));
  EXPECT_THAT(Pieces(*tokenizer, "a    the", kPlain), ElementsAre(" a", "  ", " ", " the"));
}

TEST(SpmTest, BosByDefaultAndIds) {
  const TokenizerPtr tokenizer = SmallSpm();
  EXPECT_TRUE(tokenizer->adds_bos());
  EXPECT_EQ(tokenizer->bos(), 1);
  EXPECT_THAT(tokenizer->end_ids(), ElementsAre(2));
  EXPECT_EQ(MustEncode(*tokenizer, "a").front(), 1);
  EXPECT_THAT(MustEncode(*tokenizer, ""), ElementsAre(1));
  GgufTokenizerSpec spec = SmallSpmSpec();
  spec.add_bos = 0;
  EXPECT_FALSE(MustMake(MakeGgufTokenizer(spec))->adds_bos());
  EXPECT_EQ(tokenizer->Describe(), "SentencePiece BPE, 290 tokens");
}

TEST(SpmTest, BytesWhereNoTokenFits) {
  const TokenizerPtr tokenizer = SmallSpm();
  const TokenId byte0 = tokenizer->Find("<0x00>");
  // "\n" and "你" have no token, "é" has one.
  EXPECT_THAT(MustEncode(*tokenizer, "\n你é", kPlain), ElementsAre(tokenizer->Find("▁"), byte0 + 0x0a, byte0 + 0xe4,
                                                                   byte0 + 0xbd, byte0 + 0xa0, tokenizer->Find("é")));
  EXPECT_EQ(tokenizer->Decode({byte0 + 0xe4, byte0 + 0xbd}), "\xef\xbf\xbd");
  EXPECT_EQ(tokenizer->TokenBytes(byte0 + 0x41), "A");
  // The name of a byte token in a text is text.
  const auto ids = MustEncode(*tokenizer, "<0x41>", kPlain);
  EXPECT_GT(ids.size(), 2u);
  EXPECT_EQ(tokenizer->Decode(ids), "<0x41>");
}

TEST(SpmTest, UnknownWhereThereAreNoBytes) {
  GgufTokenizerSpec spec = SmallSpmSpec();
  for (size_t i = 3; i < 259; ++i) spec.tokens[i] = "filler" + std::to_string(i), spec.types[i] = 5;
  const TokenizerPtr tokenizer = MustMake(MakeGgufTokenizer(spec));
  EXPECT_THAT(MustEncode(*tokenizer, "你", kPlain), ElementsAre(tokenizer->Find("▁"), 0));
}

TEST(SpmTest, ControlTokensCannotBeSpelt) {
  const TokenizerPtr tokenizer = SmallSpm();
  // "</" and "s>" are tokens, and "</s>" is one, but merging must not lead there.
  EXPECT_THAT(Pieces(*tokenizer, "</s>", kUserText), ElementsAre(" ", "</", "s>"));
  EXPECT_THAT(MustEncode(*tokenizer, "</s>", kPlain), ElementsAre(2));
}

TEST(SpmTest, SpacePrefixIsUndone) {
  const TokenizerPtr tokenizer = SmallSpm();
  for (const char* text : {"the", " the", "  the", "", " ", "\n", "é the"}) {
    EXPECT_EQ(tokenizer->Decode(MustEncode(*tokenizer, text)), text);
  }
  // Only at the start.
  EXPECT_EQ(tokenizer->Decode({tokenizer->Find("▁the"), tokenizer->Find("▁the")}), "the the");
  GgufTokenizerSpec spec = SmallSpmSpec();
  spec.add_space_prefix = 0;
  const TokenizerPtr without = MustMake(MakeGgufTokenizer(spec));
  EXPECT_THAT(Pieces(*without, "he", kPlain), ElementsAre("he"));
  EXPECT_EQ(without->Decode(MustEncode(*without, " the")), " the");
}

TEST(SpmTest, RoundTripAndLongInputs) {
  const TokenizerPtr tokenizer = SmallSpm();
  Random random(31);
  for (int i = 0; i < 500; ++i) {
    const std::string text = RandomText(&random, 60);
    ASSERT_EQ(tokenizer->Decode(MustEncode(*tokenizer, text)), text);
  }
  for (const std::string_view part : {" ", "a", "the ", "\xf0\x9f\x99\x82", "h", "\n"}) {
    const std::string text = Repeat(part, 1 << 20);
    EXPECT_EQ(tokenizer->Decode(MustEncode(*tokenizer, text)), text) << part;
  }
}

// Tokens with a space inside ("▁a▁") forbid cutting at spaces; the ids must be those of the uncut text either way.
TEST(SpmTest, TokensMayCrossSpaces) {
  GgufTokenizerSpec spec = SmallSpmSpec();
  spec.tokens.push_back("▁a▁");
  spec.types.push_back(1);
  spec.scores.push_back(0.0f);
  const TokenizerPtr tokenizer = MustMake(MakeGgufTokenizer(spec));
  EXPECT_THAT(Pieces(*tokenizer, "a a", kPlain), ElementsAre(" a ", "a"));
}

TEST(SpmTest, RefusesBrokenSpecs) {
  const auto refusal = [](GgufTokenizerSpec spec) {
    const auto made = MakeGgufTokenizer(std::move(spec));
    EXPECT_FALSE(made.ok());
    EXPECT_EQ(made.status().code(), StatusCode::kCorrupt);
    return made.status().message();
  };
  GgufTokenizerSpec spec = SmallSpmSpec();
  spec.scores.clear();
  EXPECT_THAT(refusal(spec), HasSubstr("tokenizer.ggml.scores is missing"));
  spec = SmallSpmSpec();
  spec.scores[7] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(refusal(spec), HasSubstr("scores[7]"));
  spec = SmallSpmSpec();
  spec.types[260] = 6;
  EXPECT_THAT(refusal(spec), HasSubstr("says it is a byte"));
  spec = SmallSpmSpec();
  spec.types[260] = 9;
  EXPECT_THAT(refusal(spec), HasSubstr("token_type[260] is 9"));
  spec = SmallSpmSpec();
  spec.tokens[260] = spec.tokens[261];
  EXPECT_THAT(refusal(spec), HasSubstr("twice"));
  spec = SmallSpmSpec();
  spec.bos = 290;
  EXPECT_THAT(refusal(spec), HasSubstr("bos_token_id is 290"));
  spec = SmallSpmSpec();
  spec.tokens.clear();
  EXPECT_THAT(refusal(spec), HasSubstr("spm.gguf: tokenizer: tokenizer.ggml.tokens is missing"));
  // Infinite scores are odd but have an order.
  spec = SmallSpmSpec();
  spec.scores[260] = -std::numeric_limits<float>::infinity();
  EXPECT_TRUE(MakeGgufTokenizer(spec).ok());
}

// A tokenizer.json as Mixtral's, with few tokens.
json SmallCharacterBpe() {
  json vocab = {{"<unk>", 0}, {"<s>", 1}, {"</s>", 2}};
  const auto add = [&](const std::string& text) { vocab[text] = vocab.size(); };
  for (int b = 0; b < 256; ++b) {
    constexpr char kHex[] = "0123456789ABCDEF";
    add(std::string("<0x") + kHex[b >> 4] + kHex[b & 15] + ">");
  }
  for (const char* text : {"▁", "t", "h", "e", "a", "<", "/", "s", ">", "▁t", "he", "▁the", "</", "s>"}) add(text);
  json added = json::array();
  for (int id = 0; id < 3; ++id) {
    const char* kContents[] = {"<unk>", "<s>", "</s>"};
    added.push_back({{"id", id}, {"content", kContents[id]}, {"special", true}, {"normalized", false}});
  }
  const json prepend = {{"type", "Prepend"}, {"prepend", "▁"}};
  const json replace = {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "▁"}};
  const json back = {{"type", "Replace"}, {"pattern", {{"String", "▁"}}}, {"content", " "}};
  const json strip = {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}};
  const json bos = {{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}};
  const json text = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  return {
      {"added_tokens", added},
      {"normalizer", {{"type", "Sequence"}, {"normalizers", {prepend, replace}}}},
      {"pre_tokenizer", nullptr},
      {"post_processor", {{"type", "TemplateProcessing"}, {"single", {bos, text}}}},
      {"decoder", {{"type", "Sequence"}, {"decoders", {back, {{"type", "ByteFallback"}}, {{"type", "Fuse"}}, strip}}}},
      {"model",
       {{"type", "BPE"},
        {"unk_token", "<unk>"},
        {"fuse_unk", true},
        {"byte_fallback", true},
        {"vocab", vocab},
        {"merges", {"h e", "▁ t", "▁t he", "< /", "s >", "</ s>"}}}}};
}

TokenizerPtr MustMakeJson(const json& text) {
  return MustMake(MakeHuggingFaceTokenizer("folder", text.dump(), "", ""));
}

TEST(CharacterBpeTest, LikeMixtral) {
  const TokenizerPtr tokenizer = MustMakeJson(SmallCharacterBpe());
  EXPECT_TRUE(tokenizer->adds_bos());
  EXPECT_EQ(tokenizer->bos(), 1);
  EXPECT_THAT(tokenizer->end_ids(), ElementsAre(2));
  EXPECT_THAT(Pieces(*tokenizer, "the he"), ElementsAre("<s>", " the", " ", "he"));
  EXPECT_THAT(Pieces(*tokenizer, "é", kPlain), ElementsAre(" ", "\xc3", "\xa9"));
  EXPECT_THAT(Pieces(*tokenizer, "</s>", kUserText), ElementsAre(" ", "</", "s>"));
  EXPECT_EQ(tokenizer->Describe(), "character BPE, 273 tokens");
  Random random(37);
  for (int i = 0; i < 300; ++i) {
    const std::string text = RandomText(&random, 40);
    ASSERT_EQ(tokenizer->Decode(MustEncode(*tokenizer, text)), text);
  }
}

TEST(CharacterBpeTest, MetaspaceSchemes) {
  json text = SmallCharacterBpe();
  text["normalizer"] = nullptr;
  text["pre_tokenizer"] = {{"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", "first"}, {"split", false}};
  const TokenizerPtr first = MustMakeJson(text);
  EXPECT_THAT(Pieces(*first, "the</s>the", kPlain), ElementsAre(" the", "</s>", "t", "he"));
  text["pre_tokenizer"]["prepend_scheme"] = "always";
  EXPECT_THAT(Pieces(*MustMakeJson(text), "the</s>the", kPlain), ElementsAre(" the", "</s>", " the"));
  text["pre_tokenizer"]["prepend_scheme"] = "never";
  EXPECT_THAT(Pieces(*MustMakeJson(text), "the", kPlain), ElementsAre("t", "he"));
  text["pre_tokenizer"] = {{"type", "Metaspace"}, {"replacement", "▁"}, {"add_prefix_space", true}};
  EXPECT_THAT(Pieces(*MustMakeJson(text), "he  the", kPlain), ElementsAre(" ", "he", " ", " the"));
}

TEST(CharacterBpeTest, UnknownCharacters) {
  json text = SmallCharacterBpe();
  text["model"]["byte_fallback"] = false;
  EXPECT_THAT(MustEncode(*MustMakeJson(text), "éüa", kPlain).size(), 3u);  // space, unknown (both), a
  text["model"]["fuse_unk"] = false;
  EXPECT_THAT(MustEncode(*MustMakeJson(text), "éüa", kPlain).size(), 4u);
  text["model"]["unk_token"] = nullptr;
  const auto ids = MustMakeJson(text)->Encode("é");
  ASSERT_FALSE(ids.ok());
  EXPECT_EQ(ids.status().code(), StatusCode::kInvalidArgument);
}

TEST(CharacterBpeTest, NormalForms) {
  json text = SmallCharacterBpe();
  text["model"]["vocab"]["\u00e9"] = 273;
  text["normalizer"] = {{"type", "NFC"}};
  const TokenizerPtr nfc = MustMakeJson(text);
  EXPECT_THAT(MustEncode(*nfc, "e\u0301", kPlain), ElementsAre(273));
  text["normalizer"] = {{"type", "NFD"}};
  EXPECT_EQ(MustMakeJson(text)->Decode(MustEncode(*MustMakeJson(text), "\u00e9")), "e\u0301");
  text["normalizer"] = {{"type", "NFKC"}};
  EXPECT_EQ(MustMakeJson(text)->Decode(MustEncode(*MustMakeJson(text), "ﬁ")), "fi");
  // Combining marks are put in order, however many there are.
  EXPECT_EQ(nfc->Decode(MustEncode(*nfc, "a\u0301\u0323")), "\u1ea1\u0301");
  const std::string marks = Repeat("\u0301\u0323", 1 << 18);
  EXPECT_EQ(nfc->Decode(MustEncode(*nfc, marks)).size(), marks.size());
}

}  // namespace
}  // namespace thermoe
