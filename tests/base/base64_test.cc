// SPDX-License-Identifier: Apache-2.0
#include "base/base64.h"

#include <gtest/gtest.h>

#include "base/random.h"

namespace thermoe {
namespace {

std::string Encoded(std::string_view text) {
  std::string out;
  AppendBase64({reinterpret_cast<const uint8_t*>(text.data()), text.size()}, &out);
  return out;
}

TEST(Base64, TheExamplesOfItsDefinition) {
  EXPECT_EQ(Encoded(""), "");
  EXPECT_EQ(Encoded("f"), "Zg==");
  EXPECT_EQ(Encoded("fo"), "Zm8=");
  EXPECT_EQ(Encoded("foo"), "Zm9v");
  EXPECT_EQ(Encoded("foobar"), "Zm9vYmFy");
}

TEST(Base64, ComesBackAndRefusesWhatItDoesNotWrite) {
  Random random(1);
  for (size_t length = 0; length < 50; ++length) {
    std::vector<uint8_t> bytes(length);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random.Next());
    std::string text;
    AppendBase64(bytes, &text);
    EXPECT_EQ(DecodeBase64(text), bytes);
  }
  for (const char* bad : {"Z", "Zg=", "Zg", "Z===", "Zh==", "Zm9=", "Zg==Zg==", "Zm9\n", "====", "=m9v"}) {
    EXPECT_FALSE(DecodeBase64(bad).has_value()) << bad;
  }
}

}  // namespace
}  // namespace thermoe
