// SPDX-License-Identifier: Apache-2.0
#include "control/plant/toml_file.h"

#include <gmock/gmock.h>

#include "support/plant_util.h"

namespace thermoe {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;

std::string TextOf(const std::string& written) {
  const TempFile file(written);
  Result<TomlFile> toml = TomlFile::Open(file.path());
  if (!toml.ok()) return "refused: " + toml.status().message();
  const Result<std::string> text = toml->Text("a.key");
  return text.ok() ? *text : text.status().message();
}

TEST(TomlFileTest, TextsMayHaveAnyLetters) {
  const std::string_view kTexts[] = {"café", "Ą ő 中文 😀 ˟", "~e9 and ~~é", "\xc2\xa0 a blank", "'é"};
  for (const std::string_view text : kTexts) {
    const std::string quoted = "\"" + std::string(text) + "\"";
    EXPECT_EQ(TextOf("a.key = " + quoted + "  # à la carte\n"), text);
    EXPECT_EQ(TextOf("\xef\xbb\xbf[a]\nkey = " + quoted), text) << "after a byte order mark";
  }
  EXPECT_EQ(TextOf("a.key = \"\\u007ec3\\u007ea9é\"\n"), "~c3~a9é") << "as an escape says it";
  EXPECT_EQ(TextOf("[a]\nkey = \"\"\"\nun \\\n  été\"\"\"\n"), "un été");
}

// The first of these were assertions that failed or places that "are never reached" in toml++ 3.3.
TEST(TomlFileTest, LettersWhereNoneBelongAreAMistakeLikeOthers) {
  const struct {
    const char *text, *says;
  } kCases[] = {
      {"[[[", "saw '['"},
      {"[a]\nkey = ˟\n", "line 2: "},
      {"a.key = 1x':sѓ\n", "line 1: "},
      {"a.key=\"\"\"?\"\"\\\xef\xbb\xbb", "line 1: "},
      {"a.key=-.'Ey\"Ǉtc", "line 1: "},
      {"# ~\n[ǅ]\n", "saw 'ǅ (U+01C5)'"},
      {"[café]\n", "saw 'é (U+00E9)'"},
      {"[a]\nkey = 5 é\n", "saw 'é (U+00E9)'"},
      {"a.key\xc2\xa0= 5\n", "(U+00A0)'"},
      {"\xc2\xa0schema = 1\n", "(U+00A0)'"},
      {"a.key = \"\\😀\"\n", "😀 (U+1F600)"},
      {"\"éé\" = 1\n\"éé\" = 1\n", "éé"},
  };
  for (const auto& [text, says] : kCases) {
    EXPECT_THAT(TextOf(text), HasSubstr("refused: ")) << text;
    EXPECT_THAT(TextOf(text), HasSubstr(says)) << text;
    EXPECT_THAT(TextOf(text), Not(ContainsRegex("~[0-9a-f]|\\^"))) << text;
    EXPECT_THAT(TextOf(text), HasSubstr("correct the TOML there")) << text;
  }
  EXPECT_THAT(TextOf("[a]\nkey = \"caf\xe9\"\n"), HasSubstr("line 2: is not UTF-8; save the file as such"));
  EXPECT_THAT(TextOf("# é ~^%$?!;&|`@<>*()/\n"), HasSubstr("leave one of these out"));
}

TEST(TomlFileTest, NamesAndArraysThatGoTooDeepAreRefused) {
  std::string dotted = "a";
  for (int i = 0; i < 100000; ++i) dotted += ".a";
  EXPECT_THAT(TextOf(dotted + " = 1\n"), HasSubstr("line 1: there are more than 256 dots in one name or text; shorten it"));
  EXPECT_THAT(TextOf("a.key = " + std::string(100000, '[')), HasSubstr("depth"));
  // The deepest that passes both.
  std::string deep, end;
  for (int i = 0; i < 14; ++i) deep += dotted.substr(0, 2 * 256 + 1) + " = {", end += "}";
  EXPECT_THAT(TextOf(deep.substr(0, deep.size() - 1) + "1" + end.substr(1)), HasSubstr("a.key is missing"));
}

TEST(TomlFileTest, WhatIsUnknownIsNamedAsWritten) {
  const TempFile file("\"clé\" = 1\n");
  const Result<TomlFile> toml = TomlFile::Open(file.path());
  ASSERT_TRUE(toml.ok());
  EXPECT_THAT(toml->CheckAllRead().message(), HasSubstr("clé"));
}

}  // namespace
}  // namespace thermoe
