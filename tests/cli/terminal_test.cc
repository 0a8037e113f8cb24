// SPDX-License-Identifier: Apache-2.0
// On a pseudo-terminal: colours, NO_COLOR, the interactive mode and Ctrl-C.
#include <gmock/gmock.h>

#include "pty_terminal.h"

namespace thermoe {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(TerminalTest, ColoursOnlyWithoutNoColor) {
  const std::vector<std::string> arguments = {"run", TinyModel(), "-p", "The sea", "-n", "4", "--seed", "1"};
  Terminal coloured(arguments, 80, false);
  EXPECT_EQ(coloured.Finish(), 0);
  EXPECT_THAT(coloured.seen(), HasSubstr("\x1b[2m"));
  Terminal plain(arguments, 80, true);
  EXPECT_EQ(plain.Finish(), 0);
  EXPECT_THAT(plain.seen(), Not(HasSubstr("\x1b")));
  EXPECT_THAT(plain.seen(), HasSubstr("The sea"));  // a terminal sees what is continued
}

TEST(TerminalTest, NarrowTerminalGetsBlocksNotBrokenTables) {
  Terminal narrow({"inspect"}, 40, true);
  EXPECT_EQ(narrow.Finish(), 0);
  EXPECT_THAT(narrow.seen(), HasSubstr("blk.*.ffn_up_exps.weight\r\n"));
}

TEST(TerminalTest, ModelTextCannotSteerTheTerminal) {
  std::string bytes = ReadAll(TinyModel());
  const std::string key = "general.name";
  bytes[bytes.find(key) + key.size() + 4 + 8] = '\x1b';
  const std::string path = ::testing::TempDir() + "thermoe-escape.gguf";
  WriteAll(path, bytes);
  Terminal terminal({"inspect", path}, 80, true);
  EXPECT_EQ(terminal.Finish(), 0);
  EXPECT_THAT(terminal.seen(), Not(HasSubstr("\x1b")));
  EXPECT_THAT(terminal.seen(), HasSubstr("\\x1b"));
  std::filesystem::remove(path);
}

TEST(TerminalTest, InteractiveContinuesAndLeaves) {
  Terminal terminal({"run", "-n", "5", "--greedy"}, 80, true);
  ASSERT_TRUE(terminal.WaitFor("> "));
  terminal.Type("/help\n");
  ASSERT_TRUE(terminal.WaitFor("/reset"));
  ASSERT_TRUE(terminal.WaitFor("\n> "));
  terminal.Type("It was a dark and stormy night\n");
  ASSERT_TRUE(terminal.WaitFor("generated 5 tokens"));
  ASSERT_TRUE(terminal.WaitFor("\n> "));
  terminal.Type("\n");  // go on
  ASSERT_TRUE(terminal.WaitFor("generated 5 tokens"));
  ASSERT_TRUE(terminal.WaitFor("\n> "));
  terminal.Type("/reset\n");
  ASSERT_TRUE(terminal.WaitFor("> "));
  terminal.Type("/nonsense\n");
  ASSERT_TRUE(terminal.WaitFor("no command"));
  terminal.Type("/exit\n");
  EXPECT_EQ(terminal.Finish(), 0);
}

TEST(TerminalTest, InteractiveChat) {
  Terminal terminal({"run", "-n", "4", "--greedy", "--chat-template", "chatml", "--system", "Be brief."}, 80, true);
  ASSERT_TRUE(terminal.WaitFor("chat in chatml"));
  for (int turn = 0; turn < 2; ++turn) {
    ASSERT_TRUE(terminal.WaitFor("> "));
    terminal.Type("Hello there\n");
    ASSERT_TRUE(terminal.WaitFor("generated"));
  }
  terminal.Type("\x04");  // end of input
  EXPECT_EQ(terminal.Finish(), 0);
}

TEST(TerminalTest, InterruptStopsTheTextThenLeaves) {
  Terminal terminal({"run", "-n", "100000", "--ignore-end", "--greedy"}, 80, true);
  ASSERT_TRUE(terminal.WaitFor("> "));
  terminal.Type("The sea\n");
  ASSERT_TRUE(terminal.WaitFor("\r\n"));  // the echo
  ASSERT_TRUE(terminal.WaitFor(" "));     // text is coming
  terminal.Type("\x03");
  ASSERT_TRUE(terminal.WaitFor("cancelled"));
  ASSERT_TRUE(terminal.WaitFor("> "));
  terminal.Type("\x03");
  EXPECT_EQ(terminal.Finish(), 130);
}

TEST(TerminalTest, InterruptEndsAOneShotRun) {
  Terminal terminal({"run", "-p", "The sea", "-n", "100000", "--ignore-end", "--greedy"}, 80, true);
  ASSERT_TRUE(terminal.WaitFor("The sea"));
  terminal.Type("\x03");
  EXPECT_EQ(terminal.Finish(), 130);
}

}  // namespace
}  // namespace thermoe
