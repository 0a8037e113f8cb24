// SPDX-License-Identifier: Apache-2.0
#include "control/plant/toml_file.h"

#include <gmock/gmock.h>

#include "support/plant_util.h"

namespace thermoe {
namespace {

using ::testing::HasSubstr;

std::string TextOf(const std::string& written) {
  const TempFile file(written);
  Result<TomlFile> toml = TomlFile::Open(file.path());
  if (!toml.ok()) return "refused: " + toml.status().message();
  const Result<std::string> text = toml->Text("a.key");
  return text.ok() ? *text : text.status().message();
}

TEST(TomlFileTest, TextsMayHaveAnyLetters) {
  const std::string_view kTexts[] = {"café", "Ą ő 中文 😀 ˟", "Q8 of Q8e9 and Q88é", "\xc2\xa0 a blank", "'é"};
  for (const std::string_view text : kTexts) {
    const std::string quoted = "\"" + std::string(text) + "\"";
    EXPECT_EQ(TextOf("a.key = " + quoted + "  # à la carte\n"), text);
    EXPECT_EQ(TextOf("\xef\xbb\xbf[a]\nkey = " + quoted), text) << "after a byte order mark";
  }
  EXPECT_EQ(TextOf("[a]\nkey = \"\"\"\nun \\\n  été\"\"\"\n"), "un été");
}

// Each was an assertion that failed or a place that "is never reached" in toml++ 3.3.
TEST(TomlFileTest, LettersWhereNoneBelongAreAMistakeLikeOthers) {
  for (const char* text : {"[[[", "[a]\nkey = ˟\n", "a.key = 1x':sѓ\n", "a.key=\"\"\"?\"\"\\\xef\xbb\xbb", "a.key=-.'Ey\"Ǉtc", "a.key = \"\\é\"\n"}) {
    EXPECT_THAT(TextOf(text), HasSubstr("refused: ")) << text;
    EXPECT_THAT(TextOf(text), HasSubstr("correct the TOML there")) << text;
  }
  EXPECT_THAT(TextOf("[a]\nkey = \"caf\xe9\"\n"), HasSubstr("line 2: is not UTF-8; save the file as such"));
}

TEST(TomlFileTest, WhatIsUnknownIsNamedAsWritten) {
  const TempFile file("\"clé\" = 1\n");
  const Result<TomlFile> toml = TomlFile::Open(file.path());
  ASSERT_TRUE(toml.ok());
  EXPECT_THAT(toml->CheckAllRead().message(), HasSubstr("clé"));
}

}  // namespace
}  // namespace thermoe
