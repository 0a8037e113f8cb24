// SPDX-License-Identifier: Apache-2.0
// thermoe on a pseudo-terminal, as a person at one would have it.
#pragma once

#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <termios.h>

#include <chrono>

#include "cli_test_util.h"

namespace thermoe {

// thermoe with all three streams on a terminal of that size.
class Terminal {
 public:
  Terminal(const std::vector<std::string>& arguments, int columns, bool no_color, int rows = 24,
           const std::string& term = "xterm") {
    winsize size{};
    size.ws_row = static_cast<unsigned short>(rows);
    size.ws_col = static_cast<unsigned short>(columns);
    child_ = forkpty(&master_, nullptr, nullptr, &size);
    if (child_ != 0) {
      EXPECT_EQ(tcgetattr(master_, &before_), 0);
      return;
    }
    setenv("TERM", term.c_str(), 1);
    setenv("LC_ALL", "C.UTF-8", 1);
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
  void Signal(int number) { EXPECT_EQ(kill(child_, number), 0); }
  void Resize(int columns, int rows) {
    winsize size{};
    size.ws_row = static_cast<unsigned short>(rows);
    size.ws_col = static_cast<unsigned short>(columns);
    EXPECT_EQ(ioctl(master_, TIOCSWINSZ, &size), 0);
  }
  // Whether echo and line editing are as they were at the start.
  bool ModesAsBefore() const {
    termios now{};
    return tcgetattr(master_, &now) == 0 && now.c_lflag == before_.c_lflag && now.c_cc[VMIN] == before_.c_cc[VMIN];
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

  // Waits until the program is stopped (SIGSTOP) and reads what it wrote before.
  bool WaitStopped() {
    int status = 0;
    const bool stopped = waitpid(child_, &status, WUNTRACED) == child_ && WIFSTOPPED(status);
    while (stopped && Waiting(0)) ReadSome();
    return stopped;
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
  bool Waiting(int most_ms) const {
    pollfd waiting{master_, POLLIN, 0};
    return poll(&waiting, 1, most_ms) > 0;
  }
  bool ReadSome() {
    timed_out_ = !Waiting(60000);
    if (timed_out_) return false;
    char buffer[4096];
    const ssize_t got = read(master_, buffer, sizeof(buffer));
    if (got <= 0) return false;
    seen_.append(buffer, static_cast<size_t>(got));
    return true;
  }

  int master_ = -1;
  pid_t child_ = 0;
  termios before_{};
  std::string seen_;
  size_t mark_ = 0;
  bool timed_out_ = false;
};

}  // namespace thermoe
