// SPDX-License-Identifier: Apache-2.0
// On a pseudo-terminal: colours, NO_COLOR, the interactive mode and Ctrl-C.
#include <gmock/gmock.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>

#include <chrono>

#include "cli_test_util.h"

namespace thermoe {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// thermoe with all three streams on a terminal of `columns`.
class Terminal {
 public:
  Terminal(const std::vector<std::string>& arguments, int columns, bool no_color) {
    winsize size{};
    size.ws_row = 24;
    size.ws_col = static_cast<unsigned short>(columns);
    child_ = forkpty(&master_, nullptr, nullptr, &size);
    if (child_ != 0) return;
    setenv("TERM", "xterm", 1);
    no_color ? setenv("NO_COLOR", "1", 1) : unsetenv("NO_COLOR");
    unsetenv("THERMOE_MODEL");
    std::vector<char*> argv = {const_cast<char*>(THERMOE_APP)};
    for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    execv(THERMOE_APP, argv.data());
    _exit(127);
  }
  ~Terminal() {
    if (child_ > 0) kill(child_, SIGKILL), waitpid(child_, nullptr, 0);
    close(master_);
  }

  void Type(const std::string& text) {
    EXPECT_EQ(write(master_, text.data(), text.size()), static_cast<ssize_t>(text.size()));
  }

  // Reads until `text` was seen (in what came since the last call) or a minute has passed.
  bool WaitFor(const std::string& text) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (seen_.find(text, mark_) == std::string::npos) {
      if (std::chrono::steady_clock::now() > end || !ReadSome()) return false;
    }
    mark_ = seen_.find(text, mark_) + text.size();
    return true;
  }

  // Reads to the end; the exit code.
  int Finish() {
    while (ReadSome()) {
    }
    if (timed_out_) kill(child_, SIGKILL);
    int status = 0;
    waitpid(child_, &status, 0);
    child_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

  const std::string& seen() const { return seen_; }

 private:
  bool ReadSome() {
    pollfd waiting{master_, POLLIN, 0};
    timed_out_ = poll(&waiting, 1, 60000) <= 0;
    if (timed_out_) return false;
    char buffer[4096];
    const ssize_t got = read(master_, buffer, sizeof(buffer));
    if (got <= 0) return false;
    seen_.append(buffer, static_cast<size_t>(got));
    return true;
  }

  int master_ = -1;
  pid_t child_ = 0;
  std::string seen_;
  size_t mark_ = 0;
  bool timed_out_ = false;
};

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
