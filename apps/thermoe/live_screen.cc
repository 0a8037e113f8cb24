// SPDX-License-Identifier: Apache-2.0
#include "live_screen.h"

#include <signal.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <string_view>

#include "interrupt.h"
#include "live_paint.h"
#include "terminal.h"

namespace thermoe {
namespace {

// The second page, no cursor, no wrapping at the last column; and back.
constexpr std::string_view kEnter = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J",
                           kLeave = "\x1b[?2026l\x1b[?7h\x1b[?25h\x1b[0m\x1b[?1049l";
// A terminal that knows these shows what is between them at once.
constexpr std::string_view kBegin = "\x1b[?2026h\x1b[H", kEnd = "\x1b[?2026l";

// Read by signal handlers, on whichever thread.
std::atomic<int> g_fd = -1;
std::atomic<bool> g_changed = false;
static_assert(std::atomic<int>::is_always_lock_free && std::atomic<bool>::is_always_lock_free);
bool g_has_modes = false;
termios g_before, g_during;
pthread_t g_drawer;  // the thread that draws

// What ends a process unless it is handled.
constexpr std::array kFatal = {SIGTERM, SIGHUP,  SIGQUIT, SIGABRT, SIGSEGV, SIGBUS, SIGFPE,  SIGILL,    SIGPIPE,
                               SIGALRM, SIGUSR1, SIGUSR2, SIGXCPU, SIGXFSZ, SIGSYS, SIGTRAP, SIGVTALRM, SIGPROF};
std::array<struct sigaction, kFatal.size()> g_fatal_before;
struct sigaction g_stop_before, g_size_before;

void Write(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t put = write(fd, text.data(), text.size());
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return;  // nobody is there to see it
    text.remove_prefix(static_cast<size_t>(put));
  }
}

// Only what signal handlers may call.
void Enter() {
  if (g_has_modes) tcsetattr(g_fd, TCSANOW, &g_during);
  Write(g_fd, kEnter);
}
void Leave() {
  if (g_fd < 0) return;
  Write(g_fd, kLeave);
  if (g_has_modes) tcsetattr(g_fd, TCSANOW, &g_before);
}

// A handler on another thread would leave the terminal in the middle of a picture: the drawing thread gets the signal
// instead. What a thread did wrong itself ends the process where it stands.
bool PassedOn(int signal_number) {
  const bool own = signal_number == SIGSEGV || signal_number == SIGBUS || signal_number == SIGFPE ||
                   signal_number == SIGILL || signal_number == SIGABRT || signal_number == SIGTRAP ||
                   signal_number == SIGSYS;
  return !own && HandedOn(g_drawer, signal_number);
}

void OnFatal(int signal_number) {
  if (PassedOn(signal_number)) return;
  Leave();
  g_fd = -1;
  struct sigaction action {};
  action.sa_handler = SIG_DFL;
  sigaction(signal_number, &action, nullptr);
  raise(signal_number);
}

// Ctrl-Z: the terminal belongs to the shell until the program comes back.
void OnStop(int signal_number) {
  if (PassedOn(signal_number)) return;
  const int kept = errno;
  Leave();
  kill(getpid(), SIGSTOP);
  Enter();
  g_changed = true;
  errno = kept;
}

void OnSize(int) { g_changed = true; }

// What the program was started to ignore (nohup) stays ignored.
void Handle(int signal_number, void (*handler)(int), struct sigaction* before) {
  if (sigaction(signal_number, nullptr, before) == 0 && before->sa_handler == SIG_IGN) return;
  struct sigaction action {};
  action.sa_handler = handler;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  sigaction(signal_number, &action, before);
}

int Size(int fd, unsigned short winsize::*what, int otherwise) {
  winsize size{};
  return ioctl(fd, TIOCGWINSZ, &size) == 0 && size.*what > 0 ? size.*what : otherwise;
}

}  // namespace

bool CanDraw(int fd) {
  const char* term = std::getenv("TERM");
  const pid_t foreground = tcgetpgrp(fd);  // -1: no terminal that controls this program, so none that stops it
  if (foreground >= 0 && foreground != getpgrp()) return false;
  return IsTerminal(fd) && term != nullptr && *term != '\0' && std::string_view(term) != "dumb";
}

LiveScreen::LiveScreen(int fd) : fd_(fd) {
  g_has_modes = tcgetattr(fd, &g_before) == 0;
  g_during = g_before;
  // What is typed would write over the picture; keys come at once, and reading never waits.
  g_during.c_lflag &= ~static_cast<tcflag_t>(ECHO | ICANON);
  g_during.c_cc[VMIN] = g_during.c_cc[VTIME] = 0;
  struct stat screen {
  }, input{};
  has_keys_ = g_has_modes && IsTerminal(STDIN_FILENO) && fstat(fd, &screen) == 0 && fstat(STDIN_FILENO, &input) == 0 &&
              screen.st_rdev == input.st_rdev;
  g_drawer = pthread_self();
  g_fd = fd;
  g_changed = true;
  for (size_t i = 0; i < kFatal.size(); ++i) Handle(kFatal[i], OnFatal, &g_fatal_before[i]);
  Handle(SIGTSTP, OnStop, &g_stop_before);
  Handle(SIGWINCH, OnSize, &g_size_before);
  BeforeSecondInterrupt(Leave);
  Enter();
}

LiveScreen::~LiveScreen() {
  Leave();
  g_fd = -1;
  BeforeSecondInterrupt(nullptr);
  for (size_t i = 0; i < kFatal.size(); ++i) sigaction(kFatal[i], &g_fatal_before[i], nullptr);
  sigaction(SIGTSTP, &g_stop_before, nullptr);
  sigaction(SIGWINCH, &g_size_before, nullptr);
}

int LiveScreen::width() const { return Size(fd_, &winsize::ws_col, 80); }
int LiveScreen::height() const { return Size(fd_, &winsize::ws_row, 24); }

bool LiveScreen::TakeChange() { return g_changed.exchange(false); }

void LiveScreen::Draw(const std::vector<std::string>& lines) {
  const int columns = width();
  std::string out(kBegin);
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) out += "\r\n";
    out += lines[i];
    // After a full line the cursor stands on its last character, which would be erased.
    if (ColumnsOf(lines[i]) < columns) out += "\x1b[K";
  }
  out += kEnd;
  Write(fd_, out);
}

char LiveScreen::TakeKey() {
  char key = 0;
  return has_keys_ && read(STDIN_FILENO, &key, 1) == 1 ? key : '\0';
}

}  // namespace thermoe
