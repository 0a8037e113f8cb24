// SPDX-License-Identifier: Apache-2.0
// Shares of a test's cases: together all of them, none twice; what is no share fails.
#include "kernels/case_share.h"

#include <gtest/gtest-spi.h>

#include <cstdlib>
#include <string>
#include <vector>

namespace thermoe {
namespace {

class CaseShares : public testing::Test {
 protected:
  void SetUp() override {
    if (const char* before = std::getenv("THERMOE_CASES")) before_ = before;
  }
  void TearDown() override { before_.empty() ? unsetenv("THERMOE_CASES") : setenv("THERMOE_CASES", before_.c_str(), 1); }

  static std::vector<int> Taken(const char* share) {
    share == nullptr ? unsetenv("THERMOE_CASES") : setenv("THERMOE_CASES", share, 1);
    CaseShare cases;
    std::vector<int> taken;
    for (int i = 0; i < 10; ++i) {
      if (cases.Takes()) taken.push_back(i);
    }
    return taken;
  }

 private:
  std::string before_;
};

TEST_F(CaseShares, AreAllTogether) {
  const std::vector<int> all = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
  EXPECT_EQ(Taken(nullptr), all);
  EXPECT_EQ(Taken("1/1"), all);
  EXPECT_EQ(Taken("1/3"), (std::vector<int>{0, 3, 6, 9}));
  EXPECT_EQ(Taken("2/3"), (std::vector<int>{1, 4, 7}));
  EXPECT_EQ(Taken("3/3"), (std::vector<int>{2, 5, 8}));
  EXPECT_EQ(Taken("11/12"), std::vector<int>{});
}

TEST_F(CaseShares, LaunchOnceWhatOthersLaunchOftener) {
  unsetenv("THERMOE_CASES");
  EXPECT_EQ(CaseShare().Times(20), 20);
  setenv("THERMOE_CASES", "2/3", 1);
  EXPECT_EQ(CaseShare().Times(20), 1);
}

TEST_F(CaseShares, AreSharesOrFail) {
  for (const char* text : {"", "3", "0/3", "4/3", "1/0", "-1/3", "1/3 ", "1/3/5", "a/b"}) {
    setenv("THERMOE_CASES", text, 1);
    SCOPED_TRACE(text);
    EXPECT_NONFATAL_FAILURE(CaseShare(), "want k/n");
  }
}

}  // namespace
}  // namespace thermoe
