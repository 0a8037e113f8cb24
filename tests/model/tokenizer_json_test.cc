// SPDX-License-Identifier: Apache-2.0
// tokenizer.json piece by piece, and files that are damaged or hostile, in both formats.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/tokenizer_fixtures.h"

namespace thermoe {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr EncodeOptions kPlain{.add_special = false, .parse_special = true};
constexpr EncodeOptions kUserText{.add_special = false, .parse_special = false};

// Byte-level BPE over all bytes, with "ab", "abc" and " a" as the only merges.
json SmallByteLevel() {
  json vocab;
  for (int b = 0; b < 256; ++b) {
    constexpr auto kSelf = [](int x) { return (x >= 0x21 && x <= 0x7e) || (x >= 0xa1 && x <= 0xac) || x >= 0xae; };
    static int next = 256;
    if (b == 0) next = 256;
    std::string character;
    AppendUtf8(static_cast<uint32_t>(kSelf(b) ? b : next++), &character);
    vocab[character] = b;
  }
  vocab["ab"] = 256;
  vocab["abc"] = 257;
  vocab["Ġa"] = 258;
  return {{"version", "1.0"},
          {"added_tokens", {{{"id", 259}, {"content", "<|endoftext|>"}, {"special", true}}}},
          {"normalizer", nullptr},
          {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
          {"post_processor", nullptr},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", {"a b", {"ab", "c"}, "Ġ a"}}}}};
}

Result<TokenizerPtr> Make(const json& text, const std::string& config = "", const std::string& generation = "") {
  return MakeHuggingFaceTokenizer("folder", text.dump(), config, generation);
}

Status Refusal(const json& text, const std::string& config = "", const std::string& generation = "") {
  const auto made = Make(text, config, generation);
  EXPECT_FALSE(made.ok());
  return made.status();
}

void ExpectRefusal(const json& text, StatusCode code, const char* part) {
  const Status status = Refusal(text);
  EXPECT_EQ(status.code(), code) << status.message();
  EXPECT_THAT(status.message(), HasSubstr(part));
  EXPECT_THAT(status.message(), HasSubstr("folder/tokenizer.json: "));
}

TEST(TokenizerJsonTest, SmallVocabulary) {
  const TokenizerPtr tokenizer = MustMake(Make(SmallByteLevel()));
  EXPECT_THAT(MustEncode(*tokenizer, "abc abx a"), ElementsAre(257, ' ', 256, 'x', 258));
  EXPECT_EQ(tokenizer->vocab_size(), 260);
  EXPECT_FALSE(tokenizer->adds_bos());
  EXPECT_EQ(tokenizer->bos(), kNoToken);
  EXPECT_THAT(tokenizer->end_ids(), ElementsAre(259));
}

TEST(TokenizerJsonTest, IgnoreMergesTakesWholeWords) {
  json text = SmallByteLevel();
  text["model"]["vocab"]["xyz"] = 260;  // no merge leads there
  EXPECT_THAT(MustEncode(*MustMake(Make(text)), "xyz"), ElementsAre('x', 'y', 'z'));
  text["model"]["ignore_merges"] = true;
  EXPECT_THAT(MustEncode(*MustMake(Make(text)), "xyz xyzw"), ElementsAre(260, ' ', 'x', 'y', 'z', 'w'));
}

TEST(TokenizerJsonTest, BosAndEosFromTheConfigs) {
  json text = SmallByteLevel();
  const char* bos = R"({"bos_token": {"content": "<|endoftext|>"}, "eos_token": "ab", "add_bos_token": true})";
  TokenizerPtr tokenizer = MustMake(Make(text, bos, R"({"eos_token_id": [257, 3], "bos_token_id": 1})"));
  EXPECT_TRUE(tokenizer->adds_bos());
  EXPECT_EQ(tokenizer->bos(), 259);
  EXPECT_THAT(tokenizer->end_ids(), ElementsAre(3, 256, 257, 259));
  EXPECT_THAT(MustEncode(*tokenizer, "x"), ElementsAre(259, 'x'));
  EXPECT_THAT(MustEncode(*tokenizer, "x", kPlain), ElementsAre('x'));

  tokenizer = MustMake(Make(text, R"({"add_bos_token": true, "bos_token": null})", R"({"eos_token_id": 5})"));
  EXPECT_FALSE(tokenizer->adds_bos());
  EXPECT_THAT(tokenizer->end_ids(), ElementsAre(5, 259));

  // The template puts it, unless the config says not to.
  text["post_processor"] = {
      {"type", "Sequence"},
      {"processors",
       {{{"type", "ByteLevel"}},
        {{"type", "TemplateProcessing"},
         {"single", {{{"SpecialToken", {{"id", "<|endoftext|>"}}}}, {{"Sequence", {{"id", "A"}}}}}}}}}};
  EXPECT_TRUE(MustMake(Make(text))->adds_bos());
  EXPECT_FALSE(MustMake(Make(text, R"({"add_bos_token": false})"))->adds_bos());
}

TEST(TokenizerJsonTest, AddedTokenFlags) {
  json text = SmallByteLevel();
  const auto add = [&](int id, const char* content, const json& flags) {
    json token = {{"id", id}, {"content", content}, {"normalized", false}, {"special", false}};
    token.update(flags);
    text["added_tokens"].push_back(token);
  };
  add(260, "<l>", {{"lstrip", true}});
  add(261, "<r>", {{"rstrip", true}});
  add(262, "word", {{"single_word", true}});
  add(263, "<l><r>", json::object());
  const TokenizerPtr tokenizer = MustMake(Make(text));
  EXPECT_THAT(MustEncode(*tokenizer, "x \n<l> y"), ElementsAre('x', 260, ' ', 'y'));
  EXPECT_THAT(MustEncode(*tokenizer, "x <r> \u00a0y"), ElementsAre('x', ' ', 261, 'y'));
  EXPECT_THAT(MustEncode(*tokenizer, "<l><r>"), ElementsAre(263));  // the longest
  EXPECT_THAT(MustEncode(*tokenizer, "-word-"), ElementsAre('-', 262, '-'));
  EXPECT_THAT(MustEncode(*tokenizer, "swords").size(), 6u);
  // Added tokens that are not special are found in text from users, too.
  EXPECT_THAT(MustEncode(*tokenizer, "<r><|endoftext|>", kUserText).front(), 261);
  EXPECT_THAT(MustEncode(*tokenizer, "<|endoftext|>", kUserText).size(), 13u);
  EXPECT_EQ(tokenizer->TokenBytes(262), "word");
}

TEST(TokenizerJsonTest, TurnMarkersAreSpecialWhateverTheFileSays) {
  json text = SmallByteLevel();
  text["added_tokens"].push_back({{"id", 260}, {"content", "<|im_start|>"}, {"special", false}});
  const TokenizerPtr tokenizer = MustMake(Make(text));
  EXPECT_TRUE(tokenizer->IsSpecial(260));
  EXPECT_EQ(MustEncode(*tokenizer, "<|im_start|>", kUserText).size(), 12u);
}

TEST(TokenizerJsonTest, NormalisedAddedTokensMatchNormalisedText) {
  json text = SmallByteLevel();
  text["normalizer"] = {{"type", "NFC"}};
  text["added_tokens"].push_back({{"id", 260}, {"content", "e\u0301!"}, {"normalized", true}});
  const TokenizerPtr tokenizer = MustMake(Make(text));
  EXPECT_THAT(MustEncode(*tokenizer, "x\u00e9!"), ElementsAre('x', 260));
  EXPECT_THAT(MustEncode(*tokenizer, "xe\u0301!"), ElementsAre('x', 260));
}

TEST(TokenizerJsonTest, SplitBehaviours) {
  const struct {
    const char* behavior;
    bool invert;
    std::vector<std::string> words;  // of "a--b-c"
  } rows[] = {
      {"Isolated", false, {"a", "-", "-", "b", "-", "c"}},
      {"Removed", false, {"a", "b", "c"}},
      {"Removed", true, {"-", "-", "-"}},
      {"MergedWithPrevious", false, {"a-", "-", "b-", "c"}},
      {"MergedWithNext", false, {"a", "-", "-b", "-c"}},
      {"Contiguous", false, {"a", "--", "b", "-", "c"}},
  };
  for (const auto& row : rows) {
    json text = SmallByteLevel();
    // Every word is a token, so that the ids show the cuts.
    int id = 260;
    for (const std::string& word : row.words) {
      if (word.size() > 1) text["model"]["vocab"][word] = id++;
    }
    text["model"]["ignore_merges"] = true;
    text["pre_tokenizer"] = {
        {"type", "Sequence"},
        {"pretokenizers",
         {{{"type", "Split"}, {"pattern", {{"String", "-"}}}, {"behavior", row.behavior}, {"invert", row.invert}},
          {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
    EXPECT_EQ(Pieces(*MustMake(Make(text)), "a--b-c", kPlain), row.words) << row.behavior << row.invert;
  }
}

TEST(TokenizerJsonTest, PrefixSpaceDigitsAndPunctuation) {
  json text = SmallByteLevel();
  text["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", true}};
  EXPECT_THAT(MustEncode(*MustMake(Make(text)), "a"), ElementsAre(258));
  text["pre_tokenizer"] = {{"type", "Sequence"},
                           {"pretokenizers",
                            {{{"type", "Digits"}, {"individual_digits", true}},
                             {{"type", "Punctuation"}},
                             {{"type", "ByteLevel"}, {"add_prefix_space", false}}}}};
  text["model"]["vocab"]["12"] = 260;
  text["model"]["merges"].push_back("1 2");
  EXPECT_THAT(MustEncode(*MustMake(Make(text)), "12!"), ElementsAre('1', '2', '!'));
}

TEST(TokenizerJsonTest, UnsupportedComponentsAreNamed) {
  const struct {
    const char* pointer;
    json value;
    const char* part;
  } rows[] = {
      {"/normalizer", {{"type", "BertNormalizer"}}, "normalizer is of type 'BertNormalizer'"},
      {"/pre_tokenizer", {{"type", "BertPreTokenizer"}}, "known are Split, ByteLevel"},
      {"/decoder", {{"type", "WordPiece"}}, "decoder is of type 'WordPiece'"},
      {"/decoder", {{"type", "Strip"}, {"start", 0}, {"stop", 1}}, "Strip (of one leading space)"},
      {"/post_processor", {{"type", "BertProcessing"}}, "known are TemplateProcessing"},
      {"/model/type", "Unigram", "model is of type 'Unigram'"},
      {"/model/dropout", 0.1, "dropout"},
      {"/model/end_of_word_suffix", "</w>", "end_of_word_suffix"},
      {"/pre_tokenizer", {{"type", "Split"}, {"pattern", {{"Regex", "[a&&b]"}}}}, "a class inside a class"},
      {"/pre_tokenizer", {{"type", "Split"}, {"pattern", {{"Regex", "x"}}}, {"behavior", "Odd"}}, "behavior 'Odd'"},
      {"/pre_tokenizer",
       {{"type", "Sequence"}, {"pretokenizers", {{{"type", "ByteLevel"}}, {{"type", "Digits"}}}}},
       "pre_tokenizer.pretokenizers[1] (Digits) comes after ByteLevel"},
  };
  for (const auto& row : rows) {
    json text = SmallByteLevel();
    text[json::json_pointer(row.pointer)] = row.value;
    ExpectRefusal(text, StatusCode::kUnsupported, row.part);
  }
}

TEST(TokenizerJsonTest, DamagedFilesAreRefusedWithTheField) {
  const json huge = 4'000'000'000'000ull;
  const struct {
    const char* pointer;
    json value;
    const char* part;
  } rows[] = {
      {"/model", 3, "model is number, not an object"},
      {"/model/vocab", json::array(), "model.vocab is not an object"},
      {"/model/vocab/ab", "x", "model.vocab['ab'] is string"},
      {"/model/vocab/ab", -1, "not a token id"},
      {"/model/vocab/ab", 1.5, "not a token id"},
      {"/model/vocab/ab", huge, "not a token id"},
      {"/model/vocab/ab", 4'000'000, "far beyond"},
      {"/model/vocab/ab", 97, "share id 97"},
      {"/model/merges", nullptr, "model.merges is not an array"},
      {"/model/merges", json::array({"a"}), "model.merges[0]"},
      {"/model/merges", json::array({json::array({"a", "b", "c"})}), "model.merges[0]"},
      {"/model/merges", json::array({json::array({"a", 1})}), "model.merges[0]"},
      {"/model/merges", json::array({"q u"}), "merge 0 of 'q' and 'u' names a token that the vocabulary lacks"},
      {"/model/merges", json::array({"a \xc3\xa9\xc3\xa9"}), "lacks"},
      {"/model/unk_token", "none such", "unk_token 'none such'"},
      {"/model/unk_token", 1, "model.unk_token is of JSON type number"},
      {"/model/ignore_merges", "yes", "model.ignore_merges is of JSON type string"},
      {"/added_tokens", json::object({{"id", 3}}), "added_tokens is not an array"},
      {"/added_tokens", json::array({3}), "added_tokens[0] is number"},
      {"/added_tokens", {{{"id", 3}}}, "added_tokens[0].content"},
      {"/added_tokens", {{{"content", "x"}}}, "added_tokens[0].id is null"},
      {"/added_tokens", {{{"content", "new"}, {"id", 97}}}, "share id 97"},
      {"/added_tokens", {{{"content", "ab"}, {"id", 97}}}, "has id 97 in added_tokens and 256 before"},
      {"/added_tokens", {{{"content", "n"}, {"id", 110}}, {{"content", "n"}, {"id", 110}}}, "twice"},
      {"/normalizer", {{"type", 5}}, "normalizer.type is of JSON type number"},
      {"/normalizer", {{"type", "Replace"}, {"content", "x"}}, "normalizer.pattern is missing"},
      {"/normalizer", {{"type", "Replace"}, {"pattern", {{"String", ""}}}}, "must hold one of"},
      {"/normalizer", {{"type", "Prepend"}, {"prepend", std::string(1000, 'x')}}, "has 1000 bytes"},
      {"/pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", 3}}, "pre_tokenizer.pretokenizers is not an array"},
      {"/pre_tokenizer", {{"type", "Metaspace"}, {"replacement", ""}}, "one character"},
      {"/post_processor", {{"type", "TemplateProcessing"}}, "post_processor.single is not an array"},
  };
  for (const auto& row : rows) {
    json text = SmallByteLevel();
    text[json::json_pointer(row.pointer)] = row.value;
    ExpectRefusal(text, StatusCode::kCorrupt, row.part);
  }
}

TEST(TokenizerJsonTest, DamagedConfigsAreNamed) {
  EXPECT_THAT(Refusal(SmallByteLevel(), "{").message(),
              HasSubstr("folder/tokenizer_config.json: not valid JSON at byte"));
  EXPECT_THAT(Refusal(SmallByteLevel(), "[]").message(), HasSubstr("the JSON text is array, not an object"));
  EXPECT_THAT(Refusal(SmallByteLevel(), R"({"bos_token": 3})").message(), HasSubstr("bos_token is number"));
  EXPECT_THAT(Refusal(SmallByteLevel(), R"({"add_bos_token": 3})").message(),
              HasSubstr("add_bos_token is of JSON type"));
  EXPECT_THAT(Refusal(SmallByteLevel(), "", R"({"eos_token_id": 260})").message(),
              HasSubstr("folder/generation_config.json: eos_token_id is 260, outside the vocabulary of 260"));
  EXPECT_THAT(Refusal(SmallByteLevel(), "", R"({"eos_token_id": "x"})").message(), HasSubstr("eos_token_id is string"));
}

TEST(TokenizerJsonTest, NotJsonAtAll) {
  for (const std::string& text :
       {std::string(), std::string("{"), std::string("\xff\xfe"), std::string("{\"a\": \"\\ud800\"}"),
        std::string(3'000'000, '['), std::string("{\"model\":") + std::string(1'000'000, '[')}) {
    const auto made = MakeHuggingFaceTokenizer("folder", text, "", "");
    ASSERT_FALSE(made.ok());
    EXPECT_THAT(made.status().message(), HasSubstr("not valid JSON at byte"));
  }
  // Well-formed, but a tower.
  const std::string deep = "{\"normalizer\":" + std::string(500'000, '[') + std::string(500'000, ']') + "}";
  EXPECT_FALSE(MakeHuggingFaceTokenizer("folder", deep, "", "").ok());
  json nested = {{"type", "NFC"}};
  for (int i = 0; i < 20; ++i) nested = {{"type", "Sequence"}, {"normalizers", {nested}}};
  json text = SmallByteLevel();
  text["normalizer"] = nested;
  ExpectRefusal(text, StatusCode::kCorrupt, "nests Sequences");
}

TEST(TokenizerJsonTest, RepeatedKeyIsFound) {
  std::string text = SmallByteLevel().dump();
  const size_t at = text.find("\"ab\":256");
  ASSERT_NE(at, std::string::npos);
  text.insert(at, "\"ab\":300,");
  const auto made = MakeHuggingFaceTokenizer("folder", text, "", "");
  ASSERT_FALSE(made.ok());
  EXPECT_THAT(made.status().message(), HasSubstr("only 259 different tokens"));
}

TEST(TokenizerJsonTest, HolesInTheVocabularyAreEmptyTokens) {
  json text = SmallByteLevel();
  text["model"]["vocab"]["ab"] = 300;
  const TokenizerPtr tokenizer = MustMake(Make(text));
  EXPECT_EQ(tokenizer->vocab_size(), 301);
  EXPECT_EQ(tokenizer->TokenBytes(256, true), "");
  EXPECT_EQ(tokenizer->Decode({256, 'x'}), "x");
  EXPECT_THAT(MustEncode(*tokenizer, "abc"), ElementsAre(257));
}

TEST(TokenizerJsonTest, BytesWithoutTokenAreAnError) {
  json text = SmallByteLevel();
  text["model"]["vocab"].erase("z");
  const auto ids = MustMake(Make(text))->Encode("az");
  ASSERT_FALSE(ids.ok());
  EXPECT_THAT(ids.status().message(), HasSubstr("0x7a"));
}

TEST(TokenizerJsonTest, GrowingNormalisersAreStopped) {
  json text = SmallByteLevel();
  json steps = json::array();
  for (int i = 0; i < 20; ++i) {
    steps.push_back({{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", std::string(200, 'a')}});
  }
  text["normalizer"] = {{"type", "Sequence"}, {"normalizers", steps}};
  const auto ids = MustMake(Make(text))->Encode(std::string(1000, 'a'));
  ASSERT_FALSE(ids.ok());
  EXPECT_EQ(ids.status().code(), StatusCode::kResourceExhausted);
}

// Bytes changed, cut or doubled at random: a Status or a tokenizer that works, never a crash.
TEST(TokenizerJsonTest, MutatedFilesNeverCrash) {
  const std::string good = SmallByteLevel().dump();
  Random random(41);
  int made_count = 0;
  for (int i = 0; i < 3000; ++i) {
    std::string text = good;
    for (uint64_t n = 1 + random.Below(3); n > 0; --n) {
      const size_t at = random.Below(text.size());
      switch (random.Below(4)) {
        case 0: text[at] = static_cast<char>(random.Below(256)); break;
        case 1: text.erase(at, random.Below(20)); break;
        case 2: text.insert(at, text.substr(random.Below(text.size()), random.Below(20))); break;
        default: text[at] = "0123456789{}[],:\"\\"[random.Below(18)]; break;
      }
    }
    const auto made = MakeHuggingFaceTokenizer("folder", text, "", "");
    if (!made.ok()) continue;
    ++made_count;
    const auto ids = (*made)->Encode("abc <|endoftext|> \xf0\x9f\x99\x82 12");
    if (ids.ok()) (*made)->Decode(*ids, true);
  }
  EXPECT_GT(made_count, 100);
}

GgufTokenizerSpec SmallGguf() {
  const json text = SmallByteLevel();
  GgufTokenizerSpec spec;
  spec.source = "m.gguf";
  spec.model = "gpt2";
  spec.pre = "gpt-2";
  spec.tokens.resize(260);
  for (const auto& [token, id] : text["model"]["vocab"].items()) spec.tokens[id.get<size_t>()] = token;
  spec.tokens[259] = "<|endoftext|>";
  spec.types.assign(260, 1);
  spec.types[259] = 3;
  spec.merges = {"a b", "ab c", "Ġ a"};
  spec.eos = 259;
  return spec;
}

TEST(TokenizerGgufTest, BosRules) {
  GgufTokenizerSpec spec = SmallGguf();
  spec.bos = 259;
  EXPECT_FALSE(MustMake(MakeGgufTokenizer(spec))->adds_bos());
  spec.pre = "llama-bpe";
  EXPECT_TRUE(MustMake(MakeGgufTokenizer(spec))->adds_bos());
  spec.add_bos = 0;
  EXPECT_FALSE(MustMake(MakeGgufTokenizer(spec))->adds_bos());
  spec.pre = "gpt-2";
  spec.add_bos = 1;
  EXPECT_THAT(MustEncode(*MustMake(MakeGgufTokenizer(spec)), "ab"), ElementsAre(259, 256));
  spec.bos = -1;
  EXPECT_EQ(MakeGgufTokenizer(spec).status().code(), StatusCode::kCorrupt);
  spec.bos = int64_t{UINT32_MAX};  // "none", as some writers put it
  spec.add_bos = -1;
  EXPECT_EQ(MustMake(MakeGgufTokenizer(spec))->bos(), kNoToken);
}

TEST(TokenizerGgufTest, IgnoreMergesBelongsToLlamaBpe) {
  GgufTokenizerSpec spec = SmallGguf();
  spec.tokens.push_back("xyz");
  spec.types.push_back(1);
  EXPECT_THAT(MustEncode(*MustMake(MakeGgufTokenizer(spec)), "xyz"), ElementsAre('x', 'y', 'z'));
  spec.pre = "llama-bpe";
  EXPECT_THAT(MustEncode(*MustMake(MakeGgufTokenizer(spec)), "xyz"), ElementsAre(260));
}

TEST(TokenizerGgufTest, UserDefinedTokensAndEmptyOnes) {
  GgufTokenizerSpec spec = SmallGguf();
  for (const char* token : {"  ", "", "", "<|im_end|>"}) spec.tokens.push_back(token);
  for (const int type : {4, 1, 5, 4}) spec.types.push_back(type);
  const TokenizerPtr tokenizer = MustMake(MakeGgufTokenizer(spec));
  EXPECT_THAT(MustEncode(*tokenizer, "x  y", kUserText), ElementsAre('x', 260, 'y'));
  EXPECT_EQ(tokenizer->TokenBytes(260), "  ");
  EXPECT_EQ(tokenizer->TokenBytes(261), "");
  EXPECT_TRUE(tokenizer->IsSpecial(263));
  EXPECT_THAT(tokenizer->end_ids(), ElementsAre(259, 263));
}

TEST(TokenizerGgufTest, WithoutTypes) {
  GgufTokenizerSpec spec = SmallGguf();
  spec.types.clear();
  spec.pre.clear();
  const TokenizerPtr tokenizer = MustMake(MakeGgufTokenizer(spec));
  EXPECT_TRUE(tokenizer->IsSpecial(259));
  EXPECT_EQ(tokenizer->Describe(), "byte-level BPE, default pre-tokeniser, 260 tokens");
}

TEST(TokenizerGgufTest, GptOssEndsATurnWithReturnNotEnd) {
  GgufTokenizerSpec spec = SmallGguf();
  for (const char* token : {"<|end|>", "<|return|>", "<|call|>"}) {
    spec.tokens.push_back(token);
    spec.types.push_back(3);
  }
  EXPECT_THAT(MustMake(MakeGgufTokenizer(spec))->end_ids(), ElementsAre(259, 261, 262));
}

TEST(TokenizerGgufTest, Refusals) {
  const auto refusal = [](const GgufTokenizerSpec& spec, StatusCode code) {
    const auto made = MakeGgufTokenizer(spec);
    EXPECT_FALSE(made.ok());
    EXPECT_EQ(made.status().code(), code) << made.status().message();
    EXPECT_THAT(made.status().message(), HasSubstr("m.gguf: "));
    return made.status().message();
  };
  GgufTokenizerSpec spec = SmallGguf();
  spec.pre = "klingon";
  EXPECT_THAT(refusal(spec, StatusCode::kUnsupported),
              HasSubstr("'klingon' (tokenizer.ggml.pre) is not known; known are default"));
  spec = SmallGguf();
  spec.model = "bert";
  EXPECT_THAT(refusal(spec, StatusCode::kUnsupported), HasSubstr("'bert'"));
  spec = SmallGguf();
  spec.merges.push_back("ab");
  EXPECT_THAT(refusal(spec, StatusCode::kCorrupt), HasSubstr("tokenizer.ggml.merges[3]"));
  spec = SmallGguf();
  spec.merges.push_back("a nope");
  EXPECT_THAT(refusal(spec, StatusCode::kCorrupt), HasSubstr("lacks"));
  spec = SmallGguf();
  spec.tokens[5] = spec.tokens[6];
  EXPECT_THAT(refusal(spec, StatusCode::kCorrupt), HasSubstr("twice"));
  spec = SmallGguf();
  spec.types.pop_back();
  EXPECT_THAT(refusal(spec, StatusCode::kCorrupt), HasSubstr("token_type has 259 entries"));
  spec = SmallGguf();
  spec.scores.assign(3, 0.0f);
  EXPECT_THAT(refusal(spec, StatusCode::kCorrupt), HasSubstr("scores has 3 entries"));
  for (int64_t GgufTokenizerSpec::*field :
       {&GgufTokenizerSpec::bos, &GgufTokenizerSpec::eos, &GgufTokenizerSpec::eot}) {
    spec = SmallGguf();
    spec.*field = 260;
    EXPECT_THAT(refusal(spec, StatusCode::kCorrupt), HasSubstr("is 260, outside the vocabulary of 260"));
    spec.*field = INT64_MIN;
    EXPECT_THAT(refusal(spec, StatusCode::kCorrupt), HasSubstr("outside the vocabulary"));
  }
}

}  // namespace
}  // namespace thermoe
