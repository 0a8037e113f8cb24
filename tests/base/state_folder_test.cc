// SPDX-License-Identifier: Apache-2.0
#include "base/state_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

namespace thermoe {
namespace {

using ::testing::HasSubstr;

TEST(StateFolder, FollowsTheXdgSpecification) {
  const char* old_state = std::getenv("XDG_STATE_HOME");
  const std::string saved = old_state == nullptr ? "" : old_state;
  setenv("XDG_STATE_HOME", "/some/where", 1);
  EXPECT_EQ(*StateFolder(), "/some/where/thermoe");
  setenv("XDG_STATE_HOME", "relative", 1);
  EXPECT_THAT(*StateFolder(), HasSubstr("/.local/state/thermoe"));
  unsetenv("XDG_STATE_HOME");
  if (old_state != nullptr) setenv("XDG_STATE_HOME", saved.c_str(), 1);
}

}  // namespace
}  // namespace thermoe
