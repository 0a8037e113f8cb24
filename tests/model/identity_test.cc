// SPDX-License-Identifier: Apache-2.0
#include "model/identity.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

namespace thermoe {
namespace {

std::string HashOf(const std::vector<std::string>& texts) {
  IdentityHash hash;
  for (const std::string& text : texts) hash.Add(std::as_bytes(std::span(text)));
  return hash.Hex();
}

TEST(Identity, IsStable) {
  // These stand in records on disk: a change of the hash must be a decision.
  EXPECT_EQ(HashOf({}).size(), 32u);
  EXPECT_EQ(HashOf({"thermoe"}), HashOf({"thermoe"}));
  EXPECT_EQ(HashOf({"thermoe"}), "51f317ff33777722b3b5a3d81643fbbc");
}

TEST(Identity, TellsNeighboursApart) {
  std::set<std::string> seen = {HashOf({}), HashOf({""}), HashOf({"ab", "c"}), HashOf({"a", "bc"}), HashOf({"abc"})};
  EXPECT_EQ(seen.size(), 5u);
  std::string text(100, '\0');
  for (size_t byte = 0; byte < text.size(); ++byte) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string changed = text;
      changed[byte] = static_cast<char>(changed[byte] ^ (1 << bit));
      EXPECT_TRUE(seen.insert(HashOf({changed})).second);
    }
  }
  for (size_t length = 1; length < 100; ++length) EXPECT_TRUE(seen.insert(HashOf({text.substr(0, length)})).second);
}

TEST(Identity, SamplesLargeBlocksFromEndToEnd) {
  std::vector<std::byte> block(5 << 20);
  const auto sampled = [&] {
    IdentityHash hash;
    hash.AddSampled(block);
    return hash.Hex();
  };
  const std::string before = sampled();
  EXPECT_EQ(sampled(), before);
  block.front() = std::byte{1};
  EXPECT_NE(sampled(), before);
  block.front() = std::byte{0};
  block.back() = std::byte{1};
  EXPECT_NE(sampled(), before);
  block.back() = std::byte{0};
  block.push_back(std::byte{0});
  EXPECT_NE(sampled(), before);
}

}  // namespace
}  // namespace thermoe
