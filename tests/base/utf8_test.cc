// SPDX-License-Identifier: Apache-2.0
#include "base/utf8.h"

#include <gtest/gtest.h>

namespace thermoe {
namespace {

constexpr size_t kNone = std::string_view::npos;

TEST(Utf8, AcceptsWellFormedText) {
  EXPECT_EQ(FindInvalidUtf8(""), kNone);
  EXPECT_EQ(FindInvalidUtf8("plain"), kNone);
  EXPECT_EQ(FindInvalidUtf8("caf\xc3\xa9 \xe4\xbd\xa0 \xf0\x9f\x99\x82"), kNone);
  EXPECT_EQ(FindInvalidUtf8(std::string_view("\0x", 2)), kNone);
}

TEST(Utf8, FindsTheFirstMalformedByte) {
  EXPECT_EQ(FindInvalidUtf8("ab\xff"), 2u);
  EXPECT_EQ(FindInvalidUtf8("a\xc0\x80"), 1u);          // overlong NUL
  EXPECT_EQ(FindInvalidUtf8("\xe0\x80\x80"), 0u);       // overlong
  EXPECT_EQ(FindInvalidUtf8("\xed\xa0\x80"), 0u);       // surrogate
  EXPECT_EQ(FindInvalidUtf8("\xf4\x90\x80\x80"), 0u);   // above U+10FFFF
  EXPECT_EQ(FindInvalidUtf8("\xf0\x9f\x99"), 0u);       // cut off
  EXPECT_EQ(FindInvalidUtf8("\x80"), 0u);
}

TEST(Utf8, CompletePrefixStopsBeforeAnUnfinishedCharacter) {
  EXPECT_EQ(CompleteUtf8Prefix("ab\xf0\x9f\x99"), 2u);
  EXPECT_EQ(CompleteUtf8Prefix("ab\xf0\x9f"), 2u);
  EXPECT_EQ(CompleteUtf8Prefix("ab\xe4"), 2u);
  EXPECT_EQ(CompleteUtf8Prefix("ab\xe4\xbd\xa0"), 5u);
  EXPECT_EQ(CompleteUtf8Prefix("ab\x80"), 3u);  // malformed already: waiting would not help
  EXPECT_EQ(CompleteUtf8Prefix(""), 0u);
}

TEST(Utf8, ReplacesEveryMalformedSequence) {
  EXPECT_EQ(ReplaceInvalidUtf8("a\xff" "b"), "a\xef\xbf\xbd" "b");
  EXPECT_EQ(ReplaceInvalidUtf8("a\xe4\xbd"), "a\xef\xbf\xbd");
  EXPECT_EQ(ReplaceInvalidUtf8("\xf0\x9f" "a"), "\xef\xbf\xbd" "a");  // once for what belongs together
  EXPECT_EQ(FindInvalidUtf8(ReplaceInvalidUtf8("\xc3\x28\xa0\xa1\xe2\x28\xa1")), kNone);
}

}  // namespace
}  // namespace thermoe
