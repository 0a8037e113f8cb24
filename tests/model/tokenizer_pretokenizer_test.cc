// SPDX-License-Identifier: Apache-2.0
// Where each named pre-tokeniser cuts, on texts chosen to tell them apart; and that the two merge loops are one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/random.h"
#include "model/bpe.h"
#include "model/byte_level.h"
#include "model/pretokenizer.h"
#include "model/tokenizer_fixtures.h"

namespace thermoe {
namespace {

using ::testing::HasSubstr;

std::vector<std::string> Cut(std::string_view name, std::string_view text) {
  const NamedPreTokenizer* named = FindNamedPreTokenizer(name);
  EXPECT_NE(named, nullptr) << name;
  PreTokenizer pretokenizer;
  for (const std::string_view pattern : named->patterns) {
    auto regex = Regex::Compile(pattern);
    EXPECT_TRUE(regex.ok()) << regex.status().message();
    pretokenizer.Add(SplitStage{*regex});
  }
  Words words;
  const Status status = pretokenizer.Split(text, true, &words);
  EXPECT_TRUE(status.ok()) << status.message();
  return {words.views.begin(), words.views.end()};
}

using Strings = std::vector<std::string>;

TEST(PreTokenizerTest, CutsWhereExpected) {
  const struct {
    const char* name;
    const char* text;
    Strings words;
  } rows[] = {
      // Contractions, lower and upper case.
      {"gpt-2", "it's IT'S we'll", {"it", "'s", " IT", "'", "S", " we", "'ll"}},
      {"qwen2", "it's IT'S we'll", {"it", "'s", " IT", "'S", " we", "'ll"}},
      {"llama-bpe", "I'VE", {"I", "'VE"}},
      {"gpt-4o", "it's McDONALD's", {"it's", " Mc", "DONALD's"}},
      // Digits: all, one by one, in threes.
      {"gpt-2", "x 12345", {"x", " 12345"}},
      {"qwen2", "x 123", {"x", " ", "1", "2", "3"}},
      {"llama-bpe", "x 12345", {"x", " ", "123", "45"}},
      {"starcoder", "v10", {"v", "1", "0"}},
      {"default", "123456", {"123", "456"}},
      {"deepseek-v3", "1234", {"123", "4"}},
      {"deepseek-llm", "a 12b", {"a", " ", "12", "b"}},
      // Line ends and runs of white space.
      {"qwen2", "a\r\n\r\nb", {"a", "\r\n\r\n", "b"}},
      {"gpt-2", "a\r\n\r\nb", {"a", "\r\n\r", "\n", "b"}},
      {"qwen2", "a  \n  b", {"a", "  \n", " ", " b"}},
      {"gpt-2", "a   b  ", {"a", "  ", " b", "  "}},
      {"qwen2", "x;\n\ny", {"x", ";\n\n", "y"}},
      {"deepseek-llm", "a\n\nb  ", {"a", "\n", "\n", "b", "  "}},
      {"bailingmoe", "a\n\nb", {"a", "\n\n", "b"}},
      {"seed-coder", "x;\ny", {"x", ";", "\n", "y"}},
      {"tekken", "x//\ny", {"x", "//\n", "y"}},
      // A word takes the one character before it along, whatever it is; GPT-2's takes only a space.
      {"qwen2", "(foo) _bar", {"(foo", ")", " _", "bar"}},
      {"gpt-2", "(foo) _bar", {"(", "foo", ")", " _", "bar"}},
      // CJK, marks, cased letters, punctuation.
      {"qwen2", "你好，world。", {"你好", "，world", "。"}},
      {"deepseek-v3", "你好，world。 (x", {"你好", "，", "world", "。", " (", "x"}},
      {"deepseek-llm", "你好，world。", {"你好", "，", "world", "。"}},
      {"qwen2", "cafe\u0301s", {"cafe", "\u0301s"}},
      {"qwen35", "cafe\u0301s", {"cafe\u0301s"}},
      {"gpt-4o", "helloWorld HTTPServer", {"hello", "World", " HTTPServer"}},
      {"tekken", "it's", {"it", "'s"}},
      {"falcon", "a`b=c", {"a", "`", "b", "=", "c"}},
      {"bloom", "a,b c", {"a", ",", "b", " c"}},
      // White space as Unicode has it: U+00A0 is, U+200B and (since 6.3) U+180E are not.
      {"gpt-2", "a\u00a0\u00a0b", {"a", "\u00a0", "\u00a0", "b"}},
      {"gpt-2", "a\u180e\u200bb", {"a", "\u180e\u200b", "b"}},
      {"jais-2", "a     b", {"a", "    ", " b"}},
      {"viking", "a 12.", {"a", " ", "1", "2", "."}},
      {"deepseek-coder", "f(x) 12\n", {"f", "(", "x", ")", " ", "1", "2", "\n"}},
  };
  for (const auto& row : rows) EXPECT_EQ(Cut(row.name, row.text), row.words) << row.name << ": " << row.text;
}

TEST(PreTokenizerTest, AliasesAndSettings) {
  for (const char* name : {"llama3", "llama-v3", "llama-bpe"}) {
    EXPECT_TRUE(FindNamedPreTokenizer(name)->ignore_merges);
    EXPECT_TRUE(FindNamedPreTokenizer(name)->adds_bos);
  }
  EXPECT_FALSE(FindNamedPreTokenizer("dbrx")->adds_bos);
  EXPECT_EQ(FindNamedPreTokenizer("qwen3"), nullptr);
  EXPECT_THAT(NamedPreTokenizerNames(), HasSubstr("gpt-2, olmo, "));
  EXPECT_EQ(NameOfPattern(Gpt2Pattern()), "gpt-2");
  EXPECT_EQ(NameOfPattern("x"), "");
}

TEST(PreTokenizerTest, WordsJoinToTheText) {
  Random random(23);
  for (const char* name : {"default", "gpt-2", "llama-bpe", "gpt-4o", "deepseek-llm", "deepseek-v3", "jais-2"}) {
    for (int i = 0; i < 200; ++i) {
      const std::string text = RandomText(&random, 60);
      std::string joined;
      for (const std::string& word : Cut(name, text)) {
        EXPECT_FALSE(word.empty());
        joined += word;
      }
      ASSERT_EQ(joined, text) << name;
    }
  }
}

TEST(RegexTest, RefusesWhatPcre2ReadsDifferently) {
  for (const char* pattern : {"[a&&[b]]", "[a[b]]", "(", "a{2,1}", "\\C", "(?<=a*)b"}) {
    const auto regex = Regex::Compile(pattern);
    ASSERT_FALSE(regex.ok()) << pattern;
    EXPECT_EQ(regex.status().code(), StatusCode::kUnsupported);
  }
  EXPECT_FALSE(Regex::Compile(std::string(100'000, 'a')).ok());
  EXPECT_TRUE(Regex::Compile("[]a]+|[^]]").ok());
}

TEST(RegexTest, GivesUpOnCatastrophicPatterns) {
  const auto regex = Regex::Compile("(?:a+)+b|(a|a)*c");
  ASSERT_TRUE(regex.ok());
  RegexScratch scratch;
  RegexMatch match;
  const Status status = regex->Find(std::string(5000, 'a'), 0, &scratch, &match);
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted) << status.message();
}

TEST(RegexTest, DeepBacktrackingNeedsNoStack) {
  const auto regex = Regex::Compile("(?:a|b)*");  // a frame a character
  ASSERT_TRUE(regex.ok());
  RegexScratch scratch;
  RegexMatch match;
  const std::string text = Repeat("ab", 100'000);
  const Status status = regex->Find(text, 0, &scratch, &match);
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(match.end, text.size());
}

TEST(ByteLevelTest, MapsEveryByte) {
  EXPECT_EQ(ToByteLevel(" the\n"), "ĠtheĊ");
  for (int b = 0; b < 256; ++b) {
    const std::string byte(1, static_cast<char>(b));
    EXPECT_EQ(FromByteLevel(ToByteLevel(byte)), byte);
  }
  EXPECT_EQ(FromByteLevel(" "), std::nullopt);
  EXPECT_EQ(FromByteLevel("你"), std::nullopt);
  EXPECT_EQ(FromByteLevel("\xc4"), std::nullopt);
}

// Random merges over an alphabet of four, on words of all lengths around the limit where the loop changes.
TEST(MergeTest, ScanAndHeapAgree) {
  Random random(29);
  for (int round = 0; round < 200; ++round) {
    MergeTable table(40);
    for (uint32_t rank = 0; rank < 40; ++rank) {
      const auto left = static_cast<TokenId>(random.Below(20)), right = static_cast<TokenId>(random.Below(20));
      // Few ranks: equal ones must fall to the leftmost.
      table.Insert(left, right, {rank / 4, static_cast<TokenId>(random.Below(20))}, false);
    }
    MergeScratch scan, heap;
    const auto length = static_cast<uint32_t>(1 + random.Below(120));
    for (uint32_t i = 0; i < length; ++i) scan.symbols.push_back({i, i + 1, static_cast<TokenId>(random.Below(4))});
    heap.symbols = scan.symbols;
    const auto outcome = [&](const MergeSymbol& a, const MergeSymbol& b) { return table.Find(a.id, b.id); };
    MergeByScan(&scan, outcome);
    MergeByHeap(&heap, outcome);
    ASSERT_EQ(scan.symbols.size(), heap.symbols.size());
    for (size_t i = 0; i < scan.symbols.size(); ++i) {
      ASSERT_EQ(scan.symbols[i].id, heap.symbols[i].id);
      ASSERT_EQ(scan.symbols[i].end, heap.symbols[i].end);
    }
  }
}

}  // namespace
}  // namespace thermoe
